"""``haiku-mqa bench``: how fast it is, here."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from haiku_mqa.cli import (
    _findings,
    _options,
    bench_ainslie,
    bench_batch,
    bench_context,
    bench_engine,
    bench_nanogpt,
    bench_prefill,
    bench_shazeer,
    bench_speculative,
    bench_startup,
    bench_train,
)
from haiku_mqa.cli._files import check_writable
from haiku_mqa.cli._models import load_or_draw
from haiku_mqa.cli._screen import say, size, table

if TYPE_CHECKING:
    from haiku_mqa.bench import DecodeReport
    from haiku_mqa.zoo.loading import LoadedModel

_DESCRIPTION = """\
Time the reading of a prompt (prefill) and the choosing of new tokens (decode), one
stream of text, greedy, and print medians:

  prefill  prompt tokens over the seconds to the first new token
  decode   new tokens after the first over the seconds they took
  limit    every token reads every weight once, so memory's speed, measured in the
           same run, over the bytes of the weights, is the most that can be had

Where torch and transformers are installed, transformers runs the same weights and
the same token ids in float32 and bfloat16, and where llama_cpp is, llama.cpp runs a
GGUF file, taking turns with this package within each repeat. Compiling and the first
run of each program are not timed.
"""

_EPILOG = """\
examples:
  haiku-mqa bench decode
  haiku-mqa bench decode --prompt-tokens 512 --repeats 9 --json decode.json
"""


def add_parser(verbs: Any) -> None:
    """Adds the verb ``bench`` and its own verbs."""
    parser = _options.add_verb(
        verbs,
        "bench",
        help="measure speed on this machine, and repeat what papers found",
        run=None,
    )
    own = parser.add_subparsers(title="verbs", metavar="VERB")
    decode = _options.add_verb(
        own,
        "decode",
        help="measure tokens per second, beside the limit and transformers",
        run=run_decode,
        description=_DESCRIPTION,
        epilog=_EPILOG,
    )
    _options.add_model(decode)
    _findings.add_numbers(
        decode,
        ("--prompt-tokens", 1, 128, "length of the prompt, of random tokens"),
        ("--new-tokens", 2, 64, "how many tokens each run chooses"),
        ("--repeats", 1, 5, "how many runs each median is of"),
    )
    _options.add_dtype(decode)
    _options.add_seed(decode, "the prompt, and of weights for a model that has none")
    _findings.add_peers(decode)
    _findings.add_json(decode)
    for verb in (
        bench_prefill,
        bench_batch,
        bench_context,
        bench_engine,
        bench_startup,
        bench_speculative,
        bench_train,
        bench_nanogpt,
        bench_shazeer,
        bench_ainslie,
    ):
        verb.add_parser(own)


def run_decode(args: argparse.Namespace) -> int:
    """Prints how fast prompts are read and tokens chosen.

    Args:
      args: As parsed.

    Returns:
      0.

    Raises:
      ValueError: There is no such model, or its context is too short.
      OSError: The JSON file cannot be written.
    """
    if args.json is not None:
        check_writable(args.json)
    args.gguf = _findings.gguf_of(args)
    loaded = load_or_draw(args.model, dtype=args.dtype, seed=args.seed)
    _findings.check_room(args, loaded.model.config.max_length)
    report = _measured(loaded, args)
    print(_text(report))
    if args.json is not None:
        _findings.write_json(args.json, report.to_dict())
    return 0


def _measured(loaded: LoadedModel, args: argparse.Namespace) -> DecodeReport:
    import jax
    import numpy as np

    from haiku_mqa import bench
    from haiku_mqa.quantization import quantize_params

    model, params = loaded.model, loaded.params
    remarks = bench.load_remarks()
    draw = np.random.default_rng(args.seed)
    prompt = draw.integers(0, model.config.vocab_size, args.prompt_tokens).tolist()
    with bench.Peers(args.torch_python) as others:
        if args.torch_python is None:
            peers, absent = bench.transformers_peers(model, params)
        else:
            others.add_transformers(model, params)
            peers, absent = [], []
        others.add_llama_cpp(args.gguf, context=args.prompt_tokens + args.new_tokens)
        programs: list[bench.Program] = [
            bench.Ours(model, quantize_params(model, params)),
            bench.Ours(model, params),
            *peers,
            *others.programs,
        ]
        timings, bandwidths = bench.take_turns(
            programs,
            prompt,
            new_tokens=args.new_tokens,
            repeats=args.repeats,
            measure_bandwidth=bench.read_bandwidth,
            on_run=say,
        )
    return bench.DecodeReport(
        model=args.model,
        parameters=sum(leaf.size for leaf in jax.tree.leaves(params)),
        device=jax.devices()[0].device_kind,
        prompt_tokens=args.prompt_tokens,
        new_tokens=args.new_tokens,
        repeats=args.repeats,
        bandwidths=tuple(bandwidths),
        standings=tuple(
            bench.Standing.of(program, runs, args.prompt_tokens)
            for program, runs in zip(programs, timings, strict=True)
        ),
        remarks=(*absent, *others.absent, *remarks),
    )


def _text(report: DecodeReport) -> str:
    from haiku_mqa.bench.bandwidth import cores
    from haiku_mqa.bench.report import COLUMNS

    limits = ", ".join(
        f"{s.dtype} {report.limit(s):.1f} tokens/s"
        for s in {s.dtype: s for s in report.standings}.values()
    )
    lines = [
        f"{report.model}: {report.parameters:,} parameters, on {report.device} with "
        f"{cores()} cores",
        f"{report.prompt_tokens} prompt tokens, {report.new_tokens} new tokens, "
        f"medians of {report.repeats}",
        f"memory is read at {size(report.bandwidth)}/s, so the limit is {limits}",
        "",
        table(COLUMNS, report.rows(), COLUMNS[2:]),
        *report.remarks,
    ]
    return "\n".join(lines)
