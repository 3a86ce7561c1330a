"""Decoders of well-known shapes, to plan for without their weights."""

from __future__ import annotations

from haiku_mqa.config import DecoderConfig

_COMMON = {"dtype": "bfloat16", "param_dtype": "bfloat16", "tie_embeddings": False}

PRESETS = {
    # Touvron et al. 2023 and Grattafiori et al. 2024: grouped from 8B on.
    "llama-2-7b": DecoderConfig(
        vocab_size=32_000,
        num_layers=32,
        num_heads=32,
        num_kv_heads=32,
        d_model=4096,
        d_ff=11_008,
        max_length=4096,
        **_COMMON,
    ),
    "llama-3-8b": DecoderConfig(
        vocab_size=128_256,
        num_layers=32,
        num_heads=32,
        num_kv_heads=8,
        d_model=4096,
        d_ff=14_336,
        max_length=8192,
        **_COMMON,
    ),
    "llama-3-70b": DecoderConfig(
        vocab_size=128_256,
        num_layers=80,
        num_heads=64,
        num_kv_heads=8,
        d_model=8192,
        d_ff=28_672,
        max_length=8192,
        **_COMMON,
    ),
    # Almazrouei et al. 2023: one key/value head.
    "falcon-7b": DecoderConfig(
        vocab_size=65_024,
        num_layers=32,
        num_heads=71,
        num_kv_heads=1,
        d_model=4544,
        d_ff=18_176,
        max_length=2048,
        block_layout="parallel_one_norm",
        norm="layer",
        activation="gelu",
        gated=False,
        **{**_COMMON, "tie_embeddings": True},
    ),
    # Chowdhery et al. 2022: one key/value head. For Pope et al. 2022 its heads were
    # padded from 48 to 64, which divide among more devices.
    "palm-540b": DecoderConfig(
        vocab_size=256_000,
        num_layers=118,
        num_heads=48,
        num_kv_heads=1,
        key_size=256,
        d_model=18_432,
        d_ff=73_728,
        max_length=2048,
        block_layout="parallel_one_norm",
        **{**_COMMON, "tie_embeddings": True},
    ),
}
"""Configs by name, from 7 to 540 billion parameters."""
