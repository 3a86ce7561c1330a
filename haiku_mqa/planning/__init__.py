"""What a mesh would cost before it is paid for: memory, traffic and time, per device.

Parameters, optimizer states and caches are counted from shapes. What is in between, and
what devices send each other, is read out of programs that are compiled for as many
devices as there shall be, and never run. Time is what the slowest of computing, memory
and network needs (Williams et al. 2009, *Roofline*).
"""

from haiku_mqa.planning.best import best_plan
from haiku_mqa.planning.collectives import Traffic, traffic_of
from haiku_mqa.planning.compiled import Work, compiled_work
from haiku_mqa.planning.devices import DEVICES, Device
from haiku_mqa.planning.memory import Held, held, largest_batch, longest_context
from haiku_mqa.planning.plan import Plan, Stage, make_plan
from haiku_mqa.planning.presets import PRESETS

__all__ = [
    "DEVICES",
    "PRESETS",
    "Device",
    "Held",
    "Plan",
    "Stage",
    "Traffic",
    "Work",
    "best_plan",
    "compiled_work",
    "held",
    "largest_batch",
    "longest_context",
    "make_plan",
    "traffic_of",
]
