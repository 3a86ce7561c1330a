"""Tiny decoders of families whose blocks, or whose tensors, lie otherwise than Llama's.

Parts beside each other, queries, keys and values in one matrix, gate and up in one,
rotary pairs that are neighbours.
"""

from __future__ import annotations

from typing import Any

from tests.pretrained.families.cases import (
    GROUPED,
    LLAMA,
    MULTI_HEAD,
    MULTI_QUERY,
    VOCAB_SIZE,
)

_FACTORS = {
    "short_factor": [1.0, 1.1, 1.5, 2.0],
    "long_factor": [1.0, 1.5, 4.0, 7.0],
}
GPTJ = {"vocab_size": VOCAB_SIZE, "n_embd": 32, "n_layer": 1, "n_positions": 24}

# (family, heads, what else is peculiar) -> keys
CASES: dict[tuple[str, str, str], dict[str, Any]] = {
    ("gpt_neox", MULTI_HEAD, "parallel, in part rotated"): {
        **LLAMA,
        "num_hidden_layers": 2,
        "hidden_size": 40,
        "rotary_pct": 0.45,  # 4.5 of 10
        "rotary_emb_base": 500,
        "rope_scaling": {"rope_type": "linear", "factor": 2.5},
    },
    ("gpt_neox", MULTI_HEAD, "sequential, no biases, tied"): {
        **LLAMA,
        "hidden_size": 30,
        "num_attention_heads": 3,
        "rotary_pct": 1.0,
        "use_parallel_residual": False,
        "attention_bias": False,
        "tie_word_embeddings": True,
        "hidden_act": "gelu_fast",
    },
    ("starcoder2", MULTI_HEAD, "untied, no biases"): {
        **LLAMA,
        "num_key_value_heads": 4,
        "use_bias": False,
        "tie_word_embeddings": False,
    },
    ("starcoder2", GROUPED, "window, key size"): {
        **LLAMA,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "head_dim": 10,
        "sliding_window": 4,
    },
    ("starcoder2", MULTI_QUERY, "yarn"): {
        **LLAMA,
        "num_key_value_heads": 1,
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 16,
        },
    },
    ("phi3", MULTI_HEAD, "window"): {**LLAMA, "sliding_window": 3},
    ("phi3", GROUPED, "key size, in part rotated"): {
        **LLAMA,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "hidden_size": 36,
        "partial_rotary_factor": 0.75,
        "rope_theta": 500.0,
    },
    ("phi3", MULTI_QUERY, "tied"): {
        **LLAMA,
        "num_key_value_heads": 1,
        "tie_word_embeddings": True,
    },
    ("phi3", MULTI_HEAD, "a long context's factors"): {
        **LLAMA,
        "original_max_position_embeddings": 8,
        "rope_scaling": {"type": "longrope", **_FACTORS},
    },
    ("phi3", GROUPED, "a short context's factors"): {
        **LLAMA,
        "num_key_value_heads": 2,
        "max_position_embeddings": 16,  # all that is read and made
        "original_max_position_embeddings": 16,
        "rope_scaling": {"type": "longrope", "factor": 4.0, **_FACTORS},
    },
    ("gptj", MULTI_HEAD, "in part rotated"): {
        **GPTJ,
        "n_layer": 2,
        "n_head": 4,
        "rotary_dim": 6,
    },
    ("gptj", MULTI_HEAD, "tied"): {
        **GPTJ,
        "n_embd": 30,
        "n_head": 3,
        "n_inner": 37,
        "rotary_dim": 10,
        "tie_word_embeddings": True,
    },
    ("stablelm", MULTI_HEAD, "parallel, biases"): {
        **LLAMA,
        "num_key_value_heads": 4,
        "use_qkv_bias": True,
        "use_parallel_residual": True,
    },
    ("stablelm", GROUPED, "in part rotated"): {
        **LLAMA,
        "num_hidden_layers": 2,
        "hidden_size": 40,
        "num_key_value_heads": 2,
        "partial_rotary_factor": 0.45,
    },
    ("stablelm", MULTI_QUERY, "tied"): {
        **LLAMA,
        "num_key_value_heads": 1,
        "tie_word_embeddings": True,
    },
    ("cohere", MULTI_HEAD, "biases"): {**LLAMA, "attention_bias": True},
    ("cohere", GROUPED, "norms by head, key size"): {
        **LLAMA,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "head_dim": 10,
        "use_qk_norm": True,
        "logit_scale": 0.3,
    },
    ("cohere", MULTI_QUERY, "untied"): {
        **LLAMA,
        "num_key_value_heads": 1,
        "rope_theta": 500.0,
        "tie_word_embeddings": False,
    },
    ("glm4", MULTI_HEAD, "no biases"): {
        **LLAMA,
        "num_key_value_heads": 4,
        "head_dim": 8,
        "attention_bias": False,
    },
    ("glm4", GROUPED, "key size, in part rotated"): {
        **LLAMA,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "head_dim": 12,
    },
    ("glm4", MULTI_QUERY, "tied"): {
        **LLAMA,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "tie_word_embeddings": True,
    },
}
