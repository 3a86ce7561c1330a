"""Decoders over several devices: what lies where, and that it changes nothing.

JAX's partitioner does the work. A mesh says which devices there are, a table of rules
which axis of each parameter goes over which axis of the mesh, and a sharded model is
a model: what takes the one takes the other.
"""

from haiku_mqa.sharding.layout import Layout
from haiku_mqa.sharding.mesh import AXES, make_mesh, mesh_sizes
from haiku_mqa.sharding.processes import fetched, is_first, join
from haiku_mqa.sharding.rules import PARAMETERS, Rule
from haiku_mqa.sharding.sharded import ShardedModel, shard

__all__ = [
    "AXES",
    "PARAMETERS",
    "Layout",
    "Rule",
    "ShardedModel",
    "fetched",
    "is_first",
    "join",
    "make_mesh",
    "mesh_sizes",
    "shard",
]
