"""Which layers see everything, and which a window, in a ``config.json``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from haiku_mqa.config import DecoderConfig
from haiku_mqa.errors import unknown_name
from haiku_mqa.pretrained._keys import Keys

FULL, SLIDING = "full_attention", "sliding_attention"


def read_layer_types(keys: Keys, default: Sequence[str]) -> list[str]:
    """Returns the kind of each layer, ``FULL`` or ``SLIDING``.

    Args:
      keys: Of the file.
      default: What the family takes where the file has no ``layer_types``, of as many
        layers as there are.

    Raises:
      ValueError: A layer is of another kind.
    """
    kinds = keys.texts("layer_types", len(default)) or list(default)
    for kind in kinds:
        if kind not in (FULL, SLIDING):
            raise unknown_name("layer_types", kind, (FULL, SLIDING))
    return kinds


def windows(kinds: Sequence[str], window: int | None) -> tuple[int | None, ...] | None:
    """Returns the window of each layer: the one of those that slide, if any do.

    Args:
      kinds: Of the layers.
      window: In tokens, if there is one.
    """
    of_layers = tuple(window if kind == SLIDING else None for kind in kinds)
    return of_layers if any(of_layers) else None


def write_layer_types(config: DecoderConfig) -> dict[str, Any]:
    """Returns the keys of the layers' kinds, and of the window of those that slide.

    Args:
      config: Of the decoder.
    """
    sliding = [window for window in config.windows if window is not None]
    return {
        "sliding_window": sliding[0] if sliding else None,
        "layer_types": [FULL if w is None else SLIDING for w in config.windows],
    }
