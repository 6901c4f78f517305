"""The video autoencoder's speed, against PyTorch and against plain matrix products.

    python -m launch.bench vae --frames 17 --size 128 --json F

    encode    frames to normalised latents
    decode    latents to frames

of the official sizes (configs/base.py), with drawn weights, float32. Where torch is
installed (extra `parity`) it computes the same from the same weights
(launch/bench_torch_vae.py), and both have to agree before anything is timed; ours,
theirs and a square product then run in turn, --rounds times. --step 1 goes through the
video as generation does, a latent at a time, PyTorch still all at once.

FLOPs are those of tavr_jax/encoders/vae_flops.py: a share of the peak may pass 1.
"""

import functools
import importlib
import os
from importlib.util import find_spec
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from flax import nnx

from configs.base import get_config
from launch.bench_cases import Case, Pairs
from launch.bench_measure import Way, attempt, measure
from launch.bench_rows import LeftOut, Row, lines
from tavr_jax.encoders import vae_flops
from tavr_jax.encoders.vae import SPAN, Codec, CodecConfig
from tavr_jax.encoders.vae_stream import decode_stream, encode_stream
from tavr_jax.encoders.weights_vae import entries
from tavr_jax.errors import InputError
from tavr_jax.types import PyTree

FRAMES = flags.DEFINE_integer("frames", 17, "Of the video, 1 + 4k.", 1)
SIZE = flags.DEFINE_integer("size", 128, "Rows and columns of a frame, times of 8.", 8)
WIDTH = flags.DEFINE_integer("base_dim", 96, "Channels of the first level.", 1)
STEP = flags.DEFINE_integer("step", 0, "Latents at a time; 0 = all at once.", 0)
ROUNDS = flags.DEFINE_integer("rounds", 7, "Times that everything is measured.", 1)
SIDE = flags.DEFINE_integer("peak_size", 2048, "Rows of the square product.", 1)
THREADS = flags.DEFINE_integer("threads", 0, "Of both on a CPU; 0 = all cores.", 0)
PROCESSOR = flags.DEFINE_bool(
    "processor_time",
    False,
    "Of all threads, not wall time: with --threads 1, for a machine that others use.",
)
TORCH = flags.DEFINE_bool("torch", True, "Compare with PyTorch, where it is installed.")


def main() -> list[Row | LeftOut]:
    """Both directions."""
    if FRAMES.value % SPAN != 1:
        raise InputError(f"--frames: {FRAMES.value}: give 1 + {SPAN}k")
    if SIZE.value % 8:
        raise InputError(f"--size: {SIZE.value}: give a multiple of 8")
    # Or else JAX takes a GPU's memory at once, and PyTorch finds none.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    cores = sorted(os.sched_getaffinity(0))[: THREADS.value or None]
    os.sched_setaffinity(0, cores)  # XLA has no other way to say it
    torch = None
    if TORCH.value and find_spec("torch"):
        torch = importlib.import_module("launch.bench_torch_problem")
        torch.begin(len(cores))
    codec, found = _codec(), []
    way = Way(ROUNDS.value, SIDE.value, len(cores), PROCESSOR.value)
    for make in (_encode, _decode):
        name = make.__name__.removeprefix("_")
        case = functools.partial(make, codec, torch)
        found.append(
            attempt(f"vae {name}", lambda c=case: measure(c(), "float32", way))
        )
        print("\n".join(lines(found[-1])), flush=True)
        jax.clear_caches()
    return found


def _codec() -> Codec:
    """Drawn; no weight is zero, and outputs stay of the size of the inputs."""
    settings = get_config().codec.to_dict() | {"base_dim": WIDTH.value}
    fresh = Codec(CodecConfig(**settings), rngs=nnx.Rngs(0))
    graph, params = nnx.split(fresh)
    rng = np.random.default_rng(0)

    def moved(w: jax.Array) -> jax.Array:
        inputs = max(w[..., 0].size, 100)
        return w + rng.standard_normal(w.shape, np.float32) / (2 * inputs**0.5)

    return nnx.merge(graph, jax.tree.map(moved, params))


def _encode(codec: Codec, torch: ModuleType | None) -> Case:
    shape = (1, FRAMES.value, SIZE.value, SIZE.value, 3)
    frames = np.random.default_rng(1).uniform(-1, 1, shape).astype(np.float32)

    def stream():
        return list(encode_stream(codec, [frames], step=STEP.value))

    theirs = torch and _theirs(codec, torch, "encode", frames)
    ours = stream if STEP.value else _whole(codec, Codec.encode, frames)
    return _case("encode", codec, ours, theirs, torch)


def _decode(codec: Codec, torch: ModuleType | None) -> Case:
    count, side = 1 + FRAMES.value // SPAN, SIZE.value // 8
    shape = (1, count, side, side, codec.config.z_dim)
    latents = np.random.default_rng(1).standard_normal(shape, np.float32)

    def stream():
        blocks = decode_stream(codec, [latents], step=STEP.value, dtype=jnp.float32)
        return list(blocks)

    theirs = torch and _theirs(codec, torch, "decode", latents)
    ours = stream if STEP.value else _whole(codec, Codec.decode, latents)
    return _case("decode", codec, ours, theirs, torch)


def _case(name: str, codec: Codec, ours, theirs, torch: ModuleType | None) -> Case:
    def pairs(ours: list[jax.Array], theirs) -> Pairs:
        whole = np.concatenate([np.asarray(part) for part in ours], axis=1)
        return [(whole, np.moveaxis(torch.array(theirs), 1, -1))]

    size = f"{FRAMES.value} x {SIZE.value} x {SIZE.value}"
    pieces = f", {STEP.value} latents a step" if STEP.value else ""
    told = f"vae {name} of width {codec.config.base_dim}, {size}{pieces}"
    count = getattr(vae_flops, name)(codec, FRAMES.value, SIZE.value, SIZE.value)
    return Case(told, float(count), ours, theirs, pairs)


def _whole(codec: Codec, method, x: np.ndarray):
    graph, params = nnx.split(codec)

    @jax.jit
    def run(params: PyTree, x: jax.Array) -> jax.Array:
        return method(nnx.merge(graph, params), x)

    return lambda: [jax.block_until_ready(run(params, x))]


def _theirs(codec: Codec, torch: ModuleType, name: str, x: np.ndarray):
    reference = importlib.import_module("launch.bench_torch_vae").Reference
    params = nnx.split(codec)[1]
    weights = torch.carried(params, entries(codec, "wan"))
    x, call = torch.first(x), getattr(reference(codec.config, weights), name)
    return torch.inferred(lambda: call(x))
