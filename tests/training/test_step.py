from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from haiku_mqa import DecoderConfig, Model
from haiku_mqa.training import (
    Batch,
    OptimizerConfig,
    cross_entropy,
    init_train_state,
    learning_rate_at,
    make_loss,
    make_train_step,
)
from tests.models import EXAMPLES, drawn_params, example, example_params

SAME = 1e-5
BFLOAT16 = 2e-2  # relative, of a loss
ROWS, LENGTH = 4, 12
SMALL = DecoderConfig(
    vocab_size=29, num_layers=1, num_heads=2, d_model=16, d_ff=32, max_length=64
)
STEADY = OptimizerConfig(schedule="constant", warmup_steps=0, learning_rate=1e-2)
DROPOUTS = ["embedding_dropout", "attention_dropout", "residual_dropout"]
STEPS_TO_OVERFIT = 150
DROPPING = dataclasses.replace(SMALL, residual_dropout=0.5)
DEEP = dataclasses.replace(SMALL, num_layers=6, num_heads=8)


def _batch(seed: int = 0, rows: int = ROWS, length: int = LENGTH, **fields) -> Batch:
    draw = np.random.default_rng(seed)
    text = draw.integers(0, SMALL.vocab_size, (rows, length + 1)).astype(np.int32)
    mask = draw.random((rows, length)) < 0.8
    return Batch(text[:, :-1], text[:, 1:], mask)._replace(**fields)


# Small programs that run a few times: it is their compilation that takes time.
_jit = functools.partial(
    jax.jit, compiler_options={"xla_backend_optimization_level": 0}
)


@functools.cache
def _step(model_config=SMALL, optimizer_config=STEADY, **options):
    return _jit(make_train_step(Model(model_config), optimizer_config, **options))


def _state(model_config=SMALL, optimizer_config=STEADY):
    return init_train_state(optimizer_config, drawn_params(Model(model_config)))


def _equal(one, other) -> bool:
    leaves = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(np.array_equal(a, b, equal_nan=True) for a, b in leaves)


def _agree(one, other, atol=SAME):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, atol=atol)


# --- Learning -------------------------------------------------------------------------


def _run(steps: int, rng=None, model_config=SMALL):
    train_step = _step(model_config)
    state, losses = _state(model_config), []
    for seed in range(steps):
        state, metrics = train_step(state, _batch(seed), rng)
        losses.append(float(metrics.loss))
    return state, losses


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_tiny_model_overfits_one_batch(name):
    config = dataclasses.replace(STEADY, name=name, weight_decay=0.0)
    train_step, state = _step(SMALL, config), _state(SMALL, config)
    batch, losses = _batch(), []
    for _ in range(STEPS_TO_OVERFIT):
        state, metrics = train_step(state, batch, None)
        losses.append(float(metrics.loss))
    assert losses[-1] < 0.1 * losses[0]


def test_same_run_twice_is_bitwise_equal():
    (one, losses), (other, again) = _run(5), _run(5)
    assert losses == again
    assert _equal(one, other)


def test_step_can_be_scanned_and_its_state_donated():
    step = make_train_step(Model(SMALL), STEADY)
    batches = jax.tree.map(lambda *x: np.stack(x), *[_batch(seed) for seed in range(3)])
    params = drawn_params(Model(SMALL))

    def scanned(state, batches):
        return jax.lax.scan(lambda s, b: step(s, b, None), state, batches)

    donating = _jit(scanned, donate_argnums=0)
    state, metrics = donating(init_train_state(STEADY, params), batches)
    expected, losses = _run(3)
    np.testing.assert_allclose(metrics.loss, losses, rtol=SAME)
    _agree(state.params, expected.params)
    state, _ = donating(state, batches)
    assert int(state.step) == 6
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(params))


# --- What is measured -----------------------------------------------------------------


def test_metrics_tell_of_the_batch_and_the_update():
    batch = _batch()
    params = drawn_params(Model(SMALL))
    config = OptimizerConfig()

    def mean(params):
        logits = Model(SMALL).apply(params, None, batch.tokens).logits
        return cross_entropy(logits, batch.labels, batch.mask).mean

    loss, gradient = _jit(jax.value_and_grad(mean))(params)
    norm = np.sqrt(sum(float((g**2).sum()) for g in jax.tree.leaves(gradient)))
    _, metrics = _step(SMALL, config)(_state(SMALL, config), batch, None)
    np.testing.assert_allclose(metrics.loss, loss, rtol=SAME)
    np.testing.assert_allclose(metrics.grad_norm, norm, rtol=SAME)
    assert metrics.learning_rate == learning_rate_at(config, 0)
    assert metrics.tokens == batch.mask.sum()
    assert not metrics.skipped


@pytest.mark.parametrize("name", ["capped", "one_norm"])
def test_loss_is_that_of_the_logits_whether_tied_capped_or_neither(name):
    batch, model, params = _batch(), example(name), example_params(name)

    def both(params):
        logits = model.apply(params, None, batch.tokens).logits
        expected = cross_entropy(logits, batch.labels, batch.mask)
        return make_loss(model, chunk=5)(params, batch, None).mean, expected.mean

    ours, expected = _jit(both)(params)
    np.testing.assert_allclose(ours, expected, rtol=SAME)


def test_hidden_vectors_are_what_logits_are_made_from():
    model, params, tokens = Model(SMALL), drawn_params(Model(SMALL)), _batch().tokens
    nowhere = np.zeros((ROWS, 0), np.int32)

    @_jit
    def outputs(params):
        return (
            model.apply(params, None, tokens),
            model.apply(params, None, tokens, logits_at=nowhere, return_hidden=True),
        )

    whole, hidden = outputs(params)
    assert whole.hidden is None
    assert hidden.logits.shape == (ROWS, 0, SMALL.vocab_size)
    table = params["decoder_lm/embed"]["embeddings"]
    _agree(hidden.hidden @ table.T, whole.logits)


def test_packed_documents_are_read_apart():
    one, other = _batch(1), _batch(2)
    packed = Batch(
        *(
            np.concatenate([getattr(one, f), getattr(other, f)], axis=1)
            for f in ("tokens", "labels", "mask")
        ),
        segment_ids=np.repeat([[1, 2]], LENGTH, axis=1).repeat(ROWS, axis=0),
    )
    loss = _jit(make_loss(Model(SMALL)))
    params = drawn_params(Model(SMALL))
    apart = [loss(params, batch, None).sum for batch in (one, other)]
    np.testing.assert_allclose(loss(params, packed, None).sum, sum(apart), rtol=SAME)


def test_batch_with_positions_is_read_at_those():
    loss, params = _jit(make_loss(Model(SMALL))), drawn_params(Model(SMALL))
    usual = np.broadcast_to(np.arange(LENGTH), (ROWS, LENGTH))
    counted = loss(params, _batch(), None).sum
    assert loss(params, _batch(positions=usual), None).sum == counted
    assert abs(loss(params, _batch(positions=3 * usual), None).sum - counted) > SAME


def test_mask_of_none_counts_every_label():
    _, metrics = _step()(_state(), _batch(mask=None), None)
    assert metrics.tokens == ROWS * LENGTH


# --- Accumulation ---------------------------------------------------------------------


@settings(max_examples=10)
@given(seed=st.integers(0, 2**32 - 1), counted=st.integers(0, LENGTH))
def test_accumulated_parts_are_the_large_batch_however_uneven_their_masks(
    seed, counted
):
    batch = _batch(seed)
    batch.mask[: ROWS // 2, counted:] = False
    config = dataclasses.replace(STEADY, accumulate=2)
    whole, expected = _step()(_state(), batch, None)
    parted, metrics = _step(SMALL, config)(_state(SMALL, config), batch, None)
    assert metrics.tokens == expected.tokens
    np.testing.assert_allclose(metrics.loss, expected.loss, atol=SAME)
    np.testing.assert_allclose(metrics.grad_norm, expected.grad_norm, atol=SAME)
    _agree(parted.opt_state, whole.opt_state)


def test_parts_that_do_not_divide_the_batch_are_refused():
    config = dataclasses.replace(STEADY, accumulate=3)
    with pytest.raises(ValueError, match=r"accumulate must divide .*, 4, got 3"):
        _step(SMALL, config)(_state(SMALL, config), _batch(), None)


# --- What is not finite ---------------------------------------------------------------


def _spoilt_batches():
    labels = _batch().labels.copy()
    labels[1, 2] = -100
    tokens = _batch().tokens.copy()
    tokens[0, 0] = SMALL.vocab_size
    full = np.ones((ROWS, LENGTH), bool)
    yield "a label out of range", _batch(labels=labels, mask=full)
    yield "a token out of range", _batch(tokens=tokens, mask=full)


SPOILT = dict(_spoilt_batches())


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("why", SPOILT)
def test_step_that_is_not_finite_changes_nothing_and_is_counted(why, parts):
    config = dataclasses.replace(STEADY, accumulate=parts)
    train_step = _step(SMALL, config)
    before, _ = train_step(_state(SMALL, config), _batch(), None)
    after, metrics = train_step(before, SPOILT[why], None)
    assert _equal(after.params, before.params)
    assert _equal(after.opt_state, before.opt_state)
    assert metrics.skipped
    assert (int(after.step), int(after.skipped), int(after.consecutive)) == (2, 1, 1)


def test_gradient_that_is_not_finite_is_skipped_though_the_loss_is():
    state = _state()
    params = jax.tree.map(jnp.copy, state.params)
    params["decoder_lm/decoder/final_norm"]["scale"] *= 1e25
    state = dataclasses.replace(state, params=params)
    after, metrics = _step()(state, _batch(), None)
    assert jnp.isfinite(metrics.loss)
    assert metrics.skipped
    assert _equal(after.params, params)


def test_skips_in_a_row_are_counted_until_a_step_is_good():
    state, bad = _state(), SPOILT["a label out of range"]
    counts = []
    for batch in (bad, bad, _batch(), bad):
        state, _ = _step()(state, batch, None)
        counts.append((int(state.skipped), int(state.consecutive)))
    assert counts == [(1, 1), (2, 2), (2, 0), (3, 1)]


def test_schedule_waits_for_a_step_that_was_skipped():
    config = OptimizerConfig()
    state, bad = _state(SMALL, config), SPOILT["a label out of range"]
    rates = []
    for batch in (_batch(), bad, _batch(), _batch()):
        state, metrics = _step(SMALL, config)(state, batch, None)
        rates.append(float(metrics.learning_rate))
    expected = [float(learning_rate_at(config, step)) for step in (0, 1, 1, 2)]
    np.testing.assert_allclose(rates, expected, rtol=SAME)


def test_all_masked_batch_has_no_loss_and_no_gradient():
    nothing = np.zeros((ROWS, LENGTH), bool)
    after, metrics = _step()(_state(), _batch(mask=nothing), None)
    assert (metrics.loss, metrics.grad_norm, metrics.tokens) == (0, 0, 0)
    assert not metrics.skipped
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(after.params))


# --- Dropout --------------------------------------------------------------------------


def test_rng_has_no_influence_where_no_rate_is_set():
    states = [_step()(_state(), _batch(), rng)[0] for rng in _rngs()]
    assert _equal(*states)


@pytest.mark.parametrize("rate", DROPOUTS)
def test_dropout_acts_where_its_rate_is_set(rate):
    config = dataclasses.replace(SMALL, **{rate: 0.5})
    loss = _jit(make_loss(Model(config), is_training=True))
    params, (one, other) = drawn_params(Model(SMALL)), _rngs()
    assert loss(params, _batch(), one).sum != loss(params, _batch(), other).sum
    assert loss(params, _batch(), one).sum == loss(params, _batch(), one).sum


def test_rng_is_folded_with_the_step():
    rng, moved = _rngs()[0], dataclasses.replace(_state(), step=jnp.int32(3))
    _, metrics = _step(DROPPING)(moved, _batch(), rng)
    loss = _jit(make_loss(Model(DROPPING), is_training=True))
    expected = loss(moved.params, _batch(), jax.random.fold_in(rng, 3)).mean
    np.testing.assert_allclose(metrics.loss, expected, rtol=SAME)


def test_dropout_differs_between_accumulated_parts():
    optimizer = dataclasses.replace(STEADY, accumulate=2)
    rng, state = _rngs()[0], _state(SMALL, optimizer)
    part = jax.tree.map(lambda x: x[:1], _batch())
    twice = jax.tree.map(lambda x: np.repeat(x, 2, axis=0), part)
    _, metrics = _step(DROPPING, optimizer)(state, twice, rng)
    loss = _jit(make_loss(Model(DROPPING), is_training=True))
    rngs = [jax.random.fold_in(jax.random.fold_in(rng, 0), index) for index in (0, 1)]
    one, other = (float(loss(state.params, part, own).mean) for own in rngs)
    assert abs(one - other) > SAME
    np.testing.assert_allclose(metrics.loss, (one + other) / 2, rtol=SAME)


def test_dropout_without_an_rng_is_refused():
    with pytest.raises(ValueError, match="rng must be given"):
        _step(DROPPING)(_state(), _batch(), None)


def test_loss_for_evaluation_drops_nothing():
    params = drawn_params(Model(SMALL))
    losses = [
        _jit(make_loss(Model(config)))(params, _batch(), None).sum
        for config in (SMALL, DROPPING)
    ]
    assert losses[0] == losses[1]


def _rngs():
    return [jax.random.key(seed) for seed in (1, 2)]


# --- Precision and memory -------------------------------------------------------------


def test_bfloat16_is_computed_over_float32_masters():
    expected, wide = _step()(_state(), _batch(), None)
    after, narrow = _step(compute_dtype="bfloat16")(_state(), _batch(), None)
    assert narrow.loss.dtype == jnp.float32
    assert narrow.loss != wide.loss
    np.testing.assert_allclose(narrow.loss, wide.loss, rtol=BFLOAT16)
    leaves = jax.tree.leaves(after.params)
    assert {leaf.dtype.name for leaf in leaves} == {"float32"}
    # None of them is merely a bfloat16 that was widened.
    rounded = [leaf.astype(jnp.bfloat16).astype(jnp.float32) for leaf in leaves]
    assert not any(_equal(a, b) for a, b in zip(leaves, rounded, strict=True))
    _agree(after.params, expected.params, atol=3 * STEADY.learning_rate)


def test_masters_of_a_bfloat16_model_are_float32():
    state = init_train_state(STEADY, drawn_params(Model(EXAMPLES["bfloat16"])))
    leaves = jax.tree.leaves((state.params, state.opt_state))
    assert {x.dtype.name for x in leaves} == {"float32", "int32"}


def test_rematerialized_step_is_the_step():
    rng = _rngs()[0]  # blocks that are computed again must drop the same again
    expected, metrics = _step(DROPPING)(_state(), _batch(), rng)
    after, again = _step(DROPPING, remat=True)(_state(), _batch(), rng)
    np.testing.assert_allclose(again.loss, metrics.loss, rtol=SAME)
    _agree(after.opt_state, expected.opt_state)


def test_rematerialized_blocks_leave_little_but_their_inputs_to_the_backward_pass():
    batch, params = _batch(length=64), drawn_params(Model(DEEP))

    def kept_bytes(remat):
        loss = make_loss(Model(DEEP), remat=remat)
        backward = jax.eval_shape(
            lambda params: jax.vjp(lambda p: loss(p, batch, None).sum, params)[1],
            params,
        )
        return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(backward))

    assert kept_bytes(remat=True) < kept_bytes(remat=False) / 10
