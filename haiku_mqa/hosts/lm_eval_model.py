"""Models for lm-evaluation-harness: its name for them is ``haiku-mqa``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

# The harness looks for its own models only where there is none yet, and so never where
# one of another package came first.
import lm_eval.models  # noqa: F401
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from haiku_mqa._compiling import prepare_jax
from haiku_mqa.config import DType
from haiku_mqa.generation import Sampling, generate
from haiku_mqa.hosts._likelihoods import score
from haiku_mqa.quantization import Quantization
from haiku_mqa.streaming import StoppedText, text_decoder
from haiku_mqa.zoo.loading import load_pretrained

_NEW_TOKENS = 256
_KNOWN = ("until", "max_gen_toks", "do_sample", "temperature", "top_k", "top_p", "seed")


@register_model("haiku-mqa", "haiku_mqa")
class HaikuLM(TemplateLM):
    """A model of this package that the harness measures.

    Example:
      ``lm_eval --model haiku-mqa --model_args pretrained=smollm2-135m --tasks …``
    """

    def __init__(
        self,
        pretrained: str,
        *,
        batch_size: int | str = 16,
        max_length: int | str | None = None,
        dtype: DType = "float32",
        quantize: Quantization | None = None,
        prefix_token_id: int | str | None = None,
        max_batch_size: int | str | None = None,
        device: str | None = None,
    ):
        """Loads a model.

        Args:
          pretrained: A name of the zoo, a folder or a file.
          batch_size: How many texts are read at once; ``auto`` is 16.
          max_length: In tokens; the model's own context if ``None``.
          dtype: What weights are held in and computed with.
          quantize: ``int8`` holds matrices in a byte a number.
          prefix_token_id: What comes before a text that has nothing before it; the
            model's token for a beginning if ``None``, else that for an end.
          max_batch_size: Of the harness; no batch is larger.
          device: Of the harness; jax has chosen one.

        Raises:
          ValueError: There is no such model, it has no tokenizer, or a number is out
            of what is allowed.
        """
        super().__init__()
        del device
        prepare_jax()
        loaded = load_pretrained(pretrained, dtype=dtype, quantize=quantize)
        if loaded.tokenizer is None:
            raise ValueError(
                f"model {pretrained!r} has no tokenizer, and reads no text"
            )
        self._name = pretrained
        self._model, self._params = loaded.model, loaded.params
        self._tokenizer: Any = loaded.tokenizer
        self._ends = tuple(getattr(loaded.tokenizer, "end_tokens", ()))
        is_auto = str(batch_size).startswith("auto")
        self._rows = 16 if is_auto else _whole("batch_size", batch_size)
        if max_batch_size is not None:
            self._rows = min(self._rows, _whole("max_batch_size", max_batch_size))
        context = loaded.model.config.max_length
        self.max_length = context
        if max_length is not None:
            self.max_length = _whole("max_length", max_length)
        if self.max_length > context:
            raise ValueError(
                f"max_length must be at most the model's context of {context}, got "
                f"{self.max_length}"
            )
        self._prefix = None if prefix_token_id is None else int(prefix_token_id)

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text, or the one that begins one."""
        return self._ends[0] if self._ends else self.prefix_token_id

    @property
    def prefix_token_id(self) -> int:
        """What comes before a text that has nothing before it.

        Raises:
          ValueError: The model has no such token, and none was given.
        """
        bos = getattr(self._tokenizer, "bos_token", None)
        for token in (self._prefix, bos, *self._ends):
            if token is not None:
                return token
        raise ValueError(
            f"model {self._name!r} has no token that begins or ends a text: "
            "give prefix_token_id"
        )

    @property
    def tokenizer_name(self) -> str:
        """What the harness keeps its cache of requests apart by."""
        return self._name.replace("/", "__")

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        """Returns the tokens of a text, and none around it.

        Args:
          string: The text.
          add_special_tokens: Of the harness: as with its own models, none are added.
          kwargs: Of the harness.
        """
        del add_special_tokens, kwargs
        if hasattr(self._tokenizer, "encode_chat"):
            return list(self._tokenizer.encode(string, add_special_tokens=False))
        return list(self._tokenizer.encode(string))

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Returns the log-likelihood of whole texts, in windows of the context.

        Args:
          requests: Each with one text.
          disable_tqdm: Whether no progress is shown.
        """
        windows: list[tuple[int, tuple[list[int], list[int]]]] = []
        for i, request in enumerate(requests):
            (text,) = request.args
            rolling = get_rolling_token_windows(
                token_list=self.tok_encode(text),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            windows += [(i, make_disjoint_window(window)) for window in rolling]
        scored = self._score([window for _, window in windows], disable_tqdm)
        totals = [0.0] * len(requests)
        for (i, _), (log_likelihood, _) in zip(windows, scored, strict=True):
            totals[i] += log_likelihood
        return totals

    def generate_until(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[str]:
        """Returns what comes after texts, up to the first of some others.

        Args:
          requests: Each with a text, and how the rest of it is chosen.
          disable_tqdm: Whether no progress is shown.

        Raises:
          ValueError: A choice is asked for that is not known here.
        """
        answers = [""] * len(requests)
        alike: dict[str, list[int]] = {}
        asked: list[Any] = [request.args for request in requests]
        for i, (_, how) in enumerate(asked):
            alike.setdefault(repr(sorted(how.items())), []).append(i)
        with tqdm(total=len(requests), disable=disable_tqdm, desc="generating") as bar:
            for group in alike.values():
                self._generate(asked, group, answers, bar)
        return answers

    def _generate(
        self,
        asked: Sequence[Any],
        group: list[int],
        answers: list[str],
        bar: Any,
    ) -> None:
        how = asked[group[0]][1]
        sampling, until, new_tokens = self._manner(how)
        room = self.max_length - new_tokens
        texts = {i: self.tok_encode(asked[i][0])[-room:] for i in group}
        order = sorted(group, key=lambda i: -len(texts[i]))
        for begin in range(0, len(order), self._rows):
            chosen = order[begin : begin + self._rows]
            result = generate(
                self._model,
                self._params,
                [texts[i] or [self.prefix_token_id] for i in chosen],
                max_new_tokens=new_tokens,
                sampling=sampling,
                rng=None if sampling.is_greedy else _key(how.get("seed", 0)),
                end_tokens=self._ends,
                stop=until,
                tokenizer=self._tokenizer if until else None,
            )
            for i, tokens in zip(chosen, result.tokens, strict=True):
                answers[i] = self._text(tokens, until)
                self.cache_hook.add_partial("generate_until", asked[i], answers[i])
            bar.update(len(chosen))

    def _text(self, tokens: Iterable[int], until: Sequence[str]) -> str:
        text = StoppedText(text_decoder(self._tokenizer), until)
        return "".join(map(text.push, tokens)) + text.finish()

    def _manner(self, how: dict[str, Any]) -> tuple[Sampling, tuple[str, ...], int]:
        unknown = [name for name in how if name not in _KNOWN]
        if unknown:
            raise ValueError(
                f"a task asks for {unknown[0]}={how[unknown[0]]!r}; what is known "
                f"here: {', '.join(_KNOWN)}"
            )
        until = how.get("until") or ()
        until = (until,) if isinstance(until, str) else tuple(until)
        new_tokens = int(how.get("max_gen_toks", _NEW_TOKENS))
        if not 1 <= new_tokens < self.max_length:
            raise ValueError(
                f"max_gen_toks must be from 1 to {self.max_length - 1}, less than the "
                f"context, got {new_tokens}"
            )
        is_greedy = not how.get("do_sample", how.get("temperature", 0) > 0)
        sampling = Sampling(
            temperature=0.0 if is_greedy else how.get("temperature", 1.0),
            top_k=how.get("top_k"),
            top_p=how.get("top_p"),
        )
        return sampling, tuple(text for text in until if text), new_tokens

    def _loglikelihood_tokens(
        self,
        requests: list[tuple[tuple[str, str], list[int], list[int]]],
        disable_tqdm: bool = False,
        **kwargs: Any,
    ) -> list[tuple[float, bool]]:
        del kwargs
        scored = self._score(
            [(context, end) for _, context, end in requests], disable_tqdm
        )
        for (pair, _, _), answer in zip(requests, scored, strict=True):
            self.cache_hook.add_partial("loglikelihood", pair, answer)
        return scored

    def _score(
        self, pairs: Iterable[tuple[list[int], list[int]]], disable_tqdm: bool
    ) -> list[tuple[float, bool]]:
        # One more than the context: the last is told of, and not read.
        texts = [
            ([*context, *end][-(self.max_length + 1) :], min(len(end), self.max_length))
            for context, end in pairs
        ]
        answers: list[tuple[float, bool]] = [(0.0, True)] * len(texts)
        said = [i for i, (_, end) in enumerate(texts) if end]  # nothing is certain
        scored = score(
            self._model, self._params, [texts[i] for i in said], batch_size=self._rows
        )
        for i, (log_likelihood, is_greedy) in tqdm(
            scored, total=len(said), disable=disable_tqdm, desc="reading"
        ):
            answers[said[i]] = (log_likelihood, is_greedy)
        return answers


def _whole(name: str, value: int | str) -> int:
    try:
        number = int(value)
    except ValueError:
        number = 0
    if number < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
    return number


def _key(seed: int) -> Any:
    import jax

    return jax.random.key(seed)
