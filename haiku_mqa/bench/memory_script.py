"""One process of ``haiku-mqa bench memory``: it loads, generates, and tells its peak.

It is started by its path, so that it imports what any program would and no benchmark.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def jax_alone() -> dict[str, Any]:
    """Runs one small program, as every process that uses jax has to."""
    import jax

    jax.jit(lambda x: x + 1)(1.0).block_until_ready()
    return {}


def generate(
    source: str, dtype: str, quantize: str, prompt_tokens: str, new_tokens: str
) -> dict[str, Any]:
    """Loads a model, continues a prompt, and returns how many bytes it had to hold.

    Args:
      source: A name, a file or a folder.
      dtype: As ``load_pretrained``.
      quantize: Likewise; ``"none"`` for nothing.
      prompt_tokens: How many there are, of one kind.
      new_tokens: How many are chosen.
    """
    import jax

    import haiku_mqa
    from haiku_mqa.generation.generate import bucket

    loaded = haiku_mqa.load_pretrained(
        source,
        dtype=dtype,  # type: ignore[arg-type]
        quantize=None if quantize == "none" else quantize,  # type: ignore[arg-type]
    )
    model, params = loaded.model, loaded.params
    haiku_mqa.generate(
        model, params, [[1] * int(prompt_tokens)], max_new_tokens=int(new_tokens)
    )
    room = bucket(int(prompt_tokens) + int(new_tokens))
    cache = jax.eval_shape(lambda: model.init_cache(1, room))
    return {
        "weight_bytes": sum(leaf.nbytes for leaf in jax.tree.leaves(params)),
        "cache_bytes": sum(
            leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(cache)
        ),
    }


def peak_bytes() -> int | None:
    """Returns the most memory that this process has held; ``None`` if nobody tells."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    lines = [line for line in status.splitlines() if line.startswith("VmHWM:")]
    return 1024 * int(lines[0].split()[1]) if lines else None


if __name__ == "__main__":
    what, *rest = sys.argv[1:]
    told = jax_alone() if what == "jax" else generate(*rest)
    print(json.dumps({**told, "peak_bytes": peak_bytes()}))
