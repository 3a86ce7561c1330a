"""One process of ``haiku-mqa bench scaling``: held to a core, joined to the others.

It answers each line with one, all of JSON; what it is asked, all of them are.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any


def hold_to_core(core: int) -> None:
    """Has this process and its threads run on one core, where the system can do that.

    Args:
      core: Which.
    """
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {core})


class Worker:
    """What a process knows: the model's shape, and the steps that it has compiled."""

    def __init__(self, settings: dict[str, Any]):
        """Joins the others, if there are any.

        Args:
          settings: ``config`` and ``context``; ``processes``, which of them this
            ``process`` is, and their ``coordinator``.
        """
        from haiku_mqa import DecoderConfig
        from haiku_mqa._compiling import prepare_jax
        from haiku_mqa._heap import keep_freed_memory
        from haiku_mqa.sharding import join

        prepare_jax()
        keep_freed_memory()  # as the verb train does
        if settings["processes"] > 1:
            join(settings["coordinator"], settings["processes"], settings["process"])
        self._config = DecoderConfig(**settings["config"])
        self._context = settings["context"]
        self._steps: dict[tuple[str, int], tuple[Any, Any, Any]] = {}

    def train(self, mesh: str, rows: int, steps: int) -> dict[str, Any]:
        """Makes steps of training.

        Args:
          mesh: Sizes of axes.
          rows: Of a batch, in all processes together.
          steps: How many.

        Returns:
          ``seconds`` of each step, and the last ``loss``.
        """
        if (mesh, rows) not in self._steps:
            self._steps[mesh, rows] = self._begun(mesh, rows)
        step, state, batch = self._steps[mesh, rows]
        seconds, loss = [], 0.0
        for _ in range(steps):
            begin = time.perf_counter()
            state, metrics = step(state, batch, None)
            loss = float(metrics.loss)
            seconds.append(time.perf_counter() - begin)
        self._steps[mesh, rows] = step, state, batch  # the state before was donated
        return {"seconds": seconds, "loss": loss}

    def _begun(self, mesh: str, rows: int) -> tuple[Any, Any, Any]:
        import jax
        import numpy as np

        from haiku_mqa import build
        from haiku_mqa._compiling import COMPILER_OPTIONS
        from haiku_mqa.planning.compiled import planned_step
        from haiku_mqa.sharding import shard
        from haiku_mqa.training import Batch, OptimizerConfig, init_train_state

        model, optimizer = shard(build(self._config), mesh), OptimizerConfig()
        first = model.laid_out(lambda rng: init_train_state(optimizer, model.init(rng)))
        step = planned_step(model, optimizer)
        size = (rows, self._context + 1)
        draw = np.random.default_rng(0)
        tokens = draw.integers(0, self._config.vocab_size, size, np.int32)
        batch = Batch(tokens[:, :-1].copy(), tokens[:, 1:].copy(), None)
        state = first(jax.random.key(0))
        compiled = jax.jit(step, donate_argnums=0, compiler_options=COMPILER_OPTIONS)
        return compiled, state, model.put_batch(batch)

    def reduce(self, count: int, times: int) -> dict[str, Any]:
        """Adds up an array of every process, and gives all the sum.

        Args:
          count: Of float32 numbers.
          times: How often.

        Returns:
          ``seconds`` of each.
        """
        import jax
        import numpy as np
        from jax.sharding import NamedSharding, PartitionSpec

        from haiku_mqa.sharding import make_mesh

        mesh = make_mesh({"data": jax.process_count()})
        shape = (jax.process_count(), count)
        own = jax.make_array_from_callback(
            shape,
            NamedSharding(mesh, PartitionSpec("data")),
            lambda _: np.ones((1, count), np.float32),
        )
        whole = NamedSharding(mesh, PartitionSpec())
        total = jax.jit(lambda x: x.sum(0), out_shardings=whole)
        jax.block_until_ready(total(own))  # compiles
        seconds = []
        for _ in range(times):
            begin = time.perf_counter()
            jax.block_until_ready(total(own))
            seconds.append(time.perf_counter() - begin)
        return {"seconds": seconds}

    def limits(self, size: int) -> dict[str, float]:
        """Measures what this process's core can do.

        Args:
          size: Of the matrices, in rows; of what is read, in 64 KiB.

        Returns:
          Operations a second of ``products``, and bytes a second of ``memory``.
        """
        from haiku_mqa.bench import read_bandwidth
        from haiku_mqa.bench.matmul import matmul_rate

        return {
            "products": matmul_rate(size),
            "memory": read_bandwidth(size * 2**16),
        }


def main(settings: dict[str, Any]) -> None:
    """Answers lines until there are none.

    Args:
      settings: As ``Worker``'s, and the ``core``.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what joins processes speaks, too
    hold_to_core(settings["core"])
    os.environ["JAX_NUM_CPU_DEVICES"] = "1"
    worker: Worker | None = None

    def answer(told: dict[str, Any]) -> None:
        print(json.dumps(told), file=answers, flush=True)

    answer({})
    for line in sys.stdin:
        worker = worker or Worker(settings)  # only now are all there to be joined
        asked = json.loads(line)
        answer(getattr(worker, asked.pop("do"))(**asked))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
