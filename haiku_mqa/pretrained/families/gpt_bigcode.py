"""GPTBigCode (SantaCoder, StarCoder): GPT-2 with one key/value head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from haiku_mqa.config import DecoderConfig
from haiku_mqa.pretrained._keys import Keys
from haiku_mqa.pretrained.families import gpt2
from haiku_mqa.pretrained.families._family import Family, Tensor
from haiku_mqa.pretrained.families._layouts import by_groups, stacked


def read_config(keys: Keys) -> DecoderConfig:
    """Returns the config that the keys of a ``config.json`` mean."""
    # They choose among dtypes and kernels that come to the same.
    for name in _OF_KERNELS:
        keys.only(name, False, True)
    for name in ("inference_runner", "max_batch_size", "max_sequence_length"):
        keys.skip(name)
    fields = gpt2.decoder_fields(keys, activation="gelu_pytorch_tanh")
    kv_heads = 1 if keys.flag("multi_query", True) else fields["num_heads"]
    keys.only("num_key_value_heads", kv_heads)
    return DecoderConfig(**fields, num_kv_heads=kv_heads)


_OF_KERNELS = (
    "attention_softmax_in_fp32",
    "pad_key_length",
    "pre_allocate_kv_cache",
    "scale_attention_softmax_in_fp32",
    "validate_runner_input",
)


def write_config(config: DecoderConfig) -> dict[str, Any]:
    """Returns the keys of a ``config.json`` that mean a config."""
    return {**gpt2.write_config(config), "multi_query": config.num_kv_heads == 1}


def tensors(config: DecoderConfig) -> Sequence[Tensor]:
    """Returns the tensors, and where their numbers belong."""
    # All queries before the one key and value, or each head's beside its own.
    layout = stacked if config.num_kv_heads == 1 else by_groups
    return gpt2.decoder_tensors(layout, as_ours=False)


FAMILY = Family(
    model_type="gpt_bigcode",
    architecture="GPTBigCodeForCausalLM",
    read_config=read_config,
    write_config=write_config,
    tensors=tensors,
    prefix="transformer.",
    buffers=(".attn.bias", ".attn.masked_bias"),
)
