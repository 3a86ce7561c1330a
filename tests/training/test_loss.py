from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from haiku_mqa.training import Loss, chunked_cross_entropy, cross_entropy
from haiku_mqa.training.loss import mean_loss

SAME = 1e-5
BFLOAT16 = 2e-2  # of the greatest gradient
ROWS, LENGTH, SIZE, VOCABULARY = 2, 7, 5, 11
REFUSED = [-100, -1, VOCABULARY, 2**31 - 1]
LARGE = {"vocabulary": 49_152, "positions": 8_192, "width": 64}

# Small programs that run a few times: it is their compilation that takes time.
_jit = functools.partial(
    jax.jit, compiler_options={"xla_backend_optimization_level": 0}
)


def _drawn(seed: int = 0, dtype=jnp.float32):
    draw = np.random.default_rng(seed)
    x = jnp.asarray(2 * draw.standard_normal((ROWS, LENGTH, SIZE)), dtype)
    matrix = jnp.asarray(draw.standard_normal((VOCABULARY, SIZE)), dtype)
    labels = jnp.asarray(draw.integers(0, VOCABULARY, (ROWS, LENGTH)), jnp.int32)
    mask = jnp.asarray(draw.random((ROWS, LENGTH)) < 0.7)
    return x, matrix, labels, mask


def _plain(x, matrix, labels, mask, softcap=None, scale=1.0):
    logits = scale * jnp.einsum("btd,vd->btv", x, matrix)
    if softcap is not None:
        logits = softcap * jnp.tanh(logits / softcap)
    return cross_entropy(logits, labels, mask).mean


def _chunked(x, matrix, labels, mask, softcap=None, chunk=4, scale=None):
    return chunked_cross_entropy(
        x, matrix, labels, mask, chunk=chunk, softcap=softcap, scale=scale
    ).mean


def _with_gradients(function, **options):
    return _jit(jax.value_and_grad(functools.partial(function, **options), (0, 1)))


_COMPILED = {loss: _with_gradients(loss) for loss in (_plain, _chunked)}


def _agree(one, other, atol=SAME):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, atol=atol)


# --- The plain form -------------------------------------------------------------------


@_jit
def _ours_and_that_of_optax(x, matrix, labels, mask):
    logits = jnp.einsum("btd,vd->btv", x, matrix)
    each = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return cross_entropy(logits, labels, mask), each


@given(seed=st.integers(0, 2**32 - 1))
def test_loss_is_that_of_optax(seed):
    drawn = _drawn(seed)
    mask = drawn[-1]
    loss, each = _ours_and_that_of_optax(*drawn)
    np.testing.assert_allclose(loss.sum, jnp.where(mask, each, 0).sum(), rtol=SAME)
    assert loss.count == mask.sum()


def test_loss_without_a_mask_counts_all():
    x, matrix, labels, _ = _drawn()
    everywhere = jnp.ones(labels.shape, bool)
    assert _plain(x, matrix, labels, None) == _plain(x, matrix, labels, everywhere)
    assert _chunked(x, matrix, labels, None) == _chunked(x, matrix, labels, everywhere)


def test_loss_of_logits_that_all_are_huge_is_finite():
    logits = jnp.array([[[1e30, -1e30]]])
    assert cross_entropy(logits, jnp.array([[0]])).mean == 0


def test_loss_of_bfloat16_logits_is_float32():
    logits = jnp.zeros((1, 1, VOCABULARY), jnp.bfloat16)
    loss = cross_entropy(logits, jnp.array([[0]])).mean
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, np.log(VOCABULARY), rtol=SAME)


# --- The mean of several --------------------------------------------------------------


def _losses(sums, counts):
    return [
        Loss(jnp.float32(total), jnp.int32(count))
        for total, count in zip(sums, counts, strict=True)
    ]


def test_mean_weighs_each_counted_label_the_same():
    assert mean_loss(_losses([8.0, 0.0, 1.0], [2, 0, 1])) == 3.0


def test_mean_is_exact_however_far_apart_the_sums_are():
    small = [2.0**-24] * 8  # each is lost beside a one in float32
    assert mean_loss(_losses([1.0, *small], [1] * 9)) == (1 + 2.0**-21) / 9


def test_mean_with_a_sum_that_is_no_number_is_none_either():
    assert np.isnan(mean_loss(_losses([1.0, np.nan], [1, 1])))


# --- Both forms -----------------------------------------------------------------------

both = pytest.mark.parametrize("loss", [_plain, _chunked])


@both
def test_loss_and_gradient_of_an_all_masked_batch_are_zero(loss):
    x, matrix, labels, _ = _drawn()
    nowhere = jnp.zeros(labels.shape, bool)
    outcome = _COMPILED[loss](x, matrix, labels, nowhere)
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(outcome))


@both
@pytest.mark.parametrize("worthless", [-100, VOCABULARY, 0])
def test_what_is_masked_has_no_influence_be_it_nan(loss, worthless):
    x, matrix, labels, mask = _drawn()
    spoilt = jnp.where(mask[..., None], x, jnp.nan)
    others = jnp.where(mask, labels, worthless)
    function = _COMPILED[loss]
    value, (d_x, _) = function(spoilt, matrix, others, mask)
    expected, (expected_d_x, _) = function(x, matrix, labels, mask)
    assert value == expected
    np.testing.assert_array_equal(d_x, expected_d_x)
    assert (d_x[~mask] == 0).all()


def test_masked_nan_in_the_matrix_product_reaches_no_gradient_of_logits():
    logits = jnp.full((1, 2, 3), jnp.nan).at[0, 0].set(0.0)
    mask = jnp.array([[True, False]])
    gradient = jax.grad(lambda x: cross_entropy(x, jnp.array([[0, 0]]), mask).mean)
    assert jnp.isfinite(gradient(logits)).all()


@both
@pytest.mark.parametrize("label", REFUSED)
def test_counted_label_out_of_range_is_refused_where_it_can_be_seen(loss, label):
    x, matrix, labels, _ = _drawn()
    labels = labels.at[1, 3].set(label)
    message = rf"labels must be from 0 to 10 \(V = 11\) .* got {label} at \[1, 3\]"
    with pytest.raises(ValueError, match=message):
        loss(x, matrix, labels, None)
    with pytest.raises(ValueError, match=message):
        jax.grad(loss)(x, matrix, labels, None)


@both
@pytest.mark.parametrize("label", REFUSED)
def test_counted_label_out_of_range_gives_nan_under_jit(loss, label):
    x, matrix, labels, _ = _drawn()
    everywhere = jnp.ones(labels.shape, bool)
    value, _ = _with_gradients(loss)(x, matrix, labels.at[1, 3].set(label), everywhere)
    assert jnp.isnan(value)


@both
def test_labels_of_another_shape_are_refused(loss):
    x, matrix, labels, mask = _drawn()
    with pytest.raises(ValueError, match=r"labels must have shape \[2, 7\]"):
        loss(x, matrix, labels[:, 1:], mask)
    with pytest.raises(ValueError, match=r"mask must have shape \[2, 7\]"):
        loss(x, matrix, labels, mask[:, 1:])


@both
def test_labels_and_mask_of_another_kind_are_refused(loss):
    x, matrix, labels, mask = _drawn()
    with pytest.raises(ValueError, match="labels must be whole numbers, got float32"):
        loss(x, matrix, labels.astype(jnp.float32), mask)
    with pytest.raises(ValueError, match=r"mask must be boolean .* got dtype int32"):
        loss(x, matrix, labels, mask.astype(jnp.int32))


# --- The chunked form -----------------------------------------------------------------


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("chunk", [1, 4, 14, 1000])
def test_chunked_loss_and_gradients_are_those_of_the_plain_form(chunk, softcap):
    drawn = _drawn()
    plain = _with_gradients(_plain, softcap=softcap)(*drawn)
    chunked = _with_gradients(_chunked, softcap=softcap, chunk=chunk)(*drawn)
    _agree(chunked, plain)
    value = _chunked(*drawn, softcap=softcap, chunk=chunk)
    np.testing.assert_allclose(value, plain[0], atol=SAME)


@pytest.mark.parametrize("softcap", [None, 3.0])
def test_chunked_loss_scales_logits_before_it_caps_them(softcap):
    options = {"softcap": softcap, "scale": 0.3}
    plain = _with_gradients(_plain, **options)(*_drawn())
    _agree(_with_gradients(_chunked, **options)(*_drawn()), plain)


@given(seed=st.integers(0, 2**32 - 1))
def test_chunked_form_is_the_plain_form_for_any_numbers(seed):
    drawn = _drawn(seed)
    _agree(_COMPILED[_chunked](*drawn), _COMPILED[_plain](*drawn))


def test_chunked_loss_of_the_sum_scales_its_gradients():
    x, matrix, labels, mask = _drawn()
    tripled = jax.grad(lambda x: 3 * _chunked(x, matrix, labels, mask))(x)
    np.testing.assert_allclose(
        tripled, 3 * jax.grad(_chunked)(x, matrix, labels, mask), atol=SAME
    )


def test_chunked_loss_in_bfloat16_has_a_float32_gradient_of_a_float32_matrix():
    x, matrix, labels, mask = _drawn()
    value, (d_x, d_matrix) = _with_gradients(_chunked)(
        x.astype(jnp.bfloat16), matrix, labels, mask
    )
    assert (value.dtype, d_x.dtype, d_matrix.dtype) == (
        jnp.float32,
        jnp.bfloat16,
        jnp.float32,
    )
    _, (_, expected) = _with_gradients(_plain)(x, matrix, labels, mask)
    np.testing.assert_allclose(
        d_matrix, expected, atol=BFLOAT16 * float(jnp.abs(expected).max())
    )


def test_chunk_of_nothing_is_refused():
    with pytest.raises(ValueError, match="chunk must be a whole number >= 1, got 0"):
        _chunked(*_drawn(), chunk=0)


def test_matrix_that_stands_the_other_way_is_refused():
    x, matrix, labels, mask = _drawn()
    with pytest.raises(ValueError, match=r"matrix must be \[V, D\] with D = 5"):
        _chunked(x, matrix.T, labels, mask)


def test_chunked_loss_obeys_strict_promotion():
    with (
        jax.numpy_dtype_promotion("strict"),
        jax.numpy_rank_promotion("raise"),
    ):
        _with_gradients(_chunked, softcap=3.0)(*_drawn())
        _with_gradients(_plain)(*_drawn())


def _temporary_bytes(loss) -> int:
    """Returns what a compiled loss and its gradients need beside arguments, results."""
    shape = jax.ShapeDtypeStruct
    positions = (8, LARGE["positions"] // 8)
    compiled = _with_gradients(loss).lower(
        shape((*positions, LARGE["width"]), jnp.float32),
        shape((LARGE["vocabulary"], LARGE["width"]), jnp.float32),
        shape(positions, jnp.int32),
        shape(positions, jnp.bool_),
    )
    return compiled.compile().memory_analysis().temp_size_in_bytes


def test_chunked_form_never_holds_all_logits(record_property):
    plain = _temporary_bytes(_plain)
    chunked = _temporary_bytes(functools.partial(_chunked, chunk=1024))
    record_property("plain MiB", plain / 2**20)
    record_property("chunked MiB", chunked / 2**20)
    logits = 4 * LARGE["positions"] * LARGE["vocabulary"]
    assert chunked < plain / 4
    assert chunked < logits / 2


def test_memory_of_the_chunked_form_grows_with_the_chunk():
    needs = [
        _temporary_bytes(functools.partial(_chunked, chunk=chunk))
        for chunk in (256, 512, 1024)
    ]
    assert all(1.5 * a < b for a, b in itertools.pairwise(needs))
