from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from haiku_mqa import Sampling, generate
from haiku_mqa.generation.generate import bucket
from haiku_mqa.generation.loop import CHUNK, decode, prefill
from tests.models import example, example_params

NAME, V = "grouped", 29
PROMPTS = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10, 11], [12, 13]]
ROWS = len(PROMPTS)
HOT = Sampling(temperature=1.3, top_k=20, top_p=0.95)
NEW = 6

prompts_of_any_length = st.lists(
    st.lists(st.integers(0, V - 1), min_size=1, max_size=10),
    min_size=ROWS,
    max_size=ROWS,
)


def _generate(prompts, name: str = NAME, new: int = NEW, **options):
    params = example_params(name)
    return generate(example(name), params, prompts, max_new_tokens=new, **options)


def _sampled(prompts, seed: int = 0, **options) -> list[list[int]]:
    rng = options.pop("rng", jax.random.key(seed))
    return _generate(prompts, sampling=HOT, rng=rng, **options).tokens


@functools.cache
def _next_token(name: str, length: int):
    """Returns the compiled argmax after a prompt, by a full forward without a cache."""
    model = example(name)

    @jax.jit
    def argmax(params, tokens, place):
        return model.apply(params, None, tokens).logits[0, place].argmax()

    def next_token(prompt: list[int]) -> int:
        # What stands to the right of a token cannot be seen from it.
        tokens = np.zeros((1, length), np.int32)
        tokens[0, : len(prompt)] = prompt
        return int(argmax(example_params(name), tokens, len(prompt) - 1))

    return next_token


def _naive(name: str, prompt: list[int], new: int, length: int = 24) -> list[int]:
    read = list(prompt)
    for _ in range(new):
        read.append(_next_token(name, length)(read))
    return read[len(prompt) :]


@pytest.mark.parametrize("name", ["classic", "learned", "alibi", "capped", "windowed"])
def test_greedy_tokens_are_those_of_full_forwards_one_after_another(name):
    tokens = _generate(PROMPTS, name).tokens
    assert tokens == [_naive(name, prompt, NEW) for prompt in PROMPTS]


@given(prompts=prompts_of_any_length)
def test_greedy_tokens_are_those_of_full_forwards_whatever_the_prompts(prompts):
    tokens = _generate(prompts).tokens
    assert tokens == [_naive(NAME, prompt, NEW) for prompt in prompts]


def test_greedy_is_what_generation_does_unless_told_otherwise():
    cold = Sampling(temperature=0.0)
    assert _generate(PROMPTS).tokens == _generate(PROMPTS, sampling=cold).tokens


def test_generation_may_fill_the_model_to_its_last_position():
    prompt = list(range(17))
    tokens = _generate([prompt], "learned", new=7).tokens  # 24 is all there is
    assert tokens == [_naive("learned", prompt, 7)]


@settings(max_examples=10)
@given(seed=st.integers(0, 2**32 - 1), order=st.permutations(range(ROWS)))
def test_sampled_rows_are_what_they_are_alone_and_in_any_order(seed, order):
    together = _sampled(PROMPTS, seed)
    turned = _sampled([PROMPTS[row] for row in order], seed)
    assert turned == [together[row] for row in order]
    row = order[0]
    # Three more of it, so that no other batch size is compiled.
    assert _sampled([PROMPTS[row]] * ROWS, seed) == [together[row]] * ROWS


@pytest.mark.parametrize("sampling", [None, HOT])
def test_a_row_alone_in_a_batch_of_one_gets_the_same_tokens(sampling):
    options = {"sampling": sampling, "rng": jax.random.key(0)}
    together = _generate(PROMPTS, **options).tokens
    for row in (0, 2):
        assert _generate([PROMPTS[row]], **options).tokens == [together[row]]


def test_sampled_tokens_depend_on_the_rng():
    assert _sampled(PROMPTS, 0) == _sampled(PROMPTS, 0)
    assert _sampled(PROMPTS, 0) != _sampled(PROMPTS, 1)


def test_each_token_of_a_row_is_drawn_anew():
    blank = jax.tree.map(jnp.zeros_like, example_params(NAME))  # all are as likely
    options = {"sampling": HOT, "rng": jax.random.key(0)}
    result = generate(example(NAME), blank, PROMPTS, max_new_tokens=12, **options)
    assert all(len(set(tokens)) > 4 for tokens in result.tokens)


def test_sampled_tokens_are_the_same_for_old_and_new_keys():
    old = jax.random.PRNGKey(3)
    assert _sampled(PROMPTS, rng=old) == _sampled(PROMPTS, 3)
    rows = jnp.stack([old] * ROWS)
    assert _sampled(PROMPTS, rng=rows) == _sampled(PROMPTS, 3)


def test_rows_with_keys_of_their_own_sample_apart():
    rngs = jax.random.split(jax.random.key(0), ROWS)
    apart = _sampled([[1, 2]] * ROWS, rng=rngs)
    assert len({tuple(tokens) for tokens in apart}) > 1
    alone = _sampled([[1, 2]] * ROWS, rng=rngs[2])
    assert alone == [apart[2]] * ROWS


def test_one_more_token_does_not_change_those_before():
    longer = _generate(PROMPTS, new=NEW + 1).tokens
    assert [tokens[:NEW] for tokens in longer] == _generate(PROMPTS).tokens
    longer = _sampled(PROMPTS, new=NEW + 1)
    assert [tokens[:NEW] for tokens in longer] == _sampled(PROMPTS)


@pytest.mark.parametrize("new", [1, 2, CHUNK, CHUNK + 1, CHUNK + 2])
def test_every_row_gets_all_its_tokens(new):
    result = _generate(PROMPTS, new=new)
    assert [len(tokens) for tokens in result.tokens] == [new] * ROWS
    assert result.finish_reasons == ["length"] * ROWS
    assert all(type(token) is int for tokens in result.tokens for token in tokens)


def test_end_token_stops_its_row_is_left_out_and_others_go_on():
    free = _sampled(PROMPTS, 5)
    end = free[0][3]
    result = _generate(PROMPTS, sampling=HOT, rng=jax.random.key(5), end_tokens=[end])
    for tokens, before in zip(result.tokens, free, strict=True):
        stop = before.index(end) if end in before else NEW
        assert tokens == before[:stop]
    reasons = ["end" if end in before else "length" for before in free]
    assert result.finish_reasons == reasons
    assert set(reasons) == {"end", "length"}


def test_end_token_at_the_first_place_leaves_a_row_empty():
    first = [tokens[0] for tokens in _generate(PROMPTS).tokens]
    result = _generate(PROMPTS, end_tokens=sorted(set(first)))
    assert result.tokens == [[]] * ROWS
    assert result.finish_reasons == ["end"] * ROWS


def test_end_token_at_the_last_place_ends_its_row():
    free = _sampled(PROMPTS, 5)
    row = next(row for row, tokens in enumerate(free) if tokens[-1] not in tokens[:-1])
    result = _generate(
        PROMPTS, sampling=HOT, rng=jax.random.key(5), end_tokens=[free[row][-1]]
    )
    assert result.tokens[row] == free[row][:-1]
    assert result.finish_reasons[row] == "end"


def test_on_token_is_told_of_each_token_as_it_is_chosen():
    seen: list[tuple[int, int]] = []
    result = _generate(PROMPTS, on_token=lambda row, token: seen.append((row, token)))
    assert seen == [
        (row, result.tokens[row][place]) for place in range(NEW) for row in range(ROWS)
    ]


def test_prompts_may_be_arrays_and_parameters_may_be_numpys():
    prompts = [np.asarray(prompt, np.int64) for prompt in PROMPTS]
    params = jax.tree.map(np.asarray, example_params(NAME))
    result = generate(example(NAME), params, prompts, max_new_tokens=NEW)
    assert result == _generate(PROMPTS)


def test_parameters_are_still_there_afterwards():
    _generate(PROMPTS)
    leaves = jax.tree.leaves(example_params(NAME))
    assert not any(leaf.is_deleted() for leaf in leaves)


def _programs() -> tuple[int, int]:
    return prefill._cache_size(), decode._cache_size()


def test_other_lengths_in_one_bucket_compile_nothing():
    _generate([[1] * 3, [2] * 9], new=4)
    before = _programs()
    for prompts in ([[1] * 12, [2]], [[1], [2] * 7], [[1] * 5, [2] * 5]):
        _generate(prompts, new=4)  # at most 16 tokens in all
    assert _programs() == before


def test_other_numbers_of_new_tokens_in_one_bucket_compile_nothing():
    _generate([[1] * 3, [2] * 9], new=8)
    before = _programs()
    for new in (9, 10, 15):
        _generate([[1] * 3, [2] * 9], new=new)
    assert _programs() == before


def test_other_temperatures_and_filters_compile_nothing():
    _sampled(PROMPTS)
    before = _programs()
    for sampling in (
        Sampling(temperature=0.2, top_k=3, top_p=0.5),
        Sampling(temperature=2.0, top_k=28, top_p=0.99),
    ):
        _generate(PROMPTS, sampling=sampling, rng=jax.random.key(9))
    assert _programs() == before


def test_other_parameters_and_end_tokens_compile_nothing():
    params = jax.tree.map(lambda leaf: 2 * leaf, example_params(NAME))
    _generate(PROMPTS, end_tokens=[3, 4])
    before = _programs()
    generate(example(NAME), params, PROMPTS, max_new_tokens=NEW, end_tokens=[7, 8])
    assert _programs() == before


@given(st.integers(1, 100_000))
def test_bucket_is_the_least_that_fits_and_wastes_less_than_half(length):
    powers = [2**n for n in range(4, 18)]
    allowed = sorted({*powers, *(power * 3 // 4 for power in powers[1:])})
    assert bucket(length) == next(size for size in allowed if size >= length)
