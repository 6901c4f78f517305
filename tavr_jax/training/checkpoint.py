"""Checkpoints: parameters, average, moments and data iterator, written as one.

    WORKDIR/config.json                  the config of the run
    WORKDIR/checkpoints/<step>/params    what is trained
                               ema       its average, where there is one
                               opt_state moments
                               progress  JSON: where the data iterator and the loop
                                         stand, and which data it is

A step is written in the background, from a copy, while training goes on. Its folder
appears under its name only when it is complete; in a bucket, which cannot rename, it is
complete when Orbax has put its mark there, the last of its files. Resuming a run
(`Checkpoints.restore`: everything, exactly) and loading weights to start from
(`load_params`) are different things.
"""

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jax.sharding import SingleDeviceSharding
from ml_collections import ConfigDict
from orbax.checkpoint.checkpoint_managers import (
    AnyPreservationPolicy,
    EveryNSteps,
    LatestN,
)

from tavr_jax import storage
from tavr_jax.errors import InputError
from tavr_jax.storage import Place
from tavr_jax.training.state import TrainState
from tavr_jax.types import PyTree

# What a run may not change when it resumes: shapes, meaning and order of the data, and
# what is asked of it. Everything else (rates, lengths, intervals, devices, parts of a
# batch, guards) may. Data itself is told by its contents, wherever it lies.
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
    "networks.codec",
    "networks.text",
    "networks.tokenizer",
    "networks.speech",
    "networks.face",
    "networks.lipsync",
    "flow",
    "policy",
    "data.orientation",
    "data.split",
    "data.batch_size",
    "data.pairs",
    "data.curriculum",
    "data.per_person",
    "data.reference_latents",
    "data.continuation",
    "data.frames",
    "data.workers",  # Grain's iterator counts by worker
    "optimizer.trainable",
    "optimizer.ema_decay",
    "lora",
)
# Of the sections above; the last two say how numbers are made, not which.
_FREE = ("policy.guard_window", "policy.guard_fall", "model.remat", "model.attention")
_UNFINISHED = ".orbax-checkpoint-tmp"  # in the name of what Orbax is writing
_ITEMS = ("params", "opt_state", "progress")
_MARKS = ("_CHECKPOINT_METADATA", "commit_success.txt")  # the last one, of a bucket


class Checkpoints:
    """The checkpoints of one workdir, as its training run sees them.

    InputError, from any method: the disk is full, a folder cannot be written or read.
    """

    def __init__(self, workdir: str | os.PathLike, config: ConfigDict, data: str):
        """Look, and write nothing yet. `data`: fingerprint of what is trained on.

        InputError if the workdir holds checkpoints of another run (the first differing
        field is named) or of other data.
        """
        self._workdir, self._config = storage.place(workdir), config
        self._folder, self._data = self._workdir / "checkpoints", data
        if jax.process_index() == 0 and self.latest() is not None:
            _check_same(self._workdir, read_config(self._workdir), config)
            self._check_data()

    def claim(self) -> None:
        """Write config.json, before anything else is: everything else was accepted.

        InputError if the workdir cannot be written.
        """
        config = self._config
        if jax.process_index() == 0:
            _claim(self._workdir, config)
        kept = [LatestN(config.train.keep)]
        if config.train.keep_every:
            kept.append(EveryNSteps(config.train.keep_every))
        self._manager = ocp.CheckpointManager(
            self._folder,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=AnyPreservationPolicy(kept)
            ),
        )

    def latest(self) -> int | None:
        """Step of the newest complete checkpoint."""
        return max(complete_steps(self._folder), default=None)

    def notes(self) -> dict[str, Any]:
        """What the loop noted with the newest checkpoint; {} where there is none."""
        return {} if self.latest() is None else self._progress()["notes"]

    def stopped(self) -> str | None:
        """Why a watch ended the run at the newest checkpoint; None: it did not."""
        return self.notes().get("stopped")

    def save(
        self, state: TrainState, batches: Iterator[Any], notes: dict[str, Any]
    ) -> None:
        """State, data iterator and notes (JSON), under the state's step.

        Returns before it is on disk; the state may be donated at once.
        """
        progress = {
            "batches": batches.get_state(),
            "notes": notes,
            "data": self._data,
        }
        if jax.default_backend() == "cpu":
            # Elsewhere Orbax copies to the host before it returns. Here device arrays
            # are host memory, which it goes on reading while the next steps run.
            state = _copy(state)
        items = {
            "params": ocp.args.StandardSave(state.params),
            "opt_state": ocp.args.StandardSave(state.opt_state),
            "progress": ocp.args.JsonSave(json.loads(json.dumps(progress))),
        }
        if state.ema is not None:
            items["ema"] = ocp.args.StandardSave(state.ema)
        step = int(state.step)
        with _told(self._folder / str(step), "cannot be written", _PLACE):
            self._manager.save(step, args=ocp.args.Composite(**items), force=True)

    def restore(self, abstract: TrainState, batches: Iterator[Any]) -> TrainState:
        """The newest complete state, on the shardings of `abstract`; `batches` is set
        to where it stood."""
        step = self.latest()
        folder = self._folder / str(step)
        items = {
            "params": ocp.args.StandardRestore(abstract.params),
            "opt_state": ocp.args.StandardRestore(abstract.opt_state),
        }
        if abstract.ema is not None:
            items["ema"] = ocp.args.StandardRestore(abstract.ema)
        with _told(folder, "cannot be restored", _DAMAGED):
            _check_shapes(folder / "params", abstract.params)
            found = self._manager.restore(step, args=ocp.args.Composite(**items))
        batches.set_state(self._progress()["batches"])
        counter = jax.device_put(jnp.int32(step), abstract.step.sharding)
        ema = None if abstract.ema is None else found["ema"]
        return TrainState(counter, found["params"], found["opt_state"], ema)

    def close(self) -> None:
        """Wait until everything saved is on disk."""
        with _told(self._folder, "cannot be written", _PLACE):
            self._manager.wait_until_finished()
            self._manager.close()

    def _progress(self) -> dict[str, Any]:
        folder = self._folder / str(self.latest())
        with _told(folder, "cannot be restored", _DAMAGED):
            return ocp.JsonCheckpointHandler().restore(folder / "progress")

    def _check_data(self) -> None:
        if self._progress()["data"] != self._data:
            raise InputError(
                f"--config.data.path: {self._config.data.path}: not the data that the "
                f"run in {self._workdir} learns from; give that data, wherever it lies "
                "now, or another --workdir"
            )


_ROOM = "make room there and give the same command again"
_FULL = tuple(map(os.strerror, (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)))
_PLACE = "is the folder still there, and may it be written to?"
_COPY = "is it damaged? copy it again, or give another"
_DAMAGED = "remove this folder to resume from the checkpoint before it"
_copy = jax.jit(partial(jax.tree.map, jnp.copy))


@contextlib.contextmanager
def _told(path: Place, what: str, remedy: str) -> Iterator[None]:
    """What Orbax and TensorStore raise, as one line; a full disk has its own remedy.

    Not what keeps a bucket from being written to: it may pass, so it is no InputError,
    after which launch.pod would start nothing again.
    """
    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        if (remedy is _PLACE and storage.is_bucket(path)) or storage.may_pass(error):
            raise
        if any(sign in str(error) for sign in _FULL):
            remedy = _ROOM
        raise InputError(f"{path}: {what} ({_line(error)}); {remedy}") from error


def read_config(workdir: str | os.PathLike) -> ConfigDict:
    """The config a run was started with. InputError if there is none."""
    path = storage.place(workdir) / "config.json"
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
    path = storage.place(path)
    if not (path / "params").is_dir():
        steps = complete_steps(path / "checkpoints")
        if not steps:
            raise InputError(
                f"{path}: no complete checkpoint; expected a workdir of launch.train "
                "or one of its checkpoints/<step> folders"
            )
        path = path / "checkpoints" / str(max(steps))
    name = "ema" if ema and (path / "ema").is_dir() else "params"
    return load_tree(path / name, abstract_params, stored_dtypes)


def save_tree(path: str | os.PathLike, tree: PyTree) -> None:
    """One tree of arrays in its own folder, in place of what was there; atomic.

    InputError: the folder cannot be written.
    """
    path = storage.place(path)
    with (
        _told(path, "cannot be written", _PLACE),
        ocp.StandardCheckpointer() as checkpointer,
    ):
        checkpointer.save(path, tree, force=True)


def load_tree(
    path: str | os.PathLike, abstract: PyTree, stored_dtypes: bool = False
) -> PyTree:
    """The tree of `save_tree`, checked name by name. See `load_params`."""
    path = storage.place(path)
    if not path.is_dir():
        raise InputError(f"{path}: no such folder of weights")
    device = SingleDeviceSharding(jax.local_devices()[0])
    # The handler alone: a Checkpointer would expect metadata of its own in the folder.
    handler = ocp.StandardCheckpointHandler()
    with _told(path, "cannot be read", _COPY):
        stored = _check_shapes(path, abstract)

    def expect(place: tuple, x: Any) -> jax.ShapeDtypeStruct:
        dtype = stored[_name(place)].dtype if stored_dtypes else x.dtype
        on = getattr(x, "sharding", None) or device
        return jax.ShapeDtypeStruct(x.shape, dtype, sharding=on)

    expected = jax.tree.map_with_path(expect, abstract)
    with _told(path, "cannot be read", _COPY):
        return handler.restore(path, args=ocp.args.StandardRestore(expected))


def _check_shapes(path: Place, abstract: PyTree) -> dict[str, Any]:
    """What is stored there, by name. InputError where names or shapes differ."""
    found = _by_name(ocp.StandardCheckpointHandler().metadata(path).tree)
    stored, expected = _shapes(found), _shapes(abstract)
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
    return found


def _shapes(tree: PyTree) -> dict[str, tuple[int, ...]]:
    return {name: tuple(leaf.shape) for name, leaf in _by_name(tree).items()}


def _by_name(tree: PyTree) -> dict[str, Any]:
    return {_name(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


def _name(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def complete_steps(folder: Place) -> list[int]:
    """Steps whose folder has everything: a copied or killed one may not."""
    if not folder.is_dir():
        return []
    marks = _MARKS if storage.is_bucket(folder) else _MARKS[:1]
    return [
        int(entry.name)
        for entry in folder.iterdir()
        if entry.name.isdecimal()
        and all((entry / mark).is_file() for mark in marks)
        and all((entry / item).is_dir() for item in _ITEMS)
    ]


def _claim(workdir: Place, config: ConfigDict) -> None:
    path = workdir / "config.json"
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        storage.write_text(path, json.dumps(config.to_dict(), indent=2) + "\n")
    except OSError as error:
        if storage.may_pass(error):
            raise
        reason = error.strerror or _line(error)
        raise InputError(f"--workdir: {workdir}: {reason}") from error
    _set_aside(workdir / "checkpoints")


def _set_aside(folder: Place) -> None:
    """Rename incomplete steps, which the run will write again, and remove what a killed
    run was writing: each is a whole state. Orbax would do that in the background, and
    could meet the next run's own. In a bucket both are the same, and are removed."""
    if not folder.is_dir():
        return
    complete = complete_steps(folder)
    for entry in list(folder.iterdir()):
        if _UNFINISHED in entry.name:
            # A thread of a save that failed in this process may still write there.
            shutil.rmtree(entry, ignore_errors=True)
        elif not entry.name.isdecimal() or int(entry.name) in complete:
            continue
        elif storage.is_bucket(entry):
            entry.rmtree()
        else:
            entry.rename(entry.with_name(f"{entry.name}.incomplete.{os.getpid()}"))


def _check_same(workdir: Place, stored: ConfigDict, config: ConfigDict) -> None:
    before, now = flat(stored.to_dict()), flat(_tuples(config.to_dict()))
    for name in sorted(before.keys() | now.keys()):
        fixed = any(name == f or name.startswith(f"{f}.") for f in FIXED)
        fixed = fixed and name not in _FREE
        if fixed and before.get(name) != now.get(name):
            raise InputError(
                f"--config.{name}: {now.get(name)!r}, but the run in {workdir} has "
                f"{before.get(name)!r}; give its value, or another --workdir"
            )


def flat(tree: dict, prefix: str = "") -> dict[str, Any]:
    """The fields of a config by their dotted names."""
    fields = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            fields |= flat(value, f"{prefix}{name}.")
        else:
            fields[prefix + name] = value
    return fields


def _tuples(value: Any) -> Any:
    """JSON knows only lists; configs have only tuples, which can be hashed."""
    if isinstance(value, dict):
        return {name: _tuples(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return tuple(_tuples(item) for item in value)
    return value


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
