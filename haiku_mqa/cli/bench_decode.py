"""``haiku-mqa bench decode``: how fast tokens are chosen, here."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from haiku_mqa.cli._findings import Bench, check_room, gguf_of
from haiku_mqa.cli._models import load_or_draw

if TYPE_CHECKING:
    from haiku_mqa.bench.findings import Findings

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


def _measure(args: argparse.Namespace) -> Findings:
    gguf = gguf_of(args)
    loaded = load_or_draw(args.model, dtype=args.dtype, seed=args.seed)
    check_room(args, loaded.model.config.max_length)
    from haiku_mqa.bench import decode_speed

    return decode_speed.run_decode(
        loaded.model,
        loaded.params,
        name=args.model,
        prompt_tokens=args.prompt_tokens,
        new_tokens=args.new_tokens,
        repeats=args.repeats,
        seed=args.seed,
        torch_python=args.torch_python,
        gguf=gguf,
        progress=True,
    )


BENCH = Bench(
    name="decode",
    help="measure tokens per second, beside the limit and others",
    description=_DESCRIPTION,
    epilog=_EPILOG,
    measure=_measure,
    has_model=True,
    numbers=(
        ("--prompt-tokens", 1, 128, "length of the prompt, of random tokens"),
        ("--new-tokens", 2, 64, "how many tokens each run chooses"),
        ("--repeats", 1, 5, "how many runs each median is of"),
    ),
    seed="the prompt, and of weights for a model that has none",
    peers="gguf",
)
