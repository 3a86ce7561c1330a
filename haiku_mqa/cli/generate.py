"""``haiku-mqa generate``: a prompt's continuation, token by token."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol

from haiku_mqa.cli import _options
from haiku_mqa.cli._files import check_argument, read_text
from haiku_mqa.cli._models import load_model
from haiku_mqa.cli._screen import counted

if TYPE_CHECKING:
    from haiku_mqa.zoo.loading import LoadedModel

_DEFAULT_NEW_TOKENS = 64

_DESCRIPTION = """\
Print a prompt and its continuation, token by token, and then a line of figures:

  5 prompt tokens · 64 new tokens · 1.9 s to first token · 41.3 tokens/s

The seconds count from the moment the model is loaded: compiling the program that
reads prompts, reading this one, choosing a token. The tokens per second count the
new tokens after the second, over the time they took: the second waits for the
decode program to be compiled, which happens once. Compiled programs are kept in the
cache folder, so that the next run with a prompt of about this length starts sooner.
"""

_EPILOG = """\
examples:
  haiku-mqa generate "The capital of France is"
  haiku-mqa generate --chat --system "Answer in one line." "Why is the sky blue?"
  haiku-mqa generate --temperature 0.8 --top-p 0.95 --seed 7 "Once upon a time"
  echo "def fibonacci(n):" | haiku-mqa generate -
"""


class _Decoder(Protocol):
    def push(self, token: int, /) -> str: ...
    def finish(self) -> str: ...


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
    _options.add_model(parser)
    parser.add_argument(
        "--chat",
        action="store_true",
        help="answer the prompt as a message, through the model's chat template",
    )
    parser.add_argument(
        "--system", metavar="TEXT", help="with --chat: how the model is to behave"
    )
    parser.add_argument(
        "--max-new-tokens",
        type=_options.whole(1),
        metavar="N",
        help=f"stop after so many tokens (default: {_DEFAULT_NEW_TOKENS}, or what the "
        "context leaves)",
    )
    parser.add_argument(
        "--temperature",
        type=_options.temperature,
        metavar="X",
        default=0.0,
        help="0 always takes the likeliest token; higher is more varied "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--top-k",
        type=_options.whole(1),
        metavar="N",
        help="choose among the N likeliest tokens (default: all)",
    )
    parser.add_argument(
        "--top-p",
        type=_options.share,
        metavar="P",
        help="choose among the likeliest tokens that reach probability P together "
        "(default: all)",
    )
    _options.add_seed(parser, "the choice where --temperature is above 0")
    _options.add_dtype(parser)


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
    loaded = load_model(args.model, dtype=args.dtype)
    ids = _encoded(loaded, prompt, args)
    budget = _budget(loaded, ids, args)
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
    for option, value in (("--top-k", args.top_k), ("--top-p", args.top_p)):
        if value is not None and args.temperature == 0:
            raise ValueError(
                f"{option} needs --temperature above 0: at 0 the likeliest token is "
                "taken always"
            )


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


def _budget(loaded: LoadedModel, ids: list[int], args: argparse.Namespace) -> int:
    context = loaded.model.config.max_length
    left = context - len(ids)
    if left < 1:
        raise ValueError(
            f"the prompt has {counted(len(ids), 'token')}, and the context of "
            f"{args.model} holds {context:,}, new tokens included"
        )
    if args.max_new_tokens is None:
        return min(_DEFAULT_NEW_TOKENS, left)
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
    import jax

    from haiku_mqa.generation import Sampling, stream

    sampling = Sampling(
        temperature=args.temperature, top_k=args.top_k, top_p=args.top_p
    )
    steps = stream(
        loaded.model,
        loaded.params,
        [ids],
        max_new_tokens=budget,
        sampling=sampling,
        rng=None if sampling.is_greedy else jax.random.key(args.seed),
        end_tokens=tuple(getattr(loaded.tokenizer, "end_tokens", ())),
    )
    decoder = _text_decoder(loaded.tokenizer)
    for [tokens] in steps:
        yield "".join(map(decoder.push, tokens)), len(tokens)
    yield decoder.finish(), 0


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


def _text_decoder(tokenizer: Any) -> _Decoder:
    from haiku_mqa.pretrained import StreamDecoder, Tokenizer

    if isinstance(tokenizer, Tokenizer):
        return StreamDecoder(tokenizer)
    return _PluginDecoder(tokenizer)


class _PluginDecoder:
    """Streams what any tokenizer decodes, of which only ``decode`` is promised."""

    def __init__(self, tokenizer: Any):
        """Begins a text."""
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._shown = 0

    def push(self, token: int, /) -> str:
        """Returns the text that is whole now that a token has come."""
        self._ids.append(token)
        text = self._tokenizer.decode(self._ids)
        # Half a character is decoded as a mark at the end, until its rest comes.
        return "" if text.endswith("\ufffd") else self._unshown(text)

    def finish(self) -> str:
        """Returns what is left."""
        return self._unshown(self._tokenizer.decode(self._ids))

    def _unshown(self, text: str) -> str:
        new = text[self._shown :]
        self._shown = len(text)
        return new
