"""A compiled program as XLA prints it (optimized HLO): its instructions and loops.

XLA's own counts take the body of a loop once; `Program.times` says how often each
computation runs. How often a loop runs is what XLA noted, or the bound that its
condition compares with, over what a turn adds: loops count from 0. A loop that has
neither counts once, and every branch of a conditional counts.
"""

import dataclasses
import math
import re
from collections import defaultdict
from collections.abc import Iterator
from functools import cached_property

_COUNTERS = ("s32", "u32")  # the latter in products that XLA spreads over turns
_BITS = {"pred": 8, "token": 0, "opaque": 0}
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,<=]*)\](\{[^{}]*\})?")
_BEGIN = re.compile(r"  (ROOT )?%?[\w.\-]+ = ")
_END = re.compile(r"\}($|, execution_thread=)")
_CALLED = re.compile(
    r"(?:calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)"
)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line."""

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    rest: str  # attributes, and the argument of constants and parameters


class Program:
    """The computations of one HLO text."""

    def __init__(self, text: str):
        self.computations: dict[str, dict[str, Instruction]] = {}
        self.entry = ""
        self.roots: dict[str, str] = {}  # of each computation, its result
        for name, entry, lines in _blocks(text):
            found = {}
            for line in lines:
                instruction = _instruction(line)
                if instruction is None:
                    continue
                found[instruction.name] = instruction
                if line.lstrip().startswith("ROOT"):
                    self.roots[name] = instruction.name
            self.computations[name] = found
            if entry:
                self.entry = name

    @cached_property
    def times(self) -> dict[str, int]:
        """How often each computation runs in a step; those inside fusions too."""
        return self._walk()[0]

    @cached_property
    def unbounded(self) -> int:
        """Loops whose length is not known, and which count once."""
        return self._walk()[1]

    @cached_property
    def unreached(self) -> int:
        """Computations that nothing seems to call: more than 0 is text that was not
        understood, and what is counted is then too little."""
        return sum(name not in self.times for name in self.computations)

    @cached_property
    def fused(self) -> set[str]:
        """Computations whose instructions do not touch memory one by one."""
        inside: set[str] = set()
        for block in self.computations.values():
            for one in block.values():
                applied = "to_apply=" in one.rest and one.opcode != "call"
                if one.opcode in ("fusion", "fusion-start") or applied:
                    inside |= set(called(one))
        todo = list(inside)
        while todo:
            for one in self.computations.get(todo.pop(), {}).values():
                more = set(called(one)) - inside
                inside |= more
                todo += more
        return inside

    def find(self, name: str) -> Instruction | None:
        """The instruction of this name, in any computation."""
        return self._by_name.get(name)

    @cached_property
    def _by_name(self) -> dict[str, Instruction]:
        return {n: one for b in self.computations.values() for n, one in b.items()}

    def _walk(self) -> tuple[dict[str, int], int]:
        times: dict[str, int] = defaultdict(int)
        unbounded = 0

        def visit(name: str, count: int) -> None:
            nonlocal unbounded
            times[name] += count
            for one in self.computations.get(name, {}).values():
                if one.opcode == "while":
                    turns = self._turns(one)
                    unbounded += turns is None
                    for part in ("condition", "body"):
                        visit(_attribute(one, part), count * (turns or 1))
                for name_of in called(one):
                    visit(name_of, count)

        visit(self.entry, 1)
        return dict(times), unbounded

    def _turns(self, loop: Instruction) -> int | None:
        """How often a `while` runs."""
        noted = re.search(r'known_trip_count\D{1,8}?n\D{1,4}?"?(\d+)', loop.rest)
        if noted:
            return int(noted[1])
        block = self.computations.get(_attribute(loop, "condition"), {})
        for one in block.values():
            if one.opcode == "compare" and "direction=LT" in one.rest:
                bounds = [block[o] for o in one.operands if o in block]
                for bound in bounds:
                    if bound.opcode == "constant" and bound.shape[:3] in _COUNTERS:
                        return -(-_value(bound) // self._step(loop, block, one))
        return None

    def _step(
        self, loop: Instruction, condition: dict[str, Instruction], test: Instruction
    ) -> int:
        """What a turn adds to the counter that `test` compares; 1 where that is not an
        addition of a constant."""
        name = _attribute(loop, "body")
        body = self.computations.get(name, {})
        root = body.get(self.roots.get(name, ""))
        for counter in (condition[o] for o in test.operands if o in condition):
            place = _attribute(counter, "index")
            if place and root and root.opcode == "tuple":
                added = body.get(root.operands[int(place)])
                given = added.operands if added and added.opcode == "add" else ()
                for part in (body[o] for o in given if o in body):
                    if part.opcode == "constant":
                        return max(1, _value(part))
        return 1


def _value(constant: Instruction) -> int:
    return int(constant.rest.partition(")")[0])


def op_name(one: Instruction) -> str:
    """Where in the traced function it comes from; "" where XLA does not say."""
    found = re.search(r'op_name="([^"]*)"', one.rest)
    return found[1] if found else ""


def shape_bytes(shape: str) -> int:
    """Of an array or a tuple, unpadded."""
    return sum(array_bytes(kind, dims) for kind, dims, _ in arrays(shape))


def _blocks(text: str) -> Iterator[tuple[str, bool, list[str]]]:
    """(name, whether it is the entry, instructions) of every computation. What a
    kernel says of itself is printed over several lines, and one of them begins with
    the bracket that ends computations."""
    name, entry, lines = "", False, []
    for line in text.splitlines():
        if line.startswith(("%", "ENTRY")) and line.rstrip().endswith("{"):
            entry = line.startswith("ENTRY")
            name = re.match(r"(?:ENTRY )?%?([\w.\-]+)", line)[1]
            lines = []
        elif _END.match(line):
            if name:
                yield name, entry, lines
            name = ""
        elif name and _BEGIN.match(line):
            lines.append(line)
        elif name and lines:
            lines[-1] += line


def _instruction(line: str) -> Instruction | None:
    head, equals, rest = line.strip().removeprefix("ROOT ").partition(" = ")
    if not equals:
        return None
    end = _closing(rest, 0) + 1 if rest.startswith("(") else 0
    end = rest.index(" ", end)
    shape, rest = rest[:end], rest[end + 1 :]
    start = rest.index("(")
    stop = _closing(rest, start)
    operands = tuple(re.findall(r"%([\w.\-]+)", rest[start : stop + 1]))
    inside = "" if operands else rest[start + 1 :]
    after = inside or rest[stop + 1 :]
    return Instruction(head.lstrip("%"), shape, rest[:start], operands, after)


def _closing(text: str, start: int) -> int:
    """Place of the bracket that closes the one at `start`."""
    depth = 0
    for place in range(start, len(text)):
        depth += (text[place] == "(") - (text[place] == ")")
        if not depth:
            return place
    raise ValueError(f"no end: {text[start : start + 80]}")


def _attribute(one: Instruction, name: str) -> str:
    found = re.search(rf"\b{name}=%?([\w.\-]+)", one.rest)
    return found[1] if found else ""


def called(one: Instruction) -> list[str]:
    """Computations that it calls; of a loop, none: `times` knows them. What runs
    beside others is called by the half that starts it."""
    if one.opcode.endswith(("-update", "-done")):
        return []
    listed = re.search(r"branch_computations=\{([^}]*)\}", one.rest)
    branches = re.findall(r"%?([\w.\-]+)", listed[1]) if listed else []
    return _CALLED.findall(one.rest) + branches


def arrays(shape: str) -> list[tuple[str, str, str]]:
    """(kind, lengths, layout) of an array or of the parts of a tuple."""
    return _ARRAY.findall(shape)


def array_bytes(kind: str, dims: str) -> int:
    """Of one of `arrays`, unpadded."""
    bits = _BITS.get(kind)
    if bits is None:
        number = re.search(r"\d+", kind)
        bits = int(number[0]) if number else 0
    dims = [int(n) for n in re.findall(r"\d+", dims)]
    return math.prod(dims) * bits // 8
