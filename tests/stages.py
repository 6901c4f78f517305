"""Runs of the real stages at :tiny, straight and interrupted: a process for tests.

python tests/stages.py DATASET OUTPUT CASE

DATASET is made if it is not there. OUTPUT/CASE/straight is three steps;
OUTPUT/CASE/broken is one step, and then the same command with three. Both hold
state.npz, what the run ended with, and clips.json, what every step read.
"""

import json
import sys
from importlib import import_module
from pathlib import Path

import jax
import numpy as np
import tiny_dataset
from recorded import record

jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_disable_most_optimizations", True)  # compiles in half the time

from launch import train  # noqa: E402

CASES = {  # stage, what it starts from, fields
    "same_scene": ("same_scene", None, {"optimizer.ema_ramp": 0.3}),
    "cross_scene": ("cross_scene", "same_scene", {"optimizer.accumulate": 2}),
    "lora": ("cross_scene", "same_scene", {"optimizer.trainable": "lora"}),
    "grpo": ("policy", "cross_scene", {"policy.algorithm": "grpo"}),
    "nft": ("policy", "cross_scene", {"policy.algorithm": "nft"}),
}


def config_of(case: str, dataset: Path, output: Path):
    stage, before, fields = CASES[case]
    config = import_module(f"configs.{stage}").get_config("tiny")
    config.data.path = str(dataset)
    config.parallel.data, config.parallel.fsdp = 1, -1
    config.train.evaluate_every = 0
    config.data.batch_size = 4
    config.lora.rank = 4
    config.update_from_flattened_dict(fields)
    if before:
        config.init_from = str(output / before / "straight")
    return config


def recorded(make_loader, seen):
    """Loaders that note the clips they give."""
    return lambda *given, **named: record(make_loader(*given, **named), seen)


def main(dataset: Path, output: Path, case: str) -> None:
    if not dataset.exists():
        tiny_dataset.write(dataset)
    make_loader = train.loader.make_loader
    for name, stops in {"straight": [3], "broken": [1, 3]}.items():
        workdir, seen = output / case / name, []
        train.loader.make_loader = recorded(make_loader, seen)
        for steps in stops:
            config = config_of(case, dataset, output)
            config.train.steps = steps
            state = train.train(config, workdir)
        leaves = {
            jax.tree_util.keystr(path): np.asarray(leaf)
            for path, leaf in jax.tree.leaves_with_path(state)
        }
        np.savez(workdir / "state.npz", **leaves)
        (workdir / "clips.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
