"""``haiku-mqa bench prefill``: how fast prompts are read."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from haiku_mqa.cli import _findings, _options
from haiku_mqa.cli._models import load_or_draw

if TYPE_CHECKING:
    from haiku_mqa.bench.findings import Findings

_DESCRIPTION = """\
Time the reading of prompts of random tokens, one stream of text, and print medians of
prompt tokens over the seconds to the first new token. Where torch and transformers are
installed, transformers reads the same prompts with the same weights, in float32 and
bfloat16, and where llama_cpp is, llama.cpp does with a GGUF file, all in turns. The
machine's matrix products, measured in the same run, are what is at best to be had.
Compiling and the first run of each program are not timed.
"""

_EPILOG = """\
examples:
  haiku-mqa bench prefill
  haiku-mqa bench prefill --prompt-tokens 64,512,2048 --plot prefill.png
"""


def add_parser(verbs: Any) -> None:
    """Adds ``bench``'s verb ``prefill``."""
    parser = _options.add_verb(
        verbs,
        "prefill",
        help="measure how fast prompts are read, beside others",
        run=run_prefill,
        description=_DESCRIPTION,
        epilog=_EPILOG,
    )
    _options.add_model(parser)
    _findings.add_sizes(parser, "--prompt-tokens", "128,1024", "lengths of the prompts")
    _findings.add_numbers(
        parser, ("--repeats", 1, 5, "how many runs each median is of")
    )
    _options.add_dtype(parser)
    _options.add_seed(parser, "the prompts, and of weights for a model that has none")
    _findings.add_peers(parser)
    _findings.add_plot(parser)
    _findings.add_output(parser)


def run_prefill(args: argparse.Namespace) -> int:
    """Prints how fast prompts are read, and draws it.

    Args:
      args: As parsed.

    Returns:
      0.

    Raises:
      ValueError: There is no such model, its context is too short, or the picture's
        ending is unknown.
      OSError: A file cannot be written.
    """
    gguf = _findings.gguf_of(args)

    def measure() -> Findings:
        loaded = load_or_draw(args.model, dtype=args.dtype, seed=args.seed)
        context = loaded.model.config.max_length
        if max(args.prompt_tokens) >= context:
            raise ValueError(
                f"--prompt-tokens must be below {context}, the context of "
                f"{args.model}, got {max(args.prompt_tokens)}"
            )
        from haiku_mqa.bench import prefill

        return prefill.run_prefill(
            loaded.model,
            loaded.params,
            name=args.model,
            lengths=args.prompt_tokens,
            repeats=args.repeats,
            seed=args.seed,
            torch_python=args.torch_python,
            gguf=gguf,
            progress=True,
        )

    def plot(data: Mapping[str, Any], path: Path) -> None:
        from haiku_mqa.bench.plot_generation import plot_prefill

        plot_prefill(data, path)

    return _findings.run(args, measure, plot)
