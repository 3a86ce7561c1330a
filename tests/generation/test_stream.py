from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import pytest

from haiku_mqa import Sampling, generate, stream
from haiku_mqa.generation import Step, loop
from haiku_mqa.generation.loop import CHUNK
from tests.models import example, example_params

NAME = "grouped"
PROMPTS = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10, 11], [12, 13]]
NEW = 6
HOT = {"sampling": Sampling(temperature=1.3), "rng": jax.random.key(5)}


def _stream(prompts=PROMPTS, new=NEW, params=None, **options):
    params = example_params(NAME) if params is None else params
    return stream(example(NAME), params, prompts, max_new_tokens=new, **options)


def _generate(new: int = NEW, **options):
    params = example_params(NAME)
    return generate(example(NAME), params, PROMPTS, max_new_tokens=new, **options)


def _joined(steps) -> list[list[int]]:
    rows = zip(*(step.tokens for step in steps), strict=True)
    return [list(itertools.chain(*row)) for row in rows]


@pytest.mark.parametrize("chunk", [1, 2, 5, CHUNK])
@pytest.mark.parametrize("options", [{}, HOT], ids=["greedy", "sampled"])
def test_stream_gives_the_tokens_of_the_batch_whatever_the_chunk(options, chunk):
    steps = list(_stream(chunk=chunk, **options))
    assert _joined(steps) == _generate(**options).tokens
    counts = [len(step.tokens[0]) for step in steps[1:-1]]
    assert counts == [chunk] * (len(steps) - 2)


def test_stream_goes_on_past_a_full_chunk():
    steps = list(_stream(new=CHUNK + 3, chunk=CHUNK))
    assert [len(step.tokens[0]) for step in steps] == [1, CHUNK, 2]
    assert _joined(steps) == _generate(new=CHUNK + 3).tokens


def test_stream_gives_each_token_as_it_is_chosen():
    steps = list(_stream())
    assert [[len(row) for row in step.tokens] for step in steps] == [[1] * 4] * NEW


def test_stream_gives_a_row_that_ended_nothing_and_stops_when_all_have():
    free = _generate(**HOT).tokens
    end = free[0][3]
    steps = list(_stream(end_tokens=[end], **HOT))
    assert _joined(steps) == _generate(end_tokens=[end], **HOT).tokens
    ends = {tokens[0] for tokens in free}
    [step] = _stream(end_tokens=sorted(ends), **HOT)
    assert step == Step([[]] * 4, ["end"] * 4)


def test_steps_say_why_rows_ended_and_how_likely_tokens_were():
    free = _generate(**HOT).tokens
    options = {"end_tokens": [free[0][3]], **HOT}
    whole = _generate(logprobs=True, **options)
    steps = list(_stream(logprobs=True, chunk=2, **options))
    assert _joined(steps) == whole.tokens
    rows = zip(*(step.logprobs for step in steps), strict=True)
    assert [list(itertools.chain(*row)) for row in rows] == whole.logprobs
    assert steps[0].finish_reasons == [None] * 4
    assert steps[-1].finish_reasons == whole.finish_reasons
    assert next(_stream(**options)).logprobs is None


def test_stream_can_be_left_and_begun_again():
    steps = _stream()
    first = next(steps)
    steps.close()
    assert next(_stream()) == first


def test_stream_computes_nothing_until_it_is_asked(monkeypatch):
    def never(*_):
        raise RuntimeError("computed")

    monkeypatch.setattr(loop, "prefill", never)
    steps = _stream()
    with pytest.raises(RuntimeError, match="computed"):
        next(steps)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompts": []}, "prompts must hold at least one prompt, got none"),
        ({"prompts": [[1], []]}, r"prompts\[1\] must hold at least one token"),
        ({"prompts": [1, 2]}, r"prompts\[0\] must be a list of token ids, got 1;"),
        ({"prompts": ["hi"]}, r"prompts\[0\] must be a list of token ids, got 'hi'"),
        ({"prompts": "hi"}, r"prompts\[0\] must be a list of token ids, got 'h'"),
        ({"prompts": [[1, 29]]}, r"prompts\[0\] .* from 0 to 28 .* got 29 at 1"),
        ({"prompts": [[1], [-1]]}, r"prompts\[1\] .* from 0 to 28 .* got -1 at 0"),
        ({"prompts": [[2**32 + 1]]}, r"prompts\[0\] .* got 4294967297 at 0"),
        ({"prompts": [[1.5]]}, r"prompts\[0\] must hold ids .* got 1.5 at 0"),
        ({"prompts": [[1] * 59]}, r"prompts\[0\] has 59 .* max_length = 64"),
        ({"new": 64}, r"prompts\[0\] has 3 tokens and max_new_tokens is 64"),
        ({"new": 0}, "max_new_tokens must be a whole number >= 1, got 0"),
        ({"new": -1}, "max_new_tokens must be a whole number >= 1, got -1"),
        ({"new": 2.5}, "max_new_tokens must be a whole number >= 1, got 2.5"),
        ({"new": True}, "max_new_tokens must be a whole number >= 1, got True"),
        ({"chunk": 0}, "chunk must be from 1 to 32, got 0"),
        ({"chunk": 33}, "chunk must be from 1 to 32, got 33"),
        ({"end_tokens": [29]}, "end_tokens must hold ids from 0 to 28 .* got 29"),
        ({"sampling": Sampling()}, "rng must be given where temperature is above 0"),
        ({"sampling": Sampling(), "rng": 0}, "rng must be PRNG keys, .* got 0"),
        (
            {"sampling": Sampling(), "rng": jax.random.split(jax.random.key(0), 3)},
            r"rng must be one PRNG key, or one for each of 4 .* got shape \[3\]",
        ),
        ({"params": {}}, "params do not fit the model: missing"),
    ],
)
def test_stream_refuses_at_the_call_and_not_at_the_first_token(arguments, message):
    with pytest.raises(ValueError, match=message):
        _stream(**arguments)


def test_nan_logits_stop_the_stream_with_the_row_that_has_them():
    params = dict(example_params("multi_head"))  # its output matrix is another
    table = params["decoder_lm/embed"]["embeddings"]
    params["decoder_lm/embed"] = {"embeddings": table.at[12].set(jnp.nan)}
    steps = stream(example("multi_head"), params, [[1], [2, 12]], max_new_tokens=3)
    with pytest.raises(FloatingPointError, match="the logits of row 1 are NaN"):
        next(steps)
