"""What of a run goes into a file: its averaged weights in float16, and facts.

A run that trained low-rank additions to a stage of the same folder is stored as the
additions alone, a small part of the numbers; to anything else, merged.
"""

import json
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from flax import nnx
from ml_collections import ConfigDict
from numpy import ndarray

from launch import checkpoints, origin, shipped
from launch.provenance import nobodys
from tavr_jax.encoders import published
from tavr_jax.encoders.tensors import read_metadata, write_tensors
from tavr_jax.errors import InputError
from tavr_jax.parallel.mesh import MeshConfig, make_mesh
from tavr_jax.training import checkpoint, trainable
from tavr_jax.types import PyTree

# name of a file -> the stage that trains it
NETWORKS = {
    "codec": "codec",
    "face": "face",
    "face_judge": "face",
    "lipsync": "lipsync",
}
NAMES = NETWORKS | {stage: stage for stage in shipped.STAGES}
LARGEST = 20_000_000  # bytes of everything that the package carries


class Weights(NamedTuple):
    """A file's contents."""

    arrays: dict[str, ndarray]  # float16
    facts: dict[str, str]  # its metadata

    @property
    def numbers(self) -> int:
        """How many there are."""
        return sum(array.size for array in self.arrays.values())


def stage_of(workdir: Path) -> str:
    """What a run trained. InputError: not the workdir of a run."""
    return checkpoints.stored_config(workdir).stage


def gather(workdir: Path, name: str, folder: Path) -> Weights:
    """The newest checkpoint of a run, as a file `name` of `folder` will have it.

    InputError: no such name, a run of another stage, weights that are beyond float16,
    a network of the run that is not carried with it, a base that is missing or changed.
    """
    config = _config(workdir, name)
    mesh = make_mesh(MeshConfig(data=1, fsdp=-1, context=1, tensor=1))
    path = origin.find(str(workdir))
    base = origin.read(path)
    facts = {"config": _told(config, folder), "licence": "Apache-2.0"}
    facts["trained_on"] = "procedural people only"
    if name in NETWORKS:
        facts["config"] = config.name  # of a network the sizes are the config's
    else:
        facts["holds"] = shipped.HOLDS
    if base is not None and base.trainable == "lora":
        below = origin.load_base(base, config, mesh)
        upon = same_as(below.params, folder)
        if upon:
            mark = read_metadata(_file(folder, upon))["fingerprint"]
            facts |= {"upon": upon, "upon_fingerprint": mark}
            facts["lora"] = json.dumps(dict(base.lora))
            return _marked(_half(_additions(path, config, base), workdir), facts)
    return _marked(_half(origin.load(path, config, mesh).params, workdir), facts)


def write(weights: Weights, name: str, folder: Path) -> Path:
    """FOLDER/NAME.safetensors, all or nothing. InputError: the package, if that is the
    folder, would carry more than LARGEST."""
    path = _file(folder, name)
    if folder.resolve() == shipped.folder().resolve():
        others = [p for p in folder.glob("*.safetensors") if p != path]
        size = sum(p.stat().st_size for p in others) + 2 * weights.numbers
        if size > LARGEST:
            raise InputError(
                f"--output {folder}: would hold {size / 1e6:.1f} MB, and the package "
                f"may carry {LARGEST / 1e6:.0f}; ship fewer or smaller networks"
            )
    try:
        write_tensors(path, weights.arrays, weights.facts)
    except OSError as error:
        raise InputError(f"--output {path}: {error.strerror or error}") from error
    return path


def same_as(params: PyTree, folder: Path) -> str | None:
    """The shipped stage of a folder that has these weights, whole; None: none has."""
    mark = shipped.fingerprint(_half(params, folder))
    for stage in shipped.STAGES:
        path = _file(folder, stage)
        facts = read_metadata(path) if shipped.is_shipped(path) else {}
        if "upon" not in facts and facts.get("fingerprint") == mark:
            return stage
    return None


def _config(workdir: Path, name: str) -> ConfigDict:
    if name not in NAMES:
        raise InputError(f"--name {name}: expected {' | '.join(NAMES)}")
    config = checkpoints.stored_config(workdir)
    if config.stage != NAMES[name]:
        raise InputError(
            f"--name {name}: is trained in stage {NAMES[name]}, but {workdir} in stage "
            f"{config.stage}"
        )
    return config


def _told(config: ConfigDict, folder: Path) -> str:
    """The config without places of this machine; networks beside the file are mini."""
    config = config.copy_and_resolve_references()
    config.data.path = config.init_from = ""
    named = [("networks", field) for field in config.networks]
    for section, field in (*named, ("evaluation", "face")):
        value = config[section][field]
        if not value or value == shipped.MINI or not Path(value).exists():
            continue
        if Path(value).resolve().parent != folder.resolve():
            raise InputError(
                f"{section}.{field}: {nobodys(value)}: the run needs it, and it is not "
                f"in {folder}; ship it there first"
            )
        config[section][field] = shipped.MINI
    return json.dumps(config.to_dict())


def _additions(path: Path, config: ConfigDict, base: origin.Base) -> nnx.State:
    """The trained low-rank factors of a run, without what they are added to."""
    model = nnx.eval_shape(partial(origin.grafted, config, base.trainable, base.lora))
    chosen = trainable.chosen(base.trainable, model)
    _, shapes, _ = nnx.split(model, chosen, nnx.Param)
    return checkpoint.load_params(path, shapes)


def _half(params: PyTree, source: Path) -> dict[str, ndarray]:
    """Every tensor in float16, by name. InputError: a number is beyond it."""
    arrays = {}
    for key, value in nnx.to_flat_state(params):
        array = published.fetch(value.get_value())
        with np.errstate(over="ignore"):
            half = array.astype(np.float16)
        if not np.isfinite(half).all():
            raise InputError(
                f"{source}: {shipped.name(key)}: holds numbers beyond float16; is the "
                "run sound?"
            )
        arrays[shipped.name(key)] = half
    return arrays


def _marked(arrays: dict[str, ndarray], facts: dict[str, str]) -> Weights:
    return Weights(arrays, facts | {"fingerprint": shipped.fingerprint(arrays)})


def _file(folder: Path, name: str) -> Path:
    return folder / f"{name}.safetensors"
