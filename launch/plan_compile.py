"""One plan: a config on a topology, compiled for it and taken apart.

Everything is of one device (TPU7x has two a chip); times are seconds. What fails to
fit is a result too: XLA says how much it wanted, and for what.
"""

import contextlib
import re
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from jax.experimental import topologies
from jax.sharding import Mesh
from ml_collections import ConfigDict

from launch import (
    plan_buffers,
    plan_dump,
    plan_hlo,
    plan_moved,
    plan_program,
    plan_roofline,
    plan_sent,
    plan_work,
    pod_fit,
)
from launch.pod_topology import Topology
from tavr_jax.errors import InputError
from tavr_jax.parallel.chips import CHIPS
from tavr_jax.parallel.mesh import MeshConfig, make_mesh
from tavr_jax.types import PyTree

_EVERY = 30.0  # seconds between two lines of progress
_FULL = "RESOURCE_EXHAUSTED"
_UNKNOWN = "No such compile option"


def mesh_of(config: ConfigDict, topology: Topology, slices: int) -> Mesh:
    """The mesh that a run makes there, of the compiler's stand-ins for its devices."""
    more: dict[str, Any] = {"num_slices": slices} if slices > 1 else {}
    if topology.chips == 1:
        more["chips_per_host_bounds"] = (1, 1, 1)
    described = topologies.get_topology_desc(
        platform="tpu", topology_name=str(topology), **more
    )
    return make_mesh(MeshConfig(**config.parallel), described.devices)


def keep(folder: Path | None) -> None:
    """Write compiled programs to a persistent compilation cache; None: to none.

    A program that is there already cannot be loaded without its chips: it is compiled
    again, and JAX's warning about that is true and of no use.
    """
    jax.config.update("jax_enable_compilation_cache", folder is not None)
    if folder is not None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"--save: {folder}: {error.strerror}") from error
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        warnings.filterwarnings("ignore", "Error reading persistent compilation cache")


def kind_of(topology: Topology) -> str:
    """jax.Device.device_kind of its devices."""
    return pod_fit.KINDS[topology.kind]


def plan(
    config: ConfigDict,
    job: str,
    mesh: Mesh,
    options: dict[str, Any],
) -> Iterator[dict]:
    """The result of every program of `job`, as they are compiled. `options` go to XLA.
    InputError: what `plan_program.programs` refuses."""
    for program in plan_program.programs(config, job, mesh):
        yield one(config, job, mesh, program, options)


def one(
    config: ConfigDict,
    job: str,
    mesh: Mesh,
    program: plan_program.Program,
    options: dict[str, Any],
) -> dict:
    """One program, compiled and taken apart."""
    since = time.monotonic()
    with ticking(f"{program.name}: tracing"):
        lowered = program.lowered()
    traced = time.monotonic()
    with plan_dump.folder() as folder:
        dump = {"xla_dump_to": str(folder), "xla_dump_hlo_as_text": True}
        compiled, error = None, ""
        try:
            with ticking(f"{program.name}: compiling"):
                compiled = lowered.compile(compiler_options={**options, **dump})
        except jax.errors.JaxRuntimeError as wrong:
            error = str(wrong)
            if _UNKNOWN in error:
                raise InputError(f"--xla: {error.partition(': ')[2]}") from wrong
            if _FULL not in error:
                raise
        done = time.monotonic()
        text, buffers = _dumped(folder)
    hlo = plan_hlo.Program(text)
    result = {
        "program": program.name,
        **_memory(hlo, buffers, program, mesh, compiled, error),
        **_speed(config, job, hlo, program, mesh),
        "trace_seconds": round(traced - since, 1),
        "compile_seconds": round(done - traced, 1),
    }
    if program.cache is not None:
        result["cache"] = device_bytes(program.cache)
    return result


@contextlib.contextmanager
def ticking(doing: str) -> Iterator[None]:
    """Says on stderr, every half minute, what is being done and for how long."""
    stop, since = threading.Event(), time.monotonic()

    def tick() -> None:
        while not stop.wait(_EVERY):
            minutes, seconds = divmod(round(time.monotonic() - since), 60)
            print(f"{doing} {minutes}:{seconds:02}", file=sys.stderr, flush=True)

    print(doing, file=sys.stderr, flush=True)
    thread = threading.Thread(target=tick, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def device_bytes(tree: PyTree) -> int:
    """What one device holds of arrays with these shapes and shardings."""
    total = 0
    for leaf in jax.tree.leaves(tree):
        shape = leaf.sharding.shard_shape(leaf.shape) if leaf.sharding else leaf.shape
        count = 1
        for length in shape:
            count *= length
        total += count * leaf.dtype.itemsize
    return total


def _dumped(folder: Path) -> tuple[str, str]:
    """Text of the program and of its buffer assignment; of the step itself, where XLA
    compiled helpers beside it: that is the largest."""

    def largest(ending: str) -> str:
        files = sorted(folder.glob(f"*{ending}"), key=lambda f: f.stat().st_size)
        return files[-1].read_text() if files else ""

    text = largest("after_optimizations.txt")
    return text, largest("after_optimizations-buffer-assignment.txt")


def _memory(
    hlo: plan_hlo.Program,
    buffers: str,
    program: plan_program.Program,
    mesh: Mesh,
    compiled: Any,
    error: str,
) -> dict:
    """`fits` and `hbm`: what XLA's assignment says; of a program that fits, what its
    memory analysis says, which counts what is donated once."""
    found = plan_buffers.read(buffers, hlo)
    parts = {name: device_bytes(tree) for name, tree in program.inputs.items()}
    limit = CHIPS[mesh.devices.flat[0].device_kind].memory
    hbm = {
        "limit": int(limit),
        "arguments": found.arguments,
        "of_arguments": {name: n for name, n in parts.items() if n},
        "outputs": found.outputs,
        "temporaries": found.temporaries,
        "host": found.host,
        "largest": [buffer._asdict() for buffer in found.largest],
    }
    if compiled is not None:
        stats = compiled.memory_analysis()
        hbm["arguments"] = stats.argument_size_in_bytes
        hbm["outputs"] = stats.output_size_in_bytes - stats.alias_size_in_bytes
        hbm["temporaries"] = stats.temp_size_in_bytes
        hbm["host"] = stats.host_temp_size_in_bytes
    wanted = re.search(r"\(([\d.]+)([KMGT])\) exceeds", error)
    if wanted and not buffers:
        power = "KMGT".index(wanted[2]) + 1
        hbm["temporaries"] = int(float(wanted[1]) * 1024**power)
    hbm["beside"] = device_bytes(program.beside)
    parts_of_all = ("arguments", "outputs", "temporaries", "beside")
    hbm["total"] = sum(hbm[name] for name in parts_of_all)
    fits = compiled is not None and hbm["total"] <= limit
    return {"fits": fits, "error": error, "hbm": hbm}


def _speed(
    config: ConfigDict,
    job: str,
    hlo: plan_hlo.Program,
    program: plan_program.Program,
    mesh: Mesh,
) -> dict:
    """`collectives`, FLOPs, bytes and the roofline."""
    devices = list(mesh.devices.flat)
    slices = [getattr(device, "slice_index", 0) for device in devices]
    kinds: dict[str, dict] = {}
    for each in plan_sent.collectives(hlo, slices):
        kind = kinds.setdefault(each.kind, {"count": 0, "sent": 0.0, "across": 0.0})
        kind["count"] += each.times
        kind["sent"] += each.times * each.sent
        kind["across"] += each.times * each.across
    effort = plan_work.of(config, job, program.name, mesh)
    moved = plan_moved.traffic(hlo)
    sent, across = (sum(k[n] for k in kinds.values()) for n in ("sent", "across"))
    bound = plan_roofline.bound(
        devices[0].device_kind,
        len(devices),
        effort.flops,
        effort.executed,
        moved,
        sent,
        across,
    )
    return {
        "collectives": kinds,
        "loops_of_unknown_length": hlo.unbounded,
        "computations_not_reached": hlo.unreached,
        "tokens": effort.tokens,
        "flops": effort.flops,
        "flops_executed": effort.executed,
        "bytes_moved": moved,
        "roofline": {**bound._asdict(), "step": bound.step},
    }
