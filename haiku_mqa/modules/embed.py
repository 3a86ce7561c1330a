"""Tables of vectors, looked up by token or by position."""

from __future__ import annotations

import functools

import haiku as hk
import jax
import jax.numpy as jnp

from haiku_mqa.ops.quantized import QuantizedMatrix, dequantize


class Embed(hk.Module):
    """A table of ``size`` vectors; the parameter is ``embeddings`` ``[size, D]``.

    It may be quantized by rows.
    """

    def __init__(
        self,
        size: int,
        embed_dim: int,
        *,
        param_dtype: jax.typing.DTypeLike = "float32",
        name: str | None = None,
    ):
        """Describes the table.

        Args:
          size: How many vectors there are.
          embed_dim: D, the size of each.
          param_dtype: What the table is stored in.
          name: Of the module.
        """
        super().__init__(name=name)
        self.size = size
        self.embed_dim = embed_dim
        self.param_dtype = param_dtype

    @property
    def table(self) -> jax.Array | QuantizedMatrix:
        """The parameter, ``[size, D]``."""
        # A standard deviation of D ** -0.5 gives tied logits one of about one.
        return hk.get_parameter(
            "embeddings",
            (self.size, self.embed_dim),
            self.param_dtype,
            init=hk.initializers.TruncatedNormal(self.embed_dim**-0.5),
        )

    def __call__(self, ids: jax.Array, dtype: jax.typing.DTypeLike) -> jax.Array:
        """Looks vectors up.

        Args:
          ids: integer ``[...]``. One out of range gives NaN, so that what cannot
            raise under jit cannot pass for a result either.
          dtype: Of the vectors returned.

        Returns:
          ``[..., D]``.
        """
        take = functools.partial(jnp.take, indices=ids, axis=0, mode="clip")
        vectors = jax.tree.map(take, self.table)
        if isinstance(vectors, QuantizedMatrix):
            vectors = dequantize(vectors)
        in_range = (ids >= 0) & (ids < self.size)
        return jnp.where(in_range[..., None], vectors.astype(dtype), jnp.nan)
