from __future__ import annotations

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from haiku_mqa.modules.norm import Normalization

SAME = 1e-5  # normalised values of up to about four
HALF = {"float16": 4e-3, "bfloat16": 3e-2}
SHAPE = (2, 3, 20)


def _transformed(make) -> hk.Transformed:
    return hk.without_apply_rng(hk.transform(lambda x: make()(x)))


HAIKU = {
    "layer": _transformed(lambda: hk.LayerNorm(-1, True, True, name="norm")),
    "layer_no_bias": _transformed(lambda: hk.LayerNorm(-1, True, False, name="norm")),
    "rms": _transformed(lambda: hk.RMSNorm(-1, name="norm")),
}
OURS = {
    "layer": _transformed(lambda: Normalization("layer", name="norm")),
    "layer_no_bias": _transformed(
        lambda: Normalization("layer", with_bias=False, name="norm")
    ),
    "rms": _transformed(lambda: Normalization("rms", name="norm")),
}
ONE_PLUS = _transformed(lambda: Normalization("rms_one_plus", name="norm"))
apply = {name: jax.jit(ours.apply) for name, ours in OURS.items()}


def _drawn(tree, seed: int):
    draw = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: jnp.asarray(draw.standard_normal(leaf.shape), leaf.dtype), tree
    )


@pytest.mark.parametrize("name", HAIKU)
def test_norm_parameters_are_those_of_haiku(name):
    x = jnp.ones(SHAPE)
    params = OURS[name].init(jax.random.key(0), x)
    expected = HAIKU[name].init(jax.random.key(0), x)
    assert jax.tree.structure(params) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, params, expected)


def test_norm_by_head_is_that_of_each_head_with_its_own_scale():
    x = _drawn(jnp.ones(SHAPE), 0)
    by_head = _transformed(lambda: Normalization("rms", by_head=True, name="norm"))
    params = _drawn(by_head.init(None, x), 1)
    assert params["norm"]["scale"].shape == SHAPE[1:]
    whole = by_head.apply(params, x)
    for head, scale in enumerate(params["norm"]["scale"]):
        alone = apply["rms"]({"norm": {"scale": scale}}, x[:, head])
        np.testing.assert_allclose(whole[:, head], alone, atol=SAME)


@pytest.mark.parametrize("name", HAIKU)
@given(seed=st.integers(0, 2**32 - 1), spread=st.floats(0.01, 100))
def test_norm_is_that_of_haiku_for_the_same_parameters(name, seed, spread):
    x = spread * _drawn(jnp.ones(SHAPE), seed)
    params = _drawn(OURS[name].init(None, x), seed)
    np.testing.assert_allclose(
        apply[name](params, x), HAIKU[name].apply(params, x), atol=SAME, rtol=SAME
    )


def test_one_plus_norm_stores_how_far_its_scale_is_from_one():
    x = _drawn(jnp.ones(SHAPE), 0)
    fresh = ONE_PLUS.init(None, x)
    assert fresh["norm"]["scale"].tolist() == [0.0] * SHAPE[-1]
    params = _drawn(fresh, 1)
    scale = {"norm": {"scale": 1 + params["norm"]["scale"]}}
    np.testing.assert_array_equal(
        ONE_PLUS.apply(params, x), OURS["rms"].apply(scale, x)
    )


def test_layer_norm_forgets_an_offset_and_rms_norm_does_not():
    x = _drawn(jnp.ones(SHAPE), 0)
    for name, forgets in (("layer", True), ("rms", False)):
        params = OURS[name].init(None, x)
        moved = OURS[name].apply(params, x + 3)
        stayed = OURS[name].apply(params, x)
        assert np.allclose(moved, stayed, atol=1e-4) is forgets


def test_norm_forgets_a_factor():
    x = _drawn(jnp.ones(SHAPE), 0)
    for name, ours in OURS.items():
        params = _drawn(ours.init(None, x), 1)
        np.testing.assert_allclose(
            apply[name](params, 100 * x), apply[name](params, x), atol=1e-4
        )


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", OURS)
def test_norm_is_computed_in_float32_whatever_it_is_given(name, dtype):
    # 300 squared is past float16's range; 1,000 of 1,001 is one in bfloat16.
    x = (300 * _drawn(jnp.ones(SHAPE), 0)).astype(dtype)
    params = _drawn(OURS[name].init(None, jnp.ones(SHAPE)), 1)
    half = OURS[name].apply(params, x)
    assert half.dtype == dtype
    np.testing.assert_allclose(
        half.astype(jnp.float32),
        OURS[name].apply(params, x.astype(jnp.float32)),
        atol=HALF[dtype],
        rtol=HALF[dtype],
    )


def test_norm_of_zeros_is_zero_with_finite_gradients():
    x = jnp.zeros(SHAPE)
    for ours in OURS.values():
        params = ours.init(None, x)
        value, gradient = jax.value_and_grad(
            lambda x, ours=ours, params=params: ours.apply(params, x).sum()
        )(x)
        assert float(value) == 0
        assert bool(jnp.isfinite(gradient).all())


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_norm_parameters_keep_the_dtype_asked_for(dtype):
    stored = _transformed(lambda: Normalization("layer", param_dtype=dtype))
    params = stored.init(None, jnp.ones(SHAPE, "float16"))
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {dtype}
    assert stored.apply(params, jnp.ones(SHAPE, "float16")).dtype == jnp.float16
