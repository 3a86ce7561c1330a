"""What a run is, as plain numbers and names that a JSON file can hold."""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, cast, get_args

from haiku_mqa._arguments import is_number, whole_number
from haiku_mqa.config import DecoderConfig, DType
from haiku_mqa.errors import unknown_name
from haiku_mqa.text.tokenizer import TokenizerKind
from haiku_mqa.training.optimizer_config import OptimizerConfig

Packing = Literal["windows", "documents"]
Loader = Literal["memory", "grain"]

_RECIPES = Path(__file__).parent.parent / "recipes"
# These follow from others, and so are written down only where they were given.
_DERIVED = ("key_size", "value_size", "max_length")
_MODEL = tuple(
    field.name
    for field in dataclasses.fields(DecoderConfig)
    if field.name != "vocab_size"
)
_SMALLEST_BPE = 257  # the bytes, and the token that ends a text


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What a run reads, and in what pieces.

    Attributes:
      source: A file, a folder or a ``.jsonl`` file, as ``read_corpus`` takes it; the
        corpus in the package if ``None``.
      tokenizer: ``"characters"``, ``"bytes"`` or ``"bpe"``, made from the corpus.
      vocab_size: V, for ``"bpe"`` alone, which needs it.
      validation: The share of characters, at the end, that is held out.
      packing: ``"windows"`` cuts rows anywhere out of the whole text;
        ``"documents"`` lays whole documents into rows, and none sees another.
      loader: ``"memory"`` makes a batch when it is asked for, ``"grain"`` ahead of
        time (needs the extra ``grain``). The batches are the same.
      seq_len: T, tokens in a row.
      batch_size: B, rows in a batch.
      eval_batch_size: Rows read at once for validation; ``batch_size`` if ``None``.

    Raises:
      ValueError: A field is out of what is allowed; the message names it, its
        value, and what is.

    Example:
      >>> DataConfig(tokenizer="bpe", vocab_size=1024).seq_len
      128
      >>> DataConfig(tokenizer="word")
      Traceback (most recent call last):
      ValueError: unknown tokenizer 'word': Allowed: bpe, bytes, characters
    """

    source: str | None = None
    tokenizer: TokenizerKind = "characters"
    vocab_size: int | None = None
    validation: float = 0.1
    packing: Packing = "windows"
    loader: Loader = "memory"
    seq_len: int = 128
    batch_size: int = 16
    eval_batch_size: int | None = None

    def __post_init__(self) -> None:
        if self.source is not None:
            _take_path(self)
        for name, choices in (
            ("tokenizer", TokenizerKind),
            ("packing", Packing),
            ("loader", Loader),
        ):
            _require_choice(name, getattr(self, name), get_args(choices))
        if self.tokenizer == "bpe":
            _take_whole(self, "vocab_size", _SMALLEST_BPE)
        elif self.vocab_size is not None:
            raise ValueError(
                f"vocab_size must be None where tokenizer = {self.tokenizer!r}, which "
                f"has its own, got {self.vocab_size!r}"
            )
        if not is_number(self.validation) or not 0 < self.validation < 1:
            raise ValueError(
                f"validation must be a number in (0, 1), got {self.validation!r}"
            )
        _take_whole(self, "seq_len", 1)
        _take_whole(self, "batch_size", 1)
        if self.eval_batch_size is not None:
            _take_whole(self, "eval_batch_size", 1)

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as plain data that JSON can hold."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> DataConfig:
        """Returns the config that ``to_dict`` wrote.

        Args:
          data: Field names to plain values.

        Raises:
          ValueError: A name is no field (with the nearest that is), or a value is
            not allowed.
        """
        _require_fields("DataConfig", data, _names(cls))
        return cls(**data)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What a run is: the same config, corpus and versions give the same losses.

    Attributes:
      model: ``DecoderConfig``'s fields; those left out have their defaults, and
        ``max_length`` is ``data.seq_len``. ``vocab_size`` is the tokenizer's.
      data: What is read.
      optimizer: How it is learnt; its ``total_steps`` is the length of the run.
      seed: Of the first parameters, the batches and dropout.
      compute_dtype: What steps are computed in; the model's ``dtype`` if ``None``.
        Parameters, and what the optimizer keeps, stay as they are.
      remat: Whether activations are computed anew for the backward pass: memory for
        time.
      scan_layers: Whether the layers are one program, run once for each: it compiles
        sooner, and the numbers are the same but for rounding.
      average_decay: Share of an exponential moving average of the parameters that
        stays at a step. It is what is evaluated and written, where one is given.
      eval_every: Steps between validations; the last step is always followed by one.
      checkpoint_every: Steps between checkpoints; so is the last by one of these.
      log_every: Steps between lines of ``metrics.jsonl``.
      sample_every: Steps between texts by the model.
      sample_prompt: What they begin with.
      sample_tokens: How many tokens follow.
      max_skipped: How many steps in a row may be left out because they were not
        finite, before the run gives up.

    Raises:
      ValueError: A field is out of what is allowed; the message names it, its
        value, and what is.

    Example:
      >>> config = RunConfig(
      ...     model=dict(num_layers=2, num_heads=4, d_model=64, d_ff=256),
      ...     optimizer=OptimizerConfig(total_steps=500))
      >>> config.decoder_config(vocab_size=65).max_length
      128
      >>> RunConfig.from_dict(config.to_dict()) == config
      True
      >>> dataclasses.replace(config, eval_every=0)
      Traceback (most recent call last):
      ValueError: eval_every must be a whole number >= 1, got 0
    """

    model: Mapping[str, Any]
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    seed: int = 0
    compute_dtype: DType | None = None
    remat: bool = False
    scan_layers: bool = False
    average_decay: float | None = None
    eval_every: int = 250
    checkpoint_every: int = 250
    log_every: int = 10
    sample_every: int = 500
    sample_prompt: str = "\n"
    sample_tokens: int = 200
    max_skipped: int = 10

    def __post_init__(self) -> None:
        for name, kind in (("data", DataConfig), ("optimizer", OptimizerConfig)):
            if not isinstance(getattr(self, name), kind):
                raise ValueError(
                    f"{name} must be of {kind.__name__}, got {getattr(self, name)!r}"
                )
        self._take_model()
        _take_whole(self, "seed", 0, 2**32 - 1)
        for name in _EVERY:
            _take_whole(self, name, 1)
        _take_whole(self, "max_skipped", 0)
        for name in ("remat", "scan_layers"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(
                    f"{name} must be True or False, got {getattr(self, name)!r}"
                )
        if self.compute_dtype is not None:
            _require_choice("compute_dtype", self.compute_dtype, get_args(DType))
        decay = self.average_decay
        if decay is not None and not (is_number(decay) and 0 < decay < 1):
            raise ValueError(f"average_decay must be a number in (0, 1), got {decay!r}")
        if not isinstance(self.sample_prompt, str) or not self.sample_prompt:
            raise ValueError(
                "sample_prompt must be a text of one character at least, got "
                f"{self.sample_prompt!r}"
            )
        if self.data.batch_size % self.optimizer.accumulate:
            raise ValueError(
                f"optimizer.accumulate must divide data.batch_size = "
                f"{self.data.batch_size}, got {self.optimizer.accumulate}"
            )

    def decoder_config(self, vocab_size: int) -> DecoderConfig:
        """Returns what the run's model is.

        Args:
          vocab_size: V, the tokenizer's.

        Raises:
          ValueError: V is no whole number >= 1.
        """
        fields = {"max_length": self.data.seq_len, **self.model}
        return DecoderConfig.from_dict({**fields, "vocab_size": vocab_size})

    def with_settings(self, settings: Iterable[str]) -> RunConfig:
        """Returns the config with some fields set, as a command line says it.

        Args:
          settings: Such as ``"optimizer.learning_rate=3e-4"``: the path of a field
            and its value as JSON; what is no JSON is a text. A last one wins.

        Returns:
          The config.

        Raises:
          ValueError: There is no such field (the nearest is named), or a value is
            not allowed.

        Example:
          >>> config = load_run_config("default")
          >>> config.with_settings(["data.tokenizer=bytes", "seed=7"]).seed
          7
          >>> config.with_settings(["sed=7"])
          Traceback (most recent call last):
          ValueError: unknown setting 'sed': did you mean 'seed'? See RunConfig
        """
        data = self.to_dict()
        parts = {"model": data["model"], "data": data["data"]}
        parts["optimizer"] = data["optimizer"]
        optimizer = self.optimizer
        if optimizer == dataclasses.replace(optimizer, decay_steps=cast(int, None)):
            # It was no wish, but followed from a length that may now be another.
            del parts["optimizer"]["decay_steps"]
        for setting in settings:
            path, equals, text = setting.partition("=")
            path = path.strip()
            if not equals:
                raise ValueError(
                    f"setting {setting!r} must be FIELD=VALUE, such as "
                    "optimizer.learning_rate=3e-4"
                )
            if path not in _paths():
                raise _unknown_setting(path)
            part, dot, name = path.partition(".")
            (parts[part] if dot else data)[name if dot else path] = _value(text)
        return RunConfig.from_dict(data)

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as plain data that JSON can hold."""
        plain = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {
            **plain,
            "model": dict(self.model),
            "data": self.data.to_dict(),
            "optimizer": self.optimizer.to_dict(),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> RunConfig:
        """Returns the config that ``to_dict`` wrote, or a person did.

        Args:
          data: Field names to plain values. All but ``model`` may be left out.

        Returns:
          The config.

        Raises:
          ValueError: A name is no field (with the nearest that is), ``model`` or
            one of its sizes is missing, or a value is not allowed.
        """
        _require_fields("RunConfig", data, _names(cls))
        if "model" not in data:
            raise ValueError("RunConfig field is missing: model")
        fields = dict(data)
        for name, part in (("data", DataConfig), ("optimizer", OptimizerConfig)):
            if name not in data or isinstance(data[name], part):
                continue
            if not isinstance(data[name], Mapping):
                raise ValueError(f"{name} must have fields, got {data[name]!r}")
            fields[name] = _of_part(name, part.from_dict, data[name])
        return cls(**fields)

    def _take_model(self) -> None:
        given = self.model
        if not isinstance(given, Mapping):
            raise ValueError(f"model must have DecoderConfig's fields, got {given!r}")
        if "vocab_size" in given:
            raise ValueError(
                "model.vocab_size is the tokenizer's and must be left out, got "
                f"{given['vocab_size']!r}"
            )
        fields = {"max_length": self.data.seq_len, **given, "vocab_size": 1}
        config = _of_part("model", DecoderConfig.from_dict, fields)
        if config.max_length < self.data.seq_len:
            raise ValueError(
                f"data.seq_len must be at most model.max_length = "
                f"{config.max_length}, got {self.data.seq_len}"
            )
        # Defaults are written down: another version's may differ.
        whole = config.to_dict()
        given = {name: value for name, value in given.items() if value is not None}
        names = [name for name in _MODEL if name not in _DERIVED or name in given]
        object.__setattr__(self, "model", {name: whole[name] for name in names})


def recipe_names() -> tuple[str, ...]:
    """Returns the names of the runs that come with the package.

    Example:
      >>> "default" in recipe_names()
      True
    """
    return tuple(sorted(path.stem for path in _RECIPES.glob("*.json")))


def load_run_config(name_or_path: str | os.PathLike[str] = "default") -> RunConfig:
    """Returns the config of a recipe, of a file, or of a run that began.

    Args:
      name_or_path: A name of ``recipe_names``; or a JSON file of ``RunConfig``'s
        fields, of which all but ``model`` may be left out; or a run's folder.

    Returns:
      The config.

    Raises:
      ValueError: There is no such recipe (the nearest is named) or file, or the
        file is no run config; the message says why.

    Example:
      >>> load_run_config("nanogpt-cpu").optimizer.total_steps
      2000
    """
    path = Path(name_or_path)
    text = os.fspath(name_or_path)
    if text in recipe_names():
        path = _RECIPES / f"{text}.json"
    elif path.is_dir():
        path = path / "run.json"
        if not path.exists():
            raise ValueError(f"{text} holds no run: there is no run.json in it")
    elif not path.exists():
        if path.suffix == ".json" or len(path.parts) > 1:
            raise ValueError(f"run config {text!r}: there is no such file")
        raise unknown_name("recipe", text, recipe_names())
    try:
        data = json.loads(path.read_bytes())
        if isinstance(data, dict) and "format" in data:  # a run wrote it
            data = data.get("config")
        if not isinstance(data, dict):
            raise ValueError(f"it must be an object, got {data!r:.40}")
        return RunConfig.from_dict(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no run config: {error}") from None


# --- Settings -------------------------------------------------------------------------


def _paths() -> list[str]:
    plain = [name for name in _names(RunConfig) if name not in _PARTS]
    inner = [f"{part}.{name}" for part, names in _PARTS.items() for name in names]
    return plain + inner


def _unknown_setting(path: str) -> ValueError:
    part = path.partition(".")[0]
    if "." in path and part in _PARTS:
        return unknown_name("setting", path, [f"{part}.{n}" for n in _PARTS[part]])
    # All of them are too many to read, so only the nearest is told.
    ends = [known for known in _paths() if known.rpartition(".")[2] == path]
    near = ends or difflib.get_close_matches(path, _paths(), n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return ValueError(f"unknown setting {path!r}: {hint}See RunConfig")


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


# --- Checks ---------------------------------------------------------------------------


def _names(cls: type) -> list[str]:
    return [field.name for field in dataclasses.fields(cls)]


def _of_part(name: str, make: Any, fields: Mapping[str, Any]) -> Any:
    try:
        return make(fields)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _require_fields(what: str, data: Mapping[str, Any], fields: Iterable[str]) -> None:
    for name in data:
        if name not in fields:
            raise unknown_name(f"{what} field", name, fields)


def _take_whole(config: Any, name: str, least: int, most: int | None = None) -> None:
    number = whole_number(name, getattr(config, name), least, most)
    object.__setattr__(config, name, number)


def _take_path(config: DataConfig) -> None:
    source = config.source
    path = os.fspath(source) if isinstance(source, str | os.PathLike) else None
    if not path or not isinstance(path, str):
        raise ValueError(f"source must be the path of a text, got {source!r}")
    object.__setattr__(config, "source", path)


def _require_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise unknown_name(name, str(value), choices)


_PARTS = {
    "model": _MODEL,
    "data": tuple(_names(DataConfig)),
    "optimizer": tuple(_names(OptimizerConfig)),
}
_EVERY = (
    "eval_every",
    "checkpoint_every",
    "log_every",
    "sample_every",
    "sample_tokens",
)
