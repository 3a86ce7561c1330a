"""Byte-pair encoding by the ``tokenizers`` library, and what its letters mean."""

from __future__ import annotations

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors

from haiku_mqa.pretrained._vocabulary import Vocabulary


def byte_pairs(vocabulary: Vocabulary) -> tokenizers.Tokenizer:
    """Returns what splits text into tokens; it knows of no control token."""
    tokens = vocabulary.tokens
    bpe = tokenizers.Tokenizer(
        models.BPE(
            vocab={token: i for i, token in enumerate(tokens)},
            merges=vocabulary.merges,
        )
    )
    # "smollm": each digit stands alone, and a text does not begin with a space.
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    bpe.add_tokens(
        [
            tokenizers.AddedToken(tokens[i], normalized=False)
            for i in vocabulary.user_defined
        ]
    )
    return bpe


def whole_library(vocabulary: Vocabulary) -> tokenizers.Tokenizer:
    """Returns what others read as this tokenizer, control tokens included."""
    tokens, added = vocabulary.tokens, (*vocabulary.prefix, *vocabulary.suffix)
    bpe = byte_pairs(vocabulary)
    bpe.decoder = decoders.ByteLevel()
    bpe.add_special_tokens(
        [
            tokenizers.AddedToken(tokens[i], normalized=False, special=True)
            for i in vocabulary.control
        ]
    )
    bpe.post_processor = processors.TemplateProcessing(
        single=[
            *(tokens[i] for i in vocabulary.prefix),
            "$A",
            *(tokens[i] for i in vocabulary.suffix),
        ],
        special_tokens=[(tokens[i], i) for i in dict.fromkeys(added)],
    )
    return bpe


def _byte_alphabet() -> dict[str, int]:
    """Returns GPT-2's letters for bytes: themselves where they can be seen."""
    seen = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    unseen = [byte for byte in range(256) if byte not in seen]
    return {chr(byte): byte for byte in seen} | {
        chr(256 + i): byte for i, byte in enumerate(unseen)
    }


def missing_bytes(tokens: list[str]) -> bytes:
    """Returns the bytes that no token stands for alone, so that none can spell."""
    known = set(tokens)
    return bytes(
        byte for letter, byte in _byte_alphabet().items() if letter not in known
    )


def pieces_of(vocabulary: Vocabulary) -> list[bytes]:
    """Returns each token's bytes."""
    alphabet = _byte_alphabet()
    plain = {*vocabulary.control, *vocabulary.user_defined}
    pieces = []
    for i, token in enumerate(vocabulary.tokens):
        if i in plain or not alphabet.keys() >= set(token):
            pieces.append(token.encode())
        else:
            pieces.append(bytes(map(alphabet.__getitem__, token)))
    return pieces
