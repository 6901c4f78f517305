"""Many runs of one config: every combination of some fields, each with some seeds.

    python -m launch.sweep --config configs/policy.py:mini --workdir W \\
        --config.data.path=DATASET --config.init_from=STAGE_2 \\
        --grid optimizer.learning_rate=1e-5,3e-5 --grid policy.eta=0.5,0.7 --seeds 2

prints the commands and changes nothing. --format=run runs them here, one after another;
again, it goes on and repeats none that finished. --format=slurm prints an array job;
--format=jobset prints what launch.pod does for each run, workdirs on a bucket. Workdirs
are named by what sets them apart, W/learning_rate=1e-05__eta=0.5__seed=42, and seeds
count up from the config's. A seed sets data order, noise and, without init_from, the
weights that a run starts from.

A config file may hold `def sweep()`, which yields {"optimizer.learning_rate": 1e-5} and
the like: --sweep=config takes these rows, times the grids and seeds.
"""

import os
import sys
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from launch import cli, stages, sweep_grid, sweep_run, sweep_scripts
from tavr_jax.errors import InputError

CONFIG = cli.config_flag()
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the runs' workdirs.")
GRID = flags.DEFINE_multi_string(
    "grid", [], "FIELD=VALUE,VALUE,... Give it once for each field."
)
SWEEP = flags.DEFINE_enum(
    "sweep", "", ["", "config"], "config: the rows of the config file's def sweep()."
)
SEEDS = flags.DEFINE_integer("seeds", 1, "Runs of each combination.")
FORMAT = flags.DEFINE_enum(
    "format", "commands", ["commands", "run", "slurm", "jobset"], "What to do with it."
)
IMAGE = flags.DEFINE_string("image", "", "Container, of --format=jobset.")
TOPOLOGY = flags.DEFINE_string("topology", "", "Of a run, as v6e:2x4; likewise.")


def main() -> None:
    """Check everything, then print or run."""
    if CONFIG.value is None or not WORKDIR.value:
        missing = "--workdir" if CONFIG.value is not None else "--config"
        raise InputError(f"flags: {missing} is missing (see --help)")
    flag = flags.FLAGS["config"]
    file, folder = config_flags.get_config_filename(flag), Path(WORKDIR.value)
    rows = sweep_grid.rows_of_config(file) if SWEEP.value else [{}]
    given = config_flags.get_override_values(flag)
    runs = sweep_grid.expand(file, given, GRID.value, rows, SEEDS.value)
    for one in runs:  # a choice that does not exist is found now, not in its run
        stages.check(sweep_grid.load(file, one.fields))
    if FORMAT.value == "run":
        run(runs, folder)
        return
    sys.stdout.write(
        {
            "commands": lambda: sweep_scripts.shell(runs, folder),
            "slurm": lambda: sweep_scripts.slurm(runs, folder),
            "jobset": lambda: jobsets(runs),
        }[FORMAT.value]()
    )
    print(f"{len(runs)} runs; nothing was started", file=sys.stderr)


def run(runs: list[sweep_grid.Run], folder: Path) -> None:
    """Run them all here. Exit code 1 when some failed, 130 when stopped."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(13, "Permission denied")
    except OSError as error:
        raise InputError(f"--workdir: {folder}: {error.strerror}") from error
    outcome = sweep_run.run_all(runs, folder)
    if outcome.stopped:
        raise KeyboardInterrupt
    print(
        f"{len(runs)} runs: {len(outcome.finished)} finished now, "
        f"{len(outcome.skipped)} before, {len(outcome.failed)} failed"
    )
    print(f"curves: python -m launch.curves {folder} --output curves.svg")
    if outcome.failed:
        for name in outcome.failed:
            print(f"failed: {folder / name}", file=sys.stderr)
        sys.exit(1)


def jobsets(runs: list[sweep_grid.Run]) -> str:
    """Manifests of all runs, for kubectl."""
    if not IMAGE.value or not TOPOLOGY.value:
        missing = "--topology" if IMAGE.value else "--image"
        raise InputError(f"{missing}: missing; --format=jobset needs it")
    folder, image = WORKDIR.value, IMAGE.value
    return sweep_scripts.jobsets(runs, folder, image, TOPOLOGY.value)


if __name__ == "__main__":
    cli.run(main, __doc__)
