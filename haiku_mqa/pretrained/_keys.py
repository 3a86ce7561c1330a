"""The keys of a ``config.json``, none of which is passed over in silence."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

from haiku_mqa._arguments import is_number
from haiku_mqa.errors import FormatError
from haiku_mqa.pretrained._bounds import in_one_line

# Larger than any size of a decoder, and small enough for a table of so many numbers;
# and more layers than any has, few enough to loop over.
_MOST = 2**24
MOST_LAYERS = 2**16

NEEDED: Any = ...  # which JSON has not

# Keys that say where a model came from, what text it reads, how it was first drawn
# or how one samples from it: nothing that its logits depend on.
_IGNORED = frozenset(
    {
        "_name_or_path",
        "architectures",
        "auto_map",
        "bad_words_ids",
        "begin_suppress_tokens",
        "bos_token_id",
        "decoder_start_token_id",
        "diversity_penalty",
        "do_sample",
        "dtype",
        "early_stopping",
        "encoder_no_repeat_ngram_size",
        "eos_token_id",
        "exponential_decay_length_penalty",
        "finetuning_task",
        "forced_bos_token_id",
        "forced_eos_token_id",
        "id2label",
        "initializer_range",
        "keys_to_ignore_at_inference",
        "label2id",
        "length_penalty",
        "max_length",
        "min_length",
        "model_type",
        "no_repeat_ngram_size",
        "num_beam_groups",
        "num_beams",
        "num_labels",
        "num_return_sequences",
        "output_attentions",
        "output_hidden_states",
        "output_scores",
        "pad_token_id",
        "prefix",
        "problem_type",
        "remove_invalid_values",
        "repetition_penalty",
        "return_dict",
        "return_dict_in_generate",
        "sep_token_id",
        "suppress_tokens",
        "task_specific_params",
        "temperature",
        "tf_legacy_loss",
        "tokenizer_class",
        "top_k",
        "top_p",
        "torch_dtype",
        "torchscript",
        "transformers_version",
        "typical_p",
        "use_cache",
    }
)
# Keys of every family that are understood with the values that change nothing.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "add_cross_attention": (False,),
    "chunk_size_feed_forward": (0,),
    "cross_attention_hidden_size": (None,),
    "is_decoder": (False, True),
    "is_encoder_decoder": (False,),
    "pruned_heads": ({}, None),
    "tie_encoder_decoder": (False,),
    "use_bfloat16": (False,),
}


class Keys:
    """A mapping of a stranger's, read key by key, that knows what was not read.

    Example:
      >>> keys = Keys({"hidden_size": 64, "use_cache": True, "num_experts": 8})
      >>> keys.count("hidden_size")
      64
      >>> keys.finish()
      Traceback (most recent call last):
      ValueError: num_experts = 8 is not supported: the decoder that it asks for is \
not known
    """

    def __init__(self, values: Mapping[str, Any], inside: str = ""):
        """Begins to read.

        Args:
          values: Keys to values, as JSON has them.
          inside: What the mapping is the value of; empty for a whole file.
        """
        self._values = values
        self._inside = inside
        self._read: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return self._values.get(name) is not None

    def count(self, name: str, default: int = NEEDED, *, most: int = _MOST) -> int:
        """Returns a whole number of at least one; the default where it is null."""
        value = self._take(name, default)
        if type(value) is not int or not 1 <= value <= most:
            self._refuse(name, value, f"a whole number from 1 to {most}")
        return value

    def count_or_none(self, name: str, default: int | None) -> int | None:
        """Returns a whole number, or ``None`` for a null that stands there."""
        absent = name not in self if name in self._values else default is None
        if absent:
            self._read.add(name)
            return None
        return self.count(name, NEEDED if default is None else default)

    def whole(self, name: str, default: int, *, most: int = _MOST) -> int:
        """Returns a whole number of at least zero; the default where it is null."""
        value = self._take(name, default)
        if type(value) is not int or not 0 <= value <= most:
            self._refuse(name, value, f"a whole number from 0 to {most}")
        return value

    def number(
        self, name: str, default: float = NEEDED, *, above: float = 0.0
    ) -> float:
        """Returns a finite number above another; the default where it is null."""
        value = self._take(name, default)
        if not is_number(value) or value <= above:
            self._refuse(name, value, f"a number > {above:g}")
        return float(value)

    def number_or_none(self, name: str, default: float | None) -> float | None:
        """Returns a number above zero, or ``None`` for a null that stands there."""
        absent = name not in self if name in self._values else default is None
        if absent:
            self._read.add(name)
            return None
        return self.number(name, NEEDED if default is None else default)

    def rate(self, name: str, default: float) -> float:
        """Returns a share that is dropped, in [0, 1)."""
        value = self._take(name, default)
        if not is_number(value) or not 0 <= value < 1:
            self._refuse(name, value, "in [0, 1)")
        return float(value)

    def flag(self, name: str, default: bool = NEEDED) -> bool:
        """Returns true or false; the default where it is null."""
        value = self._take(name, default)
        if not isinstance(value, bool):
            self._refuse(name, value, "true or false")
        return value

    def choice(
        self, name: str, choices: Mapping[str, Any], default: str = NEEDED
    ) -> Any:
        """Returns what one of several texts stands for."""
        value = self._take(name, default)
        if not isinstance(value, str):
            self._refuse(name, value, f"one of {', '.join(map(repr, choices))}")
        if value not in choices:
            self._refuse_unsupported(name, value, choices)
        return choices[value]

    def texts(self, name: str, length: int) -> list[str] | None:
        """Returns so many texts, or ``None`` where there is no such key."""
        value = self._take(name, None)
        if value is None:
            return None
        right = isinstance(value, list) and len(value) == length
        if not right or not all(isinstance(item, str) for item in value):
            self._refuse(name, value, f"a list of {length} texts")
        return value

    def bits(self, name: str, length: int) -> list[int] | None:
        """Returns so many zeros and ones, or ``None`` where there is no such key."""
        value = self._take(name, None)
        if value is None:
            return None
        right = isinstance(value, list) and len(value) == length
        if not right or not all(type(item) is int and item in (0, 1) for item in value):
            self._refuse(name, value, f"a list of {length} zeros and ones")
        return value

    def numbers(self, name: str) -> tuple[float, ...]:
        """Returns a list of finite numbers above zero, which is needed."""
        value = self._take(name, NEEDED)
        if not isinstance(value, list) or not all(
            is_number(item) and item > 0 for item in value
        ):
            self._refuse(name, value, "a list of numbers > 0")
        return tuple(map(float, value))

    def only(self, name: str, *allowed: Any) -> None:
        """Refuses all values of a key, if it is there, but some that change nothing."""
        if name not in self._values:
            return
        self._read.add(name)
        value = self._values[name]
        # Python takes 1 for True, which JSON does not.
        if not any(type(value) is type(a) and value == a for a in allowed):
            self._refuse_unsupported(name, value, allowed)

    def skip(self, name: str) -> None:
        """Passes over a key that changes nothing, whatever its value."""
        self._read.add(name)

    def inside(self, name: str) -> Keys | None:
        """Returns the keys inside a key's value; ``None`` where it is null."""
        value = self._take(name, None)
        if value is None:
            return None
        if not isinstance(value, Mapping):
            self._refuse(name, value, "a mapping or null")
        return Keys(value, self._path(name))

    def finish(self) -> None:
        """Refuses what was not read, and is not known to change nothing.

        Raises:
          ValueError: There is such a key; all are named with their values.
        """
        if not self._inside:
            self._read |= _IGNORED
            for name, allowed in _NEUTRAL.items():
                if name not in self._read:
                    self.only(name, *allowed)
        left = [
            f"{in_one_line(self._path(name)).strip(chr(39))} = {in_one_line(value)}"
            for name, value in self._values.items()
            if name not in self._read
        ]
        if left:
            what = "is" if len(left) == 1 else "are"
            raise ValueError(
                f"{', '.join(left)} {what} not supported: the decoder that "
                f"{'it asks' if len(left) == 1 else 'they ask'} for is not known"
            )

    def _take(self, name: str, default: Any) -> Any:
        self._read.add(name)
        value = self._values.get(name)
        value = default if value is None else value
        if value is NEEDED:
            raise FormatError(f"{self._path(name)} is missing")
        return value

    def _path(self, name: str) -> str:
        return f"{self._inside}.{name}" if self._inside else name

    def _refuse_unsupported(
        self, name: str, value: Any, allowed: Iterable[Any]
    ) -> NoReturn:
        raise ValueError(
            f"{self._path(name)} = {in_one_line(value)} is not supported; "
            f"allowed: {', '.join(map(repr, allowed))}"
        )

    def _refuse(self, name: str, value: Any, allowed: str) -> NoReturn:
        raise FormatError(
            f"{self._path(name)} must be {allowed}, got {in_one_line(value)}"
        )
