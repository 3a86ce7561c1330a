"""What an architecture of GGUF is: its metadata and its tensors, in our words."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

from haiku_mqa.config import DecoderConfig
from haiku_mqa.pretrained._keys import Keys
from haiku_mqa.pretrained.gguf import GGUFTensor

Kind = Literal["as_it_is", "matrix", "interleaved", "less_one"]
"""How rows become a parameter: as they are; transposed; transposed, with rotary
pairs that are neighbours put half a head apart; or with one subtracted."""


@dataclasses.dataclass(frozen=True)
class Part:
    """One parameter, and the rows of a tensor that become it.

    Attributes:
      name: The tensor's.
      shape: The tensor's, as ``GGUFTensor`` has it.
      path: The parameter's module, below ``decoder_lm``.
      leaf: Its name there.
      kind: How the one becomes the other.
      rows: The first row of the tensor and the one after the last; all if ``None``.
    """

    name: str
    shape: tuple[int, ...]
    path: str
    leaf: str
    kind: Kind = "as_it_is"
    rows: tuple[int, int] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Architecture:
    """How a GGUF file of one architecture is read.

    Attributes:
      name: What ``general.architecture`` says.
      fields: Metadata below the architecture's name, and the tensors, to the fields of
        a ``DecoderConfig`` that all architectures do not have in common.
      parts: A config to all of its parameters.
      beside: Tensors that ``fields`` reads, and that are no parameters.
    """

    name: str
    fields: Callable[[Keys, Mapping[str, GGUFTensor]], dict[str, Any]]
    parts: Callable[[DecoderConfig], Iterator[Part]]
    beside: tuple[str, ...] = ()
