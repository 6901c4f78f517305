"""Published weights into our parameters and back: one engine, one table a network.

    ours      = published.transpose(axes).reshape(our shape)                      (1)
    published = ours.reshape(transposed shape).transpose(inverse axes)            (2)

A table (`entries`) says for every published tensor where it lives here; each network
writes its own in weights_<network>.py. Tensors stream: in memory are one published
tensor and this process's shards of the parameters, never a whole stack of layers and
never the file.
"""

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from tavr_jax.encoders import safetensors_files
from tavr_jax.encoders.safetensors_files import Planned
from tavr_jax.encoders.tensors import Tensors, check_names
from tavr_jax.errors import InputError

Module = TypeVar("Module", bound=nnx.Module)
Key = tuple[str | int, ...]
Box = tuple[tuple[int, int], ...]  # (start, stop) along every axis
Progress = Callable[[int], None]  # told the bytes of every tensor

_TILE = 512


class Entry(NamedTuple):
    """One published tensor and where it lives here.

    `ours` is a key of nnx.to_flat_state(nnx.state(module, nnx.Param)); `layer` which
    slice of a stacked (scanned) parameter, None the whole; `axes` the transpose of the
    published axes that gives our order, None as they are: (1, 0) for a Linear,
    (2, 3, 4, 1, 0) for a 3-D convolution.
    """

    official: str
    shape: tuple[int, ...]  # as published
    ours: Key
    layer: int | None
    axes: tuple[int, ...] | None


def fill(
    tensors: Tensors,
    module: Module,
    entries: Iterable[Entry],
    *,
    ignored: Sequence[str] = (),
    dtype: DTypeLike | Literal["file"] | None = None,
    progress: Progress | None = None,
) -> Module:
    """A copy of `module`, which may be abstract, with the weights of `tensors`.

    Strict both ways: InputError names a tensor that is unknown (unless a regular
    expression of `ignored` matches its whole name), missing, misshapen or not of real
    numbers. `dtype`: of all parameters; None keeps each parameter's own, "file" takes
    the file's (of a stack, the widest of its layers). A parameter that carries a
    sharding gets it, and only the parts of this process's devices are made.
    """
    entries = list(entries)
    check_names(tensors, {e.official: e.shape for e in entries}, ignored)
    _check_real(tensors, entries)
    graph, params, rest = nnx.split(module, nnx.Param, ...)
    flat = dict(nnx.to_flat_state(params))
    filled = []
    for key, group in _groups(entries, flat).items():
        variable = flat[key]
        to = variable.dtype if dtype is None else dtype
        if isinstance(dtype, str) and dtype == "file":
            to = jnp.result_type(*{tensors.dtype(e.official) for e in group})
        value = _load(tensors, group, variable, np.dtype(to), progress)
        filled.append((key, variable.replace(value)))
    return nnx.merge(graph, nnx.from_flat_state(filled), rest)


def save(
    path: str | Path,
    module: nnx.Module,
    entries: Iterable[Entry],
    metadata: Mapping[str, str],
    *,
    shard_bytes: int | None = None,
    progress: Progress | None = None,
) -> Path:
    """Write `module` under its published names, each in the dtype it has here.

    `path` is the safetensors file. With more than `shard_bytes` of weights there are
    several, NAME-00001-of-00004.safetensors, and NAME.safetensors.index.json. Returns
    the file or the index. Every array has to be of this process's devices.
    """
    flat = dict(nnx.to_flat_state(nnx.state(module, nnx.Param)))
    planned = [
        Planned(
            e.official,
            e.shape,
            np.dtype(flat[e.ours].dtype),
            partial(_published, e, flat[e.ours], progress),
        )
        for group in _groups(entries, flat).values()
        for e in group
    ]
    return write(Path(path), planned, metadata, shard_bytes)


def write(
    path: Path,
    planned: Sequence[Planned],
    metadata: Mapping[str, str],
    shard_bytes: int | None,
) -> Path:
    """One safetensors file, or several and their index; all or nothing. See `save`."""
    shards = list(_shards(planned, shard_bytes))
    if len(shards) == 1:
        safetensors_files.write(path, planned, metadata)
        return path
    names = [
        f"{path.stem}-{number:05d}-of-{len(shards):05d}{path.suffix}"
        for number in range(1, len(shards) + 1)
    ]
    unfinished = {name: path.with_name(f".{name}.unfinished") for name in names}
    try:
        for name, shard in zip(names, shards, strict=True):
            safetensors_files.write(unfinished[name], shard, metadata)
        for name, file in unfinished.items():
            os.replace(file, path.with_name(name))
    finally:
        for file in unfinished.values():
            file.unlink(missing_ok=True)
    return _write_index(path, names, shards)


def fetch(value: jax.Array, layer: int | None = None) -> np.ndarray:
    """One parameter, or one slice of its first axis, from the devices that have it.

    ValueError where some of it is on devices of another process.
    """
    if not value.is_fully_addressable:
        raise ValueError("a parameter is spread over several processes")
    whole = np.empty(value.shape if layer is None else value.shape[1:], value.dtype)
    parts = {_box(s.index, value.shape): s.data for s in value.addressable_shards}
    for box, data in parts.items():
        if layer is not None:
            start, stop = box[0]
            if not start <= layer < stop:
                continue
            data, box = data[layer - start], box[1:]
        _copy(whole[tuple(slice(a, b) for a, b in box)], np.asarray(data))
    return whole


def _check_real(tensors: Tensors, entries: list[Entry]) -> None:
    for e in entries:
        if not jnp.issubdtype(tensors.dtype(e.official), jnp.floating):
            raise InputError(
                f"{tensors.path}: tensor {e.official!r} holds "
                f"{tensors.dtype(e.official)}, expected real numbers; is it a "
                "quantised file?"
            )


def _groups(
    entries: Iterable[Entry], flat: Mapping[Key, nnx.Variable]
) -> dict[Key, list[Entry]]:
    """The entries of every parameter. ValueError for a table that does not fit."""
    groups: dict[Key, list[Entry]] = {}
    for e in entries:
        groups.setdefault(e.ours, []).append(e)
    if groups.keys() != flat.keys():
        wrong = sorted(map(str, groups.keys() ^ flat.keys()))
        raise ValueError(f"table and module differ in {wrong[0]}")
    for key, group in groups.items():
        shape, layers = flat[key].shape, sorted(e.layer or 0 for e in group)
        whole = group[0].layer is None
        size = math.prod(shape if whole else shape[1:])
        if layers != list(range(1 if whole else shape[0])) or any(
            math.prod(e.shape) != size for e in group
        ):
            raise ValueError(f"table does not fit parameter {key} of shape {shape}")
    return groups


def _load(
    tensors: Tensors,
    group: list[Entry],
    variable: nnx.Variable,
    dtype: np.dtype,
    progress: Progress | None,
) -> jax.Array:
    shape, sharding = variable.shape, _sharding(variable)
    boxes = _boxes(sharding, shape)
    parts = {box: _aligned([b - a for a, b in box], dtype) for box in boxes.values()}
    for e in group:
        wanted = parts if e.layer is None else _of_layer(parts, e.layer)
        if wanted:
            _place(tensors, e, wanted, shape if e.layer is None else shape[1:])
        if progress:
            progress(math.prod(e.shape) * tensors.dtype(e.official).itemsize)
    if sharding is None:
        return jnp.asarray(parts[boxes[None]])
    return jax.make_array_from_single_device_arrays(
        shape,
        sharding,
        [jax.device_put(parts[box], device) for device, box in boxes.items()],
    )


def _sharding(variable: nnx.Variable) -> jax.sharding.Sharding | None:
    """Where the parameter has to be; None: wherever JAX likes."""
    value = variable.get_value()
    if isinstance(value, jax.Array) and not value.committed:
        return None
    return getattr(value, "sharding", None)


def _boxes(
    sharding: jax.sharding.Sharding | None, shape: tuple[int, ...]
) -> dict[jax.Device | None, Box]:
    """The part of every device of this process; copies have the same box."""
    if sharding is None:
        return {None: tuple((0, size) for size in shape)}
    return {
        device: _box(indices, shape)
        for device, indices in sharding.addressable_devices_indices_map(shape).items()
    }


def _of_layer(parts: dict[Box, np.ndarray], layer: int) -> dict[Box, np.ndarray]:
    """The parts that hold this layer: their slice of it, and its box in the layer."""
    return {
        box[1:]: part[layer - box[0][0], ...]
        for box, part in parts.items()
        if box[0][0] <= layer < box[0][1]
    }


def _aligned(shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
    """Memory that a CPU device can take over without a copy: 64-byte aligned."""
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size].view(dtype).reshape(shape)


def _place(
    tensors: Tensors, e: Entry, parts: dict[Box, np.ndarray], shape: tuple[int, ...]
) -> None:
    """Read one tensor into our parts; it is gone before the next is read."""
    array = tensors[e.official]
    array = (array if e.axes is None else array.transpose(e.axes)).reshape(shape)  # (1)
    for box, part in parts.items():
        _copy(part, array[tuple(slice(a, b) for a, b in box)])


def _copy(target: np.ndarray, source: np.ndarray) -> None:
    if target.dtype == source.dtype:
        # As integers: numpy moves its own types much faster than bfloat16.
        bits = np.dtype(f"u{target.dtype.itemsize}")
        target, source = target.view(bits), source.view(bits)
    if target.ndim != 2:
        target[...] = source
        return
    # In tiles that fit the cache: a large transpose is three times as fast.
    for i in range(0, target.shape[0], _TILE):
        for j in range(0, target.shape[1], _TILE):
            tile = (slice(i, i + _TILE), slice(j, j + _TILE))
            target[tile] = source[tile]


def _published(
    e: Entry, variable: nnx.Variable, progress: Progress | None
) -> np.ndarray:
    array = fetch(variable.get_value(), e.layer)
    if e.axes is not None:
        array = array.reshape([e.shape[axis] for axis in e.axes])
        array = array.transpose(np.argsort(e.axes))  # (2)
    if progress:
        progress(array.nbytes)
    return array.reshape(e.shape)


def _box(indices: tuple[slice, ...], shape: tuple[int, ...]) -> Box:
    return tuple(i.indices(size)[:2] for i, size in zip(indices, shape, strict=True))


def _shards(planned: list[Planned], limit: int | None) -> Iterator[list[Planned]]:
    shard: list[Planned] = []
    for tensor in planned:
        size = sum(t.nbytes for t in shard) + tensor.nbytes
        if shard and limit is not None and size > limit:
            yield shard
            shard = []
        shard.append(tensor)
    yield shard


def _write_index(path: Path, names: list[str], shards: list[list[Planned]]) -> Path:
    places, size = {}, 0
    for name, shard in zip(names, shards, strict=True):
        places |= {tensor.name: name for tensor in shard}
        size += sum(tensor.nbytes for tensor in shard)
    index = path.with_name(f"{path.name}.index.json")
    text = json.dumps({"metadata": {"total_size": size}, "weight_map": places})
    unfinished = index.with_name(f".{index.name}.unfinished")
    unfinished.write_text(text, "utf-8")
    os.replace(unfinished, index)
    return index
