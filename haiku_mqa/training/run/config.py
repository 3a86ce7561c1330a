"""What a run is, as plain numbers and names that a JSON file can hold."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, cast, get_args

from haiku_mqa._arguments import is_number
from haiku_mqa.config import DecoderConfig, DType
from haiku_mqa.training.optimizer_config import OptimizerConfig
from haiku_mqa.training.run.data_config import DataConfig
from haiku_mqa.training.run.fields import (
    names,
    of_part,
    require_choice,
    require_fields,
    take_whole,
)
from haiku_mqa.training.run.settings import with_settings

# These follow from others, and so are written down only where they were given.
_DERIVED = ("key_size", "value_size", "max_length")
_MODEL = tuple(name for name in names(DecoderConfig) if name != "vocab_size")
_PARTS = {
    "model": _MODEL,
    "data": names(DataConfig),
    "optimizer": names(OptimizerConfig),
}
_EVERY = (
    "eval_every",
    "checkpoint_every",
    "log_every",
    "sample_every",
    "sample_tokens",
)


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
        take_whole(self, "seed", 0, 2**32 - 1)
        for name in _EVERY:
            take_whole(self, name, 1)
        take_whole(self, "max_skipped", 0)
        for name in ("remat", "scan_layers"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(
                    f"{name} must be True or False, got {getattr(self, name)!r}"
                )
        if self.compute_dtype is not None:
            require_choice("compute_dtype", self.compute_dtype, get_args(DType))
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
          >>> config = RunConfig(
          ...     model=dict(num_layers=2, num_heads=4, d_model=64, d_ff=256))
          >>> config.with_settings(["data.tokenizer=bytes", "seed=7"]).seed
          7
          >>> config.with_settings(["sed=7"])
          Traceback (most recent call last):
          ValueError: unknown setting 'sed': did you mean 'seed'? See RunConfig
        """
        data = self.to_dict()
        optimizer = self.optimizer
        if optimizer == dataclasses.replace(optimizer, decay_steps=cast(int, None)):
            # It was no wish, but followed from a length that may now be another.
            del data["optimizer"]["decay_steps"]
        return RunConfig.from_dict(with_settings(data, settings, _PARTS))

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
        require_fields("RunConfig", data, names(cls))
        if "model" not in data:
            raise ValueError("RunConfig field is missing: model")
        fields = dict(data)
        for name, part in (("data", DataConfig), ("optimizer", OptimizerConfig)):
            if name not in data or isinstance(data[name], part):
                continue
            if not isinstance(data[name], Mapping):
                raise ValueError(f"{name} must have fields, got {data[name]!r}")
            fields[name] = of_part(name, part.from_dict, data[name])
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
        config = of_part("model", DecoderConfig.from_dict, fields)
        if config.max_length < self.data.seq_len:
            raise ValueError(
                f"data.seq_len must be at most model.max_length = "
                f"{config.max_length}, got {self.data.seq_len}"
            )
        # Defaults are written down: another version's may differ.
        whole = config.to_dict()
        given = {name: value for name, value in given.items() if value is not None}
        kept = [name for name in _MODEL if name not in _DERIVED or name in given]
        object.__setattr__(self, "model", {name: whole[name] for name in kept})
