"""Compile the rows of launch/PLANS.md that are missing, and write the page.

    nice -n 19 python -m launch.plan_table --budget 120

Rows are in launch/plans/rows, results in launch/plans/NAME.json: a row with a result is
not compiled again (remove the file to have it done). One row at a time, minutes each;
after --budget minutes no new one is begun. --budget 0 only writes the page. Stopped at
any time, it goes on with the row it was in, whose log is RESULTS/.NAME.log.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from absl import flags

from launch import cli, plan_page
from tavr_jax.errors import InputError

_HERE = Path(__file__).parent
ROWS = flags.DEFINE_string("rows", str(_HERE / "plans/rows"), "What to compile.")
RESULTS = flags.DEFINE_string("results", str(_HERE / "plans"), "Folder of results.")
OUTPUT = flags.DEFINE_string("output", str(_HERE / "PLANS.md"), "The page.")
BUDGET = flags.DEFINE_float("budget", 60.0, "Minutes.", lower_bound=0)


def main() -> None:
    """Compile what is missing, write the page after every row."""
    rows, folder = plan_page.read_rows(Path(ROWS.value)), Path(RESULTS.value)
    if not folder.is_dir():
        raise InputError(f"--results={folder}: no such folder")
    since = time.monotonic()
    for number, row in enumerate(rows, 1):
        file = folder / f"{row.name}.json"
        if file.exists() or time.monotonic() - since > 60 * BUDGET.value:
            continue
        print(f"[{number}/{len(rows)}] {row.name}", flush=True)
        _compile(row, file)
        _write(rows, folder)
    _write(rows, folder)


def _compile(row: plan_page.Row, file: Path) -> None:
    """In a process of its own: XLA gives memory back only when it ends."""
    unfinished, log = (file.with_name(f".{row.name}.{end}") for end in ("json", "log"))
    command = [sys.executable, "-m", "launch.plan", *row.arguments]
    command.append(f"--output={unfinished}")
    with log.open("w") as said:
        done = subprocess.run(command, stdout=said, stderr=subprocess.STDOUT)
    if done.returncode not in (0, 1) or not unfinished.exists():
        lines = log.read_text("utf-8", "replace").strip().splitlines()[-1:]
        print(f"{row.name}: exit code {done.returncode}: {log}", file=sys.stderr)
        if done.returncode != 2:
            return  # it broke or was stopped: tried again the next time
        unfinished.write_text(json.dumps({"refused": lines[0]}), "utf-8")
    os.replace(unfinished, file)
    log.unlink()


def _write(rows: list[plan_page.Row], folder: Path) -> None:
    page = plan_page.render(rows, plan_page.read_results(folder))
    Path(OUTPUT.value).write_text(page, "utf-8")


if __name__ == "__main__":
    cli.run(main, __doc__)
