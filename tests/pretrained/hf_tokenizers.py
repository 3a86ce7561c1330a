"""Tiny ``tokenizer.json`` files of each kind that there is, and what goes beside."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing

BOS, EOS, TURN = "<s>", "</s>", "<|turn|>"
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|turn|>{{ m.role }}\n{{ m.content }}"
    "{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
)
KINDS = ("byte pairs", "byte fallback", "pieces")


def tiny_tokenizer(kind: str) -> tokenizers.Tokenizer:
    """Returns a tokenizer whose control tokens are ``BOS``, ``EOS`` and ``TURN``.

    Args:
      kind: One of ``KINDS``: as GPT-2's, as the first Llama's, by likelihoods.
    """
    made = {"byte pairs": _byte_pairs, "byte fallback": _fallback, "pieces": _pieces}
    tokenizer = made[kind]()
    tokenizer.add_special_tokens(
        [AddedToken(text, normalized=False, special=True) for text in (BOS, EOS, TURN)]
    )
    tokenizer.add_tokens([AddedToken("<think>", normalized=False)])
    tokenizer.post_processor = TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return tokenizer


def write_tokenizer(folder: Path, kind: str = "byte pairs", **config: Any) -> Path:
    """Writes a tokenizer's files.

    Args:
      folder: Which exists.
      kind: One of ``KINDS``.
      **config: What ``tokenizer_config.json`` says besides, or else.

    Returns:
      The folder.
    """
    tiny_tokenizer(kind).save(str(folder / "tokenizer.json"))
    said = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": TEMPLATE}
    said |= {"bos_token": BOS, "eos_token": EOS, **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(said))
    return folder


def _letters() -> list[str]:
    return sorted(pre_tokenizers.ByteLevel.alphabet())


def _byte_pairs() -> tokenizers.Tokenizer:
    tokens = [*_letters(), "th", "the", "Ġthe"]
    vocab = {token: i for i, token in enumerate(tokens)}
    merges = [("t", "h"), ("th", "e"), ("Ġ", "the")]
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _fallback() -> tokenizers.Tokenizer:
    # The first ids are control tokens that the vocabulary itself holds.
    tokens = ["<unk>", BOS, EOS, *(f"<0x{byte:02X}>" for byte in range(256))]
    tokens += ["▁", *"abcdehirstu", "th", "the", "▁the"]
    vocab = {token: i for i, token in enumerate(tokens)}
    merges = [("t", "h"), ("th", "e"), ("▁", "the")]
    tokenizer = tokenizers.Tokenizer(
        models.BPE(vocab=vocab, merges=merges, byte_fallback=True, unk_token="<unk>")
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return tokenizer


def _pieces() -> tokenizers.Tokenizer:
    pieces = [("<unk>", 0.0), ("▁", -2.0), ("▁the", -1.0), ("er", -1.5)]
    pieces += [(letter, -3.0) for letter in "abcdehirstu\n"]
    tokenizer = tokenizers.Tokenizer(models.Unigram(pieces, 0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    return tokenizer
