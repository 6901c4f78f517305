"""Floating-point operations of the codec: products, as the network is written.

(1) convolution   2 x kernel x outputs; time taps that only meet padding do not count
(2) attention     4 T (Y X)^2 C of a grid of T frames

However a chip computes them: Winograd's form (`vae_conv_winograd.py`) does (1) with a
quarter of the multiplications, so its share of a peak may pass 1.
"""

import math

import jax
from flax import nnx

from tavr_jax.encoders.vae import SPAN, Codec
from tavr_jax.encoders.vae_blocks import Downsample, Middle, Upsample
from tavr_jax.encoders.vae_transform import SIDE

Grid = tuple[int, int, int]  # frames, rows, columns


def encode(codec: Codec, frames: int, rows: int, columns: int) -> int:
    """Of `Codec.encode` of one video of 1 + 4k frames."""
    half = codec.encoder
    layers = [half.conv_in, *half.blocks, half.middle, half.conv_out, codec.quant]
    grid = _inside(codec, frames, rows, columns)
    return _transform(codec, frames, rows, columns) + _sum(layers, grid)


def decode(codec: Codec, frames: int, rows: int, columns: int) -> int:
    """Of `Codec.decode` to one video of 1 + 4k frames."""
    half, stride = codec.decoder, codec.config.stride
    layers = [codec.post_quant, half.conv_in, half.middle, *half.blocks, half.conv_out]
    grid = 1 + (frames - 1) // SPAN, rows // stride, columns // stride
    return _transform(codec, frames, rows, columns) + _sum(layers, grid)


def _inside(codec: Codec, frames: int, rows: int, columns: int) -> Grid:
    """What the encoder's first layer sees."""
    if not codec.config.cosines:
        return frames, rows, columns
    return 1 + (frames - 1) // SPAN, rows // SIDE, columns // SIDE


def _transform(codec: Codec, frames: int, rows: int, columns: int) -> int:
    """Of the cosine transform: a matmul of every latent's pixels."""
    latents = 1 + (frames - 1) // SPAN
    return 2 * latents * SPAN * rows * columns * 3 * codec.config.cosines


def _sum(layers: list[nnx.Module], grid: Grid) -> int:
    total = 0
    for layer in layers:
        if isinstance(layer, Downsample | Upsample):
            work, grid = _resampled(layer, grid)
            total += work
            continue
        total += _kernels(layer, grid)
        if isinstance(layer, Middle):
            frames, *size = grid
            width = layer.attention.proj.kernel.shape[-1]
            total += 4 * frames * math.prod(size) ** 2 * width
    return total


def _resampled(layer: Downsample | Upsample, grid: Grid) -> tuple[int, Grid]:
    """FLOPs, and the grid that comes out."""
    frames, rows, columns = grid
    temporal = layer.time_conv is not None and frames > 1
    if isinstance(layer, Downsample):
        size = rows // 2, columns // 2
        total = _kernels(layer.conv, (frames, *size))
        if temporal:
            total += _taps(layer, frames // 2, 3) * math.prod(size)
            frames = 1 + frames // 2
        return total, (frames, *size)
    total = 0
    if temporal:
        total = _taps(layer, frames - 1, frames - 1) * rows * columns
        frames = 2 * frames - 1
    grid = frames, 2 * rows, 2 * columns
    return total + _kernels(layer.conv, grid), grid


def _taps(layer: Downsample | Upsample, frames: int, seen: int) -> int:
    """Of a position: `frames` outputs that see at most `seen` taps."""
    kernel = layer.time_conv.kernel
    return 2 * frames * kernel.size * min(seen, kernel.shape[0]) // kernel.shape[0]


def _kernels(module: nnx.Module, grid: Grid) -> int:
    """(1) of all convolutions inside, on a grid of outputs."""
    total = 0
    for leaf in jax.tree.leaves(nnx.state(module, nnx.Param)):
        if leaf.ndim == 5:  # (time, rows, columns, in, out)
            total += leaf.size * min(leaf.shape[0], grid[0]) // leaf.shape[0]
        elif leaf.ndim == 4:
            total += leaf.size
    return 2 * total * math.prod(grid)
