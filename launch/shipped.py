"""The trained stages that this package carries: their names, and what a file holds.

    mini               the last stage of those that are there
    mini:same_scene    mini:cross_scene    mini:policy

`mini` always means these; a folder of that name is ./mini. A file of launch.ship is
safetensors: numbers in float16 under their places in the network, and as metadata

    holds        what tells it from other files
    config       of its run, as JSON
    fingerprint  of its numbers
    upon, upon_fingerprint, lora    of low-rank additions alone: the stage beside it
                 that they belong to, which numbers it had, and their section `lora`

In memory the numbers are float32: merged in float16, additions that are smaller than
the rounding of a weight would be lost.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict
from numpy import ndarray

from launch import build
from tavr_jax.encoders.tensors import check_names, open_tensors, read_metadata
from tavr_jax.errors import InputError
from tavr_jax.parallel import sharding
from tavr_jax.storage import Place
from tavr_jax.training import lora, trainable
from tavr_jax.types import PyTree

STAGES = ("same_scene", "cross_scene", "policy")
HOLDS = "a stage of tavr_jax"
MINI = build.PACKAGED


def folder() -> Path:
    """Where this package keeps what it carries."""
    return Path(str(build.ASSETS))


def is_named(source: str) -> bool:
    """Whether a text given as a checkpoint is `mini` or begins with `mini:`."""
    return source == MINI or source.startswith(f"{MINI}:")


def find(source: str, flag: str) -> Path:
    """The file of `mini` or `mini:STAGE`. InputError: no such stage, or not there."""
    stage = source.removeprefix(MINI).removeprefix(":") or _last()
    if stage not in STAGES:
        names = " | ".join([MINI, *(f"{MINI}:{name}" for name in STAGES)])
        raise InputError(f"{flag} {source}: no such stage; expected {names}")
    path = folder() / f"{stage}.safetensors"
    if not path.is_file():
        raise InputError(
            f"{flag} {source}: not shipped here ({path} is missing); give a workdir of "
            "yours, or make it: bash launch/reproduce_mini.sh"
        )
    return path


def _last() -> str:
    carried = {path.stem for path in folder().glob("*.safetensors")}
    return next((s for s in reversed(STAGES) if s in carried), STAGES[-1])


def told(path: Place) -> str:
    """A checkpoint as a reader knows it: mini:STAGE, or its path."""
    carried = isinstance(path, Path) and path.resolve().parent == folder().resolve()
    return f"{MINI}:{path.stem}" if carried and is_shipped(path) else str(path)


def is_shipped(path: Place) -> bool:
    """Whether launch.ship wrote this file, as a stage."""
    if not isinstance(path, Path) or path.suffix != ".safetensors":
        return False
    try:
        return path.is_file() and read_metadata(path).get("holds") == HOLDS
    except InputError:
        return False  # whoever reads it will say what is wrong


def stored_config(path: Path) -> ConfigDict:
    """Of the run that a file came from."""

    def tuples(found: dict[str, Any]) -> dict[str, Any]:
        return {n: tuple(v) if isinstance(v, list) else v for n, v in found.items()}

    try:
        text = read_metadata(path)["config"]
        return ConfigDict(json.loads(text, object_hook=tuples))
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: no config in its metadata; ship it again") from error


def load(path: Path, config: ConfigDict, mesh: Mesh) -> tuple[nnx.State, str]:
    """Every parameter of the plain transformer, and a fingerprint of what is stored.

    Additions are merged. `config` gives the sizes. InputError: a tensor does not fit,
    the file is damaged, what its additions belong to is missing or has changed.
    """
    facts, model = read_metadata(path), build.abstract_transformer(config)
    mark = facts.get("fingerprint", "")
    if "upon" not in facts:
        return _read(path, nnx.state(model, nnx.Param), mesh, mark), mark
    base = path.with_name(f"{facts['upon']}.safetensors")
    if not is_shipped(base):
        raise InputError(
            f"{path}: holds additions to {base.name}, which is not beside it; copy both"
        )
    below, found = load(base, config, mesh)
    if found != facts["upon_fingerprint"]:
        raise InputError(
            f"{path}: its additions belong to other weights "
            f"({facts['upon_fingerprint']}) than {base.name} has ({found}); copy both "
            "from one place"
        )
    additions = lora.LoraConfig(**json.loads(facts["lora"]))
    model = lora.graft(model, additions, nnx.Rngs(0))
    chosen = trainable.chosen("lora", model)
    graph, shapes, _ = nnx.split(model, chosen, nnx.Param)
    model = nnx.merge(graph, _read(path, shapes, mesh, mark), below)
    mark = hashlib.sha256(f"{found} {mark}".encode()).hexdigest()[:12]
    return nnx.state(lora.merge(model), nnx.Param), mark


def fingerprint(arrays: Mapping[str, ndarray]) -> str:
    """Twelve hex digits of names, shapes, types and values."""
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()[:12]


def name(key: tuple) -> str:
    """Of the tensor at a key of nnx.to_flat_state."""
    return ".".join(map(str, key))


def _read(path: Path, shapes: PyTree, mesh: Mesh, mark: str) -> nnx.State:
    """The tensors of a file as parameters on the mesh, in the dtypes of `shapes`."""
    flat = nnx.to_flat_state(sharding.abstract(mesh, shapes))
    tensors = open_tensors(path)
    check_names(tensors, {name(key): value.shape for key, value in flat})
    arrays = {tensor: tensors[tensor] for tensor in tensors}
    if fingerprint(arrays) != mark:
        raise InputError(f"{path}: damaged: its numbers have changed; fetch it again")
    made = []
    for key, value in flat:
        array = arrays[name(key)].astype(value.dtype)
        place = value.get_value().sharding
        params = jax.make_array_from_callback(
            array.shape, place, lambda index, array=array: array[index]
        )
        made.append((key, value.replace(params)))
    return nnx.from_flat_state(made)
