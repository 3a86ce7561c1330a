"""Which tensor of a folder is which of a family's, or all that is wrong with them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import numpy as np

from haiku_mqa.config import DecoderConfig
from haiku_mqa.errors import FormatError
from haiku_mqa.pretrained._bounds import in_one_line
from haiku_mqa.pretrained._tensor_files import DTYPES, StoredTensor
from haiku_mqa.pretrained.families import Family, family_named, family_names
from haiku_mqa.pretrained.families._family import LAYER, Shape

_MOST_LISTED = 8  # of one kind before a message only counts the rest
_BY_ITS_MAKERS = ".attention.wq.weight"
_OUTPUT, _EMBEDDING = ("unembed/w",), ("embed/embeddings",)


def matched(
    family: Family, config: DecoderConfig, stored: Mapping[str, StoredTensor]
) -> dict[str, StoredTensor]:
    """Returns the stored tensors by the names that a family has for them.

    Args:
      family: Of the decoder.
      config: Of all its layers.
      stored: What the folder holds.

    Returns:
      The family's names to stored tensors; no more, no fewer.

    Raises:
      FormatError: Tensors are missing, superfluous, of the wrong shape or not of
        floating point; all are listed, with the cause where it can be guessed.
    """
    if config.num_layers > len(stored):  # before anything is done once for each layer
        raise FormatError(
            f"config has {config.num_layers} layers, but there are only {len(stored)} "
            "tensors"
        )
    wanted = {tensor.name: shape for tensor, shape in family.tensors_of(config)}
    found = _named(family, wanted, stored)
    if config.tie_embeddings:
        _drop_copy_of_embedding(family, config, found)
    faults = _faults(wanted, found)
    if faults:
        hints = _hints(family, config, wanted, found)
        raise FormatError("; ".join([*faults, *hints]))
    return {name: found[name] for name in wanted}


def _named(
    family: Family, wanted: Mapping[str, Shape], stored: Mapping[str, StoredTensor]
) -> dict[str, StoredTensor]:
    """Returns tensors by the names that a whole model's have, without buffers."""
    kept = {n: t for n, t in stored.items() if not n.endswith(family.buffers)}
    if any(name.startswith(family.prefix) for name in kept):
        return kept
    bare = {n.removeprefix(family.prefix) for n in wanted if n not in kept}
    return {family.prefix + n if n in bare else n: t for n, t in kept.items()}


def _drop_copy_of_embedding(
    family: Family, config: DecoderConfig, found: dict[str, StoredTensor]
) -> None:
    # Some who write files write a tied matrix twice.
    names = {tensor.ours: tensor.name for tensor in family.tensors(config)}
    output = found.get(names.get(_OUTPUT, ""))
    embedding = found.get(names[_EMBEDDING])
    if output is None or embedding is None or output.shape != embedding.shape:
        return
    if output.dtype not in DTYPES or output.dtype != embedding.dtype:
        return
    if np.array_equal(output.mapped(), embedding.mapped()):
        del found[names[_OUTPUT]]


def _faults(
    wanted: Mapping[str, Shape], found: Mapping[str, StoredTensor]
) -> list[str]:
    there = {name: found[name] for name in wanted if name in found}
    faults = {
        "missing tensors": [name for name in wanted if name not in found],
        "unknown tensors": [in_one_line(n) for n in found if n not in wanted],
        "tensors of the wrong shape": [
            f"{name} {list(tensor.shape)} instead of {list(wanted[name])}"
            for name, tensor in there.items()
            if tensor.shape != wanted[name]
        ],
        "tensors not of floating point": [
            f"{name} {tensor.dtype}"
            for name, tensor in there.items()
            if tensor.dtype not in DTYPES
        ],
    }
    return [f"{title}: {_listed(names)}" for title, names in faults.items() if names]


def _hints(
    family: Family,
    config: DecoderConfig,
    wanted: Mapping[str, Shape],
    found: Mapping[str, StoredTensor],
) -> list[str]:
    names = {tensor.ours: tensor.name for tensor in family.tensors(config)}
    output, embedding = names.get(_OUTPUT, ""), names[_EMBEDDING]
    hints = []
    if any(name.endswith(_BY_ITS_MAKERS) for name in found):
        hints.append(
            "they have the names of Meta's and Mistral's own files, whose rotary pairs "
            "are neighbours: were they converted?"
        )
    elif others := _other_families(family, config, found):
        hints.append(f"are they of the family {others} and not {family.model_type!r}?")
    elif not any(name in found for name in wanted):
        hints.append(f"are they of another family than {family.model_type!r}?")
    elif output in found and output not in wanted:
        hints.append(
            f"tie_word_embeddings is true, but {output} is not the embedding: is it "
            "false?"
        )
    elif output in wanted and output not in found:
        hints.append("tie_word_embeddings is false: is it true?")
    pairs = [(found[n].shape, shape) for n, shape in wanted.items() if n in found]
    if any(a != b and a == b[::-1] for a, b in pairs):
        hints.append("some lie the other way round: were they transposed?")
    if embedding in found and found[embedding].shape[:1] != (config.vocab_size,):
        hints.append(
            f"vocab_size is {config.vocab_size}, but {embedding} is "
            f"{list(found[embedding].shape)}"
        )
    return hints


def _other_families(family: Family, config: DecoderConfig, found: Iterable[str]) -> str:
    """Returns which families have tensors of all these names; none if this one has."""
    names = {re.sub(r"(?<=\.)\d+(?=\.)", LAYER, name) for name in found}
    fitting = [
        name
        for name in family_names()
        if names <= {tensor.name for tensor in family_named(name).tensors(config)}
    ]
    return "" if family.model_type in fitting else " or ".join(map(repr, fitting))


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    more = len(names) - _MOST_LISTED
    listed = ", ".join(names[:_MOST_LISTED])
    return f"{listed} and {more} more" if more > 0 else listed
