"""How a model is trained, as plain numbers, and the learning rate that follows."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, cast, get_args

import jax
import jax.numpy as jnp

from haiku_mqa._arguments import is_number, whole_number
from haiku_mqa.errors import unknown_name

OptimizerName = Literal["adamw", "muon"]
Schedule = Literal["constant", "cosine", "wsd"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """How a model is trained, as plain numbers.

    The defaults are those of nanoGPT's recipe for a CPU.

    Attributes:
      name: ``"adamw"`` (Loshchilov & Hutter 2017) or ``"muon"`` (Jordan et al.
        2024), which orthogonalises the updates of hidden matrices and leaves the rest
        to AdamW; its updates are scaled to AdamW's size (Liu et al. 2025), so that
        the same learning rate and weight decay serve.
      learning_rate: The highest, after warm-up.
      min_learning_rate: The lowest, at the end; a constant schedule has none.
      schedule: ``"cosine"`` (Loshchilov & Hutter 2016); ``"wsd"``, warm-up, stable,
        and a decay by 1 - sqrt at the end (Hu et al. 2024, Hägele et al. 2024); or
        ``"constant"`` after the warm-up.
      warmup_steps: Updates before the learning rate is at its highest.
      total_steps: Updates until it is at its lowest, where it stays.
      decay_steps: The last of these, in which ``"wsd"`` decays; a tenth of them if
        ``None``.
      betas: Of Adam's two running means, each in [0, 1).
      eps: Added to the root of the second.
      weight_decay: Share of the learning rate by which matrices shrink at an update.
      clip_norm: Greatest global norm of the gradient; ``None`` is no limit.
      accumulate: In how many parts a batch is read, one after another, for one
        update.

    Raises:
      ValueError: A field is out of what is allowed; the message names it, its
        value, and what is.

    Example:
      >>> config = OptimizerConfig(learning_rate=3e-4, min_learning_rate=3e-5)
      >>> OptimizerConfig.from_dict(config.to_dict()) == config
      True
      >>> OptimizerConfig(name="adam")
      Traceback (most recent call last):
      ValueError: unknown name 'adam': did you mean 'adamw'? Allowed: adamw, muon
    """

    name: OptimizerName = "adamw"
    learning_rate: float = 1e-3
    min_learning_rate: float = 1e-4
    schedule: Schedule = "cosine"
    warmup_steps: int = 100
    total_steps: int = 2000
    decay_steps: int = cast(int, None)
    betas: tuple[float, float] = (0.9, 0.99)
    eps: float = 1e-8
    weight_decay: float = 0.1
    clip_norm: float | None = 1.0
    accumulate: int = 1

    def __post_init__(self) -> None:
        for name, choices in (("name", OptimizerName), ("schedule", Schedule)):
            if getattr(self, name) not in get_args(choices):
                raise unknown_name(name, str(getattr(self, name)), get_args(choices))
        self._take_whole("warmup_steps", 0)
        self._take_whole("total_steps", 1)
        self._take_whole("accumulate", 1)
        self._check_numbers()
        if self.schedule != "constant" and self.warmup_steps >= self.total_steps:
            raise ValueError(
                f"warmup_steps must be below total_steps = {self.total_steps}, "
                f"got {self.warmup_steps}"
            )
        if self.decay_steps is None:
            tenth = max(1, self.total_steps // 10)
            left = max(1, self.total_steps - self.warmup_steps)
            object.__setattr__(self, "decay_steps", min(tenth, left))
        self._take_whole("decay_steps", 1)
        if (
            self.schedule == "wsd"
            and self.warmup_steps + self.decay_steps > self.total_steps
        ):
            raise ValueError(
                "decay_steps must leave room for the warm-up: at most "
                f"{self.total_steps - self.warmup_steps}, got {self.decay_steps}"
            )

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as plain data that JSON can hold."""
        return {**dataclasses.asdict(self), "betas": list(self.betas)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> OptimizerConfig:
        """Returns the config that ``to_dict`` wrote.

        Args:
          data: Field names to plain values.

        Returns:
          The config.

        Raises:
          ValueError: A name is no field (with the nearest that is), or a value is
            not allowed.
        """
        fields = [field.name for field in dataclasses.fields(cls)]
        for name in data:
            if name not in fields:
                raise unknown_name("OptimizerConfig field", name, fields)
        return cls(**data)

    def _take_whole(self, name: str, least: int) -> None:
        object.__setattr__(self, name, whole_number(name, getattr(self, name), least))

    def _check_numbers(self) -> None:
        _require_number("learning_rate", self.learning_rate, above=0.0)
        _require_number("min_learning_rate", self.min_learning_rate)
        _require_number("eps", self.eps, above=0.0)
        _require_number("weight_decay", self.weight_decay)
        if self.clip_norm is not None:
            _require_number("clip_norm", self.clip_norm, above=0.0)
        if self.schedule != "constant" and self.min_learning_rate > self.learning_rate:
            raise ValueError(
                f"min_learning_rate must be at most learning_rate = "
                f"{self.learning_rate}, got {self.min_learning_rate}"
            )
        betas = self.betas
        if not isinstance(betas, tuple | list) or len(betas) != 2:
            raise ValueError(f"betas must be two numbers in [0, 1), got {betas!r}")
        if not all(is_number(beta) and 0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas must be two numbers in [0, 1), got {betas!r}")
        # A list, as JSON has it, would make the config unhashable.
        object.__setattr__(self, "betas", tuple(betas))


def learning_rate_at(config: OptimizerConfig, step: jax.typing.ArrayLike) -> jax.Array:
    """Returns the learning rate of an update.

    Warm-up is linear, and its first update is not lost to a rate of zero (nanoGPT's
    form).

    Args:
      config: Of the schedule.
      step: How many updates were made before; a number or int32 ``[...]``.

    Returns:
      float32 ``[...]``.

    Example:
      >>> config = OptimizerConfig(warmup_steps=100, total_steps=2000)
      >>> rates = [learning_rate_at(config, step) for step in (0, 100, 1050, 2000)]
      >>> [f"{rate:.2e}" for rate in rates]
      ['9.90e-06', '1.00e-03', '5.50e-04', '1.00e-04']
    """
    step = jnp.asarray(step, jnp.float32)
    high, low = config.learning_rate, config.min_learning_rate
    if config.schedule == "cosine":
        first, last = config.warmup_steps, config.total_steps
        done = jnp.clip((step - first) / (last - first), 0, 1)
        left = 0.5 * (1 + jnp.cos(jnp.pi * done))
    elif config.schedule == "wsd":
        first = config.total_steps - config.decay_steps
        left = 1 - jnp.sqrt(jnp.clip((step - first) / config.decay_steps, 0, 1))
    else:
        left = jnp.ones_like(step)
    warm = high * (step + 1) / (config.warmup_steps + 1)
    return jnp.where(step < config.warmup_steps, warm, low + left * (high - low))


def _require_number(name: str, value: Any, above: float | None = None) -> None:
    least = f"above {above:g}" if above is not None else ">= 0"
    good = is_number(value) and (value > above if above is not None else value >= 0)
    if not good:
        raise ValueError(f"{name} must be a number {least}, got {value!r}")
