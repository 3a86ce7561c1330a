"""What a step reads, what it carries on, and what it says of itself."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax

from haiku_mqa.model import Params
from haiku_mqa.training.optimizer import make_optimizer
from haiku_mqa.training.optimizer_config import OptimizerConfig


class TrainingBatch(Protocol):
    """What a step reads: any pytree with these attributes, such as ``Batch``.

    One that has ``positions`` too, int32 ``[B, T]`` or ``None``, is read at those.

    Attributes:
      tokens: int32 ``[B, T]``.
      labels: int32 ``[B, T]``, the token after each.
      mask: bool ``[B, T]``, which labels count; all if ``None``. It does not hide
        tokens from attention: causality and ``segment_ids`` do.
      segment_ids: int32 ``[B, T]``, for packed documents; ``None`` if each row is one.

    Example:
      >>> class Rows(NamedTuple):
      ...     tokens: jax.Array
      ...     labels: jax.Array
      ...     mask: jax.Array | None = None
      ...     segment_ids: jax.Array | None = None
      >>> tokens = jnp.array([[72, 101, 108, 108, 111]])
      >>> batch: TrainingBatch = Rows(tokens[:, :-1], tokens[:, 1:])
    """

    @property
    def tokens(self) -> Any: ...  # noqa: D102

    @property
    def labels(self) -> Any: ...  # noqa: D102

    @property
    def mask(self) -> Any: ...  # noqa: D102

    @property
    def segment_ids(self) -> Any: ...  # noqa: D102


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """All that training changes; with the seed of its batches, all there is to resume.

    Attributes:
      params: The masters, float32, by module path and name.
      opt_state: The optimizer's.
      step: int32, how many batches were read.
      skipped: int32, how many of them did not change the parameters.
      consecutive: int32, how many of the last ones in a row did not.

    Example:
      >>> from haiku_mqa import DecoderConfig, build
      >>> model = build(DecoderConfig(
      ...     vocab_size=256, num_layers=1, num_heads=2, d_model=8, d_ff=16))
      >>> params = model.init(jax.random.key(0))
      >>> state = init_train_state(OptimizerConfig(), params)
      >>> state.step.item(), state.skipped.item()
      (0, 0)
    """

    params: Params
    opt_state: optax.OptState
    step: jax.Array
    skipped: jax.Array
    consecutive: jax.Array


class Metrics(NamedTuple):
    """What a step says of itself; all are scalars.

    Attributes:
      loss: float32, nats per counted label, before the update.
      grad_norm: float32, global norm of the gradient before clipping.
      learning_rate: float32, of this update.
      tokens: int32, how many labels were counted.
      skipped: bool, whether the parameters were left as they were, because the loss
        or the gradient was not finite.

    Example:
      >>> Metrics._fields
      ('loss', 'grad_norm', 'learning_rate', 'tokens', 'skipped')
    """

    loss: jax.Array
    grad_norm: jax.Array
    learning_rate: jax.Array
    tokens: jax.Array
    skipped: jax.Array


def init_train_state(optimizer_config: OptimizerConfig, params: Params) -> TrainState:
    """Returns the state that training starts from.

    Args:
      optimizer_config: As ``make_train_step`` gets it.
      params: As ``Model.init`` makes them. They are copied, so that a donated state
        does not take them along.

    Returns:
      The state, with the parameters in float32.

    Example:
      >>> params = {"linear": {"w": jnp.ones((2, 2), jnp.bfloat16)}}
      >>> state = init_train_state(OptimizerConfig(), params)
      >>> state.params["linear"]["w"].dtype.name
      'float32'
    """
    masters = jax.tree.map(lambda x: jnp.array(x, jnp.float32), dict(params))
    opt_state = make_optimizer(optimizer_config, masters).init(masters)
    # Three arrays and not one thrice: a buffer can be donated only once.
    counts = [jnp.zeros((), jnp.int32) for _ in range(3)]
    return TrainState(masters, opt_state, *counts)
