"""Where a block puts its norms, and how its two parts are joined."""

from __future__ import annotations

import dataclasses

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haiku_mqa import (
    DecoderConfig,
    FeedForward,
    MultiQueryAttention,
    TransformerDecoderBlock,
    causal_mask,
)
from haiku_mqa.modules.norm import Normalization

SAME = 1e-5
B, T, S, D = 2, 4, 6, 12
CONFIG = DecoderConfig(
    vocab_size=5,
    num_layers=2,
    num_heads=4,
    d_model=D,
    d_ff=20,
    position_embedding="none",
    norm="layer",
)
PLACED = [
    (layout, placement)
    for layout in ("sequential", "parallel", "parallel_one_norm")
    for placement in ("before", "after", "both", "residual")
    if layout == "sequential" or placement != "residual"
]


def _block(config: DecoderConfig, layer: int = 0) -> hk.Transformed:
    def forward(x, key=None, value=None, mask=None):
        block = TransformerDecoderBlock(config, layer, name="block")
        return block(x, key, value, mask)

    return hk.without_apply_rng(hk.transform(forward))


def _x(length: int, seed: int = 0) -> jax.Array:
    draw = np.random.default_rng(seed)
    return jnp.asarray(draw.standard_normal((B, length, D)), jnp.float32)


def _drawn(tree):
    draw = np.random.default_rng(1)
    return jax.tree.map(
        lambda leaf: leaf + jnp.asarray(0.3 * draw.standard_normal(leaf.shape)), tree
    )


class WrittenOut(hk.Module):
    """The block as its formula says it, under the same parameter paths."""

    def __init__(self, config: DecoderConfig):
        super().__init__(name="block")
        self.config = config

    @hk.transparent
    def norm(self, name: str, *placements: str):
        if self.config.norm_placement not in placements:
            return lambda y: y
        return Normalization.from_config(self.config, name)

    def __call__(self, x, mask):
        attention = MultiQueryAttention.from_config(self.config, 0, "attention")
        feed = FeedForward.from_config(self.config, "feed_forward")
        attend = lambda y: attention(y, y, y, mask)  # noqa: E731
        first_a = self.norm("attention_norm", "before", "both")
        last_a = self.norm("attention_post_norm", "after", "both")
        sum_a = self.norm("attention_post_norm", "residual")
        first_f = self.norm("feed_forward_norm", "before", "both")
        last_f = self.norm("feed_forward_post_norm", "after", "both")
        sum_f = self.norm("feed_forward_post_norm", "residual")
        if self.config.block_layout == "sequential":
            x = sum_a(x + last_a(attend(first_a(x))))
            return sum_f(x + last_f(feed(first_f(x))))
        if self.config.block_layout == "parallel":
            return x + last_a(attend(first_a(x))) + last_f(feed(first_f(x)))
        read = first_a(x)
        return x + last_a(attend(read)) + last_f(feed(read))


def _written_out(config: DecoderConfig) -> hk.Transformed:
    return hk.without_apply_rng(
        hk.transform(lambda x, mask: WrittenOut(config)(x, mask))
    )


@pytest.mark.parametrize(("layout", "placement"), PLACED)
def test_block_is_its_formula(layout, placement):
    config = dataclasses.replace(CONFIG, block_layout=layout, norm_placement=placement)
    x, mask = _x(T), causal_mask(T)
    block, formula = _block(config), _written_out(config)
    params = _drawn(formula.init(jax.random.key(0), x, mask))
    assert jax.tree.map(jnp.shape, dict(params)) == jax.tree.map(
        jnp.shape, dict(block.init(jax.random.key(0), x, None, None, mask))
    )
    np.testing.assert_allclose(
        jax.jit(block.apply)(params, x, None, None, mask),
        jax.jit(formula.apply)(params, x, mask),
        atol=SAME,
    )


def test_block_reads_keys_and_values_from_elsewhere_where_they_are_given():
    config = dataclasses.replace(CONFIG, norm_placement="residual")
    block = _block(config)
    x, key, value = _x(T), _x(S, 1), _x(S, 2)
    params = _drawn(block.init(jax.random.key(0), x))
    out = block.apply(params, x, key, value)
    assert out.shape == (B, T, D)
    for other in (
        block.apply(params, x, value, value),
        block.apply(params, x, key, key),
        block.apply(params, x),
    ):
        assert not np.allclose(out, other, atol=1e-3)
    np.testing.assert_allclose(
        block.apply(params, x), block.apply(params, x, x, x), atol=SAME
    )


def test_block_masks_keys_from_elsewhere():
    block = _block(dataclasses.replace(CONFIG, norm_placement="residual"))
    x, memory = _x(T), _x(S, 1)
    params = _drawn(block.init(jax.random.key(0), x))
    padding = jnp.arange(S) < 3
    mask = jnp.broadcast_to(padding, (B, 1, 1, S))
    np.testing.assert_allclose(
        block.apply(params, x, memory, memory, mask),
        block.apply(params, x, memory[:, :3], memory[:, :3]),
        atol=SAME,
    )


def test_block_masks_every_row_and_head_by_its_own_square():
    block = _block(CONFIG)
    x = _x(T)
    params = _drawn(block.init(jax.random.key(0), x))
    mask = causal_mask(T)
    expected = block.apply(params, x, None, None, mask)
    for spread in ((B, T, T), (B, 4, T, T)):
        wide = jnp.broadcast_to(mask, spread)
        np.testing.assert_array_equal(
            block.apply(params, x, None, None, wide), expected
        )


@pytest.mark.parametrize("shape", [(S, T), (B, S, T), (B, 4, S, T), (B, T)])
def test_block_refuses_a_mask_along_the_wrong_axes(shape):
    block = _block(CONFIG)
    with pytest.raises(ValueError, match="mask must be"):
        block.init(jax.random.key(0), _x(T), _x(S), _x(S), jnp.ones(shape, bool))


def test_block_refuses_an_additive_mask():
    with pytest.raises(ValueError, match="mask must be boolean"):
        _block(CONFIG).init(jax.random.key(0), _x(T), None, None, jnp.zeros((T, T)))


def test_block_looks_back_through_the_window_of_its_layer():
    config = dataclasses.replace(CONFIG, sliding_window=(2, None))
    x, mask = _x(T), causal_mask(T)
    params = _drawn(_block(config).init(jax.random.key(0), x))
    moved = x.at[:, 0].add(1.0)
    for layer, sees in ((0, False), (1, True)):
        block = _block(config, layer)
        before = block.apply(params, x, None, None, mask)[:, -1]
        after = block.apply(params, moved, None, None, mask)[:, -1]
        assert np.array_equal(before, after) is not sees
