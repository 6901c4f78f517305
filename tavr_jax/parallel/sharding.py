"""One table: what each axis of an array is split over.

    B           data, fsdp      samples are independent; fsdp carries batch as well as
                                weights, so that gathered weights serve all its rows
    N           context         tokens of one sample; attention exchanges heads for it
    K           tensor          heads never mix inside attention
    heads       tensor, context heads where attention has all tokens of a sample
    parameter   fsdp, context   every device holds 1/(fsdp context) of each large tensor
                                and of its moments; gathered layer by layer. `data`
                                keeps whole copies: its links may be slow
    X           all             columns of a video, over what its batch leaves: the
                                codec's devices send each other edges, nothing else

A parameter is split along its largest axis that divides (the last of equals), so the
table needs no names of layers and fits every network here. Vectors that no axis
divides, and scalars, are whole everywhere: they are small.
"""

import math

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tavr_jax.errors import InputError
from tavr_jax.types import PyTree

RULES = {
    "B": ("data", "fsdp"),
    "N": ("context",),
    "K": ("tensor",),
    "heads": ("tensor", "context"),
    "parameter": ("fsdp", "context"),
    "X": ("data", "fsdp", "context", "tensor"),
}


def spec(*axes: str | None) -> PartitionSpec:
    """Where an array with these logical axes lives; None and unknown letters: whole.

    ValueError if two axes of the array would land on the same mesh axis.
    """
    places = [_places(axis) for axis in axes]
    used = [place for group in places for place in group]
    if len(used) != len(set(used)):
        raise ValueError(f"axes {axes}: a mesh axis is used twice in {places}")
    return PartitionSpec(*(place or None for place in places))


def fitting(shape: tuple[int, ...], *axes: str | None) -> PartitionSpec:
    """`spec` with, of each group of mesh axes, only the first ones that divide.

    No array has uneven parts here: two samples on eight devices are whole on each. A
    program whose parts are written out (shard_map) has no others, and the rest of the
    program goes along with it, else rows would travel between the two.
    """
    sizes = jax.sharding.get_abstract_mesh().shape
    fits = []
    for length, axis in zip(shape, axes, strict=True):
        kept = _places(axis)
        while length % math.prod(sizes.get(place, 1) for place in kept):
            kept = kept[:-1]
        fits.append(kept or None)
    return PartitionSpec(*fits)


def shares(axis: str) -> int:
    """Into how many parts the mesh around us splits `axis`; 1 outside of any."""
    sizes = jax.sharding.get_abstract_mesh().shape
    return math.prod(sizes.get(place, 1) for place in RULES[axis])


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Pin an intermediate inside jit, as far as it divides: XLA would pad the rest.

    Outside of any mesh it does nothing. Axes after the last that is told are XLA's to
    place.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return x
    told = fitting(x.shape[: len(axes)], *axes)
    rest = (PartitionSpec.UNCONSTRAINED,) * (x.ndim - len(axes))
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*told, *rest))


def pin(x: jax.Array, place: PartitionSpec) -> jax.Array:
    """`constrain` to a whole PartitionSpec."""
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, place)


def replicated(mesh: Mesh) -> NamedSharding:
    """Whole on every device."""
    return NamedSharding(mesh, PartitionSpec())


def parameters(mesh: Mesh, tree: PyTree) -> PyTree:
    """The sharding of every leaf of parameters, moments or a whole TrainState."""
    return jax.tree.map(lambda leaf: _parameter(mesh, leaf.shape), tree)


def abstract(mesh: Mesh, tree: PyTree) -> PyTree:
    """Shapes of parameters with their shardings, as a restore or a compile needs."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=_parameter(mesh, leaf.shape)
        ),
        tree,
    )


def batch(mesh: Mesh, rows: int, group: int = 1) -> NamedSharding:
    """How the leading axis of every leaf of a batch of `rows` samples is split.

    A policy batch has few samples and `group` rollouts of each: where only the
    rollouts divide, every device holds all samples. InputError where nothing divides.
    """
    parts = batch_shares(mesh)
    if rows % parts == 0:
        return NamedSharding(mesh, spec("B"))
    if rows * group % parts == 0:
        return replicated(mesh)
    times = f" x policy.group_size {group}" if group > 1 else ""
    raise InputError(
        f"data.batch_size: {rows}{times} is not divisible by parallel.data x "
        f"parallel.fsdp = {parts}; change one of them"
    )


def batch_shares(mesh: Mesh) -> int:
    """`shares` of B on a mesh that need not be around us."""
    return _size(mesh, RULES["B"])


def host_rows(
    sharding: NamedSharding, rows: int, process: int | None = None
) -> np.ndarray:
    """Rows, ascending, of every batch of `rows` samples that a process has to load.

    `process`: its index; default this one. They need not be neighbours: a mesh of TPUs
    follows the links, and the devices of a host may lie anywhere along an axis.
    """
    process = jax.process_index() if process is None else process
    spans = {
        index[0].indices(rows)[:2]
        for device, index in sharding.devices_indices_map((rows,)).items()
        if device.process_index == process
    }
    return np.concatenate([np.arange(*span) for span in sorted(spans)])


def place(sharding: NamedSharding, rows: int, local: PyTree) -> PyTree:
    """The `host_rows` of a batch (numpy leaves) as this process's part of it."""

    def put(leaf: np.ndarray) -> jax.Array:
        leaf = np.asarray(leaf)
        shape = (rows, *leaf.shape[1:])
        return jax.make_array_from_process_local_data(sharding, leaf, shape)

    return jax.tree.map(put, local)


def _places(axis: str | None) -> tuple[str, ...]:
    return RULES.get(axis, ()) if axis else ()


def _parameter(mesh: Mesh, shape: tuple[int, ...]) -> NamedSharding:
    axes = RULES["parameter"]
    # Both axes if they divide, else the first alone: half a split is better than none.
    for over in (axes, axes[:1]):
        parts = _size(mesh, over)
        even = [i for i, size in enumerate(shape) if size and size % parts == 0]
        if parts > 1 and even:
            split = max(even, key=lambda i: (shape[i], i))
            places = [over if i == split else None for i in range(len(shape))]
            return NamedSharding(mesh, PartitionSpec(*places))
    return replicated(mesh)


def _size(mesh: Mesh, axes: tuple[str, ...]) -> int:
    return math.prod(mesh.shape[axis] for axis in axes)
