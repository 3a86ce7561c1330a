"""SmolLM2-135M through this package is the model that transformers runs.

``smollm2.json`` holds what transformers says of the same file, so that the comparison
holds where transformers is not installed; where it is, the golden values themselves
are held to it, and ``--update-golden`` writes them anew.
"""

from __future__ import annotations

import functools
import json
import pathlib

import jax
import numpy as np
import pytest

import haiku_mqa as hm

GOLDEN = pathlib.Path(__file__).parent.parent / "golden" / "smollm2.json"
TOLERANCE = 1e-3  # of logits, in float32
NEW_TOKENS = 64
PROMPTS = (
    "The capital of France is",
    "def fibonacci(n):\n    if n < 2:",
    "It was a bright cold day in April, and the clocks were striking thirteen. "
    "In 1984 there were 365 days; 12,345 of them were counted twice.",
)
PROBES = range(0, 49_152, 768)  # the 64 token ids whose logits are kept
CHUNKS = (3, 1, 7)  # how a prompt is cut for the cache, again and again


@pytest.fixture(scope="module")
def loaded(smollm2_file):
    return hm.load_pretrained("smollm2-135m")


@pytest.fixture(scope="module")
def golden():
    return json.loads(GOLDEN.read_text())


# Weights are arguments: as constants they would be folded into each program.
@functools.partial(jax.jit, static_argnums=0)
def apply(model, params, tokens, cache):
    return model.apply(params, None, tokens, cache=cache)


@pytest.fixture(scope="module")
def forward(loaded):
    return lambda tokens: apply(loaded.model, loaded.params, tokens, None).logits


def in_chunks(loaded, tokens):
    """Reads tokens through a cache, unevenly cut; returns the logits of them all."""
    cache, start, parts = loaded.model.init_cache(1, 64), 0, []
    while start < len(tokens):
        size = min(CHUNKS[len(parts) % len(CHUNKS)], len(tokens) - start)
        span = np.array([tokens[start : start + size]])
        out = apply(loaded.model, loaded.params, span, cache)
        cache, start = out.cache, start + size
        parts.append(np.asarray(out.logits[0]))
    return np.concatenate(parts)


@pytest.mark.parametrize("text", PROMPTS)
def test_tokens_equal_golden(loaded, golden, text):
    assert loaded.tokenizer.encode(text) == golden[text]["tokens"]


@pytest.mark.parametrize("text", PROMPTS)
def test_logits_equal_golden(forward, golden, text):
    logits = np.asarray(forward(np.array([golden[text]["tokens"]])))[0]
    np.testing.assert_allclose(
        logits[:, PROBES], golden[text]["logits"], rtol=0, atol=TOLERANCE
    )


@pytest.mark.parametrize("text", PROMPTS[:1])
def test_logits_equal_golden_when_cached(loaded, golden, text):
    logits = in_chunks(loaded, golden[text]["tokens"])
    np.testing.assert_allclose(
        logits[:, PROBES], golden[text]["logits"], rtol=0, atol=TOLERANCE
    )


def test_greedy_tokens_equal_golden_in_a_ragged_batch(loaded, golden):
    prompts = [golden[text]["tokens"] for text in PROMPTS]
    result = hm.generate(
        loaded.model, loaded.params, prompts, max_new_tokens=NEW_TOKENS
    )
    assert result.tokens == [golden[text]["greedy"] for text in PROMPTS]


def test_config_of_the_zoo_is_that_of_the_file(smollm2_file, loaded):
    assert hm.load_pretrained(smollm2_file).model.config == loaded.model.config


@pytest.fixture(scope="module")
def peer(smollm2_file):
    """Transformers' own reading of the same file, float32."""
    import torch
    from transformers import AutoModelForCausalLM

    folder, name = smollm2_file.parent, smollm2_file.name
    return AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=name, dtype=torch.float32
    ).eval()


def peer_logits(peer, tokens):
    import torch

    with torch.inference_mode():
        return peer(torch.tensor([tokens])).logits[0].numpy()


def peer_greedy(peer, tokens):
    import torch

    with torch.inference_mode():
        out = peer.generate(
            torch.tensor([tokens]),
            attention_mask=torch.ones(1, len(tokens), dtype=torch.long),
            do_sample=False,
            min_new_tokens=NEW_TOKENS,
            max_new_tokens=NEW_TOKENS,
            eos_token_id=None,
            pad_token_id=0,
        )
    return out[0, len(tokens) :].tolist()


@pytest.mark.parity
def test_golden_values_are_transformers_own(loaded, peer, update_golden):
    values = {}
    for text in PROMPTS:
        tokens = loaded.tokenizer.encode(text)
        logits = peer_logits(peer, tokens)[:, PROBES].astype(float)
        values[text] = {
            "tokens": tokens,
            "greedy": peer_greedy(peer, tokens),
            "logits": logits.round(5).tolist(),
        }
    if update_golden:
        GOLDEN.write_text(json.dumps(values) + "\n")
    golden = json.loads(GOLDEN.read_text())
    for text, value in values.items():
        assert golden[text]["tokens"] == value["tokens"]
        assert golden[text]["greedy"] == value["greedy"]
        np.testing.assert_allclose(
            golden[text]["logits"], value["logits"], rtol=0, atol=TOLERANCE / 10
        )


@pytest.mark.parity
@pytest.mark.parametrize("text", PROMPTS)
def test_logits_equal_transformers(loaded, forward, peer, text):
    tokens = loaded.tokenizer.encode(text)
    theirs = peer_logits(peer, tokens)
    ours = np.asarray(forward(np.array([tokens])))[0]
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(
        in_chunks(loaded, tokens), theirs, rtol=0, atol=TOLERANCE
    )
