"""Model folders of tiny models, as a training run leaves them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import haiku_mqa as hm
from haiku_mqa import model_folder
from haiku_mqa.text import CharacterTokenizer, Tokenizer
from tests.models import drawn_params

CORPUS = "to be, or not to be: that is the question.\n"


def write_model_folder(
    folder: Path,
    config: hm.DecoderConfig | None = None,
    *,
    params: Mapping[str, Mapping[str, Any]] | None = None,
    tokenizer: Tokenizer | None = None,
    metadata: Mapping[str, str] | None = None,
    **options: Any,
) -> Path:
    """Writes a model.

    Args:
      folder: Which is made.
      config: Of a tiny multi-query decoder over the tokenizer if ``None``.
      params: Drawn if ``None``.
      tokenizer: Over the characters of ``CORPUS`` if there is no config either.
      metadata: Of the weights.
      **options: Of the config, if there is none.

    Returns:
      The folder.
    """
    folder.mkdir(parents=True)
    if config is None:
        tokenizer = tokenizer or CharacterTokenizer(CORPUS)
        sizes = {"num_layers": 1, "num_heads": 2, "d_model": 16, "d_ff": 16}
        sizes |= {"vocab_size": tokenizer.vocab_size, "max_length": 32}
        config = hm.DecoderConfig(**{**sizes, **options})
    if tokenizer is not None:
        tokenizer.save(folder / model_folder.TOKENIZER)
    params = drawn_params(hm.build(config)) if params is None else params
    model_folder.write_weights(folder, params, metadata)
    model_folder.write_config(folder, config)
    return folder
