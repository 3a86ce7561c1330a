"""``haiku-mqa bench prefill``: how fast prompts are read."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from haiku_mqa.cli._findings import Bench, gguf_of
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


def _measure(args: argparse.Namespace) -> Findings:
    gguf = gguf_of(args)
    loaded = load_or_draw(args.model, dtype=args.dtype, seed=args.seed)
    context = loaded.model.config.max_length
    if max(args.prompt_tokens) >= context:
        raise ValueError(
            f"--prompt-tokens must be below {context}, the context of {args.model}, "
            f"got {max(args.prompt_tokens)}"
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


BENCH = Bench(
    name="prefill",
    help="measure how fast prompts are read, beside others",
    description=_DESCRIPTION,
    epilog=_EPILOG,
    measure=_measure,
    plot="haiku_mqa.bench.plot_generation:plot_prefill",
    has_model=True,
    sizes=(("--prompt-tokens", "128,1024", "lengths of the prompts"),),
    numbers=(("--repeats", 1, 5, "how many runs each median is of"),),
    seed="the prompts, and of weights for a model that has none",
    peers="gguf",
)
