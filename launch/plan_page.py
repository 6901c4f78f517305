"""launch/PLANS.md from its rows and the results there are."""

import json
import shlex
from pathlib import Path
from typing import NamedTuple

from launch import plan_text
from tavr_jax.errors import InputError

HEAD = """# Plans

Written by `python -m launch.plan_table`; do not edit. Each row is a program of ours,
compiled by XLA for that slice on a machine without a TPU{by}, by
`python -m launch.plan` with the arguments of the row. **Compiled, never run.** Memory
and what is sent are XLA's, of one device (TPU7x has two a chip); time and MFU are
bounds that no run can exceed, not predictions (`launch/plan_roofline.py`).

480 x 896 pixels, 81 frames; 20 reference frames where the arguments say (5,5), 48
otherwise, and 20 in generation. Stages 1 and 2 are one program. Stage 3 is the whole
step: rollouts, rewards, updates.
"""
COLUMNS = (
    "slice", "chips", "layout", "batch", "HBM, GiB", "to spare", "largest temporary",
    "sent, GiB", "PFLOP", "bound, s", "by", "MFU at most", "compile, s",
)  # fmt: skip


class Row(NamedTuple):
    """A line of launch/plans/rows."""

    section: str
    name: str
    arguments: list[str]


def read_rows(path: Path) -> list[Row]:
    """All rows, in order. InputError names a line that is none."""
    rows, section = [], ""
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        line = line.strip()
        if line.startswith("="):
            section = line[1:].strip()
        elif line and not line.startswith("#"):
            name, bar, arguments = line.partition("|")
            if not bar or not section or name.strip() in {r.name for r in rows}:
                raise InputError(
                    f"{path}:{number}: expected NAME | arguments, under a section, and "
                    "every name once"
                )
            rows.append(Row(section, name.strip(), arguments.split()))
    return rows


def read_results(folder: Path) -> dict[str, dict]:
    """Results by the names of their rows."""
    files = sorted(folder.glob("[!.]*.json"))  # not what is being written
    return {path.stem: json.loads(path.read_text("utf-8")) for path in files}


def render(rows: list[Row], results: dict[str, dict]) -> str:
    """The page; rows without a result are listed as such."""
    made = [r["versions"] for r in results.values() if "versions" in r]
    by = {", ".join(f"{name} {v}" for name, v in one.items()) for one in made}
    parts = [HEAD.format(by=f" ({'; '.join(sorted(by))})" if by else "")]
    done = sum(row.name in results for row in rows)
    parts.append(f"{done} of {len(rows)} rows are compiled.\n")
    for section in dict.fromkeys(row.section for row in rows):
        inside = [row for row in rows if row.section == section]
        made = [row for row in inside if row.name in results]
        table = [" | ".join(COLUMNS), " | ".join("---" for _ in COLUMNS)]
        for row in made:
            table += _lines(row, results[row.name])
        lines = [f"| {line} |" for line in table] if made else []
        owed = [row for row in inside if row.name not in results]
        parts.append("\n".join([f"## {section}\n", *lines, ""]))
        parts.append("\n".join([*map(_command, made), ""]) if made else "")
        if owed:
            parts.append("\n".join(["Not compiled yet:\n", *map(_command, owed), ""]))
    return "\n".join(parts)


def _command(row: Row) -> str:
    return f"- {_place(row)}: `python -m launch.plan {shlex.join(row.arguments)}`"


def _lines(row: Row, result: dict) -> list[str]:
    blank = [""] * (len(COLUMNS) - 3)
    if "refused" in result:
        return [" | ".join([_place(row), "", f"refused: {result['refused']}", *blank])]
    return [_line(result, one) for one in result["programs"]]


def _line(result: dict, one: dict) -> str:
    hbm, roof = one["hbm"], one["roofline"]
    several = len(result["programs"]) > 1
    slices = f"{result['slices']} x " if result["slices"] > 1 else ""
    name = f", {one['program']}" if several else ""
    layout = " ".join(f"{a} {n}" for a, n in result["mesh"].items() if n > 1)
    spare = f"{1 - hbm['total'] / hbm['limit']:.0%}"
    most = hbm["largest"][0] if hbm["largest"] else None
    sent = sum(k["sent"] + k["across"] for k in one["collectives"].values())
    cells = [
        f"{slices}{result['topology']}{name}",
        str(result["chips"]),
        layout or "one device",
        str(result["batch_size"]) if result["job"] != "generate" else "1",
        f"{hbm['total'] / plan_text.GIB:.2f} of {hbm['limit'] / plan_text.GIB:.2f}",
        spare if one["fits"] else "**does not fit**",
        f"{plan_text.gib(most['bytes'])} {most['shape']}" if most else "",
        f"{sent / plan_text.GIB:.2f}",
        f"{one['flops'] / 1e15:,.1f}" if one["flops"] else "",
        f"{roof['step']:.3g}",
        roof["by"],
        f"{roof['ceiling']:.0%}" if one["flops"] else "",
        f"{one['compile_seconds']:.0f}",
    ]
    return " | ".join(cells)


def _place(row: Row) -> str:
    given = dict(zip(row.arguments, row.arguments[1:], strict=False))
    slices = given.get("--slices")
    return f"{slices + ' x ' if slices else ''}{given.get('--topology', '')}"
