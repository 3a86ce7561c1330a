"""Where text is generated, layers that are alike are traced once; nobody can tell."""

from __future__ import annotations

import contextlib

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haiku_mqa import DecoderConfig, DecoderLM, TransformerDecoderBlock, build

SAME = 1e-5
TOKENS = jnp.asarray([[3, 1, 4, 1, 5]])
CONFIG = DecoderConfig(
    vocab_size=11,
    num_layers=5,
    num_heads=4,
    num_kv_heads=2,
    d_model=16,
    d_ff=24,
    max_length=8,
    sliding_window=(None, 2, None, 2, 2),
    rope_theta=(500.0, 500.0, None, 500.0, 20.0),
)
MODEL = build(CONFIG)
PARAMS = MODEL.init(jax.random.key(0))


def _read_on(params, tokens, ring=False):
    out = MODEL.apply(params, None, tokens, cache=MODEL.init_cache(1, 8, ring=ring))
    return out.logits, out.cache


@pytest.fixture
def traced(monkeypatch):
    """The names of the blocks that run."""
    names = []
    call = TransformerDecoderBlock.__call__

    def counted(self, *args, **kwargs):
        names.append(self.name)
        return call(self, *args, **kwargs)

    monkeypatch.setattr(TransformerDecoderBlock, "__call__", counted)
    return names


@contextlib.contextmanager
def _intercepted(seen):
    def watch(call, args, kwargs, context):
        if context.method_name == "__call__":
            seen.append(context.module.module_name)
        return call(*args, **kwargs)

    with hk.intercept_methods(watch):
        yield


@contextlib.contextmanager
def _gotten(seen):
    def get(getter, value, context):
        seen.append(context.module_name)
        return getter(value)

    with hk.custom_getter(get):
        yield


@pytest.mark.parametrize("ring", [False, True])
def test_logits_and_cache_are_those_of_layers_run_one_by_one(ring):
    plain = _read_on(PARAMS, TOKENS, ring)  # not traced: each block runs by itself
    once = jax.jit(_read_on, static_argnums=2)(PARAMS, TOKENS, ring)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=SAME), plain, once)


def _trace():
    jax.eval_shape(lambda *args: _read_on(*args), PARAMS, TOKENS)


def test_layers_of_one_kind_are_traced_once(traced):
    _trace()
    assert len(traced) == len(set(CONFIG.layer_kinds)) == 4


def test_what_was_traced_serves_no_second_call(traced):
    _trace()
    _trace()
    assert len(traced) == 8


def test_without_a_cache_each_layer_is_traced_by_itself(traced):
    jax.eval_shape(lambda p: MODEL.apply(p, None, TOKENS).logits, PARAMS)
    assert traced == [f"layer_{i}" for i in range(CONFIG.num_layers)]


@pytest.mark.parametrize("watched", [_intercepted, _gotten])
def test_who_watches_modules_sees_each_layer_by_its_own_name(watched):
    seen = []

    def read_on(tokens):
        with watched(seen):
            return DecoderLM(CONFIG)(tokens, cache=MODEL.init_cache(1, 8)).logits

    logits = jax.jit(hk.transform(read_on).apply)(PARAMS, None, TOKENS)
    for layer in range(CONFIG.num_layers):
        own = f"decoder_lm/decoder/layer_{layer}/attention"
        assert any(name.startswith(own) for name in seen)
    np.testing.assert_allclose(logits, _read_on(PARAMS, TOKENS)[0], atol=SAME)


def test_each_layer_keeps_its_own_parameters():
    spoilt = jax.tree.map(lambda x: x, PARAMS)
    path = "decoder_lm/decoder/layer_3/feed_forward/down"
    spoilt[path]["w"] = spoilt[path]["w"] + 1.0
    one, other = (jax.jit(_read_on)(p, TOKENS)[0] for p in (PARAMS, spoilt))
    assert np.abs(one - other).max() > 0.1
    np.testing.assert_allclose(other, _read_on(spoilt, TOKENS)[0], atol=SAME)
