"""Who takes a device's memory, from the buffer assignment that XLA writes down.

    allocation 12: size 671154688, preallocated-temp:
     value: <32 fusion.5{0} @0> (size=268435456,offset=65536): f32[16,2048,2048]{..}

XLA writes it also where a program does not fit. Values of one allocation share its
space over time; of values that lie on each other only the largest is listed.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

from launch import plan_hlo

_VALUE = re.compile(
    r" value: <\d+ (?P<name>[\w.\-]+)(?P<index>\{[\d,]*\})?(?P<phi> \(phi\))? @(\d+)> "
    r"\(size=(?P<size>\d+),offset=(?P<offset>\d+)\): (?P<shape>.*)"
)
_ALLOCATION = re.compile(r"allocation \d+: size (\d+)(.*)")


class Buffer(NamedTuple):
    """A piece of memory and what lies there."""

    bytes: int
    shape: str
    name: str  # where the program makes it; the name of XLA's where it says nothing


class Assignment(NamedTuple):
    """Of one program on one device, bytes."""

    arguments: int
    outputs: int  # that do not lie where an argument was
    temporaries: int
    host: int  # kept in the memory of the host
    largest: list[Buffer]  # of the temporaries, largest first

    @property
    def total(self) -> int:
        """Of the device's main memory."""
        return self.arguments + self.outputs + self.temporaries


class _Value(NamedTuple):
    size: int
    offset: int
    name: str
    phi: bool
    shape: str


def read(text: str, program: plan_hlo.Program, count: int = 10) -> Assignment:
    """From the text of the assignment and of the program it belongs to."""
    arguments = outputs = temporaries = host = 0
    temporary: list[_Value] = []
    for size, kind, values in _allocations(text):
        color = re.search(r"color (\d+)", kind)
        if color and color[1] != "0":
            # VMEM, flags, scalars; 5 is the host's memory, as S(5) in shapes
            host += size * (color[1] == "5")
        elif ", parameter " in kind:
            arguments += size
        elif "maybe-live-out" in kind:
            outputs += size
        elif "preallocated-temp" in kind:
            temporaries += size
            temporary += values
    largest = [_named(value, program) for value in _apart(temporary, count)]
    return Assignment(arguments, outputs, temporaries, host, largest)


def _allocations(text: str) -> Iterator[tuple[int, str, list[_Value]]]:
    size, kind, values = 0, "", []
    for line in text.splitlines():
        head = _ALLOCATION.match(line)
        if head:
            if kind:
                yield size, kind, values
            size, kind, values = int(head[1]), head[2], []
            continue
        value = _VALUE.match(line)
        if value and kind:
            values.append(
                _Value(
                    int(value["size"]),
                    int(value["offset"]),
                    value["name"],
                    bool(value["phi"]),
                    value["shape"],
                )
            )
        elif not line.startswith(" value") and kind:
            yield size, kind, values
            kind = ""
    if kind:
        yield size, kind, values


def _apart(values: list[_Value], count: int) -> list[_Value]:
    """The largest values that do not lie on each other."""
    taken: list[_Value] = []
    for value in sorted(values, key=lambda v: (-v.size, v.phi, v.name)):
        if len(taken) == count:
            break
        if value.shape.startswith("("):
            continue  # a table of addresses
        ends = value.offset + value.size
        if not any(v.offset < ends and value.offset < v.offset + v.size for v in taken):
            taken.append(value)
    return taken


def _named(value: _Value, program: plan_hlo.Program) -> Buffer:
    found = program.find(value.name)
    asked = plan_hlo.op_name(found) if found else ""
    return Buffer(value.size, value.shape.partition("{")[0], asked or value.name)
