"""Accelerators: what one JAX device of a kind can do at best.

`peak` is that of dense bfloat16 matrix products. A device is a chip, but TPU7x has two
devices a chip, each with half of what the vendor's page says of the chip. `memory` of a
TPU is what libtpu lets a program have (from the error of a program too large for it),
that of a GPU is the vendor's, of which the driver keeps some.

    TPU v5e, v6e         docs.cloud.google.com/tpu/docs/v6e (197, 918 TFLOP/s; 819 GB/s)
    TPU v5p, v6e, TPU7x  docs.cloud.google.com/tpu/docs/tpu7x (459, 918, 2307 TFLOP/s;
                         2765, 1638, 7380 GB/s)
    A100, H100, H200     NVIDIA's data sheets, from memory: 312, 989 TFLOP/s without
                         sparsity (SXM), 756 (H100 PCIe), 835 (H100 NVL)
"""

from typing import NamedTuple

import jax

GIB = 2**30


class Chip(NamedTuple):
    """One device."""

    peak: float  # FLOP/s
    memory: float  # bytes
    bandwidth: float  # of that memory, bytes/s


# By jax.Device.device_kind; a v5e and a v6e call themselves lite.
CHIPS = {
    "TPU v5 lite": Chip(197e12, 15.75 * GIB, 819e9),
    "TPU v5": Chip(459e12, 95.74 * GIB, 2765e9),
    "TPU v5p": Chip(459e12, 95.74 * GIB, 2765e9),
    "TPU v6 lite": Chip(918e12, 31.25 * GIB, 1638e9),
    "TPU7x": Chip(2307e12 / 2, 94.75 * GIB, 7380e9 / 2),
    "NVIDIA A100-SXM4-40GB": Chip(312e12, 40 * GIB, 1555e9),
    "NVIDIA A100-PCIE-40GB": Chip(312e12, 40 * GIB, 1555e9),
    "NVIDIA A100-SXM4-80GB": Chip(312e12, 80 * GIB, 2039e9),
    "NVIDIA A100 80GB PCIe": Chip(312e12, 80 * GIB, 1935e9),
    "NVIDIA H100 80GB HBM3": Chip(989e12, 80 * GIB, 3350e9),
    "NVIDIA H100 PCIe": Chip(756e12, 80 * GIB, 2000e9),
    "NVIDIA H100 NVL": Chip(835e12, 94 * GIB, 3900e9),
    "NVIDIA H200": Chip(989e12, 141e9, 4800e9),
}


def peak_flops(device: jax.Device) -> float | None:
    """FLOP/s that `device` could do; None where nobody has said so, and on CPU. A
    utilisation is then not reported rather than guessed."""
    chip = CHIPS.get(device.device_kind)
    return chip.peak if chip else None
