"""Tiny decoders of the families that are Llama but for a norm, a factor or a window."""

from __future__ import annotations

from typing import Any

from tests.pretrained.families.cases import (
    GROUPED,
    MULTI_HEAD,
    MULTI_QUERY,
    VOCAB_SIZE,
)

_SIZES = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 44,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 64,
    "head_dim": 8,
}
_TWO = {**_SIZES, "num_hidden_layers": 2}
_GROUPED, _ONE = {"num_key_value_heads": 2}, {"num_key_value_heads": 1}
_FULL, _SLIDING = "full_attention", "sliding_attention"
_BIASES = {"attention_bias": True}
_TIED, _UNTIED = {"tie_word_embeddings": True}, {"tie_word_embeddings": False}
_FACTORS = {
    "attention_multiplier": 0.2,
    "embedding_multiplier": 3.0,
    "residual_multiplier": 0.3,
    "logits_scaling": 7.0,
}

CASES: dict[tuple[str, str, str], dict[str, Any]] = {
    ("qwen3", MULTI_HEAD, "key size, biases"): {**_SIZES, **_BIASES, "head_dim": 10},
    ("qwen3", GROUPED, "a window in one layer"): {
        **_TWO,
        **_GROUPED,
        "use_sliding_window": True,
        "sliding_window": 3,
        "max_window_layers": 1,
    },
    ("qwen3", MULTI_QUERY, "tied"): {**_SIZES, **_ONE, **_TIED},
    ("gemma", MULTI_HEAD, "key size"): {**_SIZES, "head_dim": 10},
    ("gemma", GROUPED, "biases, untied"): {
        **_SIZES,
        **_GROUPED,
        **_BIASES,
        **_UNTIED,
        "hidden_act": "relu",
    },
    ("gemma", MULTI_QUERY, "2B"): {**_TWO, **_ONE, "hidden_act": "gelu"},
    ("gemma2", MULTI_HEAD, "window, caps"): {
        **_SIZES,
        "head_dim": 10,
        "sliding_window": 3,
        "query_pre_attn_scalar": 7,
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 5.0,
    },
    ("gemma2", GROUPED, "windows in turn, no caps"): {
        **_TWO,
        **_GROUPED,
        "sliding_window": 3,
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
    },
    ("gemma2", MULTI_QUERY, "no window, biases, untied"): {
        **_SIZES,
        **_ONE,
        **_BIASES,
        **_UNTIED,
        "layer_types": [_FULL],
    },
    ("gemma3_text", MULTI_HEAD, "two bases, one stretched"): {
        **_TWO,
        "head_dim": 10,
        "sliding_window": 3,
        "layer_types": [_SLIDING, _FULL],
        "rope_parameters": {
            _FULL: {"rope_type": "linear", "factor": 2.5, "rope_theta": 500.0},
            _SLIDING: {"rope_type": "default", "rope_theta": 20.0},
        },
    },
    ("gemma3_text", GROUPED, "keys of old, cap"): {
        **_TWO,
        **_GROUPED,
        "sliding_window": 4,
        "sliding_window_pattern": 2,
        "rope_theta": 700.0,
        "rope_local_base_freq": 30.0,
        "final_logit_softcapping": 5.0,
    },
    ("gemma3_text", MULTI_QUERY, "biases, untied"): {
        **_SIZES,
        **_ONE,
        **_BIASES,
        **_UNTIED,
        "layer_types": [_FULL],
    },
    ("olmo2", MULTI_HEAD, "biases"): {**_SIZES, **_BIASES},
    ("olmo2", GROUPED, "key size"): {**_TWO, **_GROUPED, "head_dim": 10},
    ("olmo2", MULTI_QUERY, "tied"): {**_SIZES, **_ONE, **_TIED},
    ("smollm3", MULTI_HEAD, "a layer without positions"): {
        **_TWO,
        "no_rope_layers": [0, 1],
        "rope_scaling": {"rope_type": "linear", "factor": 2.5},
        "rope_theta": 500.0,
    },
    ("smollm3", GROUPED, "every other without, and with a window"): {
        **_TWO,
        **_GROUPED,
        "head_dim": 10,
        "no_rope_layer_interval": 2,
        "use_sliding_window": True,
        "sliding_window": 3,
    },
    ("smollm3", MULTI_QUERY, "biases, untied"): {
        **_SIZES,
        **_ONE,
        **_BIASES,
        **_UNTIED,
        "mlp_bias": True,
    },
    ("granite", MULTI_HEAD, "factors, biases"): {
        **_SIZES,
        **_FACTORS,
        **_BIASES,
        "mlp_bias": True,
    },
    ("granite", GROUPED, "factors, key size"): {
        **_TWO,
        **_FACTORS,
        **_GROUPED,
        "head_dim": 10,
    },
    ("granite", MULTI_QUERY, "no factors, tied"): {**_SIZES, **_ONE, **_TIED},
}
