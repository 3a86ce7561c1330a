"""A decoder over several devices under test, beside itself on one."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from haiku_mqa.model import Model, Params
from haiku_mqa.quantization import quantize_params
from haiku_mqa.sharding import ShardedModel
from haiku_mqa.testing.subject import LENGTH, disturb
from haiku_mqa.training import (
    Batch,
    Metrics,
    OptimizerConfig,
    TrainState,
    init_train_state,
    make_loss,
    make_train_step,
)

# With a large eps, so that a gradient that is rounding alone makes no step of its own.
_OPTIMIZER = OptimizerConfig(schedule="constant", warmup_steps=0, eps=1e-3)
_CAPACITY = 16  # of the cache, in tokens
_FEWEST = 4  # rows


class ShardedSubject:
    """A sharded model beside the plain one of its config, made ready for laws.

    Attributes:
      over: The sharded model.
      plain: The same on one device.
      params: Parameters on one device, every one of them disturbed.
      placed: The same over the devices.
      rows: B, which all axes of the mesh divide.
    """

    def __init__(self, model: ShardedModel, params: Params | None = None):
        """Draws parameters where none are given.

        Args:
          model: The sharded model.
          params: Parameters to test with; drawn if ``None``.

        Raises:
          ValueError: The model is not sharded.
        """
        if not isinstance(model, ShardedModel):
            raise ValueError(
                "model must be a ShardedModel, as sharding.shard makes it, got "
                f"{type(model).__name__}"
            )
        self.over, self.plain = model, Model(model.config)
        self.params: Params = (
            disturb(jax.jit(self.plain.init)(jax.random.key(0)))
            if params is None
            else params
        )
        self.placed = model.put(self.params)
        devices = model.layout.mesh.size
        self.rows = devices * -(-_FEWEST // devices)
        self._programs = _programs(self.over), _programs_of_one(self.plain)

    @functools.cached_property
    def quantized(self) -> tuple[Params, Params]:
        """The parameters in int8: on one device, and over the devices."""
        small = quantize_params(self.plain, self.params)
        return small, self.over.put(small)

    def tokens(self, seed: int, length: int = LENGTH) -> np.ndarray:
        """Returns random tokens, int32 ``[rows, length]``."""
        draw = np.random.default_rng(seed)
        size, shape = self.plain.config.vocab_size, (self.rows, length)
        return draw.integers(0, size, shape, dtype=np.int32)

    def batch(self, seed: int) -> Batch:
        """Returns a batch of which each row counts as many labels as it likes."""
        tokens = self.tokens(seed, LENGTH + 1)
        draw = np.random.default_rng(seed)
        counted = draw.random((self.rows, LENGTH)) < draw.random((self.rows, 1))
        counted[0, 0] = True  # there is always one
        return Batch(tokens[:, :-1], tokens[:, 1:], counted)

    def drawn(self, model: Model, seed: int) -> Params:
        """Returns the parameters that a seed draws."""
        return self._of(model)["init"](jax.random.key(seed))

    def logits(self, model: Model, params: Params, tokens: np.ndarray) -> np.ndarray:
        """Returns the compiled full forward's logits, ``[B, T, V]``."""
        return np.asarray(self._of(model)["logits"](params, tokens))

    def read(
        self, model: Model, params: Params, tokens: np.ndarray, first: int
    ) -> np.ndarray:
        """Returns logits of tokens that are read with a cache: some, then one by one.

        Args:
          model: ``plain`` or ``over``.
          params: Its parameters.
          tokens: int32 ``[B, T]``.
          first: How many are read at once.

        Returns:
          ``[B, T, V]``.
        """
        step = self._of(model)["step"]
        cache, parts = model.init_cache(self.rows, _CAPACITY), []
        for part in np.split(tokens, range(first, tokens.shape[1]), axis=1):
            logits, cache = step(params, part, cache)
            parts.append(np.asarray(logits))
        return np.concatenate(parts, axis=1)

    def gradients(self, model: Model, params: Params, batch: Batch) -> tuple[Any, Any]:
        """Returns the loss of a batch, and its gradients."""
        return self._of(model)["gradients"](params, batch)

    def trained(self, model: Model, params: Params, batches: list[Batch]) -> TrainState:
        """Returns the state after a step of training on each batch."""
        state = self._of(model)["begin"](params)
        for batch in batches:
            state, _ = self._of(model)["train"](state, batch)
        return state

    def _of(self, model: Model) -> dict[str, Callable[..., Any]]:
        over, plain = self._programs
        return over if model is self.over else plain


def _programs(model: Model) -> dict[str, Callable[..., Any]]:
    """Returns what is asked of a model, compiled once."""
    put = model.put_batch if isinstance(model, ShardedModel) else lambda batch: batch
    loss, step = make_loss(model), make_train_step(model, _OPTIMIZER)

    def mean(params: Params, batch: Batch) -> jax.Array:
        return loss(params, batch, None).mean

    def read(params: Params, tokens: jax.Array, cache: Any) -> tuple[Any, Any]:
        out = model.apply(params, None, tokens, cache=cache)
        return out.logits, out.cache

    def train(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        return step(state, batch, None)

    gradients, trained = jax.jit(jax.value_and_grad(mean)), jax.jit(train)
    return {
        "init": model.init if isinstance(model, ShardedModel) else jax.jit(model.init),
        "logits": jax.jit(lambda p, tokens: model.apply(p, None, tokens).logits),
        "step": jax.jit(read),
        "gradients": lambda params, batch: gradients(params, put(batch)),
        "begin": jax.jit(lambda params: init_train_state(_OPTIMIZER, params)),
        "train": lambda state, batch: trained(state, put(batch)),
    }


# One decoder on one device may stand beside many meshes.
_programs_of_one = functools.lru_cache(maxsize=4)(_programs)
