"""A whole model in a file of a hundred kilobytes, whose tokens are mostly bytes."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

MERGES = ("t h", "th e", "Ġ the")
CONTROL = ("<|turn|>",)
TEMPLATE = (
    "{% for m in messages %}<|turn|>{{ m.role }}\n{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
)
LAYERS, HEADS, KV_HEADS, D_MODEL, D_FF = 2, 4, 1, 16, 32


def letters() -> list[str]:
    """Returns GPT-2's letters for the 256 bytes, in the order of the bytes."""
    seen = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    unseen = iter(range(256, 512))
    return [chr(b if b in seen else next(unseen)) for b in range(256)]


def tokens() -> list[str]:
    """Returns the vocabulary: bytes, so that id and byte agree, merges, control."""
    return [*letters(), *(merge.replace(" ", "") for merge in MERGES), *CONTROL]


def write_tiny_gguf(
    path: Path,
    *,
    max_length: int = 128,
    chat: bool = True,
    scale: float = 1.0,
    seed: int = 0,
) -> Path:
    """Writes a multi-query llama with random weights and no end token.

    Args:
      path: The file.
      max_length: Its context, in tokens.
      chat: Whether it has a chat template.
      scale: Of attention's weights; a huge one makes attention NaN.
      seed: Of the weights.

    Returns:
      ``path``.
    """
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(max_length)
    writer.add_block_count(LAYERS)
    writer.add_embedding_length(D_MODEL)
    writer.add_feed_forward_length(D_FF)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(D_MODEL // HEADS)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens())
    writer.add_token_types([1] * (len(tokens()) - len(CONTROL)) + [3] * len(CONTROL))
    writer.add_token_merges(list(MERGES))
    if chat:
        writer.add_chat_template(TEMPLATE)
    draw = np.random.default_rng(seed)
    for name, shape in _shapes().items():
        drawn = draw.standard_normal(shape) * shape[-1] ** -0.5
        weight = np.ones(shape) if "norm" in name else drawn
        weight = scale * weight if "attn_" in name else weight
        writer.add_tensor(f"{name}.weight", weight.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _shapes() -> dict[str, tuple[int, ...]]:
    kv_size = D_MODEL // HEADS * KV_HEADS
    layer = {
        "attn_norm": (D_MODEL,),
        "ffn_norm": (D_MODEL,),
        "attn_q": (D_MODEL, D_MODEL),
        "attn_k": (kv_size, D_MODEL),
        "attn_v": (kv_size, D_MODEL),
        "attn_output": (D_MODEL, D_MODEL),
        "ffn_gate": (D_FF, D_MODEL),
        "ffn_up": (D_FF, D_MODEL),
        "ffn_down": (D_MODEL, D_FF),
    }
    return {
        "token_embd": (len(tokens()), D_MODEL),
        "output_norm": (D_MODEL,),
        **{
            f"blk.{i}.{name}": shape
            for i in range(LAYERS)
            for name, shape in layer.items()
        },
    }
