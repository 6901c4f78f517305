"""Convolutions of the codec: which form, decided while a program is traced.

CPUs: `vae_conv_winograd.py` where a 3 x 3 kernel has enough channels and tiles to pay
for the transforms; there it takes half the time of XLA's convolution and of PyTorch's
(launch/bench_vae.py). Everything else, and every other chip: `vae_conv_direct.py`.
"""

from jaxtyping import Array, Float

from tavr_jax.encoders import vae_conv_direct, vae_conv_winograd
from tavr_jax.encoders.vae_conv_direct import Padding
from tavr_jax.parallel.mesh import platform

CHANNELS = 32  # of the input: fewer do not pay for its transform
TILES = 64  # of the output: fewer do not pay for the kernel's


def convolve(
    seen: Float[Array, "B f Y X C"],
    kernel: Float[Array, "k a b C D"],
    padding: Padding,
) -> Float[Array, "B T y x D"]:
    """T = f - k + 1: every frame with the k - 1 before it."""
    if platform() == "cpu" and _winograd_pays(seen.shape, kernel.shape):
        return vae_conv_winograd.convolve(seen, kernel, padding)
    return vae_conv_direct.convolve(seen, kernel, padding)


def _winograd_pays(seen: tuple[int, ...], kernel: tuple[int, ...]) -> bool:
    batch, frames, rows, columns, channels = seen
    outputs = batch * (frames - kernel[0] + 1) * rows * columns
    enough = outputs >= TILES * vae_conv_winograd.TILE**2
    return kernel[1:3] == (3, 3) and channels >= CHANNELS and enough
