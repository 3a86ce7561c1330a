"""``haiku-mqa generate``: a prompt's continuation, token by token."""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from haiku_mqa.cli import _continue, _options, _sampling
from haiku_mqa.cli._files import check_argument, read_text
from haiku_mqa.cli._models import load_model
from haiku_mqa.cli._screen import counted
from haiku_mqa.streaming import text_decoder

if TYPE_CHECKING:
    from haiku_mqa.text import AnyTokenizer
    from haiku_mqa.zoo.loading import LoadedModel


@dataclasses.dataclass(frozen=True)
class _Manner:
    """How a kind of model is asked where the user does not say.

    Attributes:
      temperature: Of the choice.
      new_tokens: How many at most.
      slides: Whether it goes on where its context is full, having forgotten the first
        half.
    """

    temperature: float
    new_tokens: int
    slides: bool


_TO_BE_RIGHT = _Manner(temperature=0.0, new_tokens=64, slides=False)
# A small model of one corpus says the same line for ever where it takes the likeliest
# token. It was trained on pieces of text, so one may begin anywhere.
_OF_A_CORPUS = _Manner(temperature=0.8, new_tokens=500, slides=True)

_DESCRIPTION = """\
Print a prompt and its continuation, token by token, and then a line of figures:

  5 prompt tokens · 64 new tokens · 1.9 s to first token · 41.3 tokens/s

The seconds count from the moment the model is loaded: compiling the program that
reads prompts, reading this one, choosing a token. The tokens per second count the
new tokens after the second, over the time they took: the second waits for the
decode program to be compiled, which happens once. Compiled programs are kept in the
cache folder, so that the next run with a prompt of about this length starts sooner.

A model that was trained on one corpus here, as shakespeare-mqa or a training run, has
defaults of its own: it chooses at temperature 0.8, writes 500 tokens, and where its
context is full reads the second half of it again and goes on.
"""

_EPILOG = """\
examples:
  haiku-mqa generate "ROMEO:"
  haiku-mqa generate --seed 7 --max-new-tokens 2000 "JULIET:"
  haiku-mqa generate --model runs/first "To be, or not to be"
  haiku-mqa generate --model smollm2-135m "The capital of France is"
  haiku-mqa generate --chat --system "Answer in one line." "Why is the sky blue?"
  echo "Good morrow" | haiku-mqa generate -
"""


def add_parser(verbs: Any) -> None:
    """Adds the verb ``generate``."""
    parser = _options.add_verb(
        verbs,
        "generate",
        help="continue a prompt, or answer it",
        run=run,
        description=_DESCRIPTION,
        epilog=_EPILOG,
    )
    parser.add_argument(
        "prompt", nargs="?", metavar="PROMPT", help="the text; - reads standard input"
    )
    parser.add_argument("--file", metavar="FILE", help="read the prompt from a file")
    _options.add_model(
        parser,
        default=None,
        shown=f"{_options.PACKED_MODEL}; with --chat {_options.LANGUAGE_MODEL}",
    )
    parser.add_argument(
        "--chat",
        action="store_true",
        help="answer the prompt as a message, through the model's chat template "
        "('haiku-mqa chat' goes on from there)",
    )
    parser.add_argument(
        "--system", metavar="TEXT", help="with --chat: how the model is to behave"
    )
    parser.add_argument(
        "--max-new-tokens",
        type=_options.whole(1),
        metavar="N",
        help=f"stop after so many tokens (default: {_TO_BE_RIGHT.new_tokens}, or what "
        f"the context leaves; {_OF_A_CORPUS.new_tokens} for a model of one corpus)",
    )
    _sampling.add_sampling(
        parser,
        f"{_TO_BE_RIGHT.temperature:g}; {_OF_A_CORPUS.temperature} for a model of one "
        "corpus",
    )
    _sampling.add_penalties(parser)
    _options.add_seed(parser, "the choice where --temperature is above 0")
    _options.add_dtype(parser)
    _options.add_quantize(parser)


def run(args: argparse.Namespace) -> int:
    """Prints a continuation as it is generated, and figures.

    Args:
      args: As parsed.

    Returns:
      0.

    Raises:
      ValueError: The prompt is missing, empty, not UTF-8 or too long for the
        context, or options contradict each other.
      FloatingPointError: The model's logits were NaN.
    """
    prompt = _prompt(args)
    _check_options(args)
    if args.model is None:
        args.model = _options.LANGUAGE_MODEL if args.chat else _options.PACKED_MODEL
    loaded = load_model(args.model, dtype=args.dtype, quantize=args.quantize)
    manner = _manner(loaded.tokenizer)
    if args.temperature is None:
        args.temperature = manner.temperature
        _sampling.check_sampling(args)
    ids = _encoded(loaded, prompt, args)
    budget = _budget(loaded, ids, manner, args)
    # A prompt is part of the text that comes of it; a question is not.
    sys.stdout.write("" if args.chat else prompt)
    sys.stdout.flush()
    try:
        figures = _write(_pieces(loaded, ids, budget, args))
    finally:
        sys.stdout.write("\n")  # whatever comes next begins a line
    print(f"{counted(len(ids), 'prompt token')} · {figures}")
    return 0


def _prompt(args: argparse.Namespace) -> str:
    if (args.prompt is None) == (args.file is None):
        got = "neither" if args.prompt is None else "both"
        raise ValueError(f"give either PROMPT or --file, got {got}")
    if args.file is not None:
        name, text = "--file", read_text(args.file)
    elif args.prompt == "-":
        name, text = "standard input", read_text("-")
    else:
        name, text = "PROMPT", check_argument("PROMPT", args.prompt)
    if not text:
        raise ValueError(f"{name} must hold some text, and is empty")
    return text


def _check_options(args: argparse.Namespace) -> None:
    if args.system is not None:
        check_argument("--system", args.system)
        if not args.chat:
            raise ValueError("--system needs --chat")
    _sampling.check_sampling(args)


def _encoded(loaded: LoadedModel, prompt: str, args: argparse.Namespace) -> list[int]:
    tokenizer: Any = loaded.tokenizer
    if tokenizer is None:
        raise ValueError(f"model {args.model!r} has no tokenizer to read text with")
    if not args.chat:
        return list(tokenizer.encode(prompt))
    if getattr(tokenizer, "chat_template", None) is None:
        raise ValueError(f"model {args.model!r} has no chat template; leave out --chat")
    messages = [{"role": "user", "content": prompt}]
    if args.system is not None:
        messages.insert(0, {"role": "system", "content": args.system})
    return list(tokenizer.encode_chat(messages))


def _manner(tokenizer: AnyTokenizer | None) -> _Manner:
    from haiku_mqa.text import Tokenizer

    return _OF_A_CORPUS if isinstance(tokenizer, Tokenizer) else _TO_BE_RIGHT


def _budget(
    loaded: LoadedModel, ids: list[int], manner: _Manner, args: argparse.Namespace
) -> int:
    if manner.slides:
        return args.max_new_tokens or manner.new_tokens
    context = loaded.model.config.max_length
    left = context - len(ids)
    if left < 1:
        raise ValueError(
            f"the prompt has {counted(len(ids), 'token')}, and the context of "
            f"{args.model} holds {context:,}, new tokens included"
        )
    if args.max_new_tokens is None:
        return min(manner.new_tokens, left)
    if args.max_new_tokens > left:
        raise ValueError(
            f"--max-new-tokens must be at most {left}, got {args.max_new_tokens}: the "
            f"prompt has {counted(len(ids), 'token')}, and the context of "
            f"{args.model} holds {context:,}"
        )
    return args.max_new_tokens


def _pieces(
    loaded: LoadedModel, ids: list[int], budget: int, args: argparse.Namespace
) -> Iterator[tuple[str, int]]:
    """Yields text as it becomes whole, and how many tokens came with it."""
    decoder = text_decoder(loaded.tokenizer)
    for tokens in _steps(loaded, ids, budget, args):
        yield "".join(map(decoder.push, tokens)), len(tokens)
    yield decoder.finish(), 0


def _steps(
    loaded: LoadedModel, ids: list[int], budget: int, args: argparse.Namespace
) -> Iterator[list[int]]:
    """Yields new tokens as they are chosen."""
    import jax

    sampling = _sampling.sampling_of(args)
    rng = None if sampling.is_greedy else jax.random.key(args.seed)
    yield from _continue.steps(
        loaded.model,
        loaded.params,
        ids,
        new_tokens=budget,
        sampling=sampling,
        rng=rng,
        end_tokens=tuple(getattr(loaded.tokenizer, "end_tokens", ())),
    )


def _write(pieces: Iterator[tuple[str, int]]) -> str:
    start = time.perf_counter()
    times: list[float] = []  # when each new token came
    for text, count in pieces:
        times += [time.perf_counter()] * count
        sys.stdout.write(text)
        sys.stdout.flush()
    first = (times[0] if times else time.perf_counter()) - start
    figures = f"{counted(len(times), 'new token')} · {first:.1f} s to first token"
    if len(times) > 2:
        rate = (len(times) - 2) / (times[-1] - times[1])
        figures += f" · {rate:.1f} tokens/s"
    return figures
