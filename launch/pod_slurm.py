"""A batch script of SLURM for machines with GPUs.

jax.distributed reads SLURM's variables itself, and then takes one device a task
(jax 0.10.2, _src/clusters), so there is one task a GPU and every task sees all GPUs
of its machine. No SLURM was at hand: the script was run against stand-ins for srun
and scontrol.
"""

import shlex

from launch.pod_job import Job

_SCRIPT = """\
#!/usr/bin/env bash
{title}
#
#   sbatch FILE        from the checkout, which every node sees; partition, account and
#                      time limit are yours: sbatch --partition=P --time=24:00:00 FILE
#
# The checkout's .venv needs JAX for CUDA, which launch/install.sh does not bring:
#   .venv/bin/pip install --constraint constraints.txt 'jax[cuda12]'
# Without it, or on a machine without a GPU, the run ends at once with one line.
#
# SIGTERM comes {warning} s before the time limit: the run saves at the next step, ends,
# and the job queues again; the same command resumes it. Where a checkpoint takes
# longer than that, sbatch --signal=TERM@SECONDS.
#
# What is in single quotes is for nobody to expand.
# shellcheck disable=SC2016
#SBATCH --job-name={name}
#SBATCH --output={name}-%j.log
#SBATCH --open-mode=append
#SBATCH --nodes={nodes}
#SBATCH --ntasks-per-node={gpus}
#SBATCH --gpus-per-node={gpus}
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --signal=TERM@{warning}
#SBATCH --requeue
set -euo pipefail
cd -- "${{SLURM_SUBMIT_DIR:?start this file with sbatch}}"
{variables}

code=0
# The first task to end must not end the others: they may still be saving.
srun --kill-on-bad-exit=0 --cpu-bind=none \\
  .venv/bin/python {train} || code=$?
if [ "$code" -eq 130 ]; then # stopped before its last step
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
"""
WARNING = 120  # seconds


def render(job: Job) -> str:
    """The whole script."""
    return _SCRIPT.format(
        title="\n".join(f"# {line}" for line in job.title),
        name=job.name,
        nodes=job.topology.hosts,
        gpus=job.topology.chips_per_host,
        warning=WARNING,
        variables="\n".join(
            f"export {name}={shlex.quote(value)}"
            for name, value in job.variables.items()
        ),
        train=shlex.join(job.train),
    )
