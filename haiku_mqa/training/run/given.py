"""Parameters that a run begins from, where they are not drawn."""

from __future__ import annotations

import hashlib

import jax
import jax.numpy as jnp
import numpy as np

from haiku_mqa.checks import check_finite, check_params
from haiku_mqa.model import Model, Params


def fitted(model: Model, params: Params) -> Params:
    """Returns parameters in the dtypes that a model has its own in.

    Args:
      model: Whose they are to be.
      params: Module path to parameter name to array, of any floating point.

    Returns:
      The same tree.

    Raises:
      ValueError: They are not of the model's shapes, or not finite; the message
        names those that are not.
    """
    check_params(params, model.param_shapes)
    check_finite(params)
    return {
        module: {
            name: jnp.asarray(params[module][name], shape.dtype)
            for name, shape in shapes.items()
        }
        for module, shapes in model.param_shapes.items()
    }


def digest(params: Params) -> str:
    """Returns the SHA-256 of parameters: of their names, shapes and values.

    Args:
      params: Module path to parameter name to array.

    Example:
      >>> one = digest({"linear": {"w": np.zeros(2, np.float32)}})
      >>> one == digest({"linear": {"w": np.zeros(2, np.float16)}})
      True
      >>> one == digest({"linear": {"b": np.zeros(2, np.float32)}})
      False
    """
    total = hashlib.sha256()
    for path, leaf in sorted(
        (jax.tree_util.keystr(path), np.ascontiguousarray(leaf, np.float32))
        for path, leaf in jax.tree.leaves_with_path(params)
    ):
        total.update(f"{path} {list(leaf.shape)}\n".encode())
        total.update(leaf.tobytes())
    return total.hexdigest()
