"""What the ``llama`` architecture of GGUF is in this library's words."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from haiku_mqa._keep import Keep, aligned_empty, on_device
from haiku_mqa.config import DecoderConfig
from haiku_mqa.errors import FormatError
from haiku_mqa.pretrained._bounds import in_one_line
from haiku_mqa.pretrained._llama_config import config_from_gguf
from haiku_mqa.pretrained.gguf import GGUFFile

__all__ = ["Params", "config_from_gguf", "params_from_gguf", "unpermute_rotary"]

Params = dict[str, dict[str, Any]]
_Kind = Literal["as_it_is", "matrix", "query", "key"]

# What a message lists of one kind before it only counts the rest.
_MOST_LISTED = 8


def params_from_gguf(
    file: GGUFFile, config: DecoderConfig, keep: Keep = on_device
) -> Params:
    """Returns the parameters of a ``llama`` decoder in a GGUF file.

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
      >>> empty = GGUFFile(pathlib.Path("empty.gguf"), metadata={}, tensors={})
      >>> params_from_gguf(empty, config)
      Traceback (most recent call last):
      haiku_mqa.errors.FormatError: empty.gguf: llama.block_count is 1, but there \
are only 0 tensors
    """
    # Before anything is done once for each layer: the count came from the file.
    if config.num_layers > len(file.tensors):
        raise FormatError(
            f"{file.path}: llama.block_count is {config.num_layers}, but there are "
            f"only {len(file.tensors)} tensors"
        )
    parts = {part.name: part for part in _parts(config)}
    _check_shapes(file, parts)
    params: Params = {}
    for part in parts.values():  # in their own order, not in that of their sizes
        params.setdefault(part.path, {})[part.leaf] = None
    for part in sorted(parts.values(), key=lambda part: -math.prod(part.shape)):
        array = _array(file, part, config)
        params[part.path][part.leaf] = keep(config, part.path, part.leaf, array)
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


@dataclasses.dataclass(frozen=True)
class _Part:
    """One tensor of the file, and the parameter that it becomes."""

    name: str
    shape: tuple[int, ...]  # As GGUFTensor has it.
    path: str
    leaf: str
    kind: _Kind = "matrix"


def _parts(config: DecoderConfig) -> Iterator[_Part]:
    d, f, v = config.d_model, config.d_ff, config.vocab_size
    n, k = config.num_heads, config.num_kv_heads
    h, value_size = config.key_size, config.value_size

    def table(name: str, shape: tuple[int, ...], path: str, leaf: str) -> _Part:
        return _Part(f"{name}.weight", shape, f"decoder_lm/{path}", leaf, "as_it_is")

    yield table("token_embd", (v, d), "embed", "embeddings")
    yield table("output_norm", (d,), "decoder/final_norm", "scale")
    if not config.tie_embeddings:
        yield _Part("output.weight", (v, d), "decoder_lm/unembed", "w")
    for i in range(config.num_layers):
        blk, layer = f"blk.{i}", f"decoder/layer_{i}"
        yield table(f"{blk}.attn_norm", (d,), f"{layer}/attention_norm", "scale")
        yield table(f"{blk}.ffn_norm", (d,), f"{layer}/feed_forward_norm", "scale")
        matrices: tuple[tuple[str, tuple[int, int], str, _Kind], ...] = (
            ("attn_q", (n * h, d), "attention/query", "query"),
            ("attn_k", (k * h, d), "attention/key", "key"),
            ("attn_v", (k * value_size, d), "attention/value", "matrix"),
            ("attn_output", (d, n * value_size), "attention/linear", "matrix"),
            ("ffn_gate", (f, d), "feed_forward/gate", "matrix"),
            ("ffn_up", (f, d), "feed_forward/up", "matrix"),
            ("ffn_down", (d, f), "feed_forward/down", "matrix"),
        )
        for name, shape, path, kind in matrices:
            path = f"decoder_lm/{layer}/{path}"
            yield _Part(f"{blk}.{name}.weight", shape, path, "w", kind)


def _check_shapes(file: GGUFFile, parts: Mapping[str, _Part]) -> None:
    tensors = file.tensors
    missing = [name for name in parts if name not in tensors]
    extra = [in_one_line(name) for name in tensors if name not in parts]
    misshapen = [
        f"{name} {list(tensors[name].shape)} instead of {list(part.shape)}"
        for name, part in parts.items()
        if name in tensors and tensors[name].shape != part.shape
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


def _array(file: GGUFFile, part: _Part, config: DecoderConfig) -> np.ndarray:
    dtype = jnp.dtype(config.param_dtype)
    turned = part.kind in ("query", "key")
    if part.kind == "as_it_is":
        array = aligned_empty(part.shape, dtype)
        rows = array.reshape(-1, part.shape[-1])
    else:
        array = aligned_empty(part.shape[::-1], dtype)
        rows = array.T
    pieces = file.tensors[part.name].pieces(config.key_size if turned else 1)
    for start, piece in pieces:
        _check_finite(file, part, piece, dtype)
        if turned:
            heads = len(piece) // config.key_size
            piece = unpermute_rotary(piece, heads, config.rotary_size)
        # Narrowed while it lies close together: number by number takes far longer.
        rows[start : start + len(piece)] = piece.astype(dtype, copy=False)
    return array


def _check_finite(
    file: GGUFFile, part: _Part, piece: np.ndarray, dtype: np.dtype
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
