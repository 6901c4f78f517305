"""The model's speed, part by part, against PyTorch and against plain matrix products.

    python -m launch.bench step,gradient --config configs/same_scene.py:mini --json F

    block     one block of the main stream, the reference's keys and values given
    prefill   the reference stream: keys and values of every layer
    step      one velocity with a cached reference: a denoising step without guidance
    guidance  the same with all three branches, their references prefilled before
    gradient  loss of flow matching and its gradient, the reference learned too
    train     the same, clipping and AdamW: a step of stages 1 and 2
    rollout   a policy group from noise to samples, references included
    speech    wav2vec 2.0 of the released size, --seconds of sound
    matmul    a square product in the config's dtype, which is also the peak that the
              others are measured against

Where torch is installed (extra `parity`) the same is computed by it on the same device,
from the same weights; before anything is timed both have to agree. Ours, theirs and the
matmul then run in turn, --rounds times; shown are medians and the spread. FLOPs count
matrix products only.

The official width at real length, meant for a GPU (never run on one so far):

    C=configs/same_scene.py:tavr_14b
    python -m launch.bench block,prefill --config $C --layers 1
    python -m launch.bench step --config $C --layers 20

What does not fit is said in one line: the largest model that does is found by --layers.
"""

import dataclasses
import functools
import importlib
import os
from importlib.util import find_spec
from types import ModuleType

import jax
from absl import flags

from launch import bench_cases, bench_learning, bench_problem, bench_speech, cli
from launch.bench_measure import Way, attempt, matmul, measure
from launch.bench_rows import LeftOut, Row, lines

TOKENS = flags.DEFINE_integer(
    "tokens", 0, "Main tokens, about; 0 = as many as a chunk of the config has.", 0
)
LAYERS = flags.DEFINE_integer("layers", 0, "Of the network; 0 = the config's.", 0)
SAMPLES = flags.DEFINE_integer("samples", 1, "Of a batch.", 1)
SOUND = flags.DEFINE_float("seconds", 10.0, "Of speech.", 0.1)
ROUNDS = flags.DEFINE_integer("rounds", 7, "Times that everything is measured.", 1)
SIDE = flags.DEFINE_integer(
    "peak_size", 0, "Rows of the square product; 0 = 2048 on CPU, else 8192.", 0
)
THREADS = flags.DEFINE_integer("threads", 0, "Of both on a CPU; 0 = all cores.", 0)
PROCESSOR = flags.DEFINE_bool(
    "processor_time",
    False,
    "Of all threads, not wall time: with --threads 1, for a machine that others use.",
)
TORCH = flags.DEFINE_bool("torch", True, "Compare with PyTorch, where it is installed.")
CONFIG = cli.config_flag("configs/same_scene.py:mini")

OF_MODEL = {
    "block": bench_cases.block,
    "prefill": bench_cases.prefill,
    "step": bench_cases.step,
    "guidance": bench_cases.guidance,
    "gradient": bench_learning.gradient,
    "train": bench_learning.train,
    "rollout": bench_learning.rollout,
}


def main() -> list[Row | LeftOut]:
    """Each of the benches that the first argument names."""
    names = cli.positional("bench").split(",")
    # Or else JAX takes the GPU's memory at once, and PyTorch finds none.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    cores = sorted(os.sched_getaffinity(0))[: THREADS.value or None]
    os.sched_setaffinity(0, cores)  # XLA has no other way to say it
    torch, found = _torch(len(cores)), []
    for name in names:
        found.append(attempt(name, functools.partial(_row, name, torch, len(cores))))
        print("\n".join(lines(found[-1])), flush=True)
        jax.clear_caches()
    return found


def _row(name: str, torch: ModuleType | None, threads: int) -> Row:
    config = CONFIG.value
    dtype = "float32" if name == "speech" else config.model.dtype
    side = SIDE.value or (2048 if jax.default_backend() == "cpu" else 8192)
    if name == "speech":
        layers = LAYERS.value or bench_speech.SIZES.num_hidden_layers
        sizes = dataclasses.replace(bench_speech.SIZES, num_hidden_layers=layers)
        case = bench_speech.speech(sizes, SOUND.value, SAMPLES.value, torch)
    elif name == "matmul":
        case = matmul(dtype, side, torch)
    else:
        problem = bench_problem.make(config, TOKENS.value, LAYERS.value, SAMPLES.value)
        case = OF_MODEL[name](problem, torch)
    return measure(case, dtype, Way(ROUNDS.value, side, threads, PROCESSOR.value))


def _torch(threads: int) -> ModuleType | None:
    """PyTorch's side."""
    if not TORCH.value or not find_spec("torch"):
        return None
    torch = importlib.import_module("launch.bench_torch_problem")
    torch.begin(threads)
    return torch
