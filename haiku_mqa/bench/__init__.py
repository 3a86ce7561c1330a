"""How fast it is, beside the machine's limit and beside others.

Every figure is a median of several repeats, programs take turns within each repeat,
and the memory's speed is measured in the same minutes, because machines are shared
and only ratios from one run mean anything.
"""

from haiku_mqa.bench.bandwidth import load_remarks, read_bandwidth
from haiku_mqa.bench.decode import Ours, Program, Timing, take_turns
from haiku_mqa.bench.peers import transformers_peers
from haiku_mqa.bench.remote import Peers, RemotePeer
from haiku_mqa.bench.report import DecodeReport, Standing

__all__ = [
    "DecodeReport",
    "Ours",
    "Peers",
    "Program",
    "RemotePeer",
    "Standing",
    "Timing",
    "load_remarks",
    "read_bandwidth",
    "take_turns",
    "transformers_peers",
]
