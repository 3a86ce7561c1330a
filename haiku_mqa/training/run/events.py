"""What a run says of itself while it goes on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from haiku_mqa.config import DecoderConfig
from haiku_mqa.training.run.config import RunConfig


class StepMetrics(NamedTuple):
    """``Metrics`` of a step as plain Python numbers.

    Attributes:
      loss: Nats per counted label, before the update.
      grad_norm: Global norm of the gradient before clipping.
      learning_rate: Of this update.
      tokens: How many labels were counted.
      skipped: Whether the step was left out, because it was not finite.

    Example:
      >>> StepMetrics(2.5, 1.0, 1e-3, 2048, False).loss
      2.5
    """

    loss: float
    grad_norm: float
    learning_rate: float
    tokens: int
    skipped: bool


@dataclasses.dataclass(frozen=True)
class Started:
    """A run begins, or goes on.

    Attributes:
      config: Of the run.
      decoder_config: Of the model.
      num_parameters: How many numbers are trained.
      train_tokens: How many tokens there are to train on.
      validation_tokens: How many to validate on.
      total_steps: How long the run is, in steps.
      first_step: How many steps were done before: zero in a new run, and all of
        them in one that is finished.
    """

    config: RunConfig
    decoder_config: DecoderConfig
    num_parameters: int
    train_tokens: int
    validation_tokens: int
    total_steps: int
    first_step: int


@dataclasses.dataclass(frozen=True)
class Stepped:
    """A step is done; said of every one, once its numbers have come.

    Attributes:
      step: Its number, from one: how many are done with it.
      metrics: What it says of itself.
      tokens_per_second: Labels counted per second over the last few steps, without
        the time that went into anything else.
    """

    step: int
    metrics: StepMetrics
    tokens_per_second: float


@dataclasses.dataclass(frozen=True)
class Evaluated:
    """The whole validation split was read.

    Attributes:
      step: How many steps are done.
      validation_loss: Nats per token.
      is_best: Whether it is the lowest so far.
    """

    step: int
    validation_loss: float
    is_best: bool


@dataclasses.dataclass(frozen=True)
class Saved:
    """A checkpoint is in place.

    Attributes:
      step: How many steps are done.
      path: Its folder.
    """

    step: int
    path: Path


@dataclasses.dataclass(frozen=True)
class Sampled:
    """The model was asked for text.

    Attributes:
      step: How many steps are done.
      text: Prompt and answer.
    """

    step: int
    text: str


@dataclasses.dataclass(frozen=True)
class Stopped:
    """The run returns.

    Attributes:
      step: How many steps are done.
      reason: ``"finished"``, or the signal that stopped it, ``"SIGINT"`` or
        ``"SIGTERM"``.
    """

    step: int
    reason: str


Event = Started | Stepped | Evaluated | Saved | Sampled | Stopped
Observer = Callable[[Event], None]
