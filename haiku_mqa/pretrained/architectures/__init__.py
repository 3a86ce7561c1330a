"""The architectures of GGUF files that are read, one file each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from haiku_mqa.pretrained._bounds import in_one_line
from haiku_mqa.pretrained.architectures._architecture import Architecture, Part
from haiku_mqa.pretrained.architectures.falcon import FALCON
from haiku_mqa.pretrained.architectures.gemma import GEMMA
from haiku_mqa.pretrained.architectures.llama import LLAMA
from haiku_mqa.pretrained.architectures.qwen2 import QWEN2

__all__ = ["ARCHITECTURES", "Architecture", "Part", "architecture_of"]

ARCHITECTURES = {each.name: each for each in (FALCON, GEMMA, LLAMA, QWEN2)}


def architecture_of(metadata: Mapping[str, Any]) -> Architecture:
    """Returns how the file is read that a metadata is of.

    Args:
      metadata: The file's.

    Returns:
      One of ``ARCHITECTURES``.

    Raises:
      ValueError: It is of another architecture, or of none.

    Example:
      >>> architecture_of({"general.architecture": "qwen2"}).name
      'qwen2'
    """
    name = metadata.get("general.architecture")
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise ValueError(
            f"general.architecture must be one of {', '.join(ARCHITECTURES)}, got "
            f"{'nothing' if name is None else in_one_line(name)}"
        )
    return ARCHITECTURES[name]
