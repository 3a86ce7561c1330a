"""Attention in one kernel: the rule that chooses it, and that it would be the same.

No GPU is needed: what would run there is compiled for it, and its arithmetic is that
of jax's own attention, which runs here too.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haiku_mqa import DecoderConfig, build
from haiku_mqa.ops import multi_query_attention
from haiku_mqa.ops.fused import dot_product_attention, refusal

EQUAL = 1e-5  # float32, two ways to compute the same
KERNEL = "__cudnn$fmha"
B, T, S, N, K, H = 2, 32, 48, 4, 2, 8


def _arrays(dtype="bfloat16", queries=T, keys=S, value_size=H):
    draw = np.random.default_rng(0)
    shapes = [(B, queries, N, H), (B, keys, K, H), (B, keys, K, value_size)]
    return [jnp.asarray(draw.standard_normal(shape), dtype) for shape in shapes]


def _mask(*shape):
    """Returns a mask by which some queries see nothing at all."""
    mask = np.random.default_rng(1).random(shape) < 0.3
    mask[..., 3 % shape[-2], :] = False
    return jnp.asarray(mask)


@pytest.fixture
def cuda(monkeypatch):
    """As if there were a GPU of Nvidia's, for which programs can be lowered."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(
        "jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version", lambda: 91000
    )


def _lowered(function, *arrays, platform="cuda"):
    traced = jax.jit(function).trace(*arrays)
    return traced.lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize(
    "shape", [(B, N, T, S), (B, 1, T, S), (1, 1, T, S), (B, 1, 1, S), None]
)
def test_attention_of_jax_with_our_masks_is_attention(shape):
    q, k, v = _arrays("float32")
    mask = None if shape is None else _mask(*shape)
    ours = multi_query_attention(q, k, v, mask, scale=0.3, implementation="xla")
    theirs = dot_product_attention(q, k, v, mask, scale=0.3)
    np.testing.assert_allclose(theirs, ours, atol=EQUAL)


def test_query_that_sees_nothing_passes_no_gradient_through_that_of_jax():
    q, k, v = _arrays("float32")
    mask = jnp.zeros((1, 1, T, S), bool)
    for gradient in jax.grad(
        lambda *x: dot_product_attention(*x, mask).sum(), argnums=(0, 1, 2)
    )(q, k, v):
        assert not gradient.any()


def test_kernel_is_called_where_a_program_is_for_cuda_and_nowhere_else(cuda):
    q, k, v = _arrays()
    mask = _mask(B, 1, 1, S)
    assert refusal(q, k, v, mask) is None
    assert KERNEL in _lowered(multi_query_attention, q, k, v, mask)
    assert KERNEL not in _lowered(multi_query_attention, q, k, v, mask, platform="cpu")
    # What runs here is what is written out, to the bit.
    np.testing.assert_array_equal(
        multi_query_attention(q, k, v, mask),
        multi_query_attention(q, k, v, mask, implementation="xla"),
    )


@pytest.mark.parametrize(
    ("arrays", "options", "reason"),
    [
        ({"dtype": "float32"}, {}, "the query is float32"),
        ({"queries": 1}, {}, "16 queries and more, and there are 1"),
        ({"keys": 47}, {}, "even numbers of queries and keys"),
        ({"value_size": 4}, {}, "unlike sizes, 8 and 4"),
        ({}, {"softcap": 2.0}, "no softcap"),
        ({}, {"bias": jnp.zeros((1, 1, 1, S))}, "adds a bias"),
        ({}, {"return_weights": True}, "returns no weights"),
        (
            {},
            {"dropout_rate": 0.5, "dropout_rng": jax.random.key(0)},
            "drops no weights",
        ),
    ],
)
def test_kernel_that_would_not_do_is_left_alone(cuda, arrays, options, reason):
    q, k, v = _arrays(**arrays)

    def attend(q, k, v):
        return multi_query_attention(q, k, v, **options)

    assert KERNEL not in _lowered(attend, q, k, v)
    with pytest.raises(ValueError, match=f"'cudnn' will not do: .*{reason}"):
        multi_query_attention(q, k, v, implementation="cudnn", **options)


def test_what_jax_knows_of_the_kernel_is_asked_too(monkeypatch):
    q, k, v = _arrays()
    assert refusal(q, k, v) == "it is for a GPU, and jax runs on cpu"
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert "cuDNN" in refusal(q, k, v)  # none is installed here


def test_unknown_implementation_is_refused():
    with pytest.raises(ValueError, match=r"implementation.*'cudn'.*cudnn"):
        multi_query_attention(*_arrays(), implementation="cudn")


def test_prefill_of_a_decoder_calls_the_kernel_and_a_step_does_not(cuda):
    sizes = {"vocab_size": 32, "num_layers": 2, "num_heads": 2, "d_model": 16}
    model = build(DecoderConfig(**sizes, d_ff=16, dtype="bfloat16"))
    cache = model.init_cache(1, 64)

    def read(params, tokens, cache):
        return model.apply(params, None, tokens, cache=cache).logits

    for length, is_called in ((32, True), (1, False)):
        tokens = jax.ShapeDtypeStruct((1, length), "int32")
        lowered = _lowered(read, model.param_shapes, tokens, cache)
        assert (KERNEL in lowered) is is_called
