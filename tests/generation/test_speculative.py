from __future__ import annotations

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from haiku_mqa import Sampling, build, generate
from haiku_mqa.generation import Draft, PromptLookup, SpeculativeResult, speculate
from haiku_mqa.generation.speculative_loop import advance, begin, rolled_back
from tests.models import EXAMPLES, drawn_params, example, example_params, example_tokens

V = 29
ONE_LAYER = dataclasses.replace(
    EXAMPLES["multi_query"], num_layers=1, tie_embeddings=False
)
MODEL = build(ONE_LAYER)
PARAMS = drawn_params(MODEL)
PROMPTS = [[1, 2, 3, 1, 2], [4], [5, 6, 7, 8, 9, 5, 6, 7], [12, 13]]
ROWS = len(PROMPTS)
NEW = 8
HOT = {"sampling": Sampling(temperature=1.3, top_k=20, top_p=0.95)}
HOT["rng"] = jax.random.key(5)
# Reading several tokens at once rounds otherwise: here logits move by some 1e-6.
CLEAR = 1e-4

LOOKUP = PromptLookup(ngram=2, num_tokens=3)
SMALL = build(dataclasses.replace(ONE_LAYER, d_model=16, num_heads=2, d_ff=8))
SMALL_DRAFT = Draft(SMALL, drawn_params(SMALL, seed=7), num_tokens=2)


def _itself(params=PARAMS) -> Draft:
    return Draft(MODEL, params, num_tokens=3)


def _contrary() -> Draft:
    """A draft that proposes what is least likely, always."""
    unembed = {"w": -PARAMS["decoder_lm/unembed"]["w"]}
    return _itself(PARAMS | {"decoder_lm/unembed": unembed})


def _of(name: str | None):
    return (MODEL, PARAMS) if name is None else (example(name), example_params(name))


def _speculate(prompts=PROMPTS, name=None, proposer=LOOKUP, new=NEW, **options):
    model, params = _of(name)
    params = options.pop("params", params)
    return speculate(
        model, params, prompts, proposer=proposer, max_new_tokens=new, **options
    )


def _generate(prompts=PROMPTS, name=None, new=NEW, **options):
    model, params = _of(name)
    params = options.pop("params", params)
    return generate(model, params, prompts, max_new_tokens=new, **options)


@functools.cache
def _compiled(name: str | None):
    model, _ = _of(name)
    return jax.jit(lambda params, tokens: model.apply(params, None, tokens).logits)


def _margin(prompts, tokens, name: str | None = None, params=None) -> float:
    """Returns how far the likeliest token was ahead of the second, at the least."""
    read = np.zeros((len(prompts), 24), np.int32)
    chosen_at = np.zeros(read.shape, bool)
    for row, (prompt, new) in enumerate(zip(prompts, tokens, strict=True)):
        read[row, : len(prompt) + len(new)] = [*prompt, *new]
        chosen_at[row, len(prompt) - 1 : len(prompt) + len(new) - 1] = True
    params = _of(name)[1] if params is None else params
    best = np.sort(_compiled(name)(params, read), axis=-1)
    return float((best[..., -1] - best[..., -2])[chosen_at].min())


# --- Greedy -----------------------------------------------------------------------


def test_greedy_tokens_are_those_of_generate_with_windows_and_soft_caps():
    name = "capped"
    expected = _generate(name=name)
    assert _margin(PROMPTS, expected.tokens, name) > CLEAR
    result = _speculate(name=name)
    assert result.tokens == expected.tokens
    assert result.finish_reasons == expected.finish_reasons
    assert result.proposed > 0


def test_greedy_tokens_are_those_of_generate_up_to_the_models_last_position():
    prompts = [*PROMPTS[:3], list(range(17))]
    options = {"name": "learned", "new": 7}  # 24 is all there is
    expected = _generate(prompts, **options).tokens
    assert _margin(prompts, expected, "learned") > CLEAR
    draft = Draft(example("learned"), example_params("learned"), num_tokens=3)
    result = _speculate(prompts, proposer=draft, **options)
    assert (result.tokens, result.acceptance) == (expected, 1.0)


@given(
    prompts=st.lists(
        st.lists(st.integers(0, 4) | st.integers(0, V - 1), min_size=1, max_size=8),
        min_size=ROWS,
        max_size=ROWS,
    ),
    seed=st.integers(0, 9),
    kind=st.sampled_from(["lookup", "small", "one", "itself"]),
)
def test_greedy_tokens_are_those_of_generate_whatever_is_asked_of_whom(
    prompts, seed, kind
):
    params = _drawn(seed)
    expected = _generate(prompts, params=params).tokens
    assume(_margin(prompts, expected, params=params) > CLEAR)
    proposer = {
        "lookup": LOOKUP,
        "small": SMALL_DRAFT,
        "one": dataclasses.replace(SMALL_DRAFT, num_tokens=1),
        "itself": _itself(params),
    }[kind]
    result = _speculate(prompts, proposer=proposer, params=params)
    assert result.tokens == expected
    assert result.proposed >= result.accepted
    if kind == "itself":
        assert result.acceptance == 1.0


@functools.cache
def _drawn(seed: int):
    return drawn_params(MODEL, seed)


def test_draft_that_is_the_model_is_right_every_time():
    result = _speculate(proposer=_itself(), new=9)
    assert result.tokens == _generate(new=9).tokens
    assert result.acceptance == 1.0
    assert result.calls == 2  # the prompts give one token, each call four
    assert result.proposed == ROWS * 6


def test_draft_that_is_never_right_changes_nothing_but_the_work():
    result = _speculate(proposer=_contrary())
    expected = _generate().tokens
    assert _margin(PROMPTS, expected) > CLEAR
    assert result.tokens == expected
    assert (result.accepted, result.acceptance) == (0, 0.0)
    assert result.calls == NEW - 1


def test_rows_get_what_they_would_get_alone():
    together = _speculate().tokens
    assert _speculate([PROMPTS[2]] * ROWS).tokens == [together[2]] * ROWS


def test_rows_accept_what_each_of_them_can():
    blank = jax.tree.map(jnp.zeros_like, PARAMS)  # all are as likely: 0 comes first
    zeros, others = [0] * 8, [3, 1, 4, 1, 5, 9, 2, 6]
    result = _speculate([zeros, others] * 2, params=blank)
    assert result.tokens == [[0] * NEW] * ROWS
    # The row of zeros is right from the first call on, the other when it has begun to
    # repeat itself; together they take as many calls as the slower one.
    fast, slow = (_speculate([row] * ROWS, params=blank) for row in (zeros, others))
    assert fast.calls < slow.calls == result.calls < NEW - 1
    assert 2 * result.accepted == fast.accepted + slow.accepted
    assert 2 * result.proposed == fast.proposed + slow.proposed


@pytest.mark.parametrize("new", [1, 2, 45])
def test_every_row_gets_all_its_tokens(new):
    result = _speculate(proposer=_contrary(), new=new)
    assert [len(tokens) for tokens in result.tokens] == [new] * ROWS
    assert result.finish_reasons == ["length"] * ROWS
    assert all(type(token) is int for tokens in result.tokens for token in tokens)
    assert result.calls == new - 1  # more than the loop makes between two looks


# --- Sampled ------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_sampled_tokens_are_those_of_generate_where_the_text_proposes(seed):
    options = {**HOT, "rng": jax.random.key(seed)}
    assert _speculate(**options).tokens == _generate(**options).tokens


def test_sampled_tokens_depend_on_the_rng_and_on_the_row_alone():
    options = {"proposer": SMALL_DRAFT, **HOT}
    together = _speculate(**options).tokens
    assert _speculate(**options).tokens == together
    assert _speculate(PROMPTS[::-1], **options).tokens == together[::-1]
    options["rng"] = jax.random.key(6)
    assert _speculate(**options).tokens != together


def test_rows_may_be_sampled_each_in_its_own_way():
    mixed = [Sampling(temperature=0.0), HOT["sampling"], Sampling(min_p=0.1)]
    mixed += [Sampling(temperature=0.0, logit_bias={3: 4.0})]
    options = {"sampling": mixed, "rng": jax.random.key(2)}
    expected = _generate(**options).tokens
    drafted = _speculate(proposer=SMALL_DRAFT, **options).tokens
    assert [drafted[0], drafted[3]] == [expected[0], expected[3]]  # the greedy ones
    assert expected[3] != _generate().tokens[3]


# --- Ends ---------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, HOT], ids=["greedy", "sampled"])
@pytest.mark.parametrize("place", [0, 3, NEW - 1])
def test_end_token_ends_its_row_wherever_it_comes(options, place):
    free = _generate(**options).tokens
    for row in free:
        expected = _generate(end_tokens=[row[place]], **options)
        result = _speculate(end_tokens=[row[place]], **options)
        assert result.tokens == expected.tokens
        assert result.finish_reasons == expected.finish_reasons


def test_what_is_proposed_behind_an_end_is_not_counted():
    draft = _itself()
    free = _speculate([PROMPTS[0]] * ROWS, proposer=draft).tokens[0]
    place = next(i for i in range(1, NEW) if free[i] not in free[:i])
    options = {"proposer": draft, "end_tokens": [free[place]]}
    result = _speculate([PROMPTS[0]] * ROWS, **options)
    assert result.tokens == [free[:place]] * ROWS
    assert result.acceptance == 1.0
    assert result.proposed <= ROWS * place


def test_on_token_is_told_of_each_token_in_its_rows_order():
    seen: list[tuple[int, int]] = []
    end = _generate().tokens[0][4]
    result = _speculate(
        end_tokens=[end], on_token=lambda row, token: seen.append((row, token))
    )
    for row in range(ROWS):
        assert [token for r, token in seen if r == row] == result.tokens[row]
    turns = [row for row, _ in itertools.groupby(seen, key=lambda pair: pair[0])]
    assert len(turns) > ROWS  # rows took turns, and were not told of at the end


# --- Roll-back and programs -----------------------------------------------------------


def _wrong_from_six(x):
    """Keys and values [B, K, S, H], or what is known of each slot [B, S]."""
    if x.ndim == 4:
        return x.at[:, :, 6:].set(9)
    return x.at[:, 6:].set(9) if x.ndim > 1 else x


@pytest.mark.parametrize("name", ["alibi", "windowed"])
def test_what_a_row_forgot_is_seen_by_no_token(name):
    model, tokens = example(name), example_tokens(name)

    @jax.jit
    def read(params, tokens, cache):
        return model.apply(params, None, tokens, cache=cache)

    params, empty = example_params(name), model.init_cache(2, 12)
    short = read(params, tokens[:, :3], empty).cache
    longer = read(params, 7 - tokens[:, :3] % 7, short).cache
    # As if there had been room behind it too, and all of it were wrong.
    longer = jax.tree.map(_wrong_from_six, longer)
    forgot = rolled_back(longer, jnp.array([3, 3]))
    assert forgot.lengths.tolist() == short.lengths.tolist() == [3, 3]
    stale = forgot.layers[0].keys[:, :, 3:] - short.layers[0].keys[:, :, 3:]
    assert float(jnp.abs(stale).min(axis=(0, 1, 3)).max()) > 0.1
    after = [read(params, tokens[:, 3:6], cache).logits for cache in (forgot, short)]
    np.testing.assert_array_equal(*after)


def test_rolling_back_makes_no_row_longer():
    cache = MODEL.init_cache(2, 8)
    cache = dataclasses.replace(cache, lengths=jnp.array([3, 6]))
    assert rolled_back(cache, jnp.array([5, 5])).lengths.tolist() == [3, 5]


def test_other_prompts_weights_dials_and_end_tokens_compile_nothing():
    _speculate(proposer=SMALL_DRAFT, **HOT)
    before = begin._cache_size(), advance._cache_size()
    other = Draft(SMALL, drawn_params(SMALL, seed=8), num_tokens=2)
    cooler = Sampling(temperature=0.2, top_k=3, top_p=0.5)
    for prompts in ([[1], [2] * 8, [3], [4]], [[5] * 3] * ROWS):
        options = {"sampling": cooler, "rng": jax.random.key(1), "new": 7}
        options["end_tokens"] = [len(prompts[1]), 0]
        _speculate(prompts, proposer=other, params=_drawn(1), **options)
    assert (begin._cache_size(), advance._cache_size()) == before


@pytest.mark.parametrize("proposer", [LOOKUP, SMALL_DRAFT], ids=["lookup", "draft"])
def test_programs_promote_no_dtype_in_silence(proposer, monkeypatch):
    calls = {}

    def traced(function, *arguments):
        calls[function] = arguments
        return function(*arguments)

    for function in (begin, advance):
        name = f"haiku_mqa.generation.speculative.{function.__wrapped__.__name__}"
        monkeypatch.setattr(name, functools.partial(traced, function))
    _speculate(proposer=proposer, **HOT)
    assert set(calls) == {begin, advance}
    with jax.numpy_dtype_promotion("strict"):
        for function, arguments in calls.items():
            function.trace(*jax.tree.map(_shape, arguments, is_leaf=_is_static))


def _is_static(leaf) -> bool:
    return leaf is MODEL


def _shape(leaf):
    if _is_static(leaf):
        return leaf
    return jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.asarray(leaf).dtype)


# --- Refusals -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "off"),
    [("repetition_penalty", 1), ("presence_penalty", 0), ("frequency_penalty", 0)],
)
def test_penalties_are_refused_by_name(field, off):
    sampling = Sampling(temperature=0.0, **{field: 0.5})
    with pytest.raises(ValueError, match=rf"{field} must be {off}\.0.*got 0\.5"):
        _speculate(sampling=sampling)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompts": [[]]}, r"prompts\[0\] must hold at least one"),
        ({"prompts": [[99]]}, "ids from 0 to 28"),
        ({"new": 0}, "max_new_tokens must be a whole number"),
        ({"new": 63}, "more than max_length = 64"),
        ({"end_tokens": [29]}, "end_tokens must hold ids"),
        ({"sampling": Sampling()}, "rng must be given"),
        ({"sampling": [Sampling()]}, "one for each of 4 prompts, got 1"),
        ({"sampling": Sampling(), "rng": 3}, "rng must be PRNG keys"),
        ({"proposer": "lookup"}, "proposer must be a Draft or a PromptLookup"),
        ({"params": {}}, "params do not fit the model"),
    ],
)
def test_request_that_cannot_be_met_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        _speculate(**options)


def _other(**fields):
    model = build(dataclasses.replace(ONE_LAYER, **fields))
    return Draft(model, drawn_params(model))


def test_draft_over_other_tokens_is_refused():
    with pytest.raises(ValueError, match="vocab_size must be the model's, 29, got 31"):
        _speculate(proposer=_other(vocab_size=31))


def test_draft_of_too_short_a_context_is_refused():
    with pytest.raises(ValueError, match=r"max_length must be at least 16.*got 12"):
        _speculate(proposer=_other(max_length=12))


def test_draft_with_parameters_of_another_is_refused():
    draft = Draft(SMALL, PARAMS)
    with pytest.raises(ValueError, match="of the draft: params do not fit"):
        _speculate(proposer=draft)


def _broken(params):
    return jax.tree.map(lambda leaf: leaf * jnp.nan, params)


@pytest.mark.parametrize("options", [{}, HOT], ids=["greedy", "sampled"])
@pytest.mark.parametrize("proposer", [LOOKUP, SMALL_DRAFT], ids=["lookup", "draft"])
def test_logits_that_are_nan_are_told(options, proposer):
    params = _broken(PARAMS)
    with pytest.raises(FloatingPointError, match=r"^the logits of row 0 are NaN"):
        _speculate(params=params, proposer=proposer, **options)


@pytest.mark.parametrize("options", [{}, HOT], ids=["greedy", "sampled"])
def test_draft_whose_logits_are_nan_is_told_of(options):
    draft = Draft(SMALL, _broken(SMALL_DRAFT.params), num_tokens=2)
    with pytest.raises(FloatingPointError, match=r"^the draft's logits of row 0 are"):
        _speculate(proposer=draft, **options)


def test_acceptance_is_zero_where_nothing_was_proposed():
    assert SpeculativeResult([[]], ["end"], 0, 0, 0).acceptance == 0.0
