"""Tiny decoders of every family, as keys that transformers makes a model of.

A family's test is a line here: what its ``config.json`` says beside the sizes. Sizes
are odd where a wrong axis would go unseen otherwise; windows are shorter than the
text, positions stretched within it.
"""

from __future__ import annotations

from typing import Any

VOCAB_SIZE = 61

LLAMA = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 44,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
_GPT2 = {"vocab_size": VOCAB_SIZE, "n_embd": 32, "n_layer": 1, "n_positions": 24}
_FALCON = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
}
_LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
_YARN = {
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 16,
}

MULTI_HEAD, GROUPED, MULTI_QUERY = "multi-head", "grouped", "multi-query"
# (family, heads, what else is peculiar) -> keys
CASES: dict[tuple[str, str, str], dict[str, Any]] = {
    ("llama", MULTI_HEAD, "biases, linear"): {
        **LLAMA,
        "attention_bias": True,
        "mlp_bias": True,
        "rope_scaling": {"rope_type": "linear", "factor": 2.5},
    },
    ("llama", GROUPED, "key size, llama3"): {
        **LLAMA,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "head_dim": 12,
        "rope_theta": 500.0,
        "rope_scaling": _LLAMA3,
    },
    ("llama", MULTI_QUERY, "tied"): {
        **LLAMA,
        "hidden_size": 30,
        "num_attention_heads": 5,
        "num_key_value_heads": 1,
        "tie_word_embeddings": True,
        "hidden_act": "gelu",
    },
    ("llama", MULTI_QUERY, "longrope"): {
        **LLAMA,
        "num_key_value_heads": 1,
        "rope_scaling": {
            "rope_type": "longrope",
            "short_factor": [1.0, 1.0, 1.0, 1.0],
            "long_factor": [1.0, 1.5, 4.0, 7.0],
            "attention_factor": 1.25,
            "original_max_position_embeddings": 8,
        },
    },
    ("mistral", MULTI_HEAD, "window"): {
        **LLAMA,
        "num_key_value_heads": 4,
        "sliding_window": 3,
    },
    ("mistral", GROUPED, "window, key size"): {
        **LLAMA,
        "num_key_value_heads": 2,
        "head_dim": 10,
        "sliding_window": 4,
    },
    ("mistral", MULTI_QUERY, "no window"): {
        **LLAMA,
        "num_key_value_heads": 1,
        "sliding_window": None,
        "tie_word_embeddings": True,
    },
    ("qwen2", MULTI_HEAD, "yarn"): {
        **LLAMA,
        "num_key_value_heads": 4,
        "rope_scaling": _YARN,
    },
    ("qwen2", GROUPED, "a window in one layer"): {
        **LLAMA,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "use_sliding_window": True,
        "sliding_window": 3,
        "max_window_layers": 1,
    },
    ("qwen2", MULTI_QUERY, "tied"): {
        **LLAMA,
        "num_key_value_heads": 1,
        "tie_word_embeddings": True,
    },
    ("gpt2", MULTI_HEAD, "tied"): {**_GPT2, "n_layer": 2, "n_head": 4},
    ("gpt2", MULTI_HEAD, "untied, unscaled"): {
        **_GPT2,
        "n_embd": 30,
        "n_head": 3,
        "n_inner": 37,
        "scale_attn_weights": False,
        "tie_word_embeddings": False,
    },
    ("gpt_bigcode", MULTI_QUERY, "tied"): {**_GPT2, "n_layer": 2, "n_head": 4},
    ("gpt_bigcode", MULTI_HEAD, "untied"): {
        **_GPT2,
        "n_embd": 30,
        "n_head": 3,
        "n_inner": 37,
        "multi_query": False,
        "tie_word_embeddings": False,
    },
    ("falcon", MULTI_QUERY, "7B"): {**_FALCON, "num_hidden_layers": 2},
    ("falcon", GROUPED, "40B, biases"): {
        **_FALCON,
        "new_decoder_architecture": True,
        "num_kv_heads": 2,
        "bias": True,
    },
    ("falcon", GROUPED, "11B, untied"): {
        **_FALCON,
        "new_decoder_architecture": True,
        "num_kv_heads": 2,
        "num_ln_in_parallel_attn": 1,
        "ffn_hidden_size": 45,
        "tie_word_embeddings": False,
    },
    ("falcon", MULTI_HEAD, "sequential, biases"): {
        **_FALCON,
        "hidden_size": 30,
        "num_attention_heads": 3,
        "multi_query": False,
        "parallel_attn": False,
        "bias": True,
    },
}
