"""``haiku-mqa bench``: how fast it is, here, and what papers found."""

from __future__ import annotations

from typing import Any

from haiku_mqa.cli import (
    _options,
    bench_accelerator,
    bench_ainslie,
    bench_batch,
    bench_context,
    bench_decode,
    bench_engine,
    bench_memory,
    bench_nanogpt,
    bench_plan,
    bench_prefill,
    bench_scaling,
    bench_shazeer,
    bench_speculative,
    bench_startup,
    bench_train,
)

_DESCRIPTION = """\
Measure speed on this machine, or repeat what papers found. Every figure is the median
of runs that take turns with those it is held against, after a first one that is not
timed. Each verb prints a table and what its figures mean; --json writes every run, and
--markdown prints the table alone.
"""

_EPILOG = """\
examples:
  haiku-mqa bench decode
  haiku-mqa bench prefill --prompt-tokens 512,2048 --plot prefill.png
  haiku-mqa bench shazeer --steps 300 --seeds 1 --markdown
"""


def add_parser(verbs: Any) -> None:
    """Adds the verb ``bench`` and its own verbs."""
    parser = _options.add_verb(
        verbs,
        "bench",
        help="measure speed on this machine, and repeat what papers found",
        run=None,
        description=_DESCRIPTION,
        epilog=_EPILOG,
    )
    own = parser.add_subparsers(title="verbs", metavar="VERB")
    bench_decode.BENCH.add_parser(own)
    bench_prefill.BENCH.add_parser(own)
    bench_batch.BENCH.add_parser(own)
    bench_context.BENCH.add_parser(own)
    bench_engine.add_parser(own)
    bench_startup.add_parser(own)
    bench_memory.add_parser(own)
    bench_speculative.BENCH.add_parser(own)
    bench_accelerator.BENCH.add_parser(own)
    bench_plan.BENCH.add_parser(own)
    bench_train.BENCH.add_parser(own)
    bench_scaling.BENCH.add_parser(own)
    bench_nanogpt.BENCH.add_parser(own)
    bench_shazeer.BENCH.add_parser(own)
    bench_ainslie.BENCH.add_parser(own)
