"""A decoder's weights in int8: a quarter of the bytes to keep, and to read."""

from __future__ import annotations

import functools
from typing import Any, Literal, get_args

import jax

from haiku_mqa.checks import check_params
from haiku_mqa.config import DecoderConfig
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
    as they are. Keys and values that several heads share get a second byte a number:
    they are few, and what is off in them is off in all of these heads. They are not
    for training, nor for files.

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
      >>> import jax.numpy as jnp
      >>> from haiku_mqa import DecoderConfig, build
      >>> model = build(DecoderConfig(
      ...     vocab_size=256, num_layers=2, num_heads=8, d_model=64, d_ff=256))
      >>> params = model.init(jax.random.key(0))
      >>> small = quantize_params(model, params)
      >>> num_bytes(params) // 1000, num_bytes(small) // 1000
      (533, 143)
      >>> model.apply(small, None, jnp.array([[1, 2, 3]])).logits.shape
      (1, 3, 256)
    """
    check_quantization(quantization)
    check_params(params, model.param_shapes)
    return {
        module: {
            name: quantize_param(model.config, module, name, leaf)
            for name, leaf in leaves.items()
        }
        for module, leaves in params.items()
    }


def quantize_param(config: DecoderConfig, module: str, name: str, leaf: Any) -> Any:
    """Returns one parameter as ``quantize_params`` would have it.

    Args:
      config: Of the decoder.
      module: Path of the parameter's module.
      name: Its own.
      leaf: Its array.

    Returns:
      A ``QuantizedMatrix``, or the array, on the default device.

    Raises:
      ValueError: It is quantized already.
    """
    if isinstance(leaf, QuantizedMatrix):
        raise ValueError(f"params must be of floating point: {module} is quantized")
    array = jax.device_put(leaf)
    is_table = module in _LOOKED_UP
    if array.ndim != 2 or (is_table and not _is_output(config, module)):
        return array
    axis, parts = (0 if is_table else 1), (2 if _is_shared(config, module) else 1)
    # Waited for, because whoever quantizes one after another would else hold all.
    return jax.block_until_ready(_quantize(array, axis=axis, parts=parts))


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


def _is_output(config: DecoderConfig, module: str) -> bool:
    return module == _EMBEDDING and config.tie_embeddings


def _is_shared(config: DecoderConfig, module: str) -> bool:
    """Whether several heads read what a matrix makes: keys, or values."""
    is_past = module.endswith(("/attention/key", "/attention/value"))
    return is_past and config.num_kv_heads < config.num_heads


# One program for each shape: by itself each of its steps would be one, with an array
# as large as the matrix between them.
_quantize = functools.partial(jax.jit, static_argnames=("axis", "parts"))(quantize)
