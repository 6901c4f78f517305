"""The mesh: four named axes over all devices.

    data     whole copies of the parameters; the axis that may cross slow links
    fsdp     parameters and batch are both split over it
    context  the tokens of one sample are split over it
    tensor   the heads of one layer are split over it. Optional, and only attention
             gains: parameters and their moments are whole along it, and the products
             with them are split only where XLA finds it; context splits them all

All axes are Auto: XLA places what the tables in `sharding.py` leave open.
"""

import dataclasses
import math
from collections.abc import Sequence
from functools import partial
from typing import Any

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


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """All `devices` (default: every device of every process) as one mesh.

    They may be stand-ins with the attributes of jax.Device (launch/pod.py).
    Several TPU slices split `data`; every other axis stays inside a slice. InputError
    where the axes do not multiply to the number of devices, data is no multiple of the
    slices, or JAX cannot lay the axes along the links.
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = axis_sizes(config, len(devices))
    if devices[0].platform == "tpu":
        grid = _along_the_links(sizes, devices)
    else:
        grid = np.array(devices).reshape(sizes)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _along_the_links(sizes: tuple[int, ...], devices: list[Any]) -> np.ndarray:
    """TPUs as a grid whose axes are rings of neighbours; slices split `data`."""
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if sizes[0] % slices:
        raise InputError(
            f"parallel.data: {sizes[0]}: {slices} slices talk over a slow network, so "
            f"it has to be a multiple of them; set --config.parallel.data={slices}"
        )
    if slices == 1:
        make = partial(mesh_utils.create_device_mesh, sizes)
    else:
        across, inside = (slices, 1, 1, 1), (sizes[0] // slices, *sizes[1:])
        make = partial(mesh_utils.create_hybrid_device_mesh, inside, across)
    # A torus axis may be shared by two of ours; the plain assignment refuses that.
    try:
        return make(devices, allow_split_physical_axes=True)
    except (TypeError, ValueError) as error:
        # JAX 0.10 loses prime factors (10 -> 5) of some sizes that would fit.
        asked = ", ".join(f"{a}={n}" for a, n in zip(AXES, sizes, strict=True))
        raise InputError(
            f"parallel: {asked}: JAX finds no place for these axes on the links of "
            f"{len(devices)} devices of {slices} slices; choose others"
        ) from error


def axis_sizes(config: MeshConfig, count: int) -> tuple[int, ...]:
    """Devices along each of AXES, of `count` in all. InputError as of `make_mesh`."""
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


def platform() -> str:
    """cpu, gpu or tpu: the devices a program is traced for (not those it is traced on,
    where it is compiled for others)."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.abstract_device is None:
        return jax.default_backend()
    # A mesh tells the makers of GPUs apart.
    name = mesh.abstract_device.platform
    return "gpu" if name in ("cuda", "rocm") else name


def device_kind() -> str:
    """`jax.Device.device_kind` of the devices a program is traced for."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.abstract_device is None:
        return jax.devices()[0].device_kind
    return mesh.abstract_device.device_kind
