"""Slices of TPUs and groups of GPU machines by name, computed from their dimensions.

    v5e:4x8  v6e:16x16      flat: a x a or a x 2a, powers of two, at most 256 chips
    v5p:4x4x8  tpu7x:4x4x4  solid: within one cube of 64 chips 2x2x1, 2x2x2, 2x2x4 and
                            2x4x4; from there on a <= b <= c, multiples of 4
    gpu:4x8                 4 machines of 8 GPUs

A host has 4 chips; a flat slice of 8 or fewer chips is one host (documentation of
Cloud TPU and GKE, read in 2026; on GKE a 2x4 may also be two hosts, which we do not
use). A chip of tpu7x is two devices of JAX. Whether a zone has a shape is not known
here.
"""

import dataclasses
import itertools
import math
import re
from collections.abc import Iterator

from tavr_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Chip:
    """One generation of TPUs."""

    accelerator: str  # value of the node label cloud.google.com/gke-tpu-accelerator
    machine: str  # machine type of GKE, but for "<chips of a host>t"
    api: str  # type in the Cloud TPU API; "" = only GKE has it
    cores: int  # of a chip; the names of the API count them
    runtime: str  # what a TPU VM boots: as found in public scripts, never tried here
    devices: int  # of JAX in a chip
    dims: int
    most: int  # chips of the largest slice


CHIPS = {
    "v5e": Chip(
        accelerator="tpu-v5-lite-podslice", machine="ct5lp-hightpu-", api="v5litepod",
        cores=1, runtime="v2-alpha-tpuv5-lite", devices=1, dims=2, most=256,
    ),
    "v5p": Chip(
        accelerator="tpu-v5p-slice", machine="ct5p-hightpu-", api="v5p",
        cores=2, runtime="v2-alpha-tpuv5", devices=1, dims=3, most=6144,
    ),
    "v6e": Chip(
        accelerator="tpu-v6e-slice", machine="ct6e-standard-", api="v6e",
        cores=1, runtime="v2-alpha-tpuv6e", devices=1, dims=2, most=256,
    ),
    "tpu7x": Chip(
        accelerator="tpu7x", machine="tpu7x-standard-", api="",
        cores=2, runtime="", devices=2, dims=3, most=9216,
    ),
}  # fmt: skip
_WITHIN_A_CUBE = ((2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4))


@dataclasses.dataclass(frozen=True)
class Topology:
    """One slice, or one group of GPU machines."""

    kind: str  # a key of CHIPS, or gpu
    shape: tuple[int, ...]

    @property
    def chip(self) -> Chip:
        """What its TPUs are; KeyError for GPUs."""
        return CHIPS[self.kind]

    @property
    def dims(self) -> str:
        """As GKE and the Cloud TPU API write the shape."""
        return "x".join(map(str, self.shape))

    @property
    def chips(self) -> int:
        """TPU chips or GPUs of the slice."""
        return math.prod(self.shape)

    @property
    def chips_per_host(self) -> int:
        """TPU chips or GPUs that one machine of the slice holds."""
        if self.kind == "gpu":
            return self.shape[1]
        alone = self.chip.dims == 2 and self.chips <= 8
        return self.chips if alone else 4

    @property
    def hosts(self) -> int:
        """Machines of the slice."""
        return self.chips // self.chips_per_host

    @property
    def devices(self) -> int:
        """What JAX counts in the slice."""
        return self.chips * (1 if self.kind == "gpu" else self.chip.devices)

    def compact(self) -> "Topology":
        """The shape of as many chips that is most like a cube: what the Cloud TPU API
        gives for a number of chips."""
        shapes = (s for s in valid_shapes(self.chip) if math.prod(s) == self.chips)
        return Topology(self.kind, min(shapes, key=sum))

    def __str__(self):
        return f"{self.kind}:{self.dims}"


def parse(name: str) -> Topology:
    """The topology of this name; InputError names the nearest where there is none."""
    kind, _, dims = name.partition(":")
    known = kind in CHIPS or kind == "gpu"
    if not known or not re.fullmatch(r"[1-9]\d{0,4}(x[1-9]\d{0,4})*", dims):
        raise InputError(
            f"--topology={name}: expected KIND:AxB or KIND:AxBxC of "
            f"{', '.join(CHIPS)}, or gpu:MACHINESxGPUS; for example v6e:16x16, which "
            "the cloud calls v6e-256"
        )
    shape = tuple(map(int, dims.split("x")))
    if kind == "gpu":
        if len(shape) != 2:
            raise InputError(f"--topology={name}: expected gpu:MACHINESxGPUS")
        return Topology(kind, shape)
    shapes = list(valid_shapes(CHIPS[kind]))
    if shape not in shapes:
        near = Topology(kind, min(shapes, key=lambda other: _distance(shape, other)))
        raise InputError(
            f"--topology={name}: no such slice; the nearest is {near}, chips: "
            f"{near.chips}; the largest has {CHIPS[kind].most}"
        )
    return Topology(kind, shape)


def valid_shapes(chip: Chip) -> Iterator[tuple[int, ...]]:
    """Every slice of this generation, by the rules at the top."""
    if chip.dims == 2:
        sides = [2**i for i in range(9)]
        shapes = ((a, b) for a in sides for b in (a, 2 * a) if (a, b) != (1, 2))
    else:
        yield from _WITHIN_A_CUBE
        sides = range(4, chip.most // 16 + 1, 4)
        shapes = (
            (a, b, c)
            for a, b in itertools.combinations_with_replacement(sides, 2)
            if a * b * b <= chip.most
            for c in range(b, chip.most // (a * b) + 1, 4)
        )
    yield from (shape for shape in shapes if math.prod(shape) <= chip.most)


def _distance(wanted: tuple[int, ...], other: tuple[int, ...]) -> tuple[float, int]:
    """Between two shapes: first in size, then in form."""
    size = abs(math.log(math.prod(wanted) / math.prod(other)))
    pairs = itertools.zip_longest(sorted(wanted), sorted(other), fillvalue=1)
    return size, sum(abs(a - b) for a, b in pairs)
