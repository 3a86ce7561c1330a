"""Byte-pair encoding by the ``tokenizers`` library, and what its letters mean."""

from __future__ import annotations

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from haiku_mqa.pretrained._vocabulary import Vocabulary

SPACE = "\u2581"  # of pieces of sentences
COMPOSED = ("qwen2",)  # reads a letter and its accent as one character


# How words, numbers and the rest are told apart; {} is how many digits go together.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{}"
    r"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _by_words(digits: str) -> list[pre_tokenizers.PreTokenizer]:
    words = tokenizers.Regex(_WORDS.format(digits))
    return [
        pre_tokenizers.Split(words, behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]


def _pre_tokenizers(name: str) -> list[pre_tokenizers.PreTokenizer]:
    """Returns what cuts a text, in order. None puts a space before it."""
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if name == "smollm":
        return [pre_tokenizers.Digits(individual_digits=True), byte_level]
    if name == "llama-bpe":
        return _by_words("{1,3}")
    if name == "qwen2":
        return _by_words("")
    if name == "falcon":
        return [
            pre_tokenizers.Punctuation("contiguous"),
            byte_level,
            pre_tokenizers.Digits(individual_digits=False),
            pre_tokenizers.Split(tokenizers.Regex("[0-9]{3}"), behavior="isolated"),
        ]
    return [byte_level]


def byte_pairs(vocabulary: Vocabulary) -> tokenizers.Tokenizer:
    """Returns what splits text into tokens; it knows of no control token."""
    tokens, pre = vocabulary.tokens, vocabulary.pre
    bpe = tokenizers.Tokenizer(
        models.BPE(
            vocab={token: i for i, token in enumerate(tokens)},
            merges=vocabulary.merges,
            byte_fallback=bool(vocabulary.bytes),
            # Theirs has whole words that no merges lead to.
            ignore_merges=pre == "llama-bpe",
        )
    )
    if pre is None:
        bpe.normalizer = normalizers.Replace(" ", SPACE)
    else:
        bpe.pre_tokenizer = pre_tokenizers.Sequence(_pre_tokenizers(pre))
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
    if vocabulary.pre is None:
        _write_pieces(bpe, vocabulary.space_first)
    elif vocabulary.pre in COMPOSED:
        bpe.normalizer = normalizers.NFC()
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


def _write_pieces(bpe: tokenizers.Tokenizer, space_first: bool) -> None:
    """Has a library's tokenizer of pieces write and read the spaces between them."""
    spaces: list[normalizers.Normalizer] = [normalizers.Replace(" ", SPACE)]
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if space_first:
        spaces.insert(0, normalizers.Prepend(SPACE))
        steps.append(decoders.Strip(" ", 1, 0))
    bpe.normalizer = normalizers.Sequence(spaces)
    bpe.decoder = decoders.Sequence(steps)


def _byte_alphabet() -> dict[str, int]:
    """Returns GPT-2's letters for bytes: themselves where they can be seen."""
    seen = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    unseen = [byte for byte in range(256) if byte not in seen]
    return {chr(byte): byte for byte in seen} | {
        chr(256 + i): byte for i, byte in enumerate(unseen)
    }


def missing_bytes(vocabulary: Vocabulary) -> bytes:
    """Returns the bytes that no token stands for alone, so that none can spell."""
    known = {*vocabulary.tokens}
    if vocabulary.pre is None:
        return bytes({*range(256)} - {byte[0] for byte in vocabulary.bytes.values()})
    return bytes(
        byte for letter, byte in _byte_alphabet().items() if letter not in known
    )


def pieces_of(vocabulary: Vocabulary) -> list[bytes]:
    """Returns each token's bytes."""
    alphabet = _byte_alphabet()
    plain = {*vocabulary.control, *vocabulary.user_defined}
    pieces = []
    for i, token in enumerate(vocabulary.tokens):
        if i in vocabulary.bytes:
            pieces.append(vocabulary.bytes[i])
        elif i in plain:
            pieces.append(token.encode())
        elif vocabulary.pre is None:
            pieces.append(token.replace(SPACE, " ").encode())
        elif alphabet.keys() >= set(token):
            pieces.append(bytes(map(alphabet.__getitem__, token)))
        else:
            pieces.append(token.encode())
    return pieces
