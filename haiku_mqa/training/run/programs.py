"""What a run computes: three programs, each compiled once."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

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
      place: A ``Carry`` that was read to one that lies where the run's does.
    """

    init: Callable[[jax.Array], Carry]
    begin: Callable[[Params], Carry]
    step: Callable[[Carry, Batch, jax.Array | None], tuple[Carry, Metrics]]
    evaluate: Callable[[Params, Iterable[Batch]], float]
    place: Callable[[Carry], Carry]


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
    compiled = jax.jit(step, donate_argnums=0)
    summed = jax.jit(lambda params, batch: loss(params, batch, None))
    if not isinstance(model, ShardedModel):
        return Programs(
            init=_quickly_compiled(init),
            begin=_quickly_compiled(begin),
            step=compiled,
            evaluate=functools.partial(_mean, summed),
            place=lambda carry: carry,
        )
    layout = model.layout

    def everywhere(rng: jax.Array | None) -> jax.Array | None:
        return None if rng is None else model.everywhere(rng)

    def put(batch: Batch) -> Batch:
        return processes.put(batch, layout.batch(batch))

    return Programs(
        init=model.laid_out(init),
        begin=model.laid_out(begin),
        step=lambda carry, batch, rng: compiled(carry, put(batch), everywhere(rng)),
        evaluate=lambda params, batches: _mean(summed, params, map(put, batches)),
        place=lambda carry: processes.put(carry, layout.state(carry)),
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
