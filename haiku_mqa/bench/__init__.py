"""How fast it is, beside the machine's limit and beside others.

Every figure is a median of several repeats, programs take turns within each repeat,
and the memory's speed is measured in the same minutes, because machines are shared
and only ratios from one run mean anything.
"""

from haiku_mqa.bench.bandwidth import load_remarks, read_bandwidth
from haiku_mqa.bench.decode import Ours, Program, Timing
from haiku_mqa.bench.remote import Peers, RemotePeer
from haiku_mqa.bench.standing import Standing
from haiku_mqa.bench.turns import Turns, take_turns

__all__ = [
    "Ours",
    "Peers",
    "Program",
    "RemotePeer",
    "Standing",
    "Timing",
    "Turns",
    "load_remarks",
    "read_bandwidth",
    "take_turns",
]
