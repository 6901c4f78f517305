"""What starts a training run on TPUs or GPUs, printed or written to a file.

    python -m launch.pod --config configs/cross_scene.py:tavr_14b \\
        --workdir gs://BUCKET/RUN --config.data.path=gs://BUCKET/DATASET \\
        --config.data.batch_size=256 --target jobset --topology v6e:16x16 \\
        --image HOST/PROJECT/tavr:1 --dry-run

--target queued  a Bash script around a queued resource of Cloud TPU
         jobset  a JobSet for GKE (kubectl apply -f)
         slurm   a batch script for machines with GPUs (sbatch)

The run is launch.train with the overrides given here; the same file started again
resumes it. Machines of queued and jobset share no disk: workdir, dataset and compiled
programs (WORKDIR/xla) are in buckets, which the account of the machines has to be
allowed to read and write (roles/storage.objectUser and legacyBucketReader: Orbax asks
what kind of bucket it is). What is rendered is checked: fields of a JobSet by their
published types, scripts by bash -n and, where it is installed, shellcheck.

--dry-run checks topology, mesh, batch and all that too, prints a table and nothing
else: exit code 0 if it fits, 2 if not. Whether the model fits into memory is what
launch.plan says. launch/Dockerfile makes the image.
"""

from pathlib import Path

from absl import flags
from ml_collections import config_flags

from launch import cli, pod_fit, pod_jobset, pod_queued, pod_slurm
from launch.pod_job import RESTARTS, TARGETS, Job, name_of
from launch.pod_topology import parse
from tavr_jax.errors import InputError

CONFIG = cli.config_flag()
WORKDIR = flags.DEFINE_string("workdir", "", "Folder of the run: gs://BUCKET/FOLDER.")
TARGET = flags.DEFINE_enum("target", None, TARGETS, "What is rendered.")
TOPOLOGY = flags.DEFINE_string(
    "topology", "", "One slice, as v6e:16x16, or gpu:MACHINESxGPUS."
)
SLICES = flags.DEFINE_integer("slices", 1, "How many of them, of TPUs.")
SPOT = flags.DEFINE_bool("spot", False, "Machines that may be taken away.")
RESERVED = flags.DEFINE_bool("reserved", False, "Machines of a reservation.")
QUEUE = flags.DEFINE_string("queue", "", "Kueue's local queue, of jobset.")
IMAGE = flags.DEFINE_string("image", "", "Container, of queued and jobset.")
NAME = flags.DEFINE_string("name", "", "Of the run; else that of the config.")
ZONE = flags.DEFINE_string("zone", "", "Of queued; else the one gcloud is set to.")
RESTARTS = flags.DEFINE_integer("restarts", RESTARTS, "Of a JobSet, at most.")
OUTPUT = flags.DEFINE_string("output", "", "File to write; else it is printed.")
DRY_RUN = flags.DEFINE_bool("dry_run", False, "Check and print a table only.")

RENDERERS = {
    "queued": pod_queued.render,
    "jobset": pod_jobset.render,
    "slurm": pod_slurm.render,
}


def main() -> None:
    """Flags in, text out."""
    given = {"config": CONFIG.value, "workdir": WORKDIR.value}
    given |= {"target": TARGET.value, "topology": TOPOLOGY.value}
    missing = [name for name, value in given.items() if not value]
    if missing:
        raise InputError(f"flags: --{missing[0]} is missing (see --help)")
    job = asked()
    mesh = pod_fit.check(job, CONFIG.value)
    table = pod_fit.summary(job, CONFIG.value, mesh)
    text = RENDERERS[job.target](job)
    if job.target != "jobset":
        pod_fit.check_script(text)
    if DRY_RUN.value:
        print(table)
        return
    if not OUTPUT.value:
        print(text, end="")
        return
    try:
        Path(OUTPUT.value).write_text(text)
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"--output={OUTPUT.value}: {reason}") from error
    print(f"{table}\n{OUTPUT.value}: its first lines say how it is started")


def asked() -> Job:
    """The job that the flags describe."""
    if SPOT.value and RESERVED.value:
        raise InputError("--spot, --reserved: give one of them")
    flag = flags.FLAGS["config"]
    return Job(
        target=TARGET.value,
        name=NAME.value or name_of(CONFIG.value.name),
        config=config_flags.get_config_filename(flag),
        overrides=dict(config_flags.get_override_values(flag)),
        workdir=WORKDIR.value.rstrip("/"),
        topology=parse(TOPOLOGY.value),
        slices=SLICES.value,
        image=IMAGE.value,
        tier="spot" if SPOT.value else "reserved" if RESERVED.value else "",
        zone=ZONE.value,
        queue=QUEUE.value,
        restarts=RESTARTS.value,
    )


if __name__ == "__main__":
    cli.run(main, __doc__)
