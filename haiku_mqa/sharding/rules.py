"""Which axis of which parameter goes over which axis of a mesh.

Two short tables. The first names the axes of every parameter by what they count; the
second says where such an axis goes. Megatron's split of heads and of d_ff (Shoeybi et
al. 2019), and ZeRO's of what is left (Rajbhandari et al. 2019).
"""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Iterable, Sequence

from jax.sharding import AbstractMesh, Mesh, PartitionSpec

from haiku_mqa.config import DecoderConfig

COUNTED = ("model", "heads", "kv_heads", "ff", "vocab", "vector")
"""What an axis of a parameter can count; a ``vector`` is a token's in a table."""

Axis = str | tuple[str, ...] | None
Axes = tuple[Axis, ...]


@dataclasses.dataclass(frozen=True)
class Rule:
    """What the axes of some parameters count.

    Attributes:
      pattern: Of paths below ``decoder_lm``, as shells have it: ``*/query/w``.
      axes: For each axis of the parameter one of ``COUNTED``, an axis of the mesh, or
        ``None`` where it is whole on every device; nothing at all for a parameter that
        is.

    Example:
      >>> Rule("*/attention/query/w", ("model", "heads")).matches(
      ...     "decoder/layer_0/attention/query/w")
      True
    """

    pattern: str
    axes: Axes = ()

    def matches(self, path: str) -> bool:
        """Returns whether a parameter's path is one of these.

        Args:
          path: Below ``decoder_lm``.
        """
        return fnmatch.fnmatchcase(path, self.pattern)


PARAMETERS = (
    Rule("embed/embeddings", ("vocab", "vector")),
    Rule("position_embed/embeddings", (None, "model")),
    Rule("unembed/w", ("vector", "vocab")),
    Rule("unembed/b", ("vocab",)),
    Rule("*/attention/query/w", ("model", "heads")),
    Rule("*/attention/query/b", ("heads",)),
    Rule("*/attention/key/w", ("model", "kv_heads")),
    Rule("*/attention/key/b", ("kv_heads",)),
    Rule("*/attention/value/w", ("model", "kv_heads")),
    Rule("*/attention/value/b", ("kv_heads",)),
    Rule("*/attention/linear/w", ("heads", "model")),
    Rule("*/attention/linear/b"),
    Rule("*/feed_forward/gate/w", ("model", "ff")),
    Rule("*/feed_forward/gate/b", ("ff",)),
    Rule("*/feed_forward/up/w", ("model", "ff")),
    Rule("*/feed_forward/up/b", ("ff",)),
    Rule("*/feed_forward/down/w", ("ff", "model")),
    Rule("*/feed_forward/down/b"),
    Rule("*norm/scale"),
    Rule("*norm/offset"),
)
"""One rule for each parameter of each decoder."""


def rule_of(path: str, rules: Sequence[Rule], own: Iterable[Rule] = ()) -> Rule:
    """Returns the rule of a parameter: the first of one's own, or the only other.

    Args:
      path: The parameter's, below ``decoder_lm``.
      rules: Of which one must match, and no other.
      own: Which come before those.

    Returns:
      The rule.

    Raises:
      ValueError: None matches, or several do.

    Example:
      >>> rule_of("embed/embeddings", PARAMETERS).axes
      ('vocab', 'vector')
    """
    for rule in own:
        if rule.matches(path):
            return rule
    found = [rule for rule in rules if rule.matches(path)]
    if len(found) != 1:
        names = ", ".join(rule.pattern for rule in found) or "none"
        raise ValueError(f"exactly one rule must match {path}, got {names}")
    return found[0]


def check_divides(config: DecoderConfig, mesh: Mesh) -> None:
    """Raises an error where a mesh cannot split what it should.

    Args:
      config: Of the decoder.
      mesh: With axes ``fsdp`` and ``tensor``.

    Raises:
      ValueError: A size is not divided; names it, and what would divide it.
    """
    for name, axis in (
        ("num_heads", "tensor"),
        ("d_ff", "tensor"),
        ("d_model", "fsdp"),
    ):
        size, parts = getattr(config, name), mesh.shape[axis]
        if size % parts:
            allowed = [n for n in range(1, 2 * parts) if size % n == 0]
            raise ValueError(
                f"{axis} = {parts} must divide {name}, which is {size}; allowed: "
                f"{', '.join(map(str, allowed))}"
            )


def places(config: DecoderConfig, mesh: Mesh | AbstractMesh) -> dict[str, Axis]:
    """Returns over which axes of a mesh goes what an axis of a parameter counts.

    Key/value heads are whole on every device where ``tensor`` does not divide them: one
    head cannot be split over heads. A table of tokens is split by tokens where they can
    be split evenly, since to look up parts of vectors would gather all of them first.

    Args:
      config: Of the decoder.
      mesh: With axes ``fsdp`` and ``tensor``.

    Returns:
      Each of ``COUNTED`` to an axis of the mesh, or to ``None``.

    Example:
      >>> from haiku_mqa.sharding.mesh import make_mesh
      >>> config = DecoderConfig(
      ...     vocab_size=256, num_layers=2, num_heads=8, d_model=64, d_ff=256)
      >>> places(config, make_mesh("tensor=1"))["heads"]
      'tensor'
    """
    tensor, fsdp = mesh.shape["tensor"], mesh.shape["fsdp"]
    by_both = config.vocab_size % (tensor * fsdp) == 0
    by_tensor = config.vocab_size % tensor == 0
    return {
        "model": "fsdp",
        "heads": "tensor",
        "kv_heads": None if config.num_kv_heads % tensor else "tensor",
        "ff": "tensor",
        "vocab": ("tensor", "fsdp") if by_both else "tensor" if by_tensor else None,
        "vector": None if by_both else "fsdp",
    }


def spec_of(rule: Rule, where: dict[str, Axis]) -> PartitionSpec:
    """Returns a rule in the words of a mesh.

    Args:
      rule: Of a parameter.
      where: As ``places``.

    Returns:
      The axis of the mesh for each axis of the parameter.

    Example:
      >>> tuple(spec_of(Rule("*", ("model", None)), {"model": "fsdp"}))
      ('fsdp', None)
    """
    return PartitionSpec(
        *(
            where.get(axis, axis) if isinstance(axis, str) else axis
            for axis in rule.axes
        )
    )
