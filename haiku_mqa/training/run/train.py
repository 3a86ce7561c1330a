"""A run from its config: its folder, its data, and who hears of it."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from pathlib import Path

from jax.sharding import Mesh

from haiku_mqa.model import Model, Params, build
from haiku_mqa.sharding import processes, shard
from haiku_mqa.text import Tokenizer
from haiku_mqa.training.corpus import Corpus, read_corpus
from haiku_mqa.training.run.config import RunConfig
from haiku_mqa.training.run.events import Evaluated, Observer, Stepped
from haiku_mqa.training.run.folder import RunFolder
from haiku_mqa.training.run.given import fitted
from haiku_mqa.training.run.loop import Run, Sampler
from haiku_mqa.training.run.progress import bar
from haiku_mqa.training.run.reports import Reports
from haiku_mqa.training.run.signals import stop_requests
from haiku_mqa.training.run.sources import check_tokenizer, make_data, make_tokenizer

_GO_ON = "start all of them again, and the run goes on from its last checkpoint"


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
    mesh: str | Mesh | None = None,
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
      mesh: The devices that the run goes over, as ``sharding.shard`` reads them; one
        if ``None``. A run goes on over any other, to the same losses but for rounding.
      resume: Whether to go on with a run that the folder has; otherwise it is
        refused.
      on_event: Called with what happens (``haiku_mqa.training.run.events``).
      sample: Called with model, parameters, tokenizer, ``config.sample_prompt`` and
        ``config.sample_tokens`` for a text; there are no samples if ``None``.
      progress: Whether a bar is shown, if this is a terminal.

    Returns:
      The model, its best parameters, and how they came about.

    Raises:
      ValueError: The corpus is too small; there are not the devices of the mesh, or it
        does not divide the model or a batch's rows; the parameters or the tokenizer are
        not the config's; or the folder holds another run (each field that differs is
        listed), files of something else, or is in use by another process.
      FormatError: A file in the folder is damaged.
      ProcessError: Another process of the run is gone, or could not begin.
      FloatingPointError: More than ``config.max_skipped`` steps in a row were not
        finite.
      OSError: The folder cannot be written, for example because the disk is full.
        The last checkpoint is whole.

    Example:
      >>> from haiku_mqa.training import Corpus, OptimizerConfig
      >>> import numpy as np
      >>> from haiku_mqa.training import DataConfig, RunConfig
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
    is_first = processes.is_first()
    with contextlib.ExitStack() as stack:
        folder = None if out is None else RunFolder(out)
        with processes.first_before_others():
            if folder is not None and is_first:
                stack.enter_context(folder.locked())
                if folder.has_run:
                    _go_on(folder, config, corpus, params, tokenizer, resume)
            if folder is not None and folder.has_run:
                tokenizer = folder.tokenizer()
            elif tokenizer is None:
                tokenizer = make_tokenizer(config.data, corpus)
            else:
                check_tokenizer(config.data, tokenizer)
            plain = build(config.decoder_config(tokenizer.vocab_size))
            model = _over(mesh, plain, config)
            first = None if params is None else fitted(model, params)
            data = make_data(config.data, corpus, tokenizer, config.seed)
            if folder is not None and is_first:
                folder.remove_leftovers()
                if not folder.has_run:
                    folder.begin(config, model.config, corpus, tokenizer, params)
        run = Run(config, model, tokenizer, data, folder)
        run.request = stack.enter_context(stop_requests())
        run.sample = sample
        stack.enter_context(processes.loss_told(_GO_ON))
        run.begin(first)
        if folder is not None and is_first:
            reports = Reports(folder.path, config)
            # What a run said before it had a checkpoint, it says again.
            reports.resume_at(-1 if run.kept.saved_at is None else run.step)
            stack.callback(reports.close)
            run.observers.append(reports)
        if on_event is not None and is_first:
            run.observers.append(on_event)
        if progress and is_first:
            run.observers.append(stack.enter_context(bar(config)))
        stopped = run.go(is_given=params is not None)
        return TrainResult(
            plain,
            run.kept.parameters(run.step, run.carry),
            tokenizer,
            tuple(run.history),
            None if folder is None else folder.path,
            stopped,
        )


def _over(mesh: str | Mesh | None, plain: Model, config: RunConfig) -> Model:
    if mesh is None:
        return plain
    model = shard(plain, mesh)
    model.check_rows(config.data.batch_size)
    return model


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
