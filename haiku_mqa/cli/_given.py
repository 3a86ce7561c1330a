"""The model that a run begins from, where its weights are not drawn."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

from haiku_mqa.cli._models import load_model
from haiku_mqa.config import DecoderConfig
from haiku_mqa.model import Params
from haiku_mqa.text import Tokenizer
from haiku_mqa.training import RunConfig


class Given(NamedTuple):
    """A model that was trained before.

    Attributes:
      config: What it is.
      params: Its weights, float32.
      tokenizer: What it reads.
    """

    config: DecoderConfig
    params: Params
    tokenizer: Tokenizer


def read_given(source: str) -> Given:
    """Returns a model to train on.

    Args:
      source: A name of the zoo, or a folder.

    Raises:
      ValueError: There is no such model, or a run cannot write its tokenizer.
      OSError: It cannot be read.
    """
    loaded = load_model(source, dtype="float32")
    if not isinstance(loaded.tokenizer, Tokenizer):
        lacks = "has none" if loaded.tokenizer is None else "has a foreign one"
        raise ValueError(
            f"--init needs a model with a tokenizer of haiku_mqa.text, which a run "
            f"can write, and {source} {lacks}"
        )
    return Given(loaded.model.config, loaded.params, loaded.tokenizer)


def begun_from(given: Given, config: RunConfig) -> RunConfig:
    """Returns a config whose model and tokenizer are the given ones.

    Args:
      given: The model.
      config: What to take for the rest; its sequences are cut to the model's context.
    """
    model = given.config.to_dict()
    del model["vocab_size"]
    tokenizer = given.tokenizer
    data = dataclasses.replace(
        config.data,
        tokenizer=tokenizer.kind,
        vocab_size=tokenizer.vocab_size if tokenizer.kind == "bpe" else None,
        seq_len=min(config.data.seq_len, given.config.max_length),
    )
    return dataclasses.replace(config, model=model, data=data)
