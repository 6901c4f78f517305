"""Transformer weights: published names <-> a checkpoint of ours.

    python -m launch.convert_weights --input SRC --output DST [--config FILE.py:size]

    SRC   a published file, an index of several, a folder of them, .pth/.pt/.bin,
          OWNER/NAME[:FILE] of the Hugging Face hub; or ours: a workdir of launch.train,
          one of its checkpoints/<step> folders, an output of this command. A run that
          trained a part, or low-rank additions, is read whole: merged into the weights
          that it started from, in their dtypes
    DST   NAME.safetensors: published names, several files and an index where they
          would exceed --shard_gb; any other name: a folder of ours, which
          launch.generate --checkpoint and init_from accept

Every tensor keeps the dtype it has in SRC, so published -> ours -> published gives the
same bytes. --config says which network a published file is (ours brings its own). What
becomes a folder of ours, or comes from one, is held on this machine's devices, split
over them (with JAX_PLATFORMS=cpu: in memory): 38 GB for the official file. Published to
published needs memory for one tensor.
"""

import json
import os
import shutil
from pathlib import Path

import jax
import numpy as np
from absl import flags
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict
from tqdm import tqdm

from launch import build, checkpoints, cli, origin, weights_source
from tavr_jax.encoders import published
from tavr_jax.encoders.published import Progress
from tavr_jax.encoders.safetensors_files import Planned
from tavr_jax.encoders.tensors import Tensors, check_names
from tavr_jax.encoders.weights_tavr import entries, open_published
from tavr_jax.errors import InputError
from tavr_jax.parallel import sharding
from tavr_jax.parallel.mesh import MeshConfig, make_mesh
from tavr_jax.training import checkpoint

INPUT = flags.DEFINE_string("input", None, "What to convert: a path or a hub name.")
OUTPUT = flags.DEFINE_string("output", None, "NAME.safetensors or a folder to make.")
SHARD_GB = flags.DEFINE_float("shard_gb", 5.0, "Largest published file, in 1e9 bytes.")
EMA = flags.DEFINE_bool("ema", True, "Of a run of ours: its average, if it kept one.")
CONFIG = cli.config_flag("configs/cross_scene.py:tavr_14b")


def main() -> None:
    """Read the flags, convert, say what was written."""
    if not INPUT.value or not OUTPUT.value:
        raise InputError("flags: --input SRC and --output DST are needed")
    output = Path(OUTPUT.value)
    if output.exists():
        raise InputError(f"--output {output}: exists; remove it or give another name")
    if SHARD_GB.value <= 0:
        raise InputError(f"--shard_gb {SHARD_GB.value}: has to be above 0")
    source = weights_source.resolve(INPUT.value, "--input")
    try:
        written = convert(source, output, CONFIG.value, int(SHARD_GB.value * 1e9))
    except OSError as error:
        raise InputError(f"--output {output}: {error.strerror or error}") from error
    print(f"{source} -> {written}")


def convert(source: Path, output: Path, config: ConfigDict, shard_bytes: int) -> Path:
    """Returns the file, the index or the folder that was written.

    InputError names a tensor that does not fit, before anything is written.
    """
    facts = {"format": "pt", "generator": "tavr_jax", "source": source.name}
    if not origin.is_published(source):
        config = checkpoints.stored_config(source)
        config.update_from_flattened_dict(checkpoints.flag_config()[1])
        model = _load_ours(source, config)
    else:
        tensors = open_published(source)
        model = build.abstract_transformer(config)
        if output.suffix == ".safetensors":
            return _copy(tensors, model, output, facts, shard_bytes)
        with _bar("reading", tensors.nbytes()) as bar:
            model = published.fill(
                tensors,
                _spread(model),
                entries(model),
                dtype="file",
                progress=bar.update,
            )
    if output.suffix != ".safetensors":
        return _save_ours(model, config, output)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
    with _bar("writing", size) as bar:
        return published.save(
            output,
            model,
            entries(model),
            facts,
            shard_bytes=shard_bytes,
            progress=bar.update,
        )


def _spread(model: nnx.Module) -> nnx.Module:
    """The abstract model with its parameters split over the devices of this process."""
    graph, params = nnx.split(model, nnx.Param)
    return nnx.merge(graph, sharding.abstract(_mesh(), params))


def _mesh() -> Mesh:
    return make_mesh(MeshConfig(data=1, fsdp=-1, context=1, tensor=1))


def _load_ours(source: Path, config: ConfigDict) -> nnx.Module:
    """Whole, in the dtypes it is stored in."""
    graph, _ = nnx.split(build.abstract_transformer(config), nnx.Param)
    moved = config.init_from
    loaded = origin.load(source, config, _mesh(), ema=EMA.value, moved=moved)
    return nnx.merge(graph, loaded.params)


def _save_ours(model: nnx.Module, config: ConfigDict, folder: Path) -> Path:
    """params and config.json; the folder has its name when both are complete."""
    unfinished = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    try:
        checkpoint.save_tree(unfinished / "params", nnx.state(model, nnx.Param))
        text = json.dumps(config.to_dict(), indent=2) + "\n"
        (unfinished / "config.json").write_text(text, "utf-8")
        os.replace(unfinished, folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def _copy(
    tensors: Tensors,
    model: nnx.Module,
    output: Path,
    facts: dict[str, str],
    shard_bytes: int,
) -> Path:
    """Published to published: another container or other shards, tensor by tensor."""
    check_names(tensors, {e.official: e.shape for e in entries(model)})
    with _bar("copying", tensors.nbytes()) as bar:
        planned = [
            Planned(
                name,
                tensors.shape(name),
                tensors.dtype(name),
                lambda name=name: _told(tensors[name], bar.update),
            )
            for name in tensors
        ]
        return published.write(output, planned, facts, shard_bytes)


def _told(array: np.ndarray, progress: Progress) -> np.ndarray:
    progress(array.nbytes)
    return array


def _bar(doing: str, size: int) -> tqdm:
    # The delay keeps it out of the way of an error that is found at once.
    return tqdm(desc=doing, total=size, unit="B", unit_scale=True, delay=0.5)


if __name__ == "__main__":
    cli.run(main, __doc__)
