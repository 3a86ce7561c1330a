"""Decoders in int8: the same faces, a quarter of the bytes, nearly the same text."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import haiku_mqa as hm
from haiku_mqa import training
from haiku_mqa.ops.quantized import QuantizedMatrix, dequantize
from haiku_mqa.quantization import is_quantized, num_bytes, quantize_params
from tests.models import drawn_params

PERPLEXITY = 0.005  # share that int8 may cost
CHARACTERS = 20_000
LOGITS = 0.05  # of their spread, with drawn weights
OPTIONS = [
    {},
    {"tie_embeddings": False},
    {"num_kv_heads": 4, "gated": True, "activation": "silu", "norm": "rms"},
    {"position_embedding": "learned", "query_bias": True, "ff_bias": True},
    {"block_layout": "parallel", "final_logit_softcap": 5.0},
]


def _model(**options):
    sizes = {"vocab_size": 64, "num_layers": 2, "num_heads": 4, "d_model": 32}
    return hm.build(hm.DecoderConfig(**{**sizes, "d_ff": 64, **options}))


@pytest.fixture(scope="module")
def shipped():
    return hm.load_pretrained("shakespeare-mqa")


@pytest.mark.parametrize("options", OPTIONS)
def test_logits_are_those_of_the_matrices_it_stands_for(options):
    model = _model(**options)
    small = quantize_params(model, drawn_params(model))
    wide = {
        module: {
            name: dequantize(leaf) if isinstance(leaf, QuantizedMatrix) else leaf
            for name, leaf in leaves.items()
        }
        for module, leaves in small.items()
    }
    apply = jax.jit(lambda p, t: model.apply(p, None, t).logits)
    for length in (1, 7):
        tokens = jnp.arange(length)[None] % 64
        expected, got = apply(wide, tokens), apply(small, tokens)
        assert float(jnp.abs(got - expected).max()) <= 1e-3 * float(expected.std())


@pytest.mark.parametrize("options", OPTIONS)
def test_logits_are_near_those_of_the_weights(options):
    model = _model(**options)
    params = drawn_params(model)
    small = quantize_params(model, params)
    tokens = jnp.arange(9)[None]
    expected = model.apply(params, None, tokens).logits
    got = model.apply(small, None, tokens).logits
    assert float((got - expected).std()) <= LOGITS * float(expected.std())


@pytest.mark.parametrize("options", OPTIONS)
def test_chunks_with_a_cache_give_the_logits_of_the_whole(options):
    model = _model(**options)
    small = quantize_params(model, drawn_params(model))
    apply = jax.jit(lambda p, t, c: model.apply(p, None, t, cache=c))
    tokens = jnp.arange(8)[None]
    whole = model.apply(small, None, tokens).logits
    cache, parts = model.init_cache(1, 8), []
    for a, b in ((0, 3), (3, 4), (4, 8)):  # one of a single token, which is another way
        out = apply(small, tokens[:, a:b], cache)
        cache = out.cache
        parts.append(out.logits)
    off = jnp.abs(jnp.concatenate(parts, axis=1) - whole).max()
    assert float(off) <= 2e-3 * float(whole.std())


def test_matrices_are_quantized_and_nothing_else():
    model = _model(tie_embeddings=False, position_embedding="learned", ff_bias=True)
    small = quantize_params(model, model.init(jax.random.key(0)))
    kept = {
        f"{module}/{name}".removeprefix("decoder_lm/")
        for module, leaves in small.items()
        for name, leaf in leaves.items()
        if not isinstance(leaf, QuantizedMatrix)
    }
    assert {"embed/embeddings", "position_embed/embeddings"} <= kept
    rest = kept - {"embed/embeddings", "position_embed/embeddings"}
    assert {name.rpartition("/")[2] for name in rest} <= {"scale", "offset", "b"}
    assert isinstance(small["decoder_lm/unembed"]["w"], QuantizedMatrix)


def test_tied_embedding_has_a_scale_for_each_token():
    model = _model()
    table = quantize_params(model, drawn_params(model))["decoder_lm/embed"][
        "embeddings"
    ]
    assert (table.axis, table.scales.shape) == (0, (64,))


@pytest.mark.parametrize("num_kv_heads", [1, 2, 4])
def test_keys_and_values_that_heads_share_have_a_second_byte(num_kv_heads):
    model = _model(num_kv_heads=num_kv_heads)
    small = quantize_params(model, drawn_params(model))
    finer = {
        module.rpartition("/")[2]
        for module, leaves in small.items()
        for leaf in leaves.values()
        if isinstance(leaf, QuantizedMatrix) and leaf.rest is not None
    }
    assert finer == ({"key", "value"} if num_kv_heads < 4 else set())


def test_weights_take_a_byte_a_number_and_two_for_shared_keys_and_values(shipped):
    small = quantize_params(shipped.model, shipped.params)
    shared = sum(
        leaf.nbytes
        for module, leaves in shipped.params.items()
        for leaf in leaves.values()
        if module.endswith(("/key", "/value"))
    )
    quarter = (num_bytes(shipped.params) + shared) / 4
    assert quarter < num_bytes(small) < 1.02 * quarter  # with scales and norms
    assert is_quantized(small)
    assert not is_quantized(shipped.params)


def test_perplexity_is_within_a_two_hundredth_of_float32s(shipped):
    _, held_out = training.split(training.read_corpus())
    tokens = training.encode_corpus(held_out, shipped.tokenizer)[:CHARACTERS]
    small = quantize_params(shipped.model, shipped.params)
    before, after = (
        training.evaluate(shipped.model, params, tokens, batch_size=16).loss
        for params in (shipped.params, small)
    )
    assert math.exp(after - before) - 1 <= PERPLEXITY


def test_rows_of_a_batch_get_what_they_would_alone(shipped):
    small = quantize_params(shipped.model, shipped.params)
    prompts = [shipped.tokenizer.encode(text) for text in ("ROMEO:\n", "First Citizen")]
    both = hm.generate(shipped.model, small, prompts, max_new_tokens=12).tokens
    alone = [
        hm.generate(shipped.model, small, [prompt], max_new_tokens=12).tokens[0]
        for prompt in prompts
    ]
    assert both == alone


def test_loading_quantizes(shipped):
    loaded = hm.load_pretrained("shakespeare-mqa", quantize="int8")
    expected = quantize_params(shipped.model, shipped.params)
    jax.tree.map(np.testing.assert_array_equal, loaded.params, expected)
    assert loaded.model == shipped.model


def test_unknown_quantization_is_told_with_the_nearest_name():
    with pytest.raises(ValueError, match=r"unknown quantization 'int9'.*'int8'"):
        hm.load_pretrained("shakespeare-mqa", quantize="int9")


def test_what_is_quantized_is_not_quantized_again():
    model = _model()
    small = quantize_params(model, drawn_params(model))
    with pytest.raises(ValueError, match=r"must be of floating point.*is quantized"):
        quantize_params(model, small)


def test_parameters_of_another_model_are_refused():
    with pytest.raises(ValueError, match="params do not fit the model"):
        quantize_params(_model(num_layers=1), drawn_params(_model()))
