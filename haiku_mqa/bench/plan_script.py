"""One process of ``haiku-mqa bench plan``: it runs a stage, and tells its peak.

It is started by its path, so that nothing but the stage is in its memory.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import re
import sys
from pathlib import Path
from typing import Any


def resident(name: str) -> int:
    """Returns bytes that this process holds, or held.

    Args:
      name: ``"VmRSS"`` for now, ``"VmHWM"`` for the most since it was forgotten.
    """
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.findall(rf"^{name}:\s+(\d+)", status, re.MULTILINE)[0])


def share_one_heap() -> None:
    """Has all threads share a heap, as the verb train does.

    Else each that ever freed something keeps it for itself.
    """
    ctypes.CDLL(None).mallopt(-8, 1)  # M_ARENA_MAX


def give_back() -> None:
    """Gives the system back what was freed, so that to use it again is seen."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def forget_peak() -> None:
    """Has the most that was held be counted from now on."""
    Path("/proc/self/clear_refs").write_text("5")


def makers(program: Any, compiled: Any) -> Any:
    """Returns compiled functions that make a program's arguments, all zero.

    Args:
      program: As it was lowered.
      compiled: What came of it.
    """
    import jax
    import jax.numpy as jnp

    def maker(leaf: Any, where: Any) -> Any:
        def make() -> jax.Array:
            return jnp.zeros(leaf.shape, leaf.dtype)

        return jax.jit(make, out_shardings=where).lower().compile()

    return jax.tree.map(maker, program.args_info[0], compiled.input_shardings[0])


def measured(
    config: dict[str, Any], mesh: str, stage: Any, batch: int, context: int
) -> dict[str, int]:
    """Runs a stage, and returns what it held over what was there before.

    Args:
      config: Of the decoder.
      mesh: Sizes of axes.
      stage: Which.
      batch: B, rows.
      context: Tokens of each row.

    Returns:
      Bytes: the ``arguments``, and the ``peak``, which has them, too.
    """
    import jax

    from haiku_mqa import DecoderConfig, build
    from haiku_mqa._compiling import COMPILER_OPTIONS
    from haiku_mqa.planning.compiled import lowered
    from haiku_mqa.sharding import shard
    from haiku_mqa.training import OptimizerConfig

    model = shard(build(DecoderConfig(**config)), mesh)
    program = lowered(model, stage, batch, context, OptimizerConfig())
    compiled = program.compile(COMPILER_OPTIONS)
    make = makers(program, compiled)
    give_back()
    before = resident("VmRSS")
    arguments = jax.block_until_ready(jax.tree.map(lambda each: each(), make))
    given = resident("VmRSS")
    forget_peak()
    results = jax.block_until_ready(compiled(*arguments))
    peak = resident("VmHWM")
    del results
    return {"arguments": given - before, "peak": peak - before}


if __name__ == "__main__":
    settings = json.loads(sys.argv[1])
    share_one_heap()
    os.environ["JAX_NUM_CPU_DEVICES"] = str(settings.pop("devices"))
    print(json.dumps(measured(**settings)))
