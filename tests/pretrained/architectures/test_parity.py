"""Files of every architecture hold the decoder that transformers has of them."""

from __future__ import annotations

import gguf
import jax.numpy as jnp
import numpy as np
import pytest

from haiku_mqa.model import build
from haiku_mqa.pretrained import (
    config_from_gguf,
    params_from_gguf,
    read_gguf,
    save_pretrained,
)
from haiku_mqa.rope_scaling import Llama3Scaling

pytestmark = pytest.mark.parity

SIZES = {
    "vocab_size": 61,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
GATED = {**SIZES, "intermediate_size": 40, "num_key_value_heads": 2}
LLAMA_3 = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
CASES = {
    "llama": ("Llama", GATED),
    "llama one head, untied": (
        "Llama",
        {**GATED, "num_key_value_heads": 1, "tie_word_embeddings": False},
    ),
    "llama 3": ("Llama", {**GATED, "head_dim": 64, "rope_parameters": LLAMA_3}),
    "qwen2": ("Qwen2", GATED),
    "qwen2 tied": ("Qwen2", {**GATED, "tie_word_embeddings": True}),
    "gemma": ("Gemma", {**GATED, "head_dim": 16}),
    "gemma one head": ("Gemma", {**GATED, "num_key_value_heads": 1, "head_dim": 8}),
    "falcon 7b": ("Falcon", {**SIZES, "bias": False, "alibi": False}),
    "falcon 40b": (
        "Falcon",
        {
            **SIZES,
            "bias": False,
            "alibi": False,
            "new_decoder_architecture": True,
            "num_kv_heads": 2,
        },
    ),
}


def their_model(kind, fields):
    import torch
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**fields, pad_token_id=None)
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    with torch.no_grad():  # norms and biases too, which are drawn as ones and zeros
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def written(model, path):
    """Writes a file as those do who convert such models, by gguf's own names."""
    kind = model.config.model_type
    writer = gguf.GGUFWriter(path, kind)
    write_metadata(writer, model.config)
    layers = model.config.num_hidden_layers
    number = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}[kind]
    names = gguf.get_tensor_name_map(number, layers)
    state = {name: tensor.detach().numpy() for name, tensor in model.named_parameters()}
    for name, values in state.items():
        theirs = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert theirs, name
        writer.add_tensor(theirs, np.ascontiguousarray(changed(model, name, values)))
    parameters = model.config.rope_parameters or {}
    if parameters.get("rope_type") == "llama3":
        writer.add_tensor("rope_freqs.weight", divisors(64))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def divisors(size):
    """Returns by how much the long waves are slowed, which a file has in numbers."""
    waves = 2 * np.pi * 500_000.0 ** (np.arange(0, size, 2) / size)
    smooth = np.clip((8192 / waves - 1.0) / (4.0 - 1.0), 0, 1)
    return (1 / ((1 - smooth) / 32.0 + smooth)).astype(np.float32)


def write_metadata(writer, config):
    falcon = config.model_type == "falcon"
    heads = config.num_attention_heads
    writer.add_vocab_size(config.vocab_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_head_count(heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    if falcon:
        writer.add_tensor_data_layout("jploski")
        writer.add_feed_forward_length(config.ffn_hidden_size)
        one = config.multi_query and not config.new_decoder_architecture
        writer.add_head_count_kv(1 if one else config.num_kv_heads)
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
        return
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    key_size = getattr(config, "head_dim", None) or config.hidden_size // heads
    writer.add_key_length(key_size)
    writer.add_value_length(key_size)


def changed(model, name, values):
    """Returns what a file has of a tensor: some lie otherwise there."""
    config = model.config
    if config.model_type == "llama" and ("q_proj" in name or "k_proj" in name):
        of_keys = "k_proj" in name
        heads = config.num_key_value_heads if of_keys else config.num_attention_heads
        halves = values.reshape(heads, 2, -1, values.shape[-1])
        return halves.swapaxes(1, 2).reshape(values.shape)
    if config.model_type == "gemma" and "norm" in name:
        return values + 1
    if "query_key_value" in name:
        size = config.hidden_size // config.num_attention_heads
        one = config.multi_query and not config.new_decoder_architecture
        groups = 1 if one else config.num_kv_heads
        by_group = values.reshape(groups, -1, size, values.shape[-1])
        parts = by_group[:, :-2], by_group[:, -2], by_group[:, -1]
        return np.concatenate([part.reshape(-1, values.shape[-1]) for part in parts])
    return values


@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_the_model_that_was_written(case, tmp_path):
    import torch

    model = their_model(*CASES[case])
    file = read_gguf(written(model, tmp_path / "model.gguf"))
    config = config_from_gguf(file)
    tokens = np.random.default_rng(0).integers(0, 61, (2, 23))
    with torch.no_grad():
        theirs = model(torch.tensor(tokens)).logits.numpy()
    ours = build(config).apply(params_from_gguf(file, config), None, jnp.array(tokens))
    np.testing.assert_allclose(ours.logits, theirs, rtol=1e-4, atol=1e-4)


def test_stretched_frequencies_are_read_as_the_rule_that_made_them(tmp_path):
    model = their_model(*CASES["llama 3"])
    file = read_gguf(written(model, tmp_path / "model.gguf"))
    assert config_from_gguf(file).rope_scaling == Llama3Scaling(
        factor=32.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_length=8192,
    )


@pytest.mark.parametrize("case", ["qwen2", "gemma", "falcon 7b", "falcon 40b"])
def test_what_was_read_is_written_as_the_family_of_that_name(case, tmp_path):
    import torch
    import transformers

    model = their_model(*CASES[case])
    file = read_gguf(written(model, tmp_path / "model.gguf"))
    config = config_from_gguf(file)
    params = params_from_gguf(file, config)
    family = model.config.model_type
    save_pretrained(tmp_path / "folder", config, params, family=family)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "folder")
    tokens = torch.arange(40).reshape(2, 20)
    with torch.no_grad():
        expected, given = model(tokens).logits, again(tokens).logits
    np.testing.assert_allclose(given, expected, rtol=1e-4, atol=1e-4)
