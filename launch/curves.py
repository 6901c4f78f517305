"""Learning curves of finished or running training, as a picture and as a table.

    python -m launch.curves W/same_scene W/cross_scene W/policy --output curves.svg
    python -m launch.curves SWEEP --metric reward,kl --output curves.svg --table

Takes workdirs, or folders of them (of launch.sweep, say), and reads metrics.jsonl.
Runs that differ only in their seed become one line, their mean, with a band from the
lowest to the highest; what sets the others apart is read from their config.json.
Stages stand side by side. --table prints means of the first and the last tenth of each
run as Markdown. The picture is an SVG file; every browser shows it.
"""

import os
from pathlib import Path

from absl import flags

from launch import cli, curves_drawing, curves_runs
from tavr_jax import storage
from tavr_jax.errors import InputError

METRIC = flags.DEFINE_list(
    "metric", [], "Metrics; empty: reward where it is logged, else loss."
)
OUTPUT = flags.DEFINE_string("output", None, "SVG file to write.")
TABLE = flags.DEFINE_bool("table", False, "Print first and last means as Markdown.")
SMOOTH = flags.DEFINE_integer(
    "smooth", 5, "Logged points that a point of a curve is the mean of; 1 = as logged."
)
MOST = 1000  # workdirs on one command line


def main() -> None:
    """Read, draw, print."""
    if not OUTPUT.value and not TABLE.value:
        raise InputError("flags: give --output FILE.svg, or --table, or both")
    if OUTPUT.value and not OUTPUT.value.endswith(".svg"):
        raise InputError(f"--output: {OUTPUT.value}: the name must end with .svg")
    if SMOOTH.value < 1:
        raise InputError(f"--smooth={SMOOTH.value}: give 1 or more")
    named = cli.positionals("WORKDIR")
    runs = curves_runs.find([storage.reached(path, "WORKDIR") for path in named])
    panels = curves_runs.panels(runs, METRIC.value)
    if TABLE.value:
        print(curves_runs.table(panels), end="")
    if OUTPUT.value:
        path = Path(OUTPUT.value)
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            partial.write_text(curves_drawing.svg(panels, SMOOTH.value), "utf-8")
            os.replace(partial, path)
        except OSError as error:
            raise InputError(f"--output: {path}: {error.strerror}") from error


if __name__ == "__main__":
    cli.run(main, __doc__, positional=MOST)
