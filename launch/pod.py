"""What starts a training run on TPUs or GPUs, printed or written to a file.

    python -m launch.pod --config configs/cross_scene.py:tavr_14b \\
        --workdir gs://BUCKET/RUN --config.data.path=DATASET \\
        --config.data.batch_size=256 --target jobset --topology v6e:16x16 \\
        --image HOST/PROJECT/tavr:1 --dry-run

--target queued  a Bash script around a queued resource of Cloud TPU
         jobset  a JobSet for GKE (kubectl apply -f)
         slurm   a batch script for machines with GPUs (sbatch)

The run is launch.train with the overrides given here; the same file started again
resumes it. --dry-run checks topology, mesh, batch, workdir and image, prints a table
and nothing else: exit code 0 if it fits, 2 if not. Whether the model fits into
memory is not looked at. launch/Dockerfile makes the image.

Not done: launch.train refuses a workdir on gs://. Until it writes there, what queued
and jobset start ends at once with that line.
"""

import dataclasses
from pathlib import Path

import numpy as np
from absl import flags
from jax.sharding import Mesh
from ml_collections import ConfigDict, config_flags

from data_pipelines import sources
from launch import cli, pod_jobset, pod_queued, pod_slurm, stages
from launch.pod_job import RESTARTS, TARGETS, Job, name_of
from launch.pod_topology import Topology, parse
from tavr_jax.errors import InputError
from tavr_jax.parallel import mesh as meshes
from tavr_jax.parallel import sharding

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

# jax.Device.device_kind
KINDS = {
    "v5e": "TPU v5 lite",
    "v5p": "TPU v5p",
    "v6e": "TPU v6 lite",
    "tpu7x": "TPU7x",
}


@dataclasses.dataclass(frozen=True)
class Device:
    """What a mesh needs to know of a device that is not here."""

    id: int
    process_index: int
    platform: str
    device_kind: str = ""
    coords: tuple[int, ...] = ()  # of its chip in the slice: x, y, z
    core_on_chip: int = 0
    slice_index: int = 0


def main() -> None:
    """Flags in, text out."""
    given = {"config": CONFIG.value, "workdir": WORKDIR.value}
    given |= {"target": TARGET.value, "topology": TOPOLOGY.value}
    missing = [name for name, value in given.items() if not value]
    if missing:
        raise InputError(f"flags: --{missing[0]} is missing (see --help)")
    job = asked()
    table = summary(job, CONFIG.value, check(job, CONFIG.value))
    text = RENDERERS[job.target](job)
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


def check(job: Job, config: ConfigDict) -> Mesh:
    """The mesh that training will make there; InputError where it could not start."""
    sources.paths(config)
    stages.check(config)
    mesh = planned(meshes.MeshConfig(**config.parallel), job.topology, job.slices)
    sharding.batch(mesh, config.data.batch_size, stages.members(config))
    stages.check_parts(config, mesh)
    return mesh


def planned(config: meshes.MeshConfig, topology: Topology, slices: int) -> Mesh:
    """The mesh that training makes, over stand-ins for all devices of all slices.

    Hosts are taken to be squares of 2 x 2 chips, numbered with x fastest; no pod was
    at hand to compare with.
    """
    one = _gpus(topology) if topology.kind == "gpu" else _tpus(topology)
    devices = [
        dataclasses.replace(
            device,
            id=number * topology.devices + device.id,
            process_index=number * topology.hosts + device.process_index,
            slice_index=number,
        )
        for number in range(slices)
        for device in one
    ]
    return meshes.make_mesh(config, devices)


def _gpus(topology: Topology) -> list[Device]:
    each = topology.chips_per_host
    return [Device(i, i // each, "gpu") for i in range(topology.devices)]


def _tpus(topology: Topology) -> list[Device]:
    """In the order of jax.devices(): host by host; hosts and chips with x fastest."""
    shape = (*topology.shape, 1)[:3]
    host = shape if topology.hosts == 1 else (2, 2, 1)
    hosts = [n // h for n, h in zip(shape, host, strict=True)]
    chips = [
        tuple(h * n + c for h, n, c in zip(where[::-1], host, chip[::-1], strict=True))
        for where in np.ndindex(*hosts[::-1])
        for chip in np.ndindex(*host[::-1])
    ]
    cores, each = topology.chip.devices, topology.devices // topology.hosts
    return [
        Device(i, i // each, "tpu", KINDS[topology.kind], chips[i // cores], i % cores)
        for i in range(topology.devices)
    ]


def summary(job: Job, config: ConfigDict, mesh: Mesh) -> str:
    """A table of what would run."""
    topology, rows, group = job.topology, config.data.batch_size, stages.members(config)
    count = job.slices * topology.devices
    axes = " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    of = "" if group == 1 else f" x policy.group_size {group}"
    lines = {
        "run": f"{job.name}: {config.name}, stage {config.stage}",
        "target": f"{job.target}, {job.slices} x {topology} {job.tier}".rstrip(),
        "hosts": job.slices * topology.hosts,
        "chips": job.slices * topology.chips,
        "chips per host": topology.chips_per_host,
        "devices": f"{count} = {axes}",
        "global batch": f"{rows}{of}",
        "per-device batch": f"{rows * group / count:g}",
        "workdir": job.workdir,
        "image": job.image or "none: .venv of the checkout",
    }
    return "\n".join(f"{name:<18}{value}" for name, value in lines.items())


if __name__ == "__main__":
    cli.run(main, __doc__)
