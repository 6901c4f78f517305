"""What other machines are told to run: shell lines, a SLURM array, JobSets."""

import hashlib
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from launch import pod_jobset
from launch.pod_job import RESTARTS, Job
from launch.pod_topology import Topology, parse
from launch.sweep_grid import Run

PYTHON = "python"
_ARRAY = """\
#!/bin/bash
#SBATCH --job-name={name}
#SBATCH --array=0-{last}
#SBATCH --output=%x-%A_%a.log
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
# Resources are yours: sbatch --partition=... --gres=... THIS_FILE
case "$SLURM_ARRAY_TASK_ID" in
{cases}  *) echo "no run $SLURM_ARRAY_TASK_ID in this sweep" >&2; exit 2 ;;
esac
"$@" &
run=$!
trap 'kill -TERM "$run"' TERM
code=143
while [ "$code" -eq 143 ]; do # 143: the wait was interrupted, the run goes on to save
  wait "$run"
  code=$?
  kill -0 "$run" 2>/dev/null || break
done
if [ "$code" -eq 130 ]; then # stopped before its last step
  scontrol requeue "${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID"
fi
exit "$code"
"""


def command(run: Run, folder: Path, python: str = PYTHON) -> list[str]:
    """The words of the command that trains a run, and resumes it."""
    workdir = f"--workdir={folder / run.name}"
    return [python, "-m", "launch.train", *run.arguments, workdir]


def shell(runs: Sequence[Run], folder: Path) -> str:
    """A line for each run, for bash, xargs or parallel."""
    return "".join(f"{shlex.join(command(run, folder))}\n" for run in runs)


def slurm(runs: Sequence[Run], folder: Path) -> str:
    """An array job, one task a run. SIGTERM comes before the time limit, so that a run
    saves and queues again; the same command resumes it."""
    cases = "".join(
        f"  {number}) set -- {shlex.join(command(run, folder))} ;;\n"
        for number, run in enumerate(runs)
    )
    return _ARRAY.format(name=_slug(folder.name), last=len(runs) - 1, cases=cases)


def jobsets(runs: Sequence[Run], folder: str, image: str, topology: str) -> str:
    """A JobSet for GKE a run, as launch.pod writes them; the same names for the same
    runs, so a larger sweep keeps those it has.

    `folder` is gs://BUCKET/FOLDER. InputError as of launch.pod.
    """
    jobs = [_job(run, folder.rstrip("/"), image, parse(topology)) for run in runs]
    return "---\n".join(map(pod_jobset.render, jobs))


def _job(run: Run, folder: str, image: str, topology: Topology) -> Job:
    config = run.arguments[0].removeprefix("--config=")
    digest = hashlib.sha256(run.name.encode()).hexdigest()[:8]
    return Job(
        target="jobset",
        name=f"{_slug(folder.rpartition('/')[2])}-{digest}",
        config=config,
        overrides=run.fields,
        workdir=f"{folder}/{run.name}",
        topology=topology,
        slices=1,
        image=image,
        tier="",
        zone="",
        queue="",
        restarts=RESTARTS,
    )


def _slug(text: str) -> str:
    """A name that Kubernetes and SLURM accept, short enough for what they append."""
    plain = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:24].strip("-")
    return plain if plain[:1].isalpha() else f"sweep-{plain}".strip("-")
