"""``haiku-mqa train``: from a text to a model that one can speak with."""

from __future__ import annotations

import argparse
import dataclasses
import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from haiku_mqa.cli import _options
from haiku_mqa.cli._failures import MissingExtra
from haiku_mqa.cli._models import check_name, prepare_training
from haiku_mqa.cli._processes import add_processes, join_processes
from haiku_mqa.cli._screen import say

if TYPE_CHECKING:
    from haiku_mqa.cli._given import Given
    from haiku_mqa.training import Corpus, RunConfig
    from haiku_mqa.training.run.events import Event
    from haiku_mqa.training.run.reports import TensorBoard

_SHARE_OF_WARM_UP = 10  # with --steps: at most a tenth of them
_USUAL_PROMPT = "\n"  # that no one chose

_DESCRIPTION = """\
Train a model on a text and write all of it to a folder. Without more words it is the
recipe "default": a small multi-query decoder over characters, on the Shakespeare that
comes with the package, in about a minute and a half on two cores.

The folder has the best weights so far (generate and eval take it as --model, at any
time), checkpoints, metrics.jsonl, samples.txt and loss.png, which is drawn anew at
each evaluation. Ctrl-C saves and stops. The same command again, or --resume, goes on
from there, also after a kill or a power cut, and comes to the very same weights.

With --init it trains a given model on: its sizes and its tokenizer are then the run's,
it is judged before the first step, and a recipe is taken for the rest.
"""

_EPILOG = """\
recipes:
  default          multi-query, 4 layers of width 128, context 128
  nanogpt-cpu      nanoGPT's recipe for a CPU: multi-head, the same width, context 64
  shakespeare-mqa  how the model of that name was trained: width 256, context 256

examples:
  haiku-mqa train --out runs/first
  haiku-mqa train --out runs/first --resume
  haiku-mqa train --out runs/novel --data novel.txt --steps 3000
  haiku-mqa train --out runs/wide --set model.d_model=256 model.num_heads=8 \\
    optimizer.learning_rate=1e-3
  haiku-mqa train --out runs/bpe --set data.tokenizer=bpe data.vocab_size=1024
  haiku-mqa train --config nanogpt-cpu --out runs/nanogpt
  haiku-mqa train --init runs/multi-query --out runs/healed --steps 300
  haiku-mqa train --mesh data=2,tensor=4 --out runs/wide

settings are those of a run's run.json: model.*, data.*, optimizer.*, eval_every,
checkpoint_every, sample_every, sample_prompt, compute_dtype, average_decay and so on;
values are JSON, and other words are texts.

exit codes: 0 trained; 130 or 143 interrupted or terminated, and saved
"""


def add_parser(verbs: Any) -> None:
    """Adds the verb ``train``."""
    parser = _options.add_verb(
        verbs,
        "train",
        help="train a model on a text",
        run=run,
        description=_DESCRIPTION,
        epilog=_EPILOG,
    )
    parser.add_argument(
        "--out", metavar="FOLDER", required=True, help="the run's folder; made if new"
    )
    parser.add_argument(
        "--config",
        metavar="RECIPE_OR_FILE",
        help="a recipe, a JSON file like a run's run.json, or a run's folder, whose "
        "config is taken (default: default)",
    )
    parser.add_argument(
        "--init",
        metavar="MODEL",
        help="begin from a model's weights: the folder of a run or of convert-heads, "
        "or a name that 'zoo list' shows (default: drawn weights)",
    )
    parser.add_argument(
        "--data",
        metavar="FILE_OR_FOLDER",
        help="a text, a folder of .txt files, or a .jsonl file of texts (default: the "
        "Shakespeare in the package)",
    )
    parser.add_argument(
        "--steps",
        type=_options.whole(1),
        metavar="N",
        help="length of the run; a warm-up longer than a tenth of it is cut to that",
    )
    parser.add_argument(
        "--seed",
        type=_options.whole(0, 2**32 - 1),
        metavar="N",
        help="seed of the first weights and of the batches",
    )
    parser.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="FIELD=VALUE",
        dest="settings",
        help="set any field of the config, such as optimizer.learning_rate=3e-4",
    )
    _options.add_mesh(parser)
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on with the folder's run, by its own config; refused if there is none",
    )
    parser.add_argument(
        "--tensorboard",
        action="store_true",
        help="also write for TensorBoard, in FOLDER/tensorboard (extra 'tensorboard')",
    )
    parser.add_argument(
        "--quiet", action="store_true", help="print nothing but the result"
    )
    add_processes(parser)


def run(args: argparse.Namespace) -> int:
    """Trains a model, showing how it goes, and says what came of it.

    Args:
      args: As parsed.

    Returns:
      0, or, where a signal stopped the run, 130 or 143.

    Raises:
      ValueError: There is no such recipe, setting or text, a value is not allowed,
        or the folder holds another run, none at all, or is in use.
      MissingExtra: ``--tensorboard`` without its extra.
      FloatingPointError: Too many steps in a row were not finite.
      OSError: The folder cannot be written.
    """
    _check(args)
    prepare_training()
    join_processes(args)
    from haiku_mqa.cli._given import read_given
    from haiku_mqa.cli._training import Sampler, Screen, outcome
    from haiku_mqa.sharding import is_first
    from haiku_mqa.training import read_corpus, train

    given = None if args.init is None else read_given(args.init)
    config = _config(args, given)
    corpus = read_corpus(config.data.source)
    config = _with_known_prompt(config, corpus, given)
    sampler = Sampler(config.seed)
    screen = Screen(args.out, corpus, is_quiet=args.quiet or not is_first())
    observers: list[Callable[[Event], None]] = [sampler.observe, screen]
    board = _tensorboard(args, config)
    if board is not None:
        observers.append(board)

    def on_event(event: Event) -> None:
        for observer in observers:
            observer(event)

    # A context of one token has no room for a second one.
    can_write = config.decoder_config(vocab_size=1).max_length > 1
    sample = sampler if can_write else None
    try:
        result = train(
            config,
            corpus,
            params=given and given.params,
            tokenizer=given and given.tokenizer,
            out=args.out,
            mesh=args.mesh,
            on_event=on_event,
            sample=sample,
        )
    finally:
        screen.close()
        if board is not None:
            board.close()
    if not is_first():  # which says it for all
        return 0 if result.stopped is None else 128 + signal.Signals[result.stopped]
    if result.stopped is None:
        print("" if args.quiet else "\n", end="")
        print(outcome(args.out, corpus, screen))
        return 0
    word = "interrupted" if result.stopped == "SIGINT" else "terminated"
    say(
        f"{word} at step {screen.step:,} and saved in {args.out}; the same command, or "
        "--resume, goes on from there"
    )
    return 128 + signal.Signals[result.stopped]


def _check(args: argparse.Namespace) -> None:
    """Refuses what can be seen to be wrong before jax is imported."""
    if not args.out:
        raise ValueError("--out must name a folder, and is empty")
    for setting in args.settings:
        if "=" not in setting:
            raise ValueError(
                f"--set takes FIELD=VALUE, such as optimizer.learning_rate=3e-4, got "
                f"{setting!r}"
            )
    if args.init is not None:
        check_name(args.init)
    if args.resume and not (Path(args.out) / "run.json").exists():
        raise ValueError(f"--resume needs a run, and {args.out} holds none")


def _config(args: argparse.Namespace, given: Given | None) -> RunConfig:
    from haiku_mqa.cli._given import begun_from
    from haiku_mqa.training import load_run_config

    own = args.out if args.resume else "default"
    config = load_run_config(own if args.config is None else args.config)
    if given is not None:
        config = begun_from(given, config)
    settings = []
    if args.data is not None:
        settings.append(f"data.source={json.dumps(args.data)}")
    if args.seed is not None:
        settings.append(f"seed={args.seed}")
    if args.steps is not None:
        short = args.steps // _SHARE_OF_WARM_UP
        warm_up = min(config.optimizer.warmup_steps, short)
        settings.append(f"optimizer.total_steps={args.steps}")
        settings.append(f"optimizer.warmup_steps={warm_up}")
    return config.with_settings([*settings, *args.settings])


def _with_known_prompt(
    config: RunConfig, corpus: Corpus, given: Given | None
) -> RunConfig:
    """Returns a config whose samples begin with what the model can read.

    It is better known now than at the first sample.
    """
    from haiku_mqa.text import CharacterTokenizer

    prompt = config.sample_prompt
    if config.data.tokenizer != "characters":
        return config
    texts = corpus.documents
    if given is not None and isinstance(given.tokenizer, CharacterTokenizer):
        texts = (given.tokenizer.characters,)
    characters = set().union(*texts)
    unknown = [letter for letter in prompt if letter not in characters]
    if not unknown:
        return config
    if prompt != _USUAL_PROMPT:
        raise ValueError(
            f"sample_prompt must be of characters that {corpus.name} has, and "
            f"it has no {unknown[0]!r}"
        )
    return dataclasses.replace(config, sample_prompt=texts[0][0])


def _tensorboard(args: argparse.Namespace, config: RunConfig) -> TensorBoard | None:
    from haiku_mqa.training.run.reports import TensorBoard

    if not args.tensorboard:
        return None
    try:
        return TensorBoard(args.out, config.log_every)
    except ImportError:
        raise MissingExtra("--tensorboard", "tensorboard") from None
