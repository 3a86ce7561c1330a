"""``haiku-mqa bench context``: what a token costs as the cache fills."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from haiku_mqa._compiling import prepare_jax
from haiku_mqa.cli._findings import Bench

if TYPE_CHECKING:
    from haiku_mqa.bench.findings import Findings

_DESCRIPTION = """\
Decode one stream of text from fuller and fuller caches, with multi-head, grouped and
multi-query attention in a decoder of one size (63 million parameters, 12 heads of 64,
drawn weights), and print the median time of a token beside the cache's bytes and
the limit that memory sets.
"""

_EPILOG = """\
examples:
  haiku-mqa bench context
  haiku-mqa bench context --contexts 512,2048 --plot context.png
"""


def _measure(args: argparse.Namespace) -> Findings:
    prepare_jax()
    from haiku_mqa.bench import context

    return context.run_context(
        contexts=args.contexts, repeats=args.repeats, progress=True
    )


BENCH = Bench(
    name="context",
    help="measure what a token costs as the cache fills, by kind of attention",
    description=_DESCRIPTION,
    epilog=_EPILOG,
    measure=_measure,
    plot="haiku_mqa.bench.plot_generation:plot_context",
    sizes=(("--contexts", "128,1024,4096,8192", "how many tokens are in the cache"),),
    numbers=(("--repeats", 1, 5, "how many runs each median is of"),),
)
