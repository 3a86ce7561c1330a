"""What devices send each other, read out of a compiled program."""

from __future__ import annotations

import collections
import dataclasses
import math
import re
from collections.abc import Iterator, Mapping

_BYTES = {
    "pred": 1,
    "s8": 1,
    "u8": 1,
    "bf16": 2,
    "f16": 2,
    "s16": 2,
    "u16": 2,
    "f32": 4,
    "s32": 4,
    "u32": 4,
    "f64": 8,
    "s64": 8,
    "u64": 8,
}
KINDS = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
)
"""The ways in which devices send each other parts of arrays."""

_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
_COLLECTIVE = re.compile(rf"= (.+?) ({'|'.join(KINDS)})(?:-start)?\(")
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\]")
_LISTED_GROUP = re.compile(r"replica_groups=\{\{([\d,]*)\}")
_COUNTED_GROUP = re.compile(r"replica_groups=\[\d+,(\d+)\]")
_MESH_GROUP = re.compile(r"replica_groups=mesh\[(.*?)\].*?\{('.*?)\}")
_MESH_AXIS = re.compile(r"'(\w+)'=(\d+)")
_GROUP_AXIS = re.compile(r"'(\w+)'(?::\(\d+\)(\d+))?")  # all of it, or a part
_CALLED = re.compile(
    r"(?:body|to_apply|calls|true_computation|false_computation)=%?([\w.\-]+)"
)
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


@dataclasses.dataclass(frozen=True)
class Traffic:
    """What each device sends in one run of a program, by kind.

    Attributes:
      sent: Kind of collective to bytes.

    Example:
      >>> Traffic({"all-reduce": 8.0, "all-gather": 4.0}).total
      12.0
    """

    sent: Mapping[str, float]

    @property
    def total(self) -> float:
        """Bytes, of all kinds together."""
        return sum(self.sent.values())


def traffic_of(text: str) -> Traffic:
    """Returns what each device sends, by a program's text.

    In a ring of n devices a gather sends (n - 1) / n of what comes of it, a sum twice
    that, a scattered sum (n - 1) times its part. What stands in a loop counts as often
    as the loop runs.

    Args:
      text: Of a compiled program, as ``compiled.as_text()`` has it.

    Returns:
      The traffic.

    Raises:
      ValueError: Who sends to whom is written in a way that is not known here.

    Example:
      >>> text = '''ENTRY %main (p: f32[8]) -> f32[8] {
      ...   %sum = f32[8]{0} all-reduce(%p), replica_groups={{0,1}}, to_apply=%add
      ... }'''
      >>> traffic_of(text).sent
      {'all-reduce': 32.0}
    """
    lines: dict[str, list[str]] = {}
    entry = name = ""
    for line in text.splitlines():
        if match := _COMPUTATION.match(line.strip()):
            name = match[1]
            lines[name] = []
            entry = name if line.lstrip().startswith("ENTRY") else entry
        elif name:
            lines[name].append(line)
    sent: dict[str, float] = collections.defaultdict(float)
    for kind, count in _sent(entry, lines, 1):
        sent[kind] += count
    return Traffic(dict(sent))


def _sent(
    name: str, lines: Mapping[str, list[str]], times: int
) -> Iterator[tuple[str, float]]:
    for line in lines.get(name, ()):
        if match := _COLLECTIVE.search(line):
            yield match[2], times * _bytes_sent(match[2], match[1], line)
            continue
        trips = _TRIPS.search(line)
        for called in _CALLED.findall(line):
            yield from _sent(called, lines, times * int(trips[1] if trips else 1))


def _bytes_sent(kind: str, shape: str, line: str) -> float:
    size = sum(
        _BYTES[dtype] * math.prod(int(n) for n in sizes.split(",") if n)
        for dtype, sizes in _ARRAY.findall(shape)
    )
    if kind == "collective-permute":
        return size
    group = _group(line)
    others = group - 1
    if kind == "reduce-scatter":
        return size * others
    return size * others / group * (2 if kind == "all-reduce" else 1)


def _group(line: str) -> int:
    """Returns among how many devices a collective is."""
    if match := _MESH_GROUP.search(line):
        sizes = dict(_MESH_AXIS.findall(match[1]))
        return math.prod(
            int(part or sizes[axis]) for axis, part in _GROUP_AXIS.findall(match[2])
        )
    if match := _COUNTED_GROUP.search(line):
        return int(match[1])
    if match := _LISTED_GROUP.search(line):
        return match[1].count(",") + 1
    # To take it for nothing would make a mesh look cheap.
    raise ValueError(f"replica_groups are written in a way not known here: {line}")
