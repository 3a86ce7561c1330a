"""The run itself: step by step, judged and saved as its config says."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterable

import jax

from haiku_mqa.model import Model, Params, build
from haiku_mqa.sharding import ShardedModel, processes
from haiku_mqa.text import Tokenizer
from haiku_mqa.training.data import Batch
from haiku_mqa.training.run.config import RunConfig
from haiku_mqa.training.run.events import (
    Evaluated,
    Event,
    Observer,
    Sampled,
    Saved,
    Started,
    StepMetrics,
    Stepped,
    Stopped,
)
from haiku_mqa.training.run.folder import RunFolder
from haiku_mqa.training.run.kept import Kept
from haiku_mqa.training.run.programs import Carry, Programs, make_programs
from haiku_mqa.training.run.progress import Speed
from haiku_mqa.training.run.signals import StopRequest
from haiku_mqa.training.run.sources import Data, batches_from, held_out_batches
from haiku_mqa.training.state import Metrics

Sampler = Callable[[Model, Params, Tokenizer, str, int], str]


class Run:
    """One call of ``train``, once its folder is ready.

    Attributes:
      observers: Are told what happens.
      sample: Writes texts with the model; there are none if ``None``.
      request: Whether somebody asked the run to stop.
      carry: After the last step that was done.
      step: That step.
      kept: What the run has come to.
      history: What a ``TrainResult`` tells.
    """

    def __init__(
        self,
        config: RunConfig,
        model: Model,
        tokenizer: Tokenizer,
        data: Data,
        folder: RunFolder | None,
    ):
        """Makes the programs; ``begin`` comes next, and then ``go``.

        Args:
          config: Of the run.
          model: The config's.
          tokenizer: What the model reads.
          data: What it is trained and judged on.
          folder: The run's; ``None`` if nothing is written.
        """
        self.observers: list[Observer] = []
        self.sample: Sampler | None = None
        self.request = StopRequest()
        self.carry: Carry
        self.step = 0
        self.kept = Kept(model, folder, writes=processes.is_first())
        self.history: list[Stepped | Evaluated] = []
        self._config, self._model, self._tokenizer = config, model, tokenizer
        self._data, self._is_written = data, folder is not None
        self._total = config.optimizer.total_steps
        self._programs: Programs = make_programs(model, config)
        self._init_rng, step_rng = jax.random.split(jax.random.key(config.seed))
        # Without dropout there is nothing to draw, and an rng would cost a program.
        self._rng = step_rng if _drops(model) else None
        self._skipped_in_a_row = 0
        self._speed = Speed()

    def begin(self, params: Params | None) -> None:
        """Makes or reads what the first step gets.

        Args:
          params: What a new run begins from; drawn if ``None``.
        """
        programs, rng = self._programs, self._init_rng
        found = self.kept.restore(lambda: programs.like(rng))
        if found is None:
            found = programs.init(rng) if params is None else programs.begin(params)
        self.carry, self.step = found, self.kept.saved_at or 0

    def go(self, *, is_given: bool) -> str | None:
        """Runs the steps that are not done yet.

        Args:
          is_given: Whether the first parameters were given, and so are worth judging.

        Returns:
          The signal that stopped it, if one did.
        """
        first = self.step
        self._say(
            Started(
                self._config,
                self._model.config,
                sum(x.size for x in jax.tree.leaves(self.carry.state.params)),
                self._data.train_tokens,
                len(self._data.validation),
                self._total,
                first,
            )
        )
        if is_given and self.kept.saved_at is None:
            self._evaluate(first)
            self._save(first)
        data = self._config.data
        rows = self._programs.rows(data.batch_size)
        batches = batches_from(data, self._data.train, first, self._total, rows)
        with contextlib.closing(batches):
            self._run_steps(batches)
        stopped = self.request.name if self.step < self._total else None
        self._say(Stopped(self.step, stopped or "finished"))
        return stopped

    def _run_steps(self, batches: Iterable[Batch]) -> None:
        """Runs the steps of batches, until they end or a signal comes."""
        late: tuple[int, Metrics] | None = None
        for step, batch in enumerate(batches, start=self.step + 1):
            # While this batch was made, the device was still at the step before.
            self.step = step
            self.carry, metrics = self._programs.step(self.carry, batch, self._rng)
            if late is not None:
                self._stepped(*late)
            late = step, metrics
            self._agree_to_stop()
            if self._is_due(step) or self.request.name:
                self._stepped(*late)
                late = None
                self._judge_and_save(step)
                self._speed.pause()
            if self.request.name:
                break

    def _agree_to_stop(self) -> None:
        """Has all processes stop after the same step, whichever was asked to."""
        name = self.request.name
        number = processes.largest(signal.Signals[name] if name else 0)
        self.request.name = signal.Signals(number).name if number else None

    def _is_due(self, step: int) -> bool:
        """Whether more is to be done after a step than the next one."""
        every = [self._config.eval_every]
        every += [self._config.checkpoint_every] * self._is_written
        every += [self._config.sample_every] * (self.sample is not None)
        return step == self._total or any(step % n == 0 for n in every)

    def _stepped(self, step: int, metrics: Metrics) -> None:
        """Fetches what a step says of itself, and tells it."""
        numbers = StepMetrics(*(x.item() for x in jax.device_get(metrics)))
        event = Stepped(step, numbers, self._speed.after(numbers.tokens))
        if step % self._config.log_every == 0 or step == self._total:
            self.history.append(event)
        self._say(event)
        self._skipped_in_a_row = (self._skipped_in_a_row + 1) * numbers.skipped
        if self._skipped_in_a_row > self._config.max_skipped:
            raise FloatingPointError(
                f"step {step} is the last of {self._skipped_in_a_row} in a row whose "
                f"loss or gradient is not finite, more than max_skipped = "
                f"{self._config.max_skipped} allows; {self.kept.last_good()}"
            )

    def _judge_and_save(self, step: int) -> None:
        """Does what is due after a step."""
        config, last = self._config, step == self._total
        if last or step % config.eval_every == 0:
            self._evaluate(step)
        if self.sample is not None and (last or step % config.sample_every == 0):
            prompt, count = config.sample_prompt, config.sample_tokens
            params = self.carry.judged
            if isinstance(self._model, ShardedModel):  # a text is written by one device
                params = processes.fetched(params)
            if processes.is_first():
                model = build(self._model.config)
                text = self.sample(model, params, self._tokenizer, prompt, count)
                self._say(Sampled(step, text))
        if last or step % config.checkpoint_every == 0 or self.request.name:
            self._save(step)

    def _evaluate(self, step: int) -> None:
        """Reads the whole validation split."""
        rows = self._programs.rows(self._config.data.validation_batch_size)
        batches = held_out_batches(self._config.data, self._data, rows)
        loss = self._programs.evaluate(self.carry.judged, batches)
        event = Evaluated(step, loss, self.kept.judge(step, loss, self.carry))
        self.history.append(event)
        self._say(event)

    def _save(self, step: int) -> None:
        """Writes a checkpoint, unless one could not go on from here."""
        if self._skipped_in_a_row:
            return
        path = self.kept.save(step, self.carry)
        if path is not None:
            self._say(Saved(step, path))

    def _say(self, event: Event) -> None:
        for observer in self.observers:
            observer(event)


def _drops(model: Model) -> bool:
    config = model.config
    return any(
        (config.embedding_dropout, config.attention_dropout, config.residual_dropout)
    )
