"""``haiku-mqa bench speculative``: guessed tokens, beside plain decoding."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from haiku_mqa.cli._findings import Bench
from haiku_mqa.cli._models import check_name, load_or_draw

if TYPE_CHECKING:
    from haiku_mqa.bench.findings import Findings
    from haiku_mqa.zoo.loading import LoadedModel

_DESCRIPTION = """\
Continue a prompt greedily, one stream of text, in three ways that take turns: token by
token; with tokens proposed by the text's own past (prompt lookup); and, where a draft
is named, with tokens proposed by that smaller model. Print medians of tokens per
second, each beside the first, and the share of the proposed tokens that was accepted.
Compiling and the first run of each way are not timed.

How much is accepted depends on the text. A prompt of random tokens, the default, tells
the cost of guessing rather than its use.
"""

_EPILOG = """\
examples:
  haiku-mqa bench speculative --prompt "the rain in Spain stays mainly in the rain"
  haiku-mqa bench speculative --model runs/large --draft runs/small --repeats 9
"""
_SETTINGS = ("model", "draft", "prompt_tokens", "new_tokens", "draft_tokens")
_SETTINGS += ("lookup_tokens", "ngram", "repeats", "dtype", "seed")


def _add_own(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--draft",
        metavar="NAME_OR_PATH",
        help="a smaller model over the same tokens, named as --model is",
    )
    parser.add_argument(
        "--prompt", metavar="TEXT", help="a text to continue, not random tokens"
    )


def _measure(args: argparse.Namespace) -> Findings:
    if args.draft is not None:
        check_name(args.draft)
    loaded = load_or_draw(args.model, dtype=args.dtype, seed=args.seed)
    prompt = _prompt(loaded, args)
    context = loaded.model.config.max_length
    if len(prompt) + args.new_tokens > context:
        raise ValueError(
            f"the prompt and --new-tokens must be at most {context} tokens together, "
            f"the context of {args.model}, got {len(prompt)} + {args.new_tokens}"
        )
    small = None
    if args.draft is not None:
        small = load_or_draw(args.draft, dtype=args.dtype, seed=args.seed)

    from haiku_mqa.bench import speculative
    from haiku_mqa.generation import Draft, PromptLookup

    return speculative.run_speculative(
        loaded.model,
        loaded.params,
        prompt,
        lookup=PromptLookup(ngram=args.ngram, num_tokens=args.lookup_tokens),
        draft=small and Draft(small.model, small.params, num_tokens=args.draft_tokens),
        new_tokens=args.new_tokens,
        repeats=args.repeats,
        settings={name: getattr(args, name) for name in _SETTINGS},
        progress=True,
    )


def _prompt(loaded: LoadedModel, args: argparse.Namespace) -> list[int]:
    if args.prompt is None:
        import numpy as np

        draw = np.random.default_rng(args.seed)
        vocab_size = loaded.model.config.vocab_size
        return draw.integers(0, vocab_size, args.prompt_tokens).tolist()
    if loaded.tokenizer is None:
        raise ValueError(
            f"--prompt needs a model with a tokenizer, and {args.model} has none; "
            "--prompt-tokens takes random tokens"
        )
    return list(loaded.tokenizer.encode(args.prompt))


BENCH = Bench(
    name="speculative",
    help="measure what guessing tokens gains, by lookup and by a draft",
    description=_DESCRIPTION,
    epilog=_EPILOG,
    measure=_measure,
    has_model=True,
    numbers=(
        ("--prompt-tokens", 1, 128, "length of a prompt of random tokens"),
        ("--new-tokens", 2, 64, "how many tokens each run chooses"),
        ("--draft-tokens", 1, 4, "how many tokens the draft proposes at once"),
        ("--lookup-tokens", 1, 8, "how many tokens the text proposes at once"),
        ("--ngram", 1, 3, "the longest run of tokens that is looked up"),
        ("--repeats", 1, 5, "how many runs each median is of"),
    ),
    seed="the prompt, and of weights for a model that has none",
    add_own=_add_own,
)
