"""What a compiled program reads from and writes to a device's main memory.

    (1) moved  bytes of results and operands of every instruction outside of fusions;
               of a slice that is read or written in place, its own size

Arrays that lie elsewhere (VMEM, the host: S(1), S(5) in a shape) do not count, nor does
padding, and a kernel reads and writes each of its arrays once: (1) is from below there.
An instruction in a loop counts as often as the loop runs (plan_hlo.py).
"""

import re

from launch.plan_hlo import (
    Instruction,
    Program,
    array_bytes,
    arrays,
    called,
    shape_bytes,
)

_NO_TRAFFIC = {
    "parameter", "constant", "get-tuple-element", "tuple", "bitcast", "while", "call",
    "conditional", "after-all", "partition-id", "replica-id", "domain", "iota",
    "opt-barrier", "async-start", "async-update", "async-done",
}  # fmt: skip


def traffic(program: Program) -> float:
    """(1), of a step."""
    total = 0
    for name, block in program.computations.items():
        times = program.times.get(name)
        if times and name not in program.fused:
            total += times * sum(_moved(program, block, one) for one in block.values())
    return float(total)


def hbm_bytes(shape: str) -> int:
    """The same, of what lies in the device's main memory."""
    return sum(map(_hbm, arrays(shape)))


def _moved(program: Program, block: dict[str, Instruction], one: Instruction) -> int:
    if one.opcode in _NO_TRAFFIC or one.opcode.endswith("-done"):
        return 0
    if one.opcode in ("dynamic-slice", "slice", "gather"):
        whole = block.get(one.operands[0])
        read = shape_bytes(one.shape) if whole and hbm_bytes(whole.shape) else 0
        return read + hbm_bytes(one.shape)
    if one.opcode == "dynamic-update-slice":
        return 2 * hbm_bytes(block[one.operands[1]].shape)
    given = [block[o].shape if o in block else "" for o in one.operands]
    if one.opcode in ("copy-start", "slice-start"):  # the result repeats what it reads
        return hbm_bytes(one.shape)
    if one.opcode.endswith("-start"):
        return 2 * sum(map(hbm_bytes, given))
    if one.opcode != "fusion":
        return hbm_bytes(one.shape) + sum(map(hbm_bytes, given))
    name = called(one)[0]
    inner = program.computations.get(name, {})
    read = sum(
        min(hbm_bytes(shape), _read_of_parameter(inner, number))
        for number, shape in enumerate(given)
    )
    return read + _written(inner, program.roots.get(name, ""), one)


def _written(block: dict[str, Instruction], root: str, one: Instruction) -> int:
    if root not in block:
        return hbm_bytes(one.shape)
    parts = [block[root]]
    if parts[0].opcode == "tuple":
        parts = [block[o] for o in parts[0].operands if o in block]
    total = 0
    for part, place in zip(parts, arrays(one.shape), strict=False):
        while part.opcode == "bitcast" and part.operands[0] in block:
            part = block[part.operands[0]]
        whole = _hbm(place)
        if whole and part.opcode == "dynamic-update-slice":
            whole = min(whole, shape_bytes(block[part.operands[1]].shape))
        total += whole
    return total


def _hbm(array: tuple[str, str, str]) -> int:
    kind, dims, layout = array
    return 0 if re.search(r"S\([1-9]", layout) else array_bytes(kind, dims)


def _read_of_parameter(block: dict[str, Instruction], number: int) -> int:
    """Bytes that a fused computation reads of its parameter, at most."""
    names = {
        n
        for n, one in block.items()
        if one.opcode == "parameter" and one.rest.startswith(f"{number})")
    }
    whole, total = 2**62, 0
    todo = list(names)
    while todo:
        name = todo.pop()
        for one in block.values():
            if name not in one.operands:
                continue
            if one.opcode == "bitcast":
                todo.append(one.name)
            elif one.opcode in ("dynamic-slice", "slice", "gather"):
                total += shape_bytes(one.shape)
            elif one.opcode == "dynamic-update-slice" and one.operands[0] == name:
                pass  # it is written in place
            else:
                return whole
    return total
