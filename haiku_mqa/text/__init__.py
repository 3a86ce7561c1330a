"""Text to tokens and back, by vocabularies that are made from a corpus."""

from haiku_mqa.text.tokenizer import AnyTokenizer, Tokenizer
from haiku_mqa.text.vocabularies import (
    BytePairTokenizer,
    ByteTokenizer,
    CharacterTokenizer,
    load_tokenizer,
    train_tokenizer,
)

__all__ = [
    "AnyTokenizer",
    "BytePairTokenizer",
    "ByteTokenizer",
    "CharacterTokenizer",
    "Tokenizer",
    "load_tokenizer",
    "train_tokenizer",
]
