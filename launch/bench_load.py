"""What loading the official checkpoint costs: seconds and memory beside the weights.

    python -m launch.bench load --work FOLDER --layers 2,5 --devices 8 --processes 1

writes checkpoints of random bits with the official widths and few layers (2.4 billion
parameters for 5 of 40), loads each in fresh processes into bfloat16 arrays that are
split over simulated devices as for training, checks some of them bit by bit, and
reports the largest resident memory beyond what the process had before and its own
shards. That excess has to stay near the largest tensor whatever the number of layers.
"""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
from absl import flags
from flax import nnx
from ml_collections import ConfigDict

from configs import same_scene
from launch import build
from tavr_jax.encoders import safetensors_files
from tavr_jax.encoders.safetensors_files import Planned
from tavr_jax.encoders.tensors import open_tensors
from tavr_jax.encoders.weights_tavr import entries, load_transformer
from tavr_jax.parallel import sharding
from tavr_jax.parallel.mesh import make_mesh

WORK = flags.DEFINE_string("work", None, "Folder for the checkpoints; they are kept.")
LAYERS = flags.DEFINE_list("layers", ["2", "5"], "Depths, of the official 40.")
DEVICES = flags.DEFINE_integer("devices", 8, "Simulated devices in each process.")
PROCESSES = flags.DEFINE_integer("processes", 1, "Processes that share the weights.")
INSIDE = flags.DEFINE_string("inside", None, "Internal: what a fresh process does.")

_BFLOAT16 = safetensors_files.DTYPES["BF16"]


def main() -> None:
    """Write, then load in fresh processes, and report."""
    if INSIDE.value:
        _inside(**json.loads(INSIDE.value))
        return
    for layers in map(int, LAYERS.value):
        path = Path(WORK.value or "/tmp") / f"random_{layers}.safetensors"
        if not path.is_file():
            _write(path, _config(layers))
        _report(layers, path, _measure(layers, path))


def _config(layers: int) -> ConfigDict:
    config = same_scene.get_config("tavr_14b")
    config.model.num_layers = layers
    return config


def _write(path: Path, config: ConfigDict) -> None:
    rng = np.random.default_rng(0)

    def random(shape: tuple[int, ...]) -> np.ndarray:
        bits = rng.integers(0, 2**64, -(-int(np.prod(shape)) // 4), np.uint64)
        return bits.view(_BFLOAT16)[: int(np.prod(shape))].reshape(shape)

    planned = [
        Planned(e.official, e.shape, _BFLOAT16, lambda shape=e.shape: random(shape))
        for e in entries(build.abstract_transformer(config))
    ]
    safetensors_files.write(path, planned, {})


def _measure(layers: int, path: Path) -> list[dict]:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={DEVICES.value}",
    }
    running = []
    for process in range(PROCESSES.value):
        inside = {"layers": layers, "path": str(path), "port": port}
        inside |= {"process": process, "processes": PROCESSES.value}
        command = [sys.executable, "-m", "launch.bench", "load"]
        command.append(f"--inside={json.dumps(inside)}")
        running.append(
            subprocess.Popen(command, env=environment, stdout=subprocess.PIPE)
        )
    outputs = [job.communicate()[0] for job in running]
    return [json.loads(text.splitlines()[-1]) for text in outputs]


def _inside(layers: int, path: str, port: int, process: int, processes: int) -> None:
    if processes > 1:
        jax.distributed.initialize(f"localhost:{port}", processes, process)
    model = build.abstract_transformer(_config(layers))
    graph, params = nnx.split(model, nnx.Param)
    mesh = make_mesh(ConfigDict({"data": 1, "fsdp": -1, "context": 1, "tensor": 1}))
    abstract = nnx.merge(graph, sharding.abstract(mesh, params))
    jax.block_until_ready(jax.numpy.zeros(1))
    before, started = _status("VmRSS"), time.monotonic()
    model = load_transformer(path, abstract, dtype="file")
    seconds, peak = time.monotonic() - started, _status("VmHWM")
    leaves = jax.tree.leaves(nnx.state(model, nnx.Param))
    blocks = {
        (id(leaf), str(shard.index)): shard.data.nbytes
        for leaf in leaves
        for shard in leaf.addressable_shards
    }
    report = {"seconds": seconds, "own": sum(blocks.values())}
    report["excess"] = peak - before - report["own"]
    report["checked"] = _checked(model, path)
    print(json.dumps(report), flush=True)


def _checked(model: nnx.Module, path: str) -> int:
    """How many of this process's numbers were compared with the file."""
    tensors, count = open_tensors(path), 0
    params = dict(nnx.to_flat_state(nnx.state(model, nnx.Param)))
    for e in entries(model):
        if e.layer not in (None, 1) or len(e.shape) != 2 or e.axes is None:
            continue
        published = tensors[e.official].view(np.uint16).T
        for shard in params[e.ours].get_value().addressable_shards:
            index, ours = shard.index, np.asarray(shard.data).view(np.uint16)
            if e.layer is not None:
                if index[0] != slice(None):
                    continue
                index, ours = index[1:], ours[e.layer]
            if not np.array_equal(ours, published[index]):
                raise AssertionError(f"{e.official} is not what the file says")
            count += ours.size
    return count


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(x for x in lines if x.startswith(f"{name}:")).split()[1]) * 1024


def _report(layers: int, path: Path, reports: list[dict]) -> None:
    tensors = open_tensors(path)
    sizes = [2 * int(np.prod(tensors.shape(name))) for name in tensors]
    whole, largest = sum(sizes) / 1e9, max(sizes)
    for process, r in enumerate(reports):
        print(
            f"{layers} layers, {whole:.2f} GB, process {process}: own shards "
            f"{r['own'] / 1e9:.2f} GB in {r['seconds']:.0f} s; beside them "
            f"{r['excess'] / 1e6:.0f} MB = {r['excess'] / largest:.2f} x the largest "
            f"tensor ({largest / 1e6:.0f} MB); {r['checked']} numbers checked"
        )
