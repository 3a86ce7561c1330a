"""``haiku-mqa demo``: the classic decoder, from random input to a table."""

from __future__ import annotations

import argparse
import math
from typing import Any

from haiku_mqa._compiling import prepare_jax
from haiku_mqa.cli._options import add_seed, add_verb
from haiku_mqa.cli._screen import table

_BATCH, _LENGTH = 2, 10
_SIZES = {"num_layers": 6, "num_heads": 8, "d_model": 64, "d_ff": 256}

_DESCRIPTION = """\
Run the classic decoder once: six layers of multi-query attention with eight heads,
width 64, feed-forward width 256, over a random input of shape (2, 10, 64). Prints
its parameters and the shape of what comes out.
"""


def add_parser(verbs: Any) -> None:
    """Adds the verb ``demo``."""
    parser = add_verb(
        verbs,
        "demo",
        help="run a small random decoder and print its parameters",
        run=run,
        description=_DESCRIPTION,
    )
    add_seed(parser, "the input and the parameters")


def run(args: argparse.Namespace) -> int:
    """Prints the parameters of the classic decoder and the shape of its output.

    Args:
      args: With ``seed``.

    Returns:
      0.
    """
    prepare_jax()
    import haiku as hk
    import jax

    import haiku_mqa as hm

    def decode(x: jax.Array) -> jax.Array:
        return hm.transformer_decoder(x, hm.causal_mask(x.shape[1]), **_SIZES)

    decoder = hk.without_apply_rng(hk.transform(decode))
    x_rng, params_rng = jax.random.split(jax.random.key(args.seed))
    x = jax.random.normal(x_rng, (_BATCH, _LENGTH, _SIZES["d_model"]))
    params = jax.jit(decoder.init)(params_rng, x)
    out = jax.jit(decoder.apply)(params, x)

    leaves = [
        (f"{module}/{name}", leaf.shape)
        for module, names in params.items()
        for name, leaf in names.items()
    ]
    rows = [[path, str(shape), f"{math.prod(shape):,}"] for path, shape in leaves]
    total = sum(math.prod(shape) for _, shape in leaves)
    rows.append(["total", "", f"{total:,}"])
    print(table(["parameter", "shape", "count"], rows, ["count"]))
    print(f"\n{x.shape} in, {out.shape} out")
    return 0
