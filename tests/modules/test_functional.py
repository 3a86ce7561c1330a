"""The five classic functions, and the classic decoder that they make."""

from __future__ import annotations

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import haiku_mqa as hm
from haiku_mqa.modules.functional import classic_config

SAME = 1e-5
B, T, N, D, F = 2, 5, 4, 16, 24


def _x(seed: int = 0, length: int = T) -> jax.Array:
    draw = np.random.default_rng(seed)
    return jnp.asarray(draw.standard_normal((B, length, D)), jnp.float32)


def _pair(function) -> hk.Transformed:
    return hk.without_apply_rng(hk.transform(function))


BLOCK = _pair(
    lambda x, k, v, mask: hm.transformer_decoder_block(x, k, v, mask, N, D, F)
)
DECODER = _pair(
    lambda x, mask: hm.transformer_decoder(
        x, mask, num_layers=2, num_heads=N, d_model=D, d_ff=F
    )
)


def _classic_block(params, path: str, x, key, value, mask):
    """The first transformer's block, written with Haiku and one key/value head."""

    def linear(name, y):
        leaves = params[f"{path}/{name}"]
        return y @ leaves["w"] + leaves["b"]

    def norm(name, y):
        leaves = params[f"{path}/{name}"]
        y = y - y.mean(-1, keepdims=True)
        y = y / jnp.sqrt((y**2).mean(-1, keepdims=True) + 1e-5)
        return y * leaves["scale"] + leaves["offset"]

    size = D // N
    q = linear("attention/query", x).reshape(*x.shape[:2], N, size)
    k, v = linear("attention/key", key), linear("attention/value", value)
    logits = jnp.einsum("btnh,bsh->bnts", q, k) / jnp.sqrt(size)
    weights = jax.nn.softmax(jnp.where(mask, logits, -1e30), axis=-1)
    attended = jnp.einsum("bnts,bsh->btnh", weights, v).reshape(*x.shape[:2], D)
    x = norm("attention_post_norm", x + linear("attention/linear", attended))
    hidden = jax.nn.relu(linear("feed_forward/up", x))
    return norm("feed_forward_post_norm", x + linear("feed_forward/down", hidden))


def test_block_is_the_first_transformers_with_one_key_value_head():
    x, key, value = _x(), _x(1, 7), _x(2, 7)
    mask = jnp.asarray(np.random.default_rng(0).random((B, 1, T, 7)) < 0.7)
    mask = mask.at[..., 0].set(True)
    params = BLOCK.init(jax.random.key(0), x, key, value, mask)
    np.testing.assert_allclose(
        BLOCK.apply(params, x, key, value, mask),
        _classic_block(params, "transformer_decoder_block", x, key, value, mask),
        atol=SAME,
    )


def test_decoder_is_its_blocks_one_after_another():
    mask = hm.causal_mask(T)
    params = DECODER.init(jax.random.key(0), _x(), mask)
    x = _x()
    for layer in range(2):
        path = f"transformer_decoder/layer_{layer}"
        x = _classic_block(params, path, x, x, x, mask)
    np.testing.assert_allclose(DECODER.apply(params, _x(), mask), x, atol=SAME)


def test_decoder_without_a_mask_lets_all_attend_to_all():
    full = jnp.ones((T, T), bool)
    params = DECODER.init(jax.random.key(0), _x(), None)
    np.testing.assert_array_equal(
        DECODER.apply(params, _x(), None), DECODER.apply(params, _x(), full)
    )


def test_decoder_has_one_key_value_head_and_classic_paths():
    params = DECODER.init(jax.random.key(0), _x(), None)
    attention = "transformer_decoder/layer_0/attention"
    assert params[f"{attention}/key"]["w"].shape == (D, D // N)
    assert params[f"{attention}/query"]["w"].shape == (D, D)
    assert "transformer_decoder/layer_1/feed_forward/down" in params
    assert not any("final_norm" in path for path in params)


def test_functions_compose_inside_one_transform():
    def forward(x):
        mask = hm.causal_mask(x.shape[1])
        x = hm.feed_forward(x, F)
        x = hm.transformer_decoder_block(x, x, x, mask, N, D, F)
        x = hm.transformer_decoder_block(x, x, x, mask, N, D, F)
        return hm.transformer_decoder(x, mask, 1, N, D, F)

    pair = _pair(forward)
    params = pair.init(jax.random.key(0), _x())
    tops = {path.split("/")[0] for path in params}
    assert tops == {
        "feed_forward",
        "transformer_decoder_block",
        "transformer_decoder_block_1",
        "transformer_decoder",
    }
    assert pair.apply(params, _x()).shape == (B, T, D)


def test_decoder_of_config_reads_its_sizes():
    config = classic_config(num_layers=6, num_heads=8, d_model=64, d_ff=256)
    assert (config.num_kv_heads, config.key_size, config.gated) == (1, 8, False)
    assert (config.position_embedding, config.final_norm) == ("none", False)


@pytest.mark.parametrize("wrong", [jnp.ones((B, T, D + 1)), jnp.ones((T, D))])
def test_functions_refuse_an_input_of_another_width(wrong):
    with pytest.raises(ValueError, match=r"x must be \[B, T, d_model\] .* = 16, got"):
        BLOCK.init(jax.random.key(0), wrong, wrong, wrong, None)
    with pytest.raises(ValueError, match=r"x must be \[B, T, d_model\] .* = 16, got"):
        DECODER.init(jax.random.key(0), wrong, None)


def test_functions_refuse_heads_that_do_not_divide_the_width():
    pair = _pair(lambda x: hm.transformer_decoder(x, None, 1, 3, D, F))
    with pytest.raises(ValueError, match="num_heads = 3 does not divide d_model = 16"):
        pair.init(jax.random.key(0), _x())


@pytest.mark.parametrize("mask", [jnp.ones((T, T)), jnp.ones((T, T + 1), bool)])
def test_functions_refuse_a_mask_that_cannot_be_meant(mask):
    with pytest.raises(ValueError, match="mask must be"):
        DECODER.init(jax.random.key(0), _x(), mask)
