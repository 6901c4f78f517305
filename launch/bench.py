"""Speed, always as a ratio against something measured in the same run.

    python -m launch.bench step,gradient --config configs/same_scene.py:mini --json NEW
    python -m launch.bench step,gradient --config configs/same_scene.py:mini \\
        --compare OLD --slack 1.1

A bench is a file launch/bench_NAME.py with flags of its own, a docstring that says what
is measured, and `main()`, which returns rows (launch/bench_rows.py) or, annotated as
-> None, only prints. The parts of the model are one file, bench_model.py; NAME,NAME
runs several of them.

--json FILE writes the rows; --compare FILE prints new / old for every row of an older
file, and the exit code is 1 where one costs more than --slack times as much or no
longer fits into memory, 2 where the files have no row in common.
"""

import importlib
import json
import sys
from pathlib import Path

from absl import flags

from launch import bench_rows, cli
from tavr_jax.errors import InputError

JSON = flags.DEFINE_string("json", None, "File to write the rows to.")
COMPARE = flags.DEFINE_string("compare", None, "File of an older run.")
SLACK = flags.DEFINE_float("slack", 1.1, "What a row may cost, of the older one's.", 0)
# of bench_model.py
LEARN = ("gradient", "train", "rollout")
PARTS = ("block", "prefill", "step", "guidance", *LEARN, "speech", "matmul")


def files() -> list[str]:
    """The benches that are files."""
    paths = sorted(Path(__file__).parent.glob("bench_*.py"))
    found = [p.stem for p in paths if "\ndef main(" in p.read_text("utf-8")]
    return [name.removeprefix("bench_") for name in found if name != "bench_model"]


def main() -> None:
    """Run the bench that the first argument names."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    model = set(name.split(",")) <= set(PARTS)
    if not model and name not in files():
        names = ", ".join([*PARTS, *files()])
        if name not in ("", "--help", "-h"):
            print(f"error: no bench {name!r}; there are {names}", file=sys.stderr)
            sys.exit(2)
        print(f"{__doc__.strip()}\n\nbenches: {names}")
        sys.exit(0 if name else 2)
    bench = importlib.import_module(f"launch.bench_{'model' if model else name}")
    if not model:
        sys.argv[:2] = [f"launch.bench {name}"]
    cli.run(lambda: _run(bench), bench.__doc__, positional=model)


def _run(bench) -> None:
    old = COMPARE.value and bench_rows.read(Path(COMPARE.value))
    if JSON.value:
        cli.output_file("json", JSON.value)
    if bench.main.__annotations__["return"] is None and (old or JSON.value):
        raise InputError("flags: this bench only prints; leave out --json, --compare")
    new = bench_rows.report(bench.main() or [])
    if JSON.value:
        Path(JSON.value).write_text(json.dumps(new, indent=1) + "\n", "utf-8")
    if old:
        table, slower = bench_rows.compare(old, new, SLACK.value)
        print(table)
        if not bench_rows.common(old, new):
            raise InputError(
                f"--compare: {COMPARE.value}: has none of these rows; a row's name has "
                "its sizes in it, so give the flags of that run"
            )
        sys.exit(1 if slower else 0)


if __name__ == "__main__":
    main()
