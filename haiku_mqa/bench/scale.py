"""The scale that papers are repeated at: nanoGPT's recipe for a CPU, modernised."""

from __future__ import annotations

import dataclasses
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

from tqdm import tqdm

from haiku_mqa.model import Model, Params
from haiku_mqa.text import Tokenizer
from haiku_mqa.training import Corpus, OptimizerConfig, train
from haiku_mqa.training.run.config import RunConfig
from haiku_mqa.training.run.data_config import DataConfig
from haiku_mqa.training.run.events import Evaluated, Event, Started, Stepped

_EVALUATED_ROWS = 64  # in a batch: more are faster
_WARM_UP = 20  # a twentieth of the steps, as nanoGPT's 100 of 2,000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scale:
    """How large the models of an experiment are, and how they are fed.

    Attributes:
      num_layers: L.
      num_heads: N, of the multi-head model that others are held against.
      d_model: D.
      d_ff: F, of the same.
      seq_len: T, in tokens.
      batch_size: B, rows.

    Example:
      >>> Scale().run_config(steps=1000, seed=0).optimizer.warmup_steps
      50
    """

    num_layers: int = 4
    num_heads: int = 8
    d_model: int = 128
    d_ff: int = 512
    seq_len: int = 64
    batch_size: int = 12

    def run_config(
        self, *, steps: int, seed: int, optimizer: Any = None, **model: Any
    ) -> RunConfig:
        """Returns a run over the characters of a corpus, evaluated once, at its end.

        Args:
          steps: Its length.
          seed: Of its parameters and batches.
          optimizer: Fields of ``OptimizerConfig`` that differ from nanoGPT's.
          **model: Fields of ``DecoderConfig`` that differ from multi-head attention
            at this scale.

        Returns:
          The config.
        """
        fields = {
            "num_layers": self.num_layers,
            "num_heads": self.num_heads,
            "num_kv_heads": self.num_heads,
            "d_model": self.d_model,
            "d_ff": self.d_ff,
        }
        return RunConfig(
            model={**fields, **model},
            data=DataConfig(
                seq_len=self.seq_len,
                batch_size=self.batch_size,
                eval_batch_size=_EVALUATED_ROWS,
            ),
            optimizer=OptimizerConfig(
                total_steps=steps, warmup_steps=steps // _WARM_UP, **(optimizer or {})
            ),
            seed=seed,
            eval_every=steps,
            log_every=steps,
        )


@dataclasses.dataclass(frozen=True)
class Trained:
    """What a run came to.

    Attributes:
      model: The model.
      params: Its parameters after the last step.
      tokenizer: What it reads.
      parameters: How many numbers they are.
      validation_loss: After the last step, in nats per token.
      seconds: Of the whole run, its compilation and its evaluation included.
      tokens_per_second: The median over its steps, of training alone.
    """

    model: Model
    params: Params
    tokenizer: Tokenizer
    parameters: int
    validation_loss: float
    seconds: float
    tokens_per_second: float


def train_once(
    config: RunConfig, corpus: Corpus, on_step: Callable[[], Any]
) -> Trained:
    """Trains a model in memory, evaluated at its end alone.

    Args:
      config: As ``Scale.run_config`` makes it.
      corpus: What to train on.
      on_step: Called after each step.

    Returns:
      What the run came to.
    """
    speeds, losses, sizes = [], [], []

    def listen(event: Event) -> None:
        if isinstance(event, Started):
            sizes.append(event.num_parameters)
        elif isinstance(event, Stepped):
            speeds.append(event.tokens_per_second)
            on_step()
        elif isinstance(event, Evaluated):
            losses.append(event.validation_loss)

    start = time.perf_counter()
    result = train(config, corpus, on_event=listen)
    seconds = time.perf_counter() - start
    if len(losses) != 1:
        raise ValueError(f"eval_every must be total_steps, got {config.eval_every}")
    return Trained(
        result.model,
        result.params,
        result.tokenizer,
        sizes[0],
        losses[0],
        seconds,
        statistics.median(speeds),
    )


def progress_bar(total: int, unit: str, *, is_shown: bool) -> Any:
    """Returns a bar on stderr; where that is a file, it is written only now and then.

    Args:
      total: How many there are.
      unit: What is counted.
      is_shown: Whether it is shown at all.

    Returns:
      A ``tqdm``.
    """
    pause = 0.2 if sys.stderr.isatty() else 30.0
    return tqdm(
        total=total,
        unit=unit,
        disable=not is_shown,
        mininterval=pause,
        maxinterval=pause,
        file=sys.stderr,
    )
