"""Speed, always as a ratio against something measured in the same run.

    python -m launch.bench data --dataset DATASET --source FOLDER

Each bench is a file launch/bench_NAME.py with flags of its own, a docstring that says
what is measured, and `main()`; absolute numbers move with the machine, ratios less.
"""

import importlib
import sys
from pathlib import Path

from launch import cli


def names() -> list[str]:
    """The benches there are."""
    files = sorted(Path(__file__).parent.glob("bench_*.py"))
    return [path.stem.removeprefix("bench_") for path in files]


def main() -> None:
    """Run the bench that the first argument names."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in names():
        wanted = "" if name in ("", "--help", "-h") else f"error: no bench {name!r}\n"
        print(f"{wanted}{__doc__.strip()}\n\nbenches: {', '.join(names())}")
        sys.exit(2 if wanted or not name else 0)
    bench = importlib.import_module(f"launch.bench_{name}")
    sys.argv[:2] = [f"launch.bench {name}"]
    cli.run(bench.main, bench.__doc__)


if __name__ == "__main__":
    main()
