"""Checkpoints: parameters, average, moments and data iterator, written as one.

    WORKDIR/config.json                  the config of the run
    WORKDIR/checkpoints/<step>/params    what is trained
                               ema       its average, where there is one
                               opt_state moments
                               data      where the data iterator stands

A step's folder appears under its name only when it is complete. Resuming a run
(`Checkpoints.restore`: everything, exactly) and loading weights to start from
(`load_params`) are different things.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jax.sharding import SingleDeviceSharding
from ml_collections import ConfigDict

from tavr_jax.errors import InputError
from tavr_jax.training.state import TrainState
from tavr_jax.types import PyTree

# What a run may not change when it resumes: shapes, meaning and order of the data.
# Everything else (rates, lengths, intervals, devices) may.
FIXED = (
    "stage",
    "seed",
    "model",
    "chunks",
    "codec",
    "speech",
    "text",
    "face",
    "lipsync",
    "flow",
    "policy",
    "data.orientation",
    "data.split",
    "data.batch_size",
    "data.pairs",
    "data.continuation",
    "optimizer.ema_decay",
)
_ITEMS = ("params", "opt_state", "data")


class Checkpoints:
    """The checkpoints of one workdir, as its training run sees them."""

    def __init__(self, workdir: str | os.PathLike, config: ConfigDict):
        """Write config.json. InputError if the workdir holds checkpoints of another run
        (the first differing field is named) or cannot be written."""
        workdir = Path(workdir).absolute()
        self._folder = workdir / "checkpoints"
        if jax.process_index() == 0:
            _claim(workdir, config, bool(_complete_steps(self._folder)))
        self._manager = ocp.CheckpointManager(
            self._folder,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=config.train.keep,
                # On CPU a device array is host memory: writing it in the background
                # would read what the next step donates.
                enable_async_checkpointing=jax.default_backend() != "cpu",
            ),
        )

    def latest(self) -> int | None:
        """Step of the newest complete checkpoint."""
        return max(_complete_steps(self._folder), default=None)

    def save(self, state: TrainState, batches: Iterator[Any]) -> None:
        """State and data iterator, under the state's step."""
        items = {
            "params": ocp.args.StandardSave(state.params),
            "opt_state": ocp.args.StandardSave(state.opt_state),
            "data": ocp.args.JsonSave(batches.get_state()),
        }
        if state.ema is not None:
            items["ema"] = ocp.args.StandardSave(state.ema)
        step = int(state.step)
        self._manager.save(step, args=ocp.args.Composite(**items), force=True)

    def restore(self, abstract: TrainState, batches: Iterator[Any]) -> TrainState:
        """The newest complete state, on the shardings of `abstract`; `batches` is set
        to where it stood."""
        step = self.latest()
        folder = self._folder / str(step)
        items = {
            "params": ocp.args.StandardRestore(abstract.params),
            "opt_state": ocp.args.StandardRestore(abstract.opt_state),
            "data": ocp.args.JsonRestore(),
        }
        if abstract.ema is not None:
            items["ema"] = ocp.args.StandardRestore(abstract.ema)
        try:
            found = self._manager.restore(step, args=ocp.args.Composite(**items))
        except (ValueError, OSError, KeyError) as error:
            raise InputError(
                f"{folder}: cannot be restored ({_line(error)}); remove this folder to "
                "resume from the checkpoint before it"
            ) from error
        batches.set_state(found["data"])
        counter = jax.device_put(jnp.int32(step), abstract.step.sharding)
        ema = None if abstract.ema is None else found["ema"]
        return TrainState(counter, found["params"], found["opt_state"], ema)

    def wait(self) -> None:
        """Until everything saved is on disk."""
        self._manager.wait_until_finished()


def read_config(workdir: str | os.PathLike) -> ConfigDict:
    """The config a run was started with. InputError if there is none."""
    path = Path(workdir) / "config.json"
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(
            f"{path}: not found; {workdir} is not the workdir of a training run"
        ) from None
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({_line(error)})") from error
    return ConfigDict(_tuples(read))


def load_params(
    path: str | os.PathLike,
    abstract_params: PyTree,
    ema: bool = True,
    stored_dtypes: bool = False,
) -> PyTree:
    """Parameters of a workdir's newest checkpoint, or of one step's folder.

    `abstract_params` has the shapes to expect, with shardings or without (then the
    first device). `ema`: the average, where the run kept one. `stored_dtypes`: as they
    are on disk, not as expected. InputError names the tensor that is missing, unknown
    or of another shape.
    """
    path = Path(path).absolute()
    if not (path / "params").is_dir():
        steps = _complete_steps(path / "checkpoints")
        if not steps:
            raise InputError(
                f"{path}: no complete checkpoint; expected a workdir of launch.train "
                "or one of its checkpoints/<step> folders"
            )
        path = path / "checkpoints" / str(max(steps))
    name = "ema" if ema and (path / "ema").is_dir() else "params"
    return load_tree(path / name, abstract_params, stored_dtypes)


def save_tree(path: str | os.PathLike, tree: PyTree) -> None:
    """One tree of arrays in its own folder, in place of what was there; atomic."""
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(Path(path).absolute(), tree, force=True)


def load_tree(
    path: str | os.PathLike, abstract: PyTree, stored_dtypes: bool = False
) -> PyTree:
    """The tree of `save_tree`, checked name by name. See `load_params`."""
    path = Path(path).absolute()
    if not path.is_dir():
        raise InputError(f"{path}: no such folder of weights")
    device = SingleDeviceSharding(jax.local_devices()[0])
    # The handler alone: a Checkpointer would expect metadata of its own in the folder.
    handler = ocp.StandardCheckpointHandler()
    stored = _by_name(handler.metadata(path).tree)
    shapes = {name: tuple(leaf.shape) for name, leaf in stored.items()}
    _check_shapes(path, shapes, _shapes(abstract))

    def expect(place: tuple, x: Any) -> jax.ShapeDtypeStruct:
        dtype = stored[_name(place)].dtype if stored_dtypes else x.dtype
        on = getattr(x, "sharding", None) or device
        return jax.ShapeDtypeStruct(x.shape, dtype, sharding=on)

    expected = jax.tree.map_with_path(expect, abstract)
    return handler.restore(path, args=ocp.args.StandardRestore(expected))


def _check_shapes(path: Path, stored: dict, expected: dict) -> None:
    remedy = "is it a checkpoint of this network and this size of config?"
    if missing := sorted(expected.keys() - stored.keys()):
        raise InputError(f"{path}: tensor {missing[0]} is missing; {remedy}")
    if unknown := sorted(stored.keys() - expected.keys()):
        raise InputError(f"{path}: tensor {unknown[0]} is unknown; {remedy}")
    for name, shape in expected.items():
        if stored[name] != shape:
            raise InputError(
                f"{path}: tensor {name} has shape {stored[name]}, expected {shape}; "
                f"{remedy}"
            )


def _shapes(tree: PyTree) -> dict[str, tuple[int, ...]]:
    return {name: tuple(leaf.shape) for name, leaf in _by_name(tree).items()}


def _by_name(tree: PyTree) -> dict[str, Any]:
    return {_name(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


def _name(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _complete_steps(folder: Path) -> list[int]:
    """Steps whose folder has everything: a copied or killed one may not."""
    if not folder.is_dir():
        return []
    return [
        int(entry.name)
        for entry in folder.iterdir()
        if entry.name.isdecimal()
        and (entry / "_CHECKPOINT_METADATA").is_file()
        and all((entry / item).is_dir() for item in _ITEMS)
    ]


def _claim(workdir: Path, config: ConfigDict, resuming: bool) -> None:
    path = workdir / "config.json"
    if resuming:
        _check_same(workdir, read_config(workdir), config)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        partial.write_text(json.dumps(config.to_dict(), indent=2) + "\n", "utf-8")
        os.replace(partial, path)
    except OSError as error:
        raise InputError(f"--workdir: {workdir}: {error.strerror}") from error
    _set_aside(workdir / "checkpoints")


def _set_aside(folder: Path) -> None:
    """Rename incomplete steps: the run will write those steps again."""
    if not folder.is_dir():
        return
    complete = _complete_steps(folder)
    for entry in list(folder.iterdir()):
        if entry.name.isdecimal() and int(entry.name) not in complete:
            entry.rename(entry.with_name(f"{entry.name}.incomplete.{os.getpid()}"))


def _check_same(workdir: Path, stored: ConfigDict, config: ConfigDict) -> None:
    before, now = _flat(stored.to_dict()), _flat(_tuples(config.to_dict()))
    for name in sorted(before.keys() | now.keys()):
        fixed = any(name == f or name.startswith(f"{f}.") for f in FIXED)
        if fixed and before.get(name) != now.get(name):
            raise InputError(
                f"--config.{name}: {now.get(name)!r}, but the run in {workdir} has "
                f"{before.get(name)!r}; give its value, or another --workdir"
            )


def _flat(tree: dict, prefix: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def _tuples(value: Any) -> Any:
    """JSON knows only lists; configs have only tuples, which can be hashed."""
    if isinstance(value, dict):
        return {name: _tuples(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return tuple(_tuples(item) for item in value)
    return value


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
