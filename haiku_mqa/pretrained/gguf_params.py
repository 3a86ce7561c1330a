"""The decoder in a GGUF file: its config, and its parameters."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from haiku_mqa._keep import Keep, aligned_empty, on_device
from haiku_mqa.config import DecoderConfig, DType
from haiku_mqa.errors import FormatError
from haiku_mqa.pretrained._bounds import in_one_line
from haiku_mqa.pretrained._keys import Keys
from haiku_mqa.pretrained.architectures import Architecture, Part, architecture_of
from haiku_mqa.pretrained.gguf import GGUFFile

__all__ = ["Params", "config_from_gguf", "params_from_gguf", "unpermute_rotary"]

Params = dict[str, dict[str, Any]]

# What a message lists of one kind before it only counts the rest.
_MOST_LISTED = 8
_VOCABULARY = "tokenizer.ggml.tokens"


def config_from_gguf(file: GGUFFile, *, dtype: DType = "float32") -> DecoderConfig:
    """Returns the config of the decoder in a GGUF file.

    Args:
      file: The file; without a tensor ``output.weight`` the output matrix is the
        embedding's.
      dtype: What the decoder computes in, and what its parameters become.

    Returns:
      The config.

    Raises:
      ValueError: The architecture is not known, or the file asks for what this
        library does not do (experts, an unknown rotary scaling, any key of the
        architecture that is not understood); the key is named.
      FormatError: A key is missing, or its value cannot be.

    Example:
      >>> import pathlib
      >>> config = config_from_gguf(GGUFFile(pathlib.Path("model.gguf"), {
      ...     "general.architecture": "llama", "llama.block_count": 2,
      ...     "llama.context_length": 128, "llama.embedding_length": 64,
      ...     "llama.feed_forward_length": 256, "llama.attention.head_count": 8,
      ...     "llama.attention.head_count_kv": 1, "llama.vocab_size": 256,
      ...     "llama.attention.layer_norm_rms_epsilon": 1e-5,
      ... }, tensors={}))
      >>> config.num_kv_heads, config.key_size, config.tie_embeddings
      (1, 8, True)
    """
    architecture = architecture_of(file.metadata)
    prefix = f"{architecture.name}."
    own = {
        key.removeprefix(prefix): value
        for key, value in file.metadata.items()
        if key.startswith(prefix)
    }
    keys = Keys(own, inside=architecture.name)
    fields = architecture.fields(keys, file.tensors)
    vocab_size = _vocab_size(keys, file.metadata)
    keys.finish()
    return DecoderConfig(
        **fields,
        vocab_size=vocab_size,
        tie_embeddings="output.weight" not in file.tensors,
        param_dtype=dtype,
        dtype=dtype,
    )


def _vocab_size(keys: Keys, metadata: Mapping[str, Any]) -> int:
    tokens = metadata.get(_VOCABULARY)
    if not isinstance(tokens, list):
        return keys.count("vocab_size")
    size = keys.count("vocab_size", len(tokens))
    if size != len(tokens):
        raise FormatError(f"vocab_size is {size}, but {_VOCABULARY} has {len(tokens)}")
    return size


def params_from_gguf(
    file: GGUFFile, config: DecoderConfig, keep: Keep = on_device
) -> Params:
    """Returns the parameters of the decoder in a GGUF file.

    They are made one at a time, the largest first, so that no more memory is needed
    than for all that is kept, or than for the largest and what is kept of it.

    Args:
      file: The file.
      config: What ``config_from_gguf`` made of it.
      keep: What becomes of each parameter; it is put on the default device if left
        out.

    Returns:
      Module paths to names to arrays of ``config.param_dtype``; matrices are
      ``[in, out]``, where the file's are ``[out, in]``.

    Raises:
      FormatError: Tensors are missing, superfluous or of the wrong shape (all are
        listed), or one holds a number that is not finite, or would not be in
        ``config.param_dtype``.

    Example:
      >>> import pathlib
      >>> config = DecoderConfig(
      ...     vocab_size=8, num_layers=1, num_heads=2, d_model=8, d_ff=8)
      >>> empty = GGUFFile(pathlib.Path("empty.gguf"), metadata={
      ...     "general.architecture": "llama"}, tensors={})
      >>> params_from_gguf(empty, config)
      Traceback (most recent call last):
      haiku_mqa.errors.FormatError: empty.gguf: block_count is 1, but there are only \
0 tensors
    """
    # Before anything is done once for each layer: the count came from the file.
    if config.num_layers > len(file.tensors):
        raise FormatError(
            f"{file.path}: block_count is {config.num_layers}, but there are only "
            f"{len(file.tensors)} tensors"
        )
    architecture = architecture_of(file.metadata)
    parts = list(architecture.parts(config))
    _check_shapes(file, architecture, {part.name: part.shape for part in parts})
    params: Params = {}
    for part in parts:  # in their own order, not in that of their sizes
        params.setdefault(f"decoder_lm/{part.path}", {})[part.leaf] = None
    for part in sorted(parts, key=lambda part: -math.prod(part.shape)):
        path, array = f"decoder_lm/{part.path}", _array(file, part, config)
        params[path][part.leaf] = keep(config, path, part.leaf, array)
    return params


def unpermute_rotary(
    weight: np.ndarray, num_heads: int, rotary_size: int
) -> np.ndarray:
    """Reorders a projection's rows from interleaved to split-half rotary positions.

    GGUF's llama turns number 2i of a head together with number 2i + 1; this library
    turns number i together with number i + R // 2. Reordered, queries and keys give
    the same attention.

    Args:
      weight: ``[N * H, D]``, as the file stores it.
      num_heads: N; the file's K for keys.
      rotary_size: R, how many leading numbers of each head are turned.

    Returns:
      The rows of ``weight`` in their new order.

    Example:
      >>> unpermute_rotary(np.arange(6)[:, None], num_heads=1, rotary_size=4).ravel()
      array([0, 2, 1, 3, 4, 5])
    """
    heads = weight.reshape(num_heads, -1, weight.shape[-1])  # [N, H, D]
    turned = heads[:, :rotary_size]
    return np.concatenate(
        [turned[:, 0::2], turned[:, 1::2], heads[:, rotary_size:]], axis=1
    ).reshape(weight.shape)


# --- Tensors ---------------------------------------------------------------------


def _check_shapes(
    file: GGUFFile, architecture: Architecture, wanted: Mapping[str, tuple[int, ...]]
) -> None:
    tensors = file.tensors
    known = {*wanted, *architecture.beside}
    missing = [name for name in wanted if name not in tensors]
    extra = [in_one_line(name) for name in tensors if name not in known]
    misshapen = [
        f"{name} {list(tensors[name].shape)} instead of {list(shape)}"
        for name, shape in wanted.items()
        if name in tensors and tensors[name].shape != shape
    ]
    faults = [
        f"{title}: {_listed(names)}"
        for title, names in (
            ("missing tensors", missing),
            ("unknown tensors", extra),
            ("tensors of the wrong shape", misshapen),
        )
        if names
    ]
    if faults:
        raise FormatError(f"{file.path}: {'; '.join(faults)}")


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    more = len(names) - _MOST_LISTED
    listed = ", ".join(names[:_MOST_LISTED])
    return f"{listed} and {more} more" if more > 0 else listed


def _array(file: GGUFFile, part: Part, config: DecoderConfig) -> np.ndarray:
    dtype = jnp.dtype(config.param_dtype)
    tensor = file.tensors[part.name]
    tensor = tensor.cut(*part.rows) if part.rows else tensor
    is_upright = part.kind in ("as_it_is", "less_one")
    array = aligned_empty(tensor.shape if is_upright else tensor.shape[::-1], dtype)
    rows = array.reshape(-1, tensor.shape[-1]) if is_upright else array.T
    turned = part.kind == "interleaved"
    for start, piece in tensor.pieces(config.key_size if turned else 1):
        _check_finite(file, part, piece, dtype)
        if turned:
            heads = len(piece) // config.key_size
            piece = unpermute_rotary(piece, heads, config.rotary_size)
        if part.kind == "less_one":
            piece = piece - 1
        # Narrowed while it lies close together: number by number takes far longer.
        rows[start : start + len(piece)] = piece.astype(dtype, copy=False)
    return array


def _check_finite(
    file: GGUFFile, part: Part, piece: np.ndarray, dtype: np.dtype
) -> None:
    largest = np.maximum(piece.max(), -piece.min())  # NaN, if there is one
    if not np.isfinite(largest):
        raise FormatError(f"{file.path}: tensor {part.name} holds NaN or infinity")
    with np.errstate(over="ignore"):  # Said below, with the tensor's name.
        narrowed = largest.astype(dtype)
    if not np.isfinite(narrowed):
        raise FormatError(
            f"{file.path}: tensor {part.name} holds numbers too large for {dtype.name}"
        )
