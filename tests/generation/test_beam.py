"""Beam search, held to every sequence there is, to greedy choice and transformers."""

from __future__ import annotations

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from haiku_mqa import DecoderConfig, build, generate
from haiku_mqa.generation import beam_search
from tests.models import drawn_params, example, example_params

SCORE = 1e-4  # of sums of float32 log-probabilities
V, N = 4, 3  # a vocabulary and a length of which all sequences can be tried
TINY = build(
    DecoderConfig(
        vocab_size=V, num_layers=1, num_heads=2, d_model=8, d_ff=16, max_length=16
    )
)
SMALL = build(
    DecoderConfig(
        vocab_size=29, num_layers=1, num_heads=2, d_model=16, d_ff=24, max_length=32
    )
)
PROMPTS = [[1, 2, 3], [2]]
PARAMS = {seed: drawn_params(TINY, seed) for seed in range(4)}

_logits = jax.jit(lambda params, tokens: TINY.apply(params, None, tokens).logits)


@functools.cache
def _log_probabilities(seed: int, prompt: tuple[int, ...]) -> dict[tuple, float]:
    """Returns the sum of log-probabilities of every sequence of N tokens or fewer."""
    full = list(itertools.product(range(V), repeat=N))
    read = jnp.array([[*prompt, *tokens] for tokens in full])
    log_p = np.asarray(jax.nn.log_softmax(_logits(PARAMS[seed], read)), np.float64)
    sums = {}
    for row, tokens in enumerate(full):
        each = [log_p[row, len(prompt) - 1 + n, t] for n, t in enumerate(tokens)]
        for length in range(1, N + 1):
            sums[tokens[:length]] = sum(each[:length])
    return sums


def _best(seed: int, prompt: list[int], ends: list[int], penalty: float):
    """Returns every finished sequence with its score, best first."""
    sums = _log_probabilities(seed, tuple(prompt))
    finished = {
        tokens: total / len(tokens) ** penalty
        for tokens, total in sums.items()
        if not set(tokens[:-1]) & set(ends) and (len(tokens) == N or tokens[-1] in ends)
    }
    return sorted(finished.items(), key=lambda item: -item[1])


@settings(max_examples=10)
@given(
    seed=st.sampled_from(list(PARAMS)),
    end=st.integers(0, V - 1),
    penalty=st.sampled_from([-1.0, 0.0, 0.5, 1.0, 2.0]),
)
def test_with_a_beam_for_each_sequence_the_search_is_exact(seed, end, penalty):
    found = beam_search(
        TINY,
        PARAMS[seed],
        PROMPTS,
        num_beams=V**N,
        max_new_tokens=N,
        length_penalty=penalty,
        end_tokens=[end],
    )
    for row, prompt in enumerate(PROMPTS):
        expected = _best(seed, prompt, [end], penalty)
        scores = [score for _, score in expected]
        np.testing.assert_allclose(found.scores[row], scores, atol=SCORE)
        tokens, _ = expected[0]
        assert found.tokens[row][0] == [t for t in tokens if t != end]
        both = {tuple(t) for t in found.tokens[row]}
        assert both == {tuple(t for t in tokens if t != end) for tokens, _ in expected}


@given(seed=st.sampled_from(list(PARAMS)), beams=st.integers(1, 5))
def test_every_score_is_that_of_its_tokens(seed, beams):
    found = beam_search(TINY, PARAMS[seed], PROMPTS, num_beams=beams, max_new_tokens=N)
    for row, prompt in enumerate(PROMPTS):
        sums = _log_probabilities(seed, tuple(prompt))
        scores = [sums[tuple(tokens)] / N for tokens in found.tokens[row]]
        np.testing.assert_allclose(found.scores[row], scores, atol=SCORE)
        assert len({tuple(tokens) for tokens in found.tokens[row]}) == beams
        assert found.scores[row] == sorted(found.scores[row], reverse=True)


ROWS = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10, 11], [12, 13]]


@pytest.mark.parametrize("name", ["grouped", "windowed"])
def test_one_beam_is_the_greedy_choice_token_for_token(name):
    model, params = example(name), example_params(name)
    free = generate(model, params, ROWS, max_new_tokens=8, logprobs=True)
    found = beam_search(model, params, ROWS, num_beams=1, max_new_tokens=8)
    assert [tokens for [tokens] in found.tokens] == free.tokens
    means = [[np.mean(logprobs)] for logprobs in free.logprobs]
    np.testing.assert_allclose(found.scores, means, atol=SCORE)
    ends = sorted({free.tokens[0][2], free.tokens[1][5]})
    short = generate(model, params, ROWS, max_new_tokens=8, end_tokens=ends)
    found = beam_search(
        model, params, ROWS, num_beams=1, max_new_tokens=8, end_tokens=ends
    )
    assert [tokens for [tokens] in found.tokens] == short.tokens
    assert "end" in short.finish_reasons


def test_more_beams_find_what_is_no_less_likely():
    model, params = SMALL, drawn_params(SMALL)
    options = {"max_new_tokens": 8, "length_penalty": 0.0}
    one = beam_search(model, params, ROWS, num_beams=1, **options)
    eight = beam_search(model, params, ROWS, num_beams=8, **options)
    better = [
        mine[0] - theirs[0]
        for mine, theirs in zip(eight.scores, one.scores, strict=True)
    ]
    assert min(better) > -SCORE
    assert max(better) > SCORE


def test_a_prompt_is_searched_as_it_is_alone():
    model, params = SMALL, drawn_params(SMALL)
    end = generate(model, params, ROWS, max_new_tokens=8).tokens[0][2]
    options = {"num_beams": 3, "max_new_tokens": 8, "end_tokens": [end, 3]}
    together = beam_search(model, params, ROWS, **options)
    for row in (0, 2):
        alone = beam_search(model, params, [ROWS[row]] * 4, **options)
        assert alone.tokens == [together.tokens[row]] * 4
        np.testing.assert_allclose(alone.scores[0], together.scores[row], atol=SCORE)


def test_other_lengths_penalties_and_end_tokens_compile_nothing():
    from haiku_mqa.generation.beam import _search

    options = {"num_beams": 2, "max_new_tokens": 2, "end_tokens": [0]}
    beam_search(TINY, PARAMS[0], PROMPTS, **options)
    before = _search._cache_size()
    options = {"num_beams": 2, "max_new_tokens": 5, "end_tokens": [3]}
    beam_search(TINY, PARAMS[1], PROMPTS, length_penalty=0.3, **options)
    assert _search._cache_size() == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_beams": 0}, "num_beams must be a whole number >= 1, got 0"),
        ({"max_new_tokens": 0}, "max_new_tokens must be a whole number >= 1, got 0"),
        ({"length_penalty": float("nan")}, "length_penalty must be a number, got nan"),
        ({"length_penalty": "1"}, "length_penalty must be a number, got '1'"),
        ({"end_tokens": [4]}, "end_tokens must hold ids from 0 to 3 .* got 4"),
        ({"prompts": [[1], []]}, r"prompts\[1\] must hold at least one token"),
        ({"prompts": [[1] * 14]}, r"prompts\[0\] has 14 .* max_length = 16"),
        ({"params": {}}, "params do not fit the model: missing"),
    ],
)
def test_beam_search_refuses_what_cannot_be_asked_for(options, message):
    asked = {"params": PARAMS[0], "prompts": PROMPTS, "num_beams": 2, **options}
    params, prompts = asked.pop("params"), asked.pop("prompts")
    with pytest.raises(ValueError, match=message):
        beam_search(TINY, params, prompts, **{"max_new_tokens": N, **asked})


def test_nan_logits_are_told_of_with_their_prompt():
    model = build(dataclasses.replace(TINY.config, tie_embeddings=False))
    params = drawn_params(model)
    table = params["decoder_lm/embed"]["embeddings"]
    params["decoder_lm/embed"] = {"embeddings": table.at[3].set(jnp.nan)}
    with pytest.raises(FloatingPointError, match="logits of prompt 1 are NaN"):
        beam_search(model, params, [[1], [3]], num_beams=1, max_new_tokens=1)


@pytest.mark.parity
@pytest.mark.parametrize("penalty", [0.0, 1.0, -0.5])
@pytest.mark.parametrize("ends", [[], [3], [3, 11]])
def test_beams_are_those_of_transformers(penalty, ends):
    model, theirs = _twins()
    prompts, new, beams = [[1, 2, 3], [4, 5, 6]], 7, 4
    import torch

    out = theirs.generate(
        torch.tensor(prompts),
        attention_mask=torch.ones(2, 3, dtype=torch.long),
        max_new_tokens=new,
        num_beams=beams,
        num_return_sequences=beams,
        length_penalty=penalty,
        eos_token_id=ends or None,
        pad_token_id=0,
        early_stopping="never",
        do_sample=False,
        return_dict_in_generate=True,
        output_scores=True,
    )
    found = beam_search(
        *model,
        prompts,
        num_beams=beams,
        max_new_tokens=new,
        length_penalty=penalty,
        end_tokens=ends,
    )
    scores = out.sequences_scores.reshape(2, beams).numpy()
    np.testing.assert_allclose(found.scores, scores, atol=SCORE)
    rows = [row[3:].tolist() for row in out.sequences]
    cut = [
        row[: next((n for n, t in enumerate(row) if t in ends), new)] for row in rows
    ]
    assert found.tokens == [cut[:beams], cut[beams:]]


@functools.cache
def _twins():
    """Returns a small model with its parameters, and the same of transformers."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    model = build(
        DecoderConfig(
            vocab_size=17,
            num_layers=2,
            num_heads=4,
            num_kv_heads=2,
            d_model=16,
            d_ff=24,
            max_length=32,
            norm_eps=1e-5,
            tie_embeddings=True,
        )
    )
    params = drawn_params(model)
    config = LlamaConfig(
        vocab_size=17,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        hidden_size=16,
        intermediate_size=24,
        rope_theta=model.config.rope_theta,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
    )
    theirs = LlamaForCausalLM(config).eval()
    names = {
        "attention/query": "self_attn.q_proj",
        "attention/key": "self_attn.k_proj",
        "attention/value": "self_attn.v_proj",
        "attention/linear": "self_attn.o_proj",
        "attention_norm": "input_layernorm",
        "feed_forward_norm": "post_attention_layernorm",
        "feed_forward/gate": "mlp.gate_proj",
        "feed_forward/up": "mlp.up_proj",
        "feed_forward/down": "mlp.down_proj",
    }
    state = {}
    for module, leaves in params.items():
        path = module.removeprefix("decoder_lm/")
        if path.startswith("decoder/layer_"):
            layer, _, rest = path.removeprefix("decoder/layer_").partition("/")
            name = f"layers.{layer}.{names[rest]}"
        else:
            name = {"embed": "embed_tokens", "decoder/final_norm": "norm"}[path]
        ((leaf, array),) = leaves.items()
        array = np.asarray(array).T if leaf == "w" else np.asarray(array)
        state[f"model.{name}.weight"] = torch.tensor(array)
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    theirs.load_state_dict(state)
    return (model, params), theirs
