"""The columns of a video over the devices of a mesh.

(1) n devices hold ceil(W / n) columns of latents each, and of frames as many times the
    stride of the codec; a grid that n does not divide ends in columns that are zero
(2) a convolution needs a column or two of its neighbours: each device sends its edge
    to the next, and nothing else. Beyond the ends is zero, as padding is
(3) attention reads every column of a frame: keys and values are gathered, at the
    lowest resolution, and the columns of (1) that are not there are masked

Written out with jax.shard_map: what is sent does not depend on what a compiler makes
of a strided slice. Weights are whole on every device. The batch takes its axes of the
mesh (parallel/sharding.py) where it divides; columns take all that it leaves.
"""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float

from tavr_jax.parallel import sharding
from tavr_jax.types import PyTree

AXIS = 3  # of (B, frames, Y, X, C)


@dataclasses.dataclass(frozen=True)
class Columns:
    """Where the columns of an array inside shard_map stand in the whole."""

    axes: tuple[str, ...]  # of the mesh
    shares: int  # n
    width: int  # W, columns of latents that are there

    @property
    def held(self) -> int:
        """Columns of latents of one device."""
        return -(-self.width // self.shares)

    def halo(
        self, x: Float[Array, "B T Y X C"], before: int, behind: int
    ) -> Float[Array, "B T Y _ C"]:
        """With so many columns of the neighbours on each side, equation (2)."""
        if self.held * self.shares != self.width:
            there = self.there(x.shape[AXIS])
            x = jnp.where(there[None, None, None, :, None], x, 0)
        parts = [x]
        for count, step in ((before, 1), (behind, -1)):
            if count:
                length = x.shape[AXIS]
                start, end = (length - count, length) if step > 0 else (0, count)
                edge = jax.lax.slice_in_dim(x, start, end, axis=AXIS)
                sent = self._sent(edge, step)
                parts = [sent, *parts] if step > 0 else [*parts, sent]
        return jnp.concatenate(parts, axis=AXIS) if len(parts) > 1 else x

    def gathered(self, x: Array, axis: int) -> Array:
        """Columns of all devices, equation (3)."""
        return jax.lax.all_gather(x, self.axes, axis=axis, tiled=True)

    def there(self, count: int) -> Bool[Array, " _"]:
        """Which of the `count` columns here are of the video."""
        first = jax.lax.axis_index(self.axes) * count
        return first + jnp.arange(count) < self.real(count)

    def real(self, count: int) -> int:
        """Columns of the video, where a device holds `count`."""
        return self.width * count // self.held

    def _sent(self, edge: Array, step: int) -> Array:
        """To the device `step` further on; who gets none has zeros."""
        pairs = [(i, i + step) for i in range(self.shares)]
        inside = [(i, j) for i, j in pairs if 0 <= j < self.shares]
        return jax.lax.ppermute(edge, self.axes, inside)


def spread(
    function: Callable, codec: nnx.Module, x: Array, memory: PyTree, stride: int
) -> tuple[Array, PyTree]:
    """function(codec, x, memory, columns), its columns over the mesh around us.

    `stride`: columns of x a column of latents. Outside of a mesh, and where the batch
    takes all of it or x is no whole number of latents wide, `columns` is None.
    """
    columns = _columns(x.shape, stride)
    if columns is None:
        return function(codec, x, memory, None)
    graph, weights = nnx.split(codec)

    def local(weights: PyTree, x: Array, memory: PyTree):
        return function(nnx.merge(graph, weights), x, memory, columns)

    rows = sharding.fitting(x.shape[:1], "B")[0]
    split = PartitionSpec(rows, None, None, columns.axes)
    call = jax.shard_map(
        local,
        in_specs=(PartitionSpec(), split, split),
        out_specs=split,
        check_vma=False,
    )
    missing = columns.held * columns.shares * stride - x.shape[AXIS]
    x = jnp.pad(x, [(0, missing if axis == AXIS else 0) for axis in range(x.ndim)])
    y, memory = call(weights, x, memory)
    return y[:, :, :, : columns.real(y.shape[AXIS] // columns.shares)], memory


def _columns(shape: tuple[int, ...], stride: int) -> Columns | None:
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or shape[AXIS] % stride:
        return None
    taken = sharding.fitting(shape[:1], "B")[0] or ()
    axes = tuple(a for a in sharding.RULES["X"] if a not in taken and mesh.shape[a] > 1)
    shares = math.prod(mesh.shape[axis] for axis in axes)
    return Columns(axes, shares, shape[AXIS] // stride) if shares > 1 else None
