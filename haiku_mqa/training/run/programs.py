"""What a run computes: three programs, each compiled once."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from haiku_mqa._compiling import COMPILER_OPTIONS
from haiku_mqa.model import Model, Params
from haiku_mqa.sharding import ShardedModel, processes
from haiku_mqa.training.data import Batch
from haiku_mqa.training.loss import Loss, mean_loss
from haiku_mqa.training.run.config import RunConfig
from haiku_mqa.training.state import Metrics, TrainState, init_train_state
from haiku_mqa.training.step import make_loss, make_train_step


class Carry(NamedTuple):
    """What a step passes on to the next; a checkpoint holds it.

    Attributes:
      state: Of training.
      average: Of the parameters, float32; ``None`` where none is asked for.
    """

    state: TrainState
    average: Params | None

    @property
    def judged(self) -> Params:
        """The parameters that are evaluated: the average where there is one."""
        return self.state.params if self.average is None else self.average


class Programs(NamedTuple):
    """A run's programs.

    Attributes:
      init: An rng to the first ``Carry``, of drawn parameters.
      begin: Given parameters to the first ``Carry``.
      step: (carry, batch, rng) to (carry, metrics). The carry is donated.
      evaluate: (parameters, batches) to nats per token.
      like: An rng to the shapes and dtypes of a ``Carry``, and where that lies if it
        is over several devices.
      rows: How many rows a batch has to those that this process makes of it; all if
        ``None``.
    """

    init: Callable[[jax.Array], Carry]
    begin: Callable[[Params], Carry]
    step: Callable[[Carry, Batch, jax.Array | None], tuple[Carry, Metrics]]
    evaluate: Callable[[Params, Iterable[Batch]], float]
    like: Callable[[jax.Array], Carry]
    rows: Callable[[int], slice | None]


def make_programs(model: Model, config: RunConfig) -> Programs:
    """Returns the programs of a run; each is compiled when it is first called.

    Args:
      model: The run's.
      config: Of the run.

    Returns:
      The programs.
    """
    options: dict[str, Any] = {
        "compute_dtype": config.compute_dtype,
        "remat": config.remat,
    }
    if config.scan_layers:
        options["scan_layers"] = True
    train_step = make_train_step(model, config.optimizer, **options)
    decay = config.average_decay

    def begin(params: Params) -> Carry:
        # Copies: a step takes what it is given, and no buffer can be taken twice.
        state = init_train_state(config.optimizer, jax.tree.map(jnp.copy, params))
        copied = jax.tree.map(jnp.copy, state.params)
        return Carry(state, None if decay is None else copied)

    def init(rng: jax.Array) -> Carry:
        return begin(model.init(rng))

    def step(
        carry: Carry, batch: Batch, rng: jax.Array | None
    ) -> tuple[Carry, Metrics]:
        state, metrics = train_step(carry.state, batch, rng)
        if decay is None or carry.average is None:
            return Carry(state, None), metrics
        average = _averaged(decay, carry.average, state, metrics.skipped)
        return Carry(state, average), metrics

    options.pop("remat")  # nothing is kept for a backward pass that is not run
    loss = make_loss(model, **options)
    # Who would rather compute again than hold things wants them in the order of least
    # memory, too: so a plan has it.
    compiler_options = COMPILER_OPTIONS if config.remat else None
    compiled = jax.jit(step, donate_argnums=0, compiler_options=compiler_options)
    summed = jax.jit(lambda params, batch: loss(params, batch, None))
    if not isinstance(model, ShardedModel):
        return Programs(
            init=_quickly_compiled(init),
            begin=_quickly_compiled(begin),
            step=compiled,
            evaluate=functools.partial(_mean, summed),
            like=functools.partial(jax.eval_shape, init),
            rows=lambda count: None,
        )
    layout = model.layout

    def everywhere(rng: jax.Array | None) -> jax.Array | None:
        return None if rng is None else model.everywhere(rng)

    def put(count: int, batch: Batch) -> Batch:
        return processes.put_rows(batch, layout.on(layout.rows(count)), count)

    put_read = functools.partial(put, config.data.batch_size)
    put_held_out = functools.partial(put, config.data.validation_batch_size)

    def like(rng: jax.Array) -> Carry:
        shapes = jax.eval_shape(init, rng)
        return jax.tree.map(
            lambda leaf, where: jax.ShapeDtypeStruct(
                leaf.shape, leaf.dtype, sharding=where
            ),
            shapes,
            layout.state(shapes),
        )

    return Programs(
        init=model.laid_out(init),
        begin=model.laid_out(begin),
        step=lambda carry, batch, rng: compiled(
            carry, put_read(batch), everywhere(rng)
        ),
        evaluate=lambda params, batches: _mean(
            summed, params, map(put_held_out, batches)
        ),
        like=like,
        rows=layout.rows_here,
    )


def _averaged(
    decay: float, average: Params, state: TrainState, skipped: jax.Array
) -> Params:
    """Returns the average after a step; a step that was skipped does not count.

    In the first steps it forgets sooner, so that it is not held back by the
    parameters' first values, which mean nothing (TensorFlow's rule).
    """
    updates = (state.step - state.skipped).astype(jnp.float32)
    kept = jnp.minimum(decay, (1 + updates) / (10 + updates))
    kept = jnp.where(skipped, 1.0, kept)
    return jax.tree.map(lambda a, p: a + (1 - kept) * (p - a), average, state.params)


def _quickly_compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    # It runs once: most of its time is compilation, of which this halves the time.
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})


def _mean(
    summed: Callable[..., Loss], params: Params, batches: Iterable[Batch]
) -> float:
    return mean_loss(summed(params, batch) for batch in batches)
