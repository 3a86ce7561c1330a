"""A decoder's weights in int8: a quarter of the bytes to keep, and to read."""

from __future__ import annotations

from typing import Any, Literal, get_args

import jax.numpy as jnp

from haiku_mqa.checks import check_params
from haiku_mqa.errors import unknown_name
from haiku_mqa.model import Model, Params
from haiku_mqa.ops.quantized import QuantizedMatrix, quantize

Quantization = Literal["int8"]

_EMBEDDING = "decoder_lm/embed"
_LOOKED_UP = {_EMBEDDING, "decoder_lm/position_embed"}


def quantize_params(
    model: Model, params: Params, quantization: Quantization = "int8"
) -> Params:
    """Returns parameters whose matrices are in int8, for inference.

    Whatever takes parameters takes these: ``apply``, ``generate``, ``evaluate``.
    Matrices get a scale for each output, and the embedding one for each token where
    it is the output matrix too; norms, biases and a table that is only looked up stay
    as they are. They are not for training, nor for files.

    Args:
      model: The model.
      params: Its parameters, of floating point.
      quantization: ``"int8"``.

    Returns:
      The same tree, with ``QuantizedMatrix`` where matrices were.

    Raises:
      ValueError: There is no such quantization, or the parameters are not the
        model's, or are quantized already.

    Example:
      >>> import jax
      >>> from haiku_mqa import DecoderConfig, build
      >>> model = build(DecoderConfig(
      ...     vocab_size=256, num_layers=2, num_heads=8, d_model=64, d_ff=256))
      >>> params = model.init(jax.random.key(0))
      >>> small = quantize_params(model, params)
      >>> num_bytes(params) // 1000, num_bytes(small) // 1000
      (533, 141)
      >>> model.apply(small, None, jnp.array([[1, 2, 3]])).logits.shape
      (1, 3, 256)
    """
    check_quantization(quantization)
    check_params(params, model.param_shapes)
    return {
        module: {
            name: _quantized(module, name, leaf, model) for name, leaf in leaves.items()
        }
        for module, leaves in params.items()
    }


def check_quantization(quantization: str) -> None:
    """Raises ``ValueError`` for a name that is no quantization.

    Args:
      quantization: Such as ``"int8"``.

    Raises:
      ValueError: There is no such one.
    """
    if quantization not in get_args(Quantization):
        raise unknown_name("quantization", str(quantization), get_args(Quantization))


def is_quantized(params: Params) -> bool:
    """Returns whether any parameter is a ``QuantizedMatrix``.

    Args:
      params: Module path to parameter name to array.
    """
    return any(
        isinstance(leaf, QuantizedMatrix)
        for leaves in params.values()
        for leaf in leaves.values()
    )


def num_bytes(params: Params) -> int:
    """Returns how many bytes parameters take.

    Args:
      params: Module path to parameter name to array, quantized or not.
    """
    return sum(leaf.nbytes for leaves in params.values() for leaf in leaves.values())


def _quantized(module: str, name: str, leaf: Any, model: Model) -> Any:
    if isinstance(leaf, QuantizedMatrix):
        raise ValueError(f"params must be of floating point: {module} is quantized")
    if len(leaf.shape) != 2:
        return leaf
    if module not in _LOOKED_UP:
        return quantize(jnp.asarray(leaf), axis=1)
    if module == _EMBEDDING and model.config.tie_embeddings:
        return quantize(jnp.asarray(leaf), axis=0)
    return leaf
