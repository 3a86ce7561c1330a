from __future__ import annotations

import dataclasses

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haiku_mqa import (
    DecoderConfig,
    TransformerDecoder,
    TransformerDecoderBlock,
    causal_mask,
)
from haiku_mqa.modules.norm import Normalization

SAME = 1e-5
B, T, D = 2, 5, 12
CONFIG = DecoderConfig(
    vocab_size=5, num_layers=3, num_heads=3, d_model=D, d_ff=20, sliding_window=4
)


def _stack(config: DecoderConfig) -> hk.Transformed:
    return hk.without_apply_rng(
        hk.transform(lambda x, mask=None: TransformerDecoder(config)(x, mask))
    )


def _x(seed: int = 0) -> jax.Array:
    draw = np.random.default_rng(seed)
    return jnp.asarray(draw.standard_normal((B, T, D)), jnp.float32)


@pytest.mark.parametrize("final_norm", [True, False])
def test_stack_is_its_blocks_one_after_another(final_norm):
    config = dataclasses.replace(CONFIG, final_norm=final_norm)
    mask = causal_mask(T)

    class Written(hk.Module):
        def __call__(self, x):
            for layer in range(3):
                block = TransformerDecoderBlock(config, layer, name=f"layer_{layer}")
                x = block(x, mask=mask)
            if final_norm:
                x = Normalization.from_config(config, "final_norm")(x)
            return x

    written = hk.without_apply_rng(
        hk.transform(lambda x: Written(name="transformer_decoder")(x))
    )
    params = written.init(jax.random.key(0), _x())
    stack = _stack(config)
    assert jax.tree.map(jnp.shape, dict(params)) == jax.tree.map(
        jnp.shape, dict(stack.init(jax.random.key(0), _x()))
    )
    np.testing.assert_allclose(
        stack.apply(params, _x(), mask), written.apply(params, _x()), atol=SAME
    )


def test_stack_without_mask_or_positions_commutes_with_a_permutation():
    config = dataclasses.replace(CONFIG, position_embedding="none", sliding_window=None)
    stack = _stack(config)
    params = stack.init(jax.random.key(0), _x())
    order = jnp.asarray([3, 0, 4, 1, 2])
    np.testing.assert_allclose(
        stack.apply(params, _x()[:, order]),
        stack.apply(params, _x())[:, order],
        atol=SAME,
    )


def test_stack_lets_nothing_through_a_causal_mask():
    stack = _stack(CONFIG)
    params = stack.init(jax.random.key(0), _x())
    moved = _x().at[:, 3:].add(1.0)
    mask = causal_mask(T)
    before, after = (stack.apply(params, x, mask) for x in (_x(), moved))
    np.testing.assert_array_equal(before[:, :3], after[:, :3])
    assert float(jnp.abs(before[:, 3:] - after[:, 3:]).min(axis=-1).max()) > 0


def test_stack_blocks_have_parameters_of_their_own():
    params = _stack(CONFIG).init(jax.random.key(0), _x())
    queries = [
        params[f"transformer_decoder/layer_{layer}/attention/query"]["w"]
        for layer in range(3)
    ]
    assert not np.allclose(queries[0], queries[1])
    assert not np.allclose(queries[1], queries[2])


@pytest.mark.parametrize("shape", [(T, T + 1), (B, T + 1, T), (B, T)])
def test_stack_refuses_a_mask_of_another_shape(shape):
    with pytest.raises(ValueError, match="mask must be"):
        _stack(CONFIG).init(jax.random.key(0), _x(), jnp.ones(shape, bool))
