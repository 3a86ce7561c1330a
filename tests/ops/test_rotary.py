from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from haiku_mqa.ops import apply_rotary, rotary_frequencies
from haiku_mqa.rope_scaling import (
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    RopeScaling,
    YarnScaling,
)

RELATIVE = 5e-5  # logits of normal vectors, offsets up to 1e3
LENGTH = 1e-5
FREQUENCY = 1e-5  # relative
FAR = 5e-5  # radians, at 8,191 tokens
ROUNDED_ANGLES = 5e-4  # transformers rounds angles of up to 1e3 radians to float32

SIZE, THETA = 16, 10_000.0
SCALINGS: dict[str, RopeScaling | None] = {
    "default": None,
    "linear": LinearScaling(factor=4.0),
    "llama3": Llama3Scaling(
        factor=8.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_length=1024,
    ),
    "yarn": YarnScaling(factor=4.0, original_max_length=1024),
    "yarn_tuned": YarnScaling(
        factor=16.0,
        original_max_length=512,
        beta_fast=16.0,
        beta_slow=2.0,
        attention_factor=1.25,
    ),
}

# What transformers computes for these: the test marked ``parity`` compares.
GOLDEN = {
    "default": ("1 .3162278 .1 .03162278 .01 .003162278 .001 .0003162278", 1.0),
    "linear": (
        ".25 .07905694 .025 .007905695 .0025 .0007905695 .00025 7.905695e-5",
        1.0,
    ),
    "llama3": (
        "1 .3162278 .1 .03162278 .003086761 .0003952847 .000125 3.952847e-5",
        1.0,
    ),
    "yarn": (
        "1 .3162278 .08125 .01976424 .004375 .0007905695 .00025 7.905695e-5",
        1.138629436111989,
    ),
    "yarn_tuned": (
        "1 .3162278 .06874999 .01185854 .000625 .0001976424 6.25e-5 1.976424e-5",
        1.25,
    ),
}


def _vectors(seed: int, heads: int = 3, size: int = SIZE) -> jax.Array:
    draw = np.random.default_rng(seed)
    return jnp.asarray(draw.standard_normal((1, 1, heads, size)), jnp.float32)


@functools.cache
def _logits_at(name: str):
    """Returns the compiled logits of one query and one key at two positions."""
    frequencies, factor = rotary_frequencies(SIZE, THETA, SCALINGS[name])

    @jax.jit
    def logits(q, k, here, there):
        q = apply_rotary(q, here[None, None], frequencies, factor)
        k = apply_rotary(k, there[None, None], frequencies, factor)
        return (q * k).sum(axis=-1)

    return logits


@pytest.mark.parametrize("name", SCALINGS)
@given(
    seed=st.integers(0, 2**32 - 1),
    here=st.integers(0, 1000),
    there=st.integers(0, 1000),
    offset=st.integers(0, 1000),
)
def test_rotary_logits_depend_on_relative_position_only(
    name, seed, here, there, offset
):
    q, k = _vectors(seed), _vectors(seed + 1)
    logits = _logits_at(name)
    moved = logits(q, k, jnp.int32(here + offset), jnp.int32(there + offset))
    stayed = logits(q, k, jnp.int32(here), jnp.int32(there))
    np.testing.assert_allclose(moved, stayed, atol=RELATIVE)


def test_rotary_logits_do_depend_on_relative_position():
    q, k = _vectors(0), _vectors(1)
    near = _logits_at("default")(q, k, jnp.int32(5), jnp.int32(4))
    far = _logits_at("default")(q, k, jnp.int32(5), jnp.int32(1))
    assert float(jnp.abs(near - far).min()) > 0.1


def test_rotary_leaves_position_zero_as_it_is():
    x = _vectors(0)
    frequencies, factor = rotary_frequencies(SIZE)
    turned = apply_rotary(x, jnp.zeros((1, 1), jnp.int32), frequencies, factor)
    np.testing.assert_array_equal(turned, x)


@given(st.integers(0, 2**20))
def test_rotary_keeps_the_length_of_every_pair(position):
    x = np.asarray(_vectors(3))
    frequencies, factor = rotary_frequencies(SIZE)
    turned = np.asarray(apply_rotary(x, np.array([[position]]), frequencies, factor))
    pairs = [np.hypot(y[..., : SIZE // 2], y[..., SIZE // 2 :]) for y in (x, turned)]
    np.testing.assert_allclose(pairs[1], pairs[0], rtol=LENGTH)


def test_rotary_turns_number_i_with_number_i_plus_half():
    frequencies = np.array([1.0, 0.5], np.float32)
    x = jnp.asarray([1.0, 2.0, 3.0, 4.0]).reshape(1, 1, 1, 4)
    turned = apply_rotary(x, jnp.asarray([[2]]), frequencies).ravel()
    pairs = [(1 + 3j) * np.exp(2j), (2 + 4j) * np.exp(1j)]
    expected = [pairs[0].real, pairs[1].real, pairs[0].imag, pairs[1].imag]
    np.testing.assert_allclose(turned, expected, rtol=LENGTH)


def test_rotary_leaves_the_rest_of_the_head_when_it_turns_a_part():
    x = _vectors(0)
    frequencies, factor = rotary_frequencies(6)
    turned = apply_rotary(x, jnp.asarray([[9]]), frequencies, factor)
    np.testing.assert_array_equal(turned[..., 6:], x[..., 6:])
    np.testing.assert_array_equal(
        turned[..., :6],
        apply_rotary(x[..., :6], jnp.asarray([[9]]), frequencies, factor),
    )


def test_rotary_factor_multiplies_what_was_turned_and_nothing_else():
    x, place = _vectors(0), jnp.asarray([[9]])
    frequencies, _ = rotary_frequencies(6)
    plain = apply_rotary(x, place, frequencies)
    longer = apply_rotary(x, place, frequencies, 1.5)
    np.testing.assert_allclose(longer[..., :6], 1.5 * plain[..., :6], rtol=LENGTH)
    np.testing.assert_array_equal(longer[..., 6:], plain[..., 6:])


@pytest.mark.parametrize("position", [1, 257, 2047, 8191])
def test_rotary_angles_are_exact_however_far_on(position):
    frequencies, _ = rotary_frequencies(64, theta=100_000.0)
    x = jnp.zeros((1, 1, 1, 64)).at[..., :32].set(1.0)
    turned = apply_rotary(x, jnp.asarray([[position]]), frequencies).ravel()
    angles = position * np.asarray(frequencies, np.float64)
    expected = np.concatenate([np.cos(angles), np.sin(angles)])
    np.testing.assert_allclose(turned, expected, atol=FAR)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_rotary_angles_are_exact_when_the_heads_are_in_half_precision(dtype):
    # In bfloat16 position 257 is 256; the turned vector may only be rounded.
    x = _vectors(0).astype(dtype)
    frequencies, factor = rotary_frequencies(SIZE)
    place = jnp.asarray([[257]])
    turned = apply_rotary(x, place, frequencies, factor)
    exact = apply_rotary(x.astype(jnp.float32), place, frequencies, factor)
    assert turned.dtype == dtype
    step = float(jnp.finfo(dtype).eps) * float(jnp.abs(exact).max())
    np.testing.assert_allclose(turned.astype(jnp.float32), exact, atol=step)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_rotary_refuses_positions_that_are_not_whole(dtype):
    with pytest.raises(ValueError, match=f"positions must be whole numbers .*{dtype}"):
        apply_rotary(_vectors(0), jnp.ones((1, 1), dtype), np.ones(2, np.float32))


@pytest.mark.parametrize("size", [-2, 0, 1, 3, 7])
def test_rotary_frequencies_refuse_a_size_without_pairs(size):
    with pytest.raises(ValueError, match=f"rotary_size must be an even .* got {size}"):
        rotary_frequencies(size)


def test_rotary_frequencies_fall_from_one_in_equal_ratios():
    frequencies, factor = rotary_frequencies(8, theta=10_000.0)
    np.testing.assert_allclose(frequencies, [1.0, 0.1, 0.01, 0.001], rtol=FREQUENCY)
    assert factor == 1.0


@pytest.mark.parametrize("name", ["linear", "llama3", "yarn"])
def test_rotary_scaling_by_one_changes_nothing(name):
    scaling = {
        "linear": LinearScaling(factor=1.0),
        "llama3": Llama3Scaling(
            factor=1.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_length=64,
        ),
        "yarn": YarnScaling(factor=1.0, original_max_length=64),
    }[name]
    plain, _ = rotary_frequencies(SIZE)
    scaled, factor = rotary_frequencies(SIZE, scaling=scaling)
    np.testing.assert_allclose(scaled, plain, rtol=FREQUENCY)
    assert factor == 1.0


@pytest.mark.parametrize("name", SCALINGS)
def test_rotary_scaling_only_slows_down_and_never_below_the_factor(name):
    plain, _ = rotary_frequencies(SIZE, THETA)
    scaled, _ = rotary_frequencies(SIZE, THETA, SCALINGS[name])
    least = plain / (SCALINGS[name].factor if SCALINGS[name] else 1.0)
    assert (scaled <= plain * (1 + FREQUENCY)).all()
    assert (scaled >= least * (1 - FREQUENCY)).all()


def test_longrope_takes_its_factors_by_how_long_the_decoder_may_be():
    scaling = LongRopeScaling(
        short_factors=(1.0, 2.0),
        long_factors=(4.0, 8.0),
        factor=4.0,
        original_max_length=256,
    )
    plain, _ = rotary_frequencies(4)
    for length, factors in (256, [1.0, 2.0]), (257, [4.0, 8.0]):
        scaled, factor = rotary_frequencies(4, scaling=scaling, max_length=length)
        np.testing.assert_array_equal(scaled, plain / factors)
        assert math.isclose(factor, math.sqrt(1 + 1 / 4))  # ln 4 / ln 256
    with pytest.raises(ValueError, match="max_length must be given for LongRoPE"):
        rotary_frequencies(4, scaling=scaling)


def test_yarn_factor_is_the_papers_unless_one_is_given():
    assert math.isclose(
        rotary_frequencies(SIZE, THETA, SCALINGS["yarn"])[1], 0.1 * math.log(4) + 1
    )
    assert rotary_frequencies(SIZE, THETA, SCALINGS["yarn_tuned"])[1] == 1.25


@pytest.mark.parametrize("name", SCALINGS)
def test_rotary_frequencies_are_the_golden_ones(name):
    frequencies, factor = rotary_frequencies(SIZE, THETA, SCALINGS[name])
    golden, golden_factor = GOLDEN[name]
    expected = [float(number) for number in golden.split()]
    np.testing.assert_allclose(frequencies, expected, rtol=FREQUENCY)
    assert math.isclose(factor, golden_factor, rel_tol=FREQUENCY)


@pytest.mark.parity
@pytest.mark.parametrize("name", SCALINGS)
def test_golden_rotary_frequencies_are_those_of_transformers(name):
    frequencies, factor = _transformers_rotary(name)
    golden, golden_factor = GOLDEN[name]
    expected = [float(number) for number in golden.split()]
    np.testing.assert_allclose(frequencies, expected, rtol=FREQUENCY)
    assert math.isclose(factor, golden_factor, rel_tol=FREQUENCY)


@pytest.mark.parity
@pytest.mark.parametrize("name", SCALINGS)
def test_rotary_turns_heads_as_transformers_does(name):
    import torch
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    frequencies, factor = rotary_frequencies(SIZE, THETA, SCALINGS[name])
    inverse, theirs = _transformers_rotary(name)
    places = np.array([[0, 1, 7, 130, 999]])
    x = np.random.default_rng(0).standard_normal((1, 5, 3, SIZE)).astype(np.float32)
    angles = torch.tensor(places)[..., None] * torch.tensor(inverse)
    doubled = torch.cat((angles, angles), dim=-1)
    heads = torch.tensor(x).transpose(1, 2)
    turned, _ = apply_rotary_pos_emb(
        heads, heads, doubled.cos() * theirs, doubled.sin() * theirs
    )
    np.testing.assert_allclose(
        apply_rotary(jnp.asarray(x), jnp.asarray(places), frequencies, factor),
        turned.transpose(1, 2).numpy(),
        atol=ROUNDED_ANGLES,
    )


def _transformers_rotary(name: str) -> tuple[np.ndarray, float]:
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    scaling = SCALINGS[name]
    options: dict[str, object] = {"rope_theta": THETA}
    if scaling is not None:
        options["factor"] = scaling.factor
    if isinstance(scaling, Llama3Scaling | YarnScaling):
        options["original_max_position_embeddings"] = scaling.original_max_length
    if isinstance(scaling, Llama3Scaling):
        options["low_freq_factor"] = scaling.low_freq_factor
        options["high_freq_factor"] = scaling.high_freq_factor
    if isinstance(scaling, YarnScaling):
        options["beta_fast"] = scaling.beta_fast
        options["beta_slow"] = scaling.beta_slow
        options["attention_factor"] = scaling.attention_factor
    kind = name.removesuffix("_tuned")
    config = LlamaConfig(
        hidden_size=4 * SIZE,
        num_attention_heads=4,
        max_position_embeddings=4096,
        rope_parameters={"rope_type": kind, **options},
    )
    if kind == "default":
        inverse, factor = LlamaRotaryEmbedding.compute_default_rope_parameters(config)
    else:
        inverse, factor = ROPE_INIT_FUNCTIONS[kind](config, "cpu")
    return inverse.numpy(), float(factor)
