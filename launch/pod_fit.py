"""Whether a run fits the machines it is to start on, before anything is rented."""

import dataclasses
import shutil
import subprocess
from pathlib import Path
from typing import NoReturn

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from data_pipelines import sources
from launch import shipped, stages, weights_source
from launch.build import PACKAGED, UNTRAINED
from launch.pod_job import Job
from launch.pod_topology import Topology
from tavr_jax import storage
from tavr_jax.errors import InputError
from tavr_jax.parallel import mesh as meshes
from tavr_jax.parallel import sharding

KINDS = {
    "v5e": "TPU v5 lite",
    "v5p": "TPU v5p",
    "v6e": "TPU v6 lite",
    "tpu7x": "TPU7x",
}
# of section networks; the others are read by launch.prepare_data alone
_NETWORKS = ("codec", "text", "tokenizer", "speech", "face", "lipsync")
_SUFFIXES = tuple(p[1:] for p in weights_source.PATTERNS)
_COPIED = ("tavr_jax", "configs", "data_pipelines", "launch")


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


def check(job: Job, config: ConfigDict) -> Mesh:
    """The mesh that training will make there; InputError where it could not start."""
    _check_inputs(job, config)
    stages.check(config)
    mesh = planned(meshes.MeshConfig(**config.parallel), job.topology, job.slices)
    sharding.batch(mesh, config.data.batch_size, stages.members(config))
    stages.check_parts(config, mesh)
    heads, tensor = config.model.num_heads, mesh.shape["tensor"]
    if config.stage in stages.PAIRED and heads % tensor:
        raise InputError(
            f"parallel.tensor: {tensor} does not divide model.num_heads {heads}"
        )
    return mesh


def check_script(text: str) -> None:
    """RuntimeError: Bash or shellcheck finds something in a script that we wrote."""
    for command in (["bash", "-n"], ["shellcheck", "-"]):
        if not shutil.which(command[0]):
            continue
        found = subprocess.run(command, input=text, capture_output=True, text=True)
        if found.returncode:
            raise RuntimeError(f"{command[0]}: {found.stdout}{found.stderr}")


def _check_inputs(job: Job, config: ConfigDict) -> None:
    """What is read has to be where the machines see it, as what they read."""
    apart = job.target != "slurm"
    for path in sources.paths(config):
        if apart and not storage.is_bucket(path):
            _not_there(job, "data.path", path, "gs://BUCKET/FOLDER")
    values = {f"networks.{name}": config.networks[name] for name in _NETWORKS}
    values |= {"evaluation.face": config.evaluation.face}
    on_hub = "OWNER/NAME:FILE of the Hugging Face hub"
    for field, source in values.items():
        if source in (PACKAGED, UNTRAINED):
            continue
        if storage.is_bucket(source):
            raise InputError(
                f"--config.{field}={source}: files of weights are read from a disk or "
                f"from the hub, not from buckets; give {on_hub}"
            )
        if apart and weights_source.is_local(source) and not _in_image(source):
            _not_there(job, field, source, on_hub)
    start = config.init_from
    if storage.is_bucket(start) and Path(start).suffix in _SUFFIXES:
        raise InputError(
            f"--config.init_from={start}: of buckets only folders of ours are read; "
            "make one with launch.convert_weights and copy it there, or give a name "
            "on the Hugging Face hub"
        )
    here = start and not shipped.is_named(start) and weights_source.is_local(start)
    if apart and here and not _in_image(start):
        _not_there(job, "init_from", start, "gs://BUCKET/FOLDER")


def _in_image(path: str) -> bool:
    """Whether launch/Dockerfile copies this file of the checkout."""
    return Path(path).parts[0] in _COPIED and Path(path).exists()


def _not_there(job: Job, field: str, path: str, instead: str) -> NoReturn:
    raise InputError(
        f"--config.{field}={path}: the machines of --target={job.target} share no "
        f"disk; give {instead}"
    )


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


def _samples(rows: int, mesh: Mesh) -> str:
    """How many a device works on, and how many devices share each."""
    shared = mesh.shape["context"] * mesh.shape["tensor"]
    held = f"{rows / sharding.batch_shares(mesh):g}"
    return f"{held}, each shared by {shared} devices" if shared > 1 else held


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
        "samples a device": _samples(rows * group, mesh),
        "workdir": job.workdir,
        "dataset": config.data.path,
        "compiled programs": job.cache,
        "image": job.image or "none: .venv of the checkout",
    }
    return "\n".join(f"{name:<19}{value}" for name, value in lines.items())
