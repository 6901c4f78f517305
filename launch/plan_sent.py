"""What a compiled program sends over the links.

Of one device, with B the bytes of an operand and g the devices of a group:

    (1) sent  all-gather (g-1) B         reduce-scatter (g-1)/g B
              all-reduce 2 (g-1)/g B     all-to-all (g-1)/g B      permute B
    (2) across s slices of r devices each, at best: (1) with g = s on 1/r of what an
        all-reduce or reduce-scatter has, and (1) with g = r inside a slice

An instruction in a loop counts as often as the loop runs (plan_hlo.py).
"""

import dataclasses
import math
import re
from collections.abc import Sequence

import numpy as np

from launch.plan_hlo import Instruction, Program, op_name, shape_bytes

KINDS = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective instruction."""

    kind: str
    times: int  # a step
    sent: float  # bytes a device sends inside its slice, each time
    across: float  # and to other slices
    name: str  # where the program asks for it


def collectives(program: Program, slices: Sequence[int]) -> list[Collective]:
    """(1), (2). `slices`: the slice of every device, in the mesh's order."""
    found = []
    for name, block in program.computations.items():
        for one in block.values():
            times = program.times.get(name)
            kind = _kind(block, one, name in program.fused)
            if kind and times:
                given = (block[o].shape for o in one.operands if o in block)
                sent, across = _sent(kind, sum(map(shape_bytes, given)), one, slices)
                found.append(Collective(kind, times, sent, across, op_name(one)))
    return found


def groups(attributes: str, count: int) -> np.ndarray:
    """Devices that talk to each other, a row a group; `count` devices in all."""
    text = attributes[attributes.index("replica_groups=") + len("replica_groups=") :]
    if text.startswith("{{"):
        rows = re.findall(r"\{([\d,]+)\}", text[: text.index("}}") + 2])
        return np.array([[int(n) for n in row.split(",")] for row in rows])
    if text.startswith("mesh["):
        named = re.match(
            r"mesh\[([^\]]*)\](, device_ids=\(([^)]*\)?)\))? \{([^}]*)\}", text
        )
        axes = dict(re.findall(r"'([^']*)'=(\d+)", named[1]))
        sizes = [int(n) for n in axes.values()]
        ids = _iota(named[3]) if named[3] else np.arange(math.prod(sizes))
        taken = [list(axes).index(n) for n in re.findall(r"'([^']*)'", named[4])]
        ids = np.moveaxis(ids.reshape(sizes), taken, range(-len(taken), 0))
        return ids.reshape(-1, math.prod(sizes[i] for i in taken))
    listed = re.match(r"\[([\d,]+)\]<=(\[[\d,]+\](?:T\([\d,]+\))?)", text)
    if listed:
        return _iota(listed[2]).reshape([int(n) for n in listed[1].split(",")])
    return np.arange(count)[None]


def _iota(text: str) -> np.ndarray:
    """ "[2,4]T(1,0)": 0, 1, ... in that shape, its axes then in that order."""
    dims, _, order = text.lstrip("[").partition("]")
    ids = np.arange(math.prod(map(int, dims.split(",")))).reshape(
        [int(n) for n in dims.split(",")]
    )
    order = re.findall(r"\d+", order)
    return ids.transpose([int(n) for n in order]).ravel() if order else ids.ravel()


def _sent(
    kind: str, size: int, one: Instruction, slices: Sequence[int]
) -> tuple[float, float]:
    """(1), (2)."""
    place = np.asarray(slices)
    if kind == "collective-permute":
        pairs = re.findall(r"\{(\d+),(\d+)\}", one.rest.partition("source_target")[2])
        far = any(place[int(a)] != place[int(b)] for a, b in pairs)
        return (0.0, float(size)) if far else (float(size), 0.0)
    rows = groups(one.rest, len(slices)) if "replica_groups=" in one.rest else None
    if rows is None:
        rows = np.arange(len(slices))[None]
    many = len(set(place[rows[0]].tolist()))
    near = rows.shape[1] // many
    inside = _share(kind, near) * size * (many if kind == "all-gather" else 1)
    if many == 1:
        return inside, 0.0
    less = near if kind in ("all-reduce", "reduce-scatter") else 1
    return inside, _share(kind, many) * size / less


def _share(kind: str, group: int) -> float:
    """(1) over B."""
    match kind:
        case "all-gather":
            return group - 1
        case "all-reduce":
            return 2 * (group - 1) / group
        case "collective-broadcast":
            return 1
    return (group - 1) / group


def _kind(block: dict[str, Instruction], one: Instruction, is_fused: bool) -> str:
    """Its collective, also of the half that starts one; "" for others."""
    kind = one.opcode.removesuffix("-start")
    # What TPUs do as one is a fusion of a sum of which only parts are taken.
    if kind == "all-reduce" and is_fused and _only_sliced(block, one.name):
        return "reduce-scatter"
    return kind if kind in KINDS else ""


def _only_sliced(block: dict[str, Instruction], name: str) -> bool:
    readers = [one for one in block.values() if name in one.operands]
    passing = ("get-tuple-element", "bitcast")
    return bool(readers) and all(
        _only_sliced(block, one.name)
        if one.opcode in passing
        else one.opcode == "dynamic-slice" and one.operands[0] == name
        for one in readers
    )
