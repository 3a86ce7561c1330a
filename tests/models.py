"""The one table of example models, which drives every generic test.

Each option of ``DecoderConfig`` is used by at least one of them; all are small, and
their sizes are odd where a wrong axis would otherwise go unseen.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from haiku_mqa.config import DecoderConfig
from haiku_mqa.model import Model
from haiku_mqa.rope_scaling import (
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    YarnScaling,
)

BATCH, LENGTH = 2, 7  # of the tokens that examples read, in rows and tokens


def _config(**options: Any) -> DecoderConfig:
    sizes = {"vocab_size": 29, "num_layers": 2, "num_heads": 4, "d_model": 32}
    return DecoderConfig(**{**sizes, "d_ff": 40, "max_length": 64, **options})


EXAMPLES: dict[str, DecoderConfig] = {
    "multi_query": _config(),
    "multi_head": _config(
        num_kv_heads=4,
        query_bias=True,
        key_bias=True,
        value_bias=True,
        output_bias=True,
        norm="layer",
        activation="silu",
        gated=False,
        ff_bias=True,
        tie_embeddings=False,
    ),
    "grouped": _config(
        num_heads=6,
        num_kv_heads=2,
        key_size=8,
        value_size=5,
        rope_theta=500.0,
        rope_scaling=Llama3Scaling(
            factor=8.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_length=32,
        ),
    ),
    "classic": _config(
        num_heads=8,
        query_bias=True,
        key_bias=True,
        value_bias=True,
        output_bias=True,
        position_embedding="none",
        norm="layer",
        norm_placement="residual",
        final_norm=False,
        activation="relu",
        gated=False,
        ff_bias=True,
    ),
    "learned": _config(
        max_length=24,
        num_kv_heads=2,
        position_embedding="learned",
        norm="layer",
        norm_bias=False,
        norm_eps=1e-6,
        activation="gelu_tanh",
        gated=False,
    ),
    "alibi": _config(
        num_heads=6,
        num_kv_heads=3,
        d_model=30,
        position_embedding="alibi",
        norm="layer",
        activation="gelu",
    ),
    "capped": _config(
        num_kv_heads=2,
        key_size=12,
        attn_logit_softcap=3.0,
        attn_scale=0.5,
        sliding_window=(3, None),
        norm="rms_one_plus",
        norm_placement="both",
        activation="gelu_tanh",
        embedding_scale=32**0.5,
        final_logit_softcap=5.0,
    ),
    "parallel": _config(
        rope_fraction=0.25,
        rope_scaling=LinearScaling(factor=2.0),
        norm="layer",
        block_layout="parallel",
        activation="gelu",
        gated=False,
        ff_bias=True,
    ),
    "one_norm": _config(
        query_bias=True,
        value_bias=True,
        qk_norm=True,
        rope_scaling=YarnScaling(factor=4.0, original_max_length=16),
        block_layout="parallel_one_norm",
        tie_embeddings=False,
    ),
    "windowed": _config(
        num_kv_heads=2,
        rope_scaling=LongRopeScaling(
            short_factors=(1.0, 1.0, 1.5, 2.0),
            long_factors=(1.0, 2.0, 4.0, 8.0),
            factor=4.0,
            original_max_length=16,
        ),
        sliding_window=3,
        qk_norm=True,
        norm_placement="after",
        activation="relu",
    ),
    "mixed": _config(
        num_kv_heads=2,
        key_size=6,
        qk_norm=True,
        qk_norm_span="all_heads",
        rope_theta=(500.0, None),
        rope_scaling=(LinearScaling(factor=2.0), None),
        residual_scale=0.5,
        logit_scale=2.0,
    ),
    "by_head": _config(
        num_kv_heads=2,
        norm="layer",
        norm_bias=False,
        qk_norm=True,
        qk_norm_span="own_head",
        block_layout="parallel_one_norm",
        logit_bias=True,
        logit_scale=0.3,
        final_logit_softcap=5.0,
    ),
    "dropout": _config(
        embedding_dropout=0.2, attention_dropout=0.2, residual_dropout=0.2
    ),
    "bfloat16": _config(num_kv_heads=2, dtype="bfloat16", param_dtype="bfloat16"),
    "float16": _config(dtype="float16", param_dtype="float16"),
}

FLOAT32 = [name for name, config in EXAMPLES.items() if config.dtype == "float32"]


def example(name: str) -> Model:
    """Returns the model of an example."""
    return Model(EXAMPLES[name])


@functools.lru_cache(maxsize=64)
def example_params(name: str) -> dict[str, dict[str, jax.Array]]:
    """Returns parameters of which none is zero or one, drawn in no time."""
    return drawn_params(example(name))


def drawn_params(model: Model, seed: int = 0) -> dict[str, dict[str, jax.Array]]:
    """Returns parameters for a model, of the size that its initializers give."""
    draw = np.random.default_rng(seed)
    one_plus = model.config.norm == "rms_one_plus"

    def leaf(name: str, shape: tuple[int, ...]) -> np.ndarray:
        noise = draw.standard_normal(shape)
        if name == "w":
            return noise * shape[0] ** -0.5
        if name == "embeddings":
            return noise * shape[1] ** -0.5
        return 0.1 * noise + (1.0 if name == "scale" and not one_plus else 0.0)

    return {
        module: {
            name: jnp.asarray(leaf(name, spec.shape), spec.dtype)
            for name, spec in leaves.items()
        }
        for module, leaves in model.param_shapes.items()
    }


def example_tokens(
    name: str, rows: int = BATCH, length: int = LENGTH, seed: int = 0
) -> jax.Array:
    """Returns random tokens, int32 ``[rows, length]``."""
    draw = np.random.default_rng(seed)
    ids = draw.integers(0, EXAMPLES[name].vocab_size, (rows, length))
    return jnp.asarray(ids, jnp.int32)


@functools.lru_cache(maxsize=64)
def example_logits(name: str) -> jax.Array:
    """Returns the compiled full forward of an example over its tokens."""
    model = example(name)
    forward = jax.jit(lambda params, tokens: model.apply(params, None, tokens).logits)
    return forward(example_params(name), example_tokens(name))
