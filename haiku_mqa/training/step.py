"""One step of training: a pure function from a state and a batch to the next state."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import haiku as hk
import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec

from haiku_mqa.config import DType
from haiku_mqa.model import Model, Params
from haiku_mqa.modules.block import TransformerDecoderBlock
from haiku_mqa.ops import QuantizedMatrix, dequantize
from haiku_mqa.sharding import ShardedModel
from haiku_mqa.training._scan import repeating_layers, scanned_layers
from haiku_mqa.training.loss import Loss, chunked_cross_entropy
from haiku_mqa.training.optimizer import make_optimizer
from haiku_mqa.training.optimizer_config import OptimizerConfig, learning_rate_at
from haiku_mqa.training.state import (
    Metrics,
    TrainingBatch,
    TrainState,
)

DEFAULT_CHUNK = 1024  # positions


LossFunction = Callable[[Params, TrainingBatch, jax.Array | None], Loss]
TrainStep = Callable[
    [TrainState, TrainingBatch, jax.Array | None], tuple[TrainState, Metrics]
]


def make_loss(
    model: Model,
    *,
    compute_dtype: DType | None = None,
    remat: bool = False,
    scan_layers: bool = False,
    chunk: int = DEFAULT_CHUNK,
    is_training: bool = False,
) -> LossFunction:
    """Returns the loss of a model as a pure function of parameters and a batch.

    Args:
      model: The model.
      compute_dtype: What is computed in; the config's ``dtype`` if ``None``. The
        parameters keep theirs.
      remat: Whether blocks are computed again in the backward pass, and only their
        inputs kept for it (Chen et al. 2016): up to a third more work. It is meant
        for accelerators: XLA orders the work on a CPU so that little memory is saved,
        unless layers are scanned.
      scan_layers: Whether layers run as one loop, over parameters that are stacked
        for it: what is computed is written once, however many there are, and with
        ``remat`` little memory is needed on a CPU too. Layers whose windows differ
        are looped over by their pattern, and those after its last whole repetition
        follow one by one. Parameters and gradients stay one for each layer; what
        dropout drops is other than without a loop.
      chunk: At most how many positions' logits are held at a time.
      is_training: Whether dropout acts.

    Returns:
      A function (params, batch, rng) -> ``Loss``; the rng may be ``None`` where
      nothing is dropped.

    Raises:
      ValueError: ``scan_layers`` is asked of layers whose windows repeat no pattern.

    Example:
      >>> from haiku_mqa import DecoderConfig, build
      >>> from haiku_mqa.training import Batch
      >>> model = build(DecoderConfig(
      ...     vocab_size=256, num_layers=1, num_heads=2, d_model=8, d_ff=16))
      >>> text = jnp.array([[1, 2, 3, 4]])
      >>> batch = Batch(text[:, :-1], text[:, 1:], mask=None)
      >>> loss = make_loss(model)(model.init(jax.random.key(0)), batch, None)
      >>> loss.count.item(), bool(4 < loss.mean < 8)  # ln 256 is 5.5
      (3, True)
    """
    config = dataclasses.replace(
        model.config, dtype=compute_dtype or model.config.dtype
    )
    reader = dataclasses.replace(model, config=config)  # a sharded one stays one
    if scan_layers:
        repeating_layers(config)  # refused here and now, not when a step is traced

    def read_as_asked() -> contextlib.AbstractContextManager[None]:
        if scan_layers:
            return scanned_layers(config, remat)
        return _rematerialized() if remat else contextlib.nullcontext()

    def loss(params: Params, batch: TrainingBatch, rng: jax.Array | None) -> Loss:
        nowhere = jnp.zeros((batch.tokens.shape[0], 0), jnp.int32)
        with read_as_asked():
            output = reader.apply(
                params,
                rng,
                batch.tokens,
                positions=getattr(batch, "positions", None),
                segment_ids=batch.segment_ids,
                logits_at=nowhere,
                is_training=is_training,
                return_hidden=True,
            )
        hidden = cast(jax.Array, output.hidden)
        matrix = _output_matrix(params, config.tie_embeddings)
        if config.logit_bias:  # as the vector of a number that is always one
            hidden = jnp.pad(hidden, [(0, 0), (0, 0), (0, 1)], constant_values=1)
            bias = params["decoder_lm/unembed"]["b"].astype(matrix.dtype)
            matrix = jnp.concatenate([matrix, bias[:, None]], axis=1)
        surprise = functools.partial(
            chunked_cross_entropy,
            chunk=chunk,
            scale=config.logit_scale,
            softcap=config.final_logit_softcap,
        )
        if isinstance(model, ShardedModel):
            surprise = _by_positions(model, surprise)
        return surprise(hidden, matrix, batch.labels, batch.mask)

    return loss


def _by_positions(
    model: ShardedModel, surprise: Callable[..., Loss]
) -> Callable[..., Loss]:
    """Returns a loss that each device takes of its own positions, by its own chunks.

    The partitioner would have all devices agree on the matrix and on the sum of its
    gradients after every chunk. So they gather the one before the first, and add up
    the others after the last. Devices of ``tensor`` share the positions of a row.
    """

    def parts(
        hidden: jax.Array, matrix: jax.Array, labels: jax.Array, mask: jax.Array | None
    ) -> Loss:
        mesh, (count, length) = model.layout.mesh, labels.shape
        rows = model.layout.rows(count)
        columns = None if length % mesh.shape["tensor"] else "tensor"
        axes = [axis for axis in (rows, columns) if axis is not None]
        if mask is None:
            mask = jnp.ones(labels.shape, bool)

        def own(*arrays: jax.Array) -> Loss:
            loss = surprise(*arrays)
            for axis in axes:
                loss = jax.lax.psum(loss, axis)
            return loss

        split, whole = PartitionSpec(rows, columns), PartitionSpec()
        return jax.shard_map(
            own,
            mesh=mesh,
            in_specs=(split, whole, split, split),
            out_specs=whole,
            check_vma=False,
        )(hidden, matrix, labels, mask)

    return parts


def make_train_step(
    model: Model,
    optimizer_config: OptimizerConfig,
    *,
    compute_dtype: DType | None = None,
    remat: bool = False,
    scan_layers: bool = False,
    chunk: int = DEFAULT_CHUNK,
) -> TrainStep:
    """Returns one step of training, a pure function to jit, donate and scan.

    A step whose loss or gradient is not finite changes neither the parameters nor
    the optimizer's state, not by a bit: it is counted, and the schedule waits for it.
    Its rng is folded with the number of the step, so one rng serves a whole run. With
    ``accumulate`` parts, the gradient is that of the whole batch, however many labels
    each part counts.

    Args:
      model: The model; of a sharded one, the state stays where it lies.
      optimizer_config: How gradients become updates.
      compute_dtype: What is computed in, over float32 masters; the config's
        ``dtype`` if ``None`` (Micikevicius et al. 2017).
      remat: Whether blocks are computed again in the backward pass, not kept.
      scan_layers: Whether layers run as one loop; see ``make_loss``.
      chunk: At most how many positions' logits are held at a time.

    Returns:
      A function (state, batch, rng) -> (state, metrics). The rng may be ``None``
      where nothing is dropped.

    Raises:
      ValueError: ``scan_layers`` is asked of layers whose windows repeat no pattern.

    Example:
      >>> from haiku_mqa import DecoderConfig, build
      >>> from haiku_mqa.training import Batch, OptimizerConfig, init_train_state
      >>> model = build(DecoderConfig(
      ...     vocab_size=256, num_layers=1, num_heads=2, d_model=8, d_ff=16))
      >>> config = OptimizerConfig(schedule="constant", warmup_steps=0)
      >>> train_step = jax.jit(make_train_step(model, config), donate_argnums=0)
      >>> state = init_train_state(config, model.init(jax.random.key(0)))
      >>> text = jnp.array([[1, 2, 3, 4]])
      >>> batch = Batch(text[:, :-1], text[:, 1:], mask=None)
      >>> state, before = train_step(state, batch, None)
      >>> state, after = train_step(state, batch, None)
      >>> state.step.item(), bool(after.loss < before.loss)
      (2, True)
    """
    loss = make_loss(
        model,
        compute_dtype=compute_dtype,
        remat=remat,
        scan_layers=scan_layers,
        chunk=chunk,
        is_training=True,
    )
    optimizer = make_optimizer(optimizer_config, model.param_shapes)

    def train_step(
        state: TrainState, batch: TrainingBatch, rng: jax.Array | None
    ) -> tuple[TrainState, Metrics]:
        rng = None if rng is None else jax.random.fold_in(rng, state.step)
        total, gradients = _gradients(
            loss, state.params, batch, rng, optimizer_config.accumulate
        )
        norm = optax.tree.norm(gradients)
        good = jnp.isfinite(total.mean) & jnp.isfinite(norm)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        bad = (~good).astype(jnp.int32)
        after = TrainState(
            params=_choose(good, params, state.params),
            opt_state=_choose(good, opt_state, state.opt_state),
            step=state.step + 1,
            skipped=state.skipped + bad,
            consecutive=bad * (state.consecutive + 1),
        )
        if isinstance(model, ShardedModel):
            where = model.layout.state(after)
            after = jax.lax.with_sharding_constraint(after, where)
        rate = learning_rate_at(optimizer_config, state.step - state.skipped)
        return after, Metrics(total.mean, norm, rate, total.count, ~good)

    return train_step


def _gradients(
    loss: LossFunction,
    params: Params,
    batch: TrainingBatch,
    rng: jax.Array | None,
    parts: int,
) -> tuple[Loss, Any]:
    """Returns the loss of a batch read in parts, and the gradient of its mean."""

    def summed(
        params: Params, part: TrainingBatch, rng: jax.Array | None
    ) -> tuple[jax.Array, Loss]:
        value = loss(params, part, rng)
        return value.sum, value

    differentiate = jax.grad(summed, has_aux=True)
    if parts == 1:
        gradients, total = differentiate(params, batch, rng)
    else:
        zeros = jax.tree.map(jnp.zeros_like, params)
        nothing = Loss(jnp.zeros((), jnp.float32), jnp.zeros((), jnp.int32))

        def body(sums: Any, part: tuple[TrainingBatch, jax.Array]) -> tuple[Any, None]:
            rows, index = part
            own = None if rng is None else jax.random.fold_in(rng, index)
            return jax.tree.map(jnp.add, sums, differentiate(params, rows, own)), None

        (gradients, total), _ = jax.lax.scan(
            body, (zeros, nothing), (_split(batch, parts), jnp.arange(parts))
        )
    share = 1 / jnp.maximum(total.count, 1).astype(jnp.float32)
    return total, jax.tree.map(lambda gradient: gradient * share, gradients)


def _split(batch: TrainingBatch, parts: int) -> TrainingBatch:
    rows = batch.tokens.shape[0]
    if rows % parts:
        raise ValueError(
            f"accumulate must divide the rows of a batch, {rows}, got {parts}"
        )
    return jax.tree.map(
        lambda x: jnp.reshape(x, (parts, rows // parts, *x.shape[1:])), batch
    )


def _choose(condition: jax.Array, new: Any, old: Any) -> Any:
    return jax.tree.map(lambda n, o: jnp.where(condition, n, o), new, old)


def _output_matrix(params: Params, tied: bool) -> jax.Array:
    """Returns each token's output vector, ``[V, D]``; widened, if it is quantized."""
    if tied:
        matrix = params["decoder_lm/embed"]["embeddings"]
    else:
        matrix = params["decoder_lm/unembed"]["w"]
    wide = dequantize(matrix) if isinstance(matrix, QuantizedMatrix) else matrix
    return wide if tied else wide.T


@contextlib.contextmanager
def _rematerialized() -> Iterator[None]:
    """Has every block that is called inside computed again when it is differentiated.

    By interception, so that no block knows of it and no parameter's path changes.
    """

    def again(
        block: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        context: hk.MethodContext,
    ) -> Any:
        called = (
            isinstance(context.module, TransformerDecoderBlock)
            and context.method_name == "__call__"
        )
        if not called or not args:
            return block(*args, **kwargs)
        x, *rest = args
        return hk.remat(lambda x: block(x, *rest, **kwargs))(x)

    with hk.intercept_methods(again):
        yield
