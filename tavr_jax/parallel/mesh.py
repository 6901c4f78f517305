"""The mesh: four named axes over all devices.

    data     whole copies of the parameters; the axis that may cross slow links
    fsdp     parameters and batch are both split over it
    context  the tokens of one sample are split over it
    tensor   the heads of one layer are split over it

All axes are Auto: XLA places what the tables in `sharding.py` leave open.
"""

import dataclasses
import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from tavr_jax.errors import InputError

AXES = ("data", "fsdp", "context", "tensor")


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Section `parallel`: devices along each axis, one of them may be -1."""

    data: int
    fsdp: int
    context: int
    tensor: int


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """All `devices` (default: every device of every process) as one mesh.

    InputError where the axes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = _resolve(config, len(devices))
    if devices[0].platform == "tpu":
        # A torus axis may be shared by two of ours; the plain assignment refuses that.
        grid = mesh_utils.create_device_mesh(
            sizes, devices, allow_split_physical_axes=True
        )
    else:
        grid = np.array(devices).reshape(sizes)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _resolve(config: MeshConfig, count: int) -> tuple[int, ...]:
    sizes = [config.data, config.fsdp, config.context, config.tensor]
    asked = ", ".join(f"{axis}={size}" for axis, size in zip(AXES, sizes, strict=True))
    if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
        raise InputError(
            f"parallel: {asked}: axes are positive, and at most one is -1 (the rest)"
        )
    known = math.prod(size for size in sizes if size != -1)
    sizes = [count // known if size == -1 else size for size in sizes]
    if math.prod(sizes) != count:
        raise InputError(
            f"parallel: {asked} does not multiply to the {count} devices here; "
            "set one axis to -1 or change the others"
        )
    return tuple(sizes)
