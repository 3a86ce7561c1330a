"""A decoder in the words of Hugging Face's Llama, where it is one."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np

from haiku_mqa.config import DecoderConfig
from haiku_mqa.model import Params

_NEEDED = ("torch", "transformers")
# What Hugging Face's Llama cannot be told, and what it is.
_LLAMA = {
    "position_embedding": "rotary",
    "rope_fraction": 1.0,
    "rope_scaling": None,
    "norm": "rms",
    "norm_placement": "before",
    "final_norm": True,
    "block_layout": "sequential",
    "activation": "silu",
    "gated": True,
    "ff_bias": False,
    "qk_norm": False,
    "query_bias": False,
    "key_bias": False,
    "value_bias": False,
    "output_bias": False,
    "attn_logit_softcap": None,
    "attn_scale": None,
    "sliding_window": None,
    "embedding_scale": None,
    "residual_scale": None,
    "logit_bias": False,
    "logit_scale": None,
    "final_logit_softcap": None,
}


def missing_line() -> str | None:
    """Returns a line that says what this Python lacks; ``None`` where it lacks nothing.

    Example:
      >>> "left out" in (missing_line() or "left out")
      True
    """
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if not missing:
        return None
    return (
        f"transformers is left out: {' and '.join(missing)} not installed "
        "(pip install 'haiku-mqa[parity]')"
    )


def unlike_llama(config: DecoderConfig) -> list[str]:
    """Returns the fields of a config that Hugging Face's Llama cannot be told.

    Args:
      config: Of any decoder.

    Example:
      >>> unlike_llama(DecoderConfig(vocab_size=256, num_layers=2, num_heads=8,
      ...     d_model=64, d_ff=256, gated=False))
      ['gated']
    """
    other = [
        field for field, value in _LLAMA.items() if getattr(config, field) != value
    ]
    if any(rotary != config.rotaries[0] for rotary in config.rotaries):
        other.append("rope_theta")
    return other + ["value_size"] * (config.value_size != config.key_size)


def llama_words(config: DecoderConfig) -> dict[str, Any]:
    """Returns a config's fields in transformers' words.

    Args:
      config: Of a model that is a Llama; see ``unlike_llama``.
    """
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "intermediate_size": config.d_ff,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.key_size,
        "rms_norm_eps": config.norm_eps,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": config.rope_theta,
        },
        "max_position_embeddings": config.max_length,
        "tie_word_embeddings": config.tie_embeddings,
    }


def llama_arrays(config: DecoderConfig, params: Params) -> dict[str, np.ndarray]:
    """Returns weights under transformers' names, as NumPy arrays, float32.

    Args:
      config: Of a model that is a Llama; see ``unlike_llama``.
      params: Its weights, of any dtype.

    Returns:
      Name to array; the output matrix is left out where it is the embedding.
    """

    def array(path: str, name: str = "w") -> np.ndarray:
        found = np.asarray(params[f"decoder_lm/{path}"][name], np.float32)
        # A copy: JAX's memory is read-only, and torch would warn of it.
        return np.array(found.T if name == "w" else found, order="C")

    arrays = {
        "model.embed_tokens.weight": array("embed", "embeddings"),
        "model.norm.weight": array("decoder/final_norm", "scale"),
    }
    if not config.tie_embeddings:
        arrays["lm_head.weight"] = array("unembed")
    for layer in range(config.num_layers):
        ours, theirs = f"decoder/layer_{layer}", f"model.layers.{layer}"
        for name, path in _NORMS.items():
            arrays[f"{theirs}.{name}.weight"] = array(f"{ours}/{path}", "scale")
        for name, path in _MATRICES.items():
            arrays[f"{theirs}.{name}.weight"] = array(f"{ours}/{path}")
    return arrays


_NORMS = {
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "feed_forward_norm",
}
_MATRICES = {
    "self_attn.q_proj": "attention/query",
    "self_attn.k_proj": "attention/key",
    "self_attn.v_proj": "attention/value",
    "self_attn.o_proj": "attention/linear",
    "mlp.gate_proj": "feed_forward/gate",
    "mlp.up_proj": "feed_forward/up",
    "mlp.down_proj": "feed_forward/down",
}
