"""How XLA is asked to compile the programs that generate text."""

from __future__ import annotations

# On a CPU half-precision matrices are widened before they are multiplied. XLA's own
# order of operations widens all of them first, and holds them all; by this one each is
# widened when its turn comes, and its room is then used again.
COMPILER_OPTIONS = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}
