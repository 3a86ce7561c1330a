"""The classic decoder, and the table of its parameters."""

import haiku as hk
import jax
import jax.numpy as jnp

import haiku_mqa as hm


def test_demo_prints_every_parameter_and_the_total(run):
    done = run("demo")
    assert done.code == 0
    init = hk.transform(
        lambda x: hm.transformer_decoder(x, hm.causal_mask(10), 6, 8, 64, 256)
    ).init
    params = jax.eval_shape(init, jax.random.key(0), jnp.ones((2, 10, 64)))
    head, *rows = done.out.splitlines()
    assert head.split() == ["parameter", "shape", "count"]
    counts = {
        f"{module}/{name}": leaf.size
        for module, leaves in params.items()
        for name, leaf in leaves.items()
    }
    printed = {row.split()[0]: row.split()[-1] for row in rows[: len(counts)]}
    assert printed == {path: f"{count:,}" for path, count in counts.items()}
    assert rows[len(counts)].split() == ["total", f"{sum(counts.values()):,}"]
    assert len({len(row) for row in (head, *rows[: len(counts) + 1])}) == 1  # aligned
    assert rows[-1] == "(2, 10, 64) in, (2, 10, 64) out"


def test_demo_takes_a_seed(run):
    assert run("demo", "--seed", 7).code == 0
