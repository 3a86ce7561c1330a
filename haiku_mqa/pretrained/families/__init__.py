"""The families of decoders that a Hugging Face folder can hold, a file for each.

A family is a module named after the ``model_type`` of its ``config.json``, with one
``FAMILY`` in it; there is no list to add it to.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil

from haiku_mqa.errors import FormatError
from haiku_mqa.pretrained._bounds import in_one_line
from haiku_mqa.pretrained._keys import Keys
from haiku_mqa.pretrained.families._family import Family, Tensor

__all__ = ["Family", "Keys", "Tensor", "family_named", "family_names"]


@functools.cache
def family_names() -> tuple[str, ...]:
    """Returns the ``model_type`` of every family, in order.

    Example:
      >>> "llama" in family_names()
      True
    """
    names = (module.name for module in pkgutil.iter_modules(__path__))
    return tuple(sorted(name for name in names if not name.startswith("_")))


def family_named(model_type: object) -> Family:
    """Returns a family.

    Args:
      model_type: As a ``config.json`` says it, which may be anything.

    Returns:
      The family.

    Raises:
      FormatError: It is no text.
      ValueError: There is none of that name; tells which there are.

    Example:
      >>> family_named("llama").architecture
      'LlamaForCausalLM'
    """
    if not isinstance(model_type, str):
        raise FormatError(f"model_type must be a text, got {in_one_line(model_type)}")
    if model_type not in family_names():
        raise ValueError(
            f"model_type = {in_one_line(model_type)} is not supported; allowed: "
            f"{', '.join(family_names())}"
        )
    return importlib.import_module(f"{__name__}.{model_type}").FAMILY
