"""The run: step by step, judged and saved as its config says, whatever stops it."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import jax
import numpy as np

from haiku_mqa import model_folder
from haiku_mqa.model import Model, Params, build
from haiku_mqa.text import Tokenizer
from haiku_mqa.training.corpus import Corpus, read_corpus
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
from haiku_mqa.training.run.given import fitted
from haiku_mqa.training.run.programs import Carry, Programs, make_programs
from haiku_mqa.training.run.progress import Speed, bar
from haiku_mqa.training.run.reports import Reports
from haiku_mqa.training.run.signals import StopRequest, stop_requests
from haiku_mqa.training.run.sources import (
    Data,
    batches_from,
    check_tokenizer,
    held_out_batches,
    make_data,
    make_tokenizer,
)
from haiku_mqa.training.state import Metrics

Sampler = Callable[[Model, Params, Tokenizer, str, int], str]


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """What a run has come to.

    Attributes:
      model: The model.
      params: Its parameters, float32, at the lowest validation loss; the last ones
        where nothing was evaluated yet.
      tokenizer: What the model reads.
      history: Every ``Evaluated``, and the ``Stepped`` of every ``log_every`` steps
        and of the last, in order; of this call alone, not of runs it went on from.
      folder: The run's; ``None`` if nothing was written.
      stopped: The signal that stopped it, ``"SIGINT"`` or ``"SIGTERM"``; ``None`` if
        it ran to its end.

    Example:
      >>> [field.name for field in dataclasses.fields(TrainResult)]
      ['model', 'params', 'tokenizer', 'history', 'folder', 'stopped']
    """

    model: Model
    params: Params
    tokenizer: Tokenizer
    history: tuple[Stepped | Evaluated, ...]
    folder: Path | None
    stopped: str | None


def train(
    config: RunConfig,
    corpus: Corpus | None = None,
    *,
    params: Params | None = None,
    tokenizer: Tokenizer | None = None,
    out: str | os.PathLike[str] | None = None,
    resume: bool = True,
    on_event: Observer | None = None,
    sample: Sampler | None = None,
    progress: bool = False,
) -> TrainResult:
    r"""Trains a model, or goes on training it.

    A folder remembers the run. Called again with the same folder and config, a run
    that was stopped or killed goes on from its last checkpoint, and its losses are
    those of a run that never stopped, bit for bit; one that is finished only returns
    what it came to. The first SIGINT or SIGTERM, if this is the main thread, ends the
    run after the step it is in, with a checkpoint; a second one acts as it did
    before.

    A run that begins from given parameters, such as those that ``convert_heads``
    made, judges them before its first step: what it comes to is never worse than
    what it began from.

    Args:
      config: Of the run.
      corpus: What to train on; ``config.data.source`` is read if ``None``.
      params: What the run begins from, of ``config.model``'s shapes; drawn with
        ``config.seed`` if ``None``. To go on with a run, they need not be given.
      tokenizer: What reads the text, of the kind that ``config.data`` has; made from
        the corpus if ``None``.
      out: The run's folder; nothing is written if ``None``.
      resume: Whether to go on with a run that the folder has; otherwise it is
        refused.
      on_event: Called with what happens (``haiku_mqa.training.run.events``).
      sample: Called with model, parameters, tokenizer, ``config.sample_prompt`` and
        ``config.sample_tokens`` for a text; there are no samples if ``None``.
      progress: Whether a bar is shown, if this is a terminal.

    Returns:
      The model, its best parameters, and how they came about.

    Raises:
      ValueError: The corpus is too small; the parameters or the tokenizer are not
        the config's; or the folder holds another run (each field that differs is
        listed), files of something else, or is in use by another process.
      FormatError: A file in the folder is damaged.
      FloatingPointError: More than ``config.max_skipped`` steps in a row were not
        finite.
      OSError: The folder cannot be written, for example because the disk is full.
        The last checkpoint is whole.

    Example:
      >>> from haiku_mqa.training import Corpus, OptimizerConfig
      >>> from haiku_mqa.training.run.config import DataConfig, RunConfig
      >>> config = RunConfig(
      ...     model=dict(num_layers=1, num_heads=2, d_model=8, d_ff=16),
      ...     data=DataConfig(seq_len=8, batch_size=4),
      ...     optimizer=OptimizerConfig(warmup_steps=2, total_steps=10))
      >>> result = train(config, Corpus(("to be or not to be, " * 20,)))
      >>> [event.step for event in result.history]
      [10, 10]
      >>> result.model.apply(
      ...     result.params, None, np.array([result.tokenizer.encode("to be")])
      ... ).logits.shape
      (1, 5, 8)
    """
    corpus = read_corpus(config.data.source) if corpus is None else corpus
    with contextlib.ExitStack() as stack:
        folder = None if out is None else RunFolder(out)
        if folder is not None:
            stack.enter_context(folder.locked())
        if folder is not None and folder.has_run:
            _go_on(folder, config, corpus, params, tokenizer, resume)
            tokenizer = folder.tokenizer()
        elif tokenizer is None:
            tokenizer = make_tokenizer(config.data, corpus)
        else:
            check_tokenizer(config.data, tokenizer)
        model = build(config.decoder_config(tokenizer.vocab_size))
        first = None if params is None else fitted(params, model)
        data = make_data(config.data, corpus, tokenizer, config.seed)
        if folder is not None:
            folder.remove_leftovers()
            if not folder.has_run:
                folder.begin(config, model.config, corpus, tokenizer, params)
        run = _Run(config, model, tokenizer, data, folder)
        run.request = stack.enter_context(stop_requests())
        run.sample = sample
        run.begin(first)
        if folder is not None:
            reports = Reports(folder.path, config)
            # What a run said before it had a checkpoint, it says again.
            reports.resume_at(-1 if run.saved_at is None else run.step)
            stack.callback(reports.close)
            run.observers.append(reports)
        if on_event is not None:
            run.observers.append(on_event)
        if progress:
            run.observers.append(stack.enter_context(bar(config)))
        return run.go(is_given=params is not None)


def _go_on(
    folder: RunFolder,
    config: RunConfig,
    corpus: Corpus,
    params: Params | None,
    tokenizer: Tokenizer | None,
    resume: bool,
) -> None:
    if not resume:
        raise ValueError(
            f"{folder.path} holds a run already, and resume is False: use another "
            "folder, or go on with it"
        )
    folder.check(config, corpus, params, tokenizer)


class _Run:
    """One call of ``train``, once its folder is ready."""

    def __init__(
        self,
        config: RunConfig,
        model: Model,
        tokenizer: Tokenizer,
        data: Data,
        folder: RunFolder | None,
    ):
        self.config, self.model, self.tokenizer = config, model, tokenizer
        self.data, self.folder = data, folder
        self.observers: list[Observer] = []
        self.sample: Sampler | None = None
        self.request = StopRequest()
        self.total = config.optimizer.total_steps
        self.programs: Programs = make_programs(model, config)
        init_rng, step_rng = jax.random.split(jax.random.key(config.seed))
        self.init_rng = init_rng
        # Without dropout there is nothing to draw, and an rng would cost a program.
        self.rng = step_rng if _drops(model) else None
        self.carry: Carry
        self.best: tuple[int, float] | None = None
        self.best_params: Params | None = None
        self.validation_loss: tuple[int, float] | None = None
        self.skipped_in_a_row = 0
        self.step = 0
        self.saved_at: int | None = None  # the newest checkpoint's step
        self.speed = Speed()
        self.history: list[Stepped | Evaluated] = []

    # --- Beginning ----------------------------------------------------------------

    def begin(self, params: Params | None) -> None:
        """Makes or reads what the first step gets."""
        steps = [] if self.folder is None else self.folder.checkpoints.steps()
        if self.folder is None or not steps:
            programs, rng = self.programs, self.init_rng
            drawn = params is None
            self.carry = programs.init(rng) if drawn else programs.begin(params)
            return
        like = jax.eval_shape(self.programs.init, self.init_rng)
        tree, about = self.folder.checkpoints.restore(steps[-1], like)
        # Copies: the step's donation must not reach into NumPy's memory.
        self.carry = jax.tree.map(lambda x: jax.numpy.array(x, copy=True), tree)
        self.best = about["best"] and tuple(about["best"])
        self.step = self.saved_at = steps[-1]

    # --- Going on -----------------------------------------------------------------

    def go(self, *, is_given: bool) -> TrainResult:
        """Runs the steps that are not done yet."""
        first = self.step
        self.say(
            Started(
                self.config,
                self.model.config,
                sum(x.size for x in jax.tree.leaves(self.carry.state.params)),
                self.data.train_tokens,
                len(self.data.validation),
                self.total,
                first,
            )
        )
        if is_given and self.saved_at is None:
            self.evaluate(first)
            self.save(first)
        batches = batches_from(self.config.data, self.data.train, first, self.total)
        with contextlib.closing(batches):
            self.run_steps(batches)
        stopped = self.request.name if self.step < self.total else None
        self.say(Stopped(self.step, stopped or "finished"))
        return TrainResult(
            self.model,
            self.parameters(),
            self.tokenizer,
            tuple(self.history),
            None if self.folder is None else self.folder.path,
            stopped,
        )

    def run_steps(self, batches: Iterable[Batch]) -> None:
        """Runs the steps of batches, until they end or a signal comes."""
        late: tuple[int, Metrics] | None = None
        for step, batch in enumerate(batches, start=self.step + 1):
            # While this batch was made, the device was still at the step before.
            self.step = step
            self.carry, metrics = self.programs.step(self.carry, batch, self.rng)
            if late is not None:
                self.stepped(*late)
            late = step, metrics
            if self.is_due(step) or self.request.name:
                self.stepped(*late)
                late = None
                self.judge_and_save(step)
                self.speed.pause()
            if self.request.name:
                break

    def is_due(self, step: int) -> bool:
        """Whether more is to be done after a step than the next one."""
        every = [self.config.eval_every]
        every += [self.config.checkpoint_every] * (self.folder is not None)
        every += [self.config.sample_every] * (self.sample is not None)
        return step == self.total or any(step % n == 0 for n in every)

    def stepped(self, step: int, metrics: Metrics) -> None:
        """Fetches what a step says of itself, and tells it."""
        numbers = StepMetrics(*(x.item() for x in jax.device_get(metrics)))
        event = Stepped(step, numbers, self.speed.after(numbers.tokens))
        if step % self.config.log_every == 0 or step == self.total:
            self.history.append(event)
        self.say(event)
        self.skipped_in_a_row = (self.skipped_in_a_row + 1) * numbers.skipped
        if self.skipped_in_a_row > self.config.max_skipped:
            raise FloatingPointError(self.not_finite(step))

    def judge_and_save(self, step: int) -> None:
        """Does what is due after a step."""
        last = step == self.total
        if last or step % self.config.eval_every == 0:
            self.evaluate(step)
        if self.sample is not None and (last or step % self.config.sample_every == 0):
            prompt, count = self.config.sample_prompt, self.config.sample_tokens
            params = self.carry.judged
            text = self.sample(self.model, params, self.tokenizer, prompt, count)
            self.say(Sampled(step, text))
        if last or step % self.config.checkpoint_every == 0 or self.request.name:
            self.save(step)

    def evaluate(self, step: int) -> None:
        """Reads the whole validation split, and keeps the best parameters."""
        batches = held_out_batches(self.config.data, self.data)
        loss = self.programs.evaluate(self.carry.judged, batches)
        self.validation_loss = step, loss
        is_best = not math.isnan(loss) and (self.best is None or loss < self.best[1])
        if is_best:
            self.best = step, loss
            self.export(step, {"validation_loss": repr(loss)})
        event = Evaluated(step, loss, is_best)
        self.history.append(event)
        self.say(event)

    def export(self, step: int, metadata: dict[str, str]) -> None:
        """Takes the parameters as they are for what the run has come to."""
        # Copies, since the step takes the originals.
        params = jax.tree.map(np.array, self.carry.judged)
        self.best_params = params
        if self.folder is not None:
            metadata = {"step": str(step), **metadata}
            self.folder.write_weights(params, metadata)

    def save(self, step: int) -> None:
        """Writes a checkpoint, unless one could not go on from here."""
        if self.folder is None or self.skipped_in_a_row or step == self.saved_at:
            return
        judged = self.validation_loss
        loss = judged[1] if judged and judged[0] == step else None
        about = {"step": step, "validation_loss": loss, "best": self.best}
        path = self.folder.checkpoints.save(step, self.carry, about)
        self.saved_at = step
        self.folder.checkpoints.keep(step, *self.best_saved())
        self.say(Saved(step, path))

    def best_saved(self) -> list[int]:
        """Returns the step of the best checkpoint there is, if any was evaluated."""
        if self.folder is None:
            return []
        checkpoints = self.folder.checkpoints
        losses = [
            (checkpoints.about(step)["validation_loss"], step)
            for step in checkpoints.steps()
        ]
        known = [(loss, step) for loss, step in losses if loss is not None]
        return [min(known)[1]] if known else []

    # --- Ending -------------------------------------------------------------------

    def parameters(self) -> Params:
        """Returns the best parameters: this call's, or those of an earlier one."""
        if self.best_params is not None:
            return self.best_params
        if self.folder is not None and self.best is not None:
            return model_folder.read_weights(self.folder.path, self.model.config)
        self.export(self.step, {})
        return self.parameters()

    def not_finite(self, step: int) -> str:
        """Returns what to say of too many steps that were not finite."""
        good = "there is no checkpoint"
        if self.folder is not None and self.saved_at is not None:
            path = self.folder.checkpoints.path(self.saved_at)
            good = f"the last good checkpoint is {path}"
        return (
            f"step {step} is the last of {self.skipped_in_a_row} in a row whose loss "
            f"or gradient is not finite, more than max_skipped = "
            f"{self.config.max_skipped} allows; {good}"
        )

    def say(self, event: Event) -> None:
        for observer in self.observers:
            observer(event)


def _drops(model: Model) -> bool:
    config = model.config
    return any(
        (config.embedding_dropout, config.attention_dropout, config.residual_dropout)
    )
