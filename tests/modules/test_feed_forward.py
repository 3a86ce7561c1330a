from __future__ import annotations

import math

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haiku_mqa import FeedForward, feed_forward

SAME = 1e-5
D, F = 6, 10


def _transformed(**options) -> hk.Transformed:
    return hk.without_apply_rng(hk.transform(lambda x: FeedForward(F, **options)(x)))


def _x(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).standard_normal(shape), jnp.float32)


def _drawn(tree):
    draw = np.random.default_rng(1)
    return jax.tree.map(
        lambda leaf: jnp.asarray(draw.standard_normal(leaf.shape), leaf.dtype), tree
    )


erf = np.vectorize(math.erf)
PLAIN = {
    "relu": lambda x: np.maximum(x, 0),
    "gelu": lambda x: x * (1 + erf(x / math.sqrt(2))) / 2,
    "gelu_tanh": lambda x: (
        x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2
    ),
    "silu": lambda x: x / (1 + np.exp(-x)),
}


def _linear(params, x: np.ndarray) -> np.ndarray:
    return x @ np.asarray(params["w"], np.float64) + np.asarray(params.get("b", 0.0))


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("activation", PLAIN)
def test_feed_forward_is_its_formula(activation, gated, with_bias):
    module = _transformed(activation=activation, gated=gated, with_bias=with_bias)
    x = _x(2, 3, D)
    params = _drawn(module.init(jax.random.key(0), x))
    wide = np.asarray(x, np.float64)
    layers = {path.split("/")[1]: leaves for path, leaves in params.items()}
    up = _linear(layers["up"], wide)
    if gated:
        hidden = PLAIN[activation](_linear(layers["gate"], wide)) * up
    else:
        hidden = PLAIN[activation](up)
    np.testing.assert_allclose(
        module.apply(params, x), _linear(layers["down"], hidden), rtol=1e-4, atol=1e-4
    )
    assert all(("b" in leaves) is with_bias for leaves in layers.values())


def test_feed_forward_works_on_each_position_alone():
    module = _transformed()
    x = _x(2, 3, D)
    params = _drawn(module.init(jax.random.key(0), x))
    np.testing.assert_allclose(
        module.apply(params, x)[1, 2], module.apply(params, x[1, 2]), atol=SAME
    )


def test_feed_forward_parameters_are_named_and_shaped():
    params = _transformed(gated=True).init(jax.random.key(0), _x(1, 2, D))
    shapes = {path: leaves["w"].shape for path, leaves in params.items()}
    assert shapes == {
        "feed_forward/up": (D, F),
        "feed_forward/gate": (D, F),
        "feed_forward/down": (F, D),
    }


def test_feed_forward_stores_in_one_dtype_and_computes_in_another():
    module = _transformed(param_dtype="bfloat16")
    params = module.init(jax.random.key(0), _x(1, D))
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"bfloat16"}
    assert module.apply(params, _x(1, D)).dtype == jnp.float32


def test_feed_forward_function_is_the_module_with_relu_and_biases():
    function = hk.without_apply_rng(hk.transform(lambda x: feed_forward(x, F)))
    x = _x(2, 3, D)
    params = function.init(jax.random.key(0), x)
    module = _transformed()
    np.testing.assert_array_equal(function.apply(params, x), module.apply(params, x))
