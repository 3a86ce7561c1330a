"""Byte-pair encoding by the ``tokenizers`` library; its letters stand for bytes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

Pair = tuple[str, str]


def _letters() -> dict[str, int]:
    """Returns GPT-2's letters for bytes: themselves where they can be seen."""
    seen = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    unseen = [byte for byte in range(256) if byte not in seen]
    letters = {chr(byte): byte for byte in seen}
    return letters | {chr(256 + i): byte for i, byte in enumerate(unseen)}


_LETTERS = _letters()


def train(documents: Iterable[str], size: int) -> list[Pair]:
    """Returns the merges that make a vocabulary of a size, or as near as there are.

    Args:
      documents: Texts.
      size: How many tokens there shall be, bytes included.

    Returns:
      Pairs, first ones first.
    """
    # No token for the end of a text: the library would find its spelling in text.
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        initial_alphabet=sorted(_LETTERS),
        special_tokens=[],
        show_progress=False,
    )
    bpe = tokenizers.Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.train_from_iterator(documents, trainer)
    merges = json.loads(bpe.to_str())["model"]["merges"]
    return [(left, right) for left, right in merges]


def vocabulary(merges: Sequence[Pair]) -> list[str]:
    """Returns the tokens that merges make: all bytes, in order, then what is merged.

    Args:
      merges: Pairs, first ones first.

    Returns:
      Tokens by id, in letters.

    Raises:
      ValueError: A pair has a part that no pair before it made.
    """
    tokens = dict.fromkeys(sorted(_LETTERS, key=_LETTERS.__getitem__))
    for place, (left, right) in enumerate(merges):
        for part in (left, right):
            if part not in tokens:
                raise ValueError(
                    f"merges[{place}] must join two earlier tokens, got {part!r}"
                )
        tokens[left + right] = None
    return list(tokens)


def pieces(tokens: Iterable[str]) -> list[bytes]:
    """Returns the bytes of tokens."""
    return [bytes(map(_LETTERS.__getitem__, token)) for token in tokens]


def library(tokens: Sequence[str], merges: Sequence[Pair]) -> tokenizers.Tokenizer:
    """Returns the library's tokenizer of some tokens.

    Args:
      tokens: By id; one that is no letter and that no pair makes, no text becomes.
      merges: Pairs, first ones first.

    Returns:
      What splits text into tokens, and puts them together.
    """
    vocab = {token: i for i, token in enumerate(tokens)}
    bpe = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=list(merges)))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    return bpe


def unused(tokens: Iterable[str], name: str) -> str:
    """Returns a name that no token has, the name itself if none has it.

    Args:
      tokens: That there are.
      name: Of letters that can be seen.
    """
    taken = set(tokens)
    while name in taken:
        name = f"<{name}>"
    return name
