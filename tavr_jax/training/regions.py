"""Where in the latents an error weighs more: in the face, and at the mouth (ours).

Cell (i, j) of a latent grid of H x W, box (l, t, r, b) of a pixel frame in 0..1:

    (1) in(box, i, j) = l < (j+1)/W and j/W < r and t < (i+1)/H and i/H < b;
        a box without l < r and t < b is of a frame without a face, and holds nothing
    (2) face(n, i, j) = in(box, i, j) of any frame of latent n: frame 0 of latent 0,
        frames 4n-3 .. 4n of a later one
    (3) lips(n, i, j) = (2) of the boxes' lower halves (l, (t+b)/2, r, b)
    (4) w = lips_weight where (3), else face_weight where (2), else 1;
        0 in latents that are given, not predicted
    (5) error of a sample = sum of w e^2 / sum of w

(5) is normalised, so weights say where a sample learns, not how much. With weights of 1
it is the plain mean, to the bit.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

FRAMES = 4  # of every latent but the first


def weights(
    boxes: Float[Array, "B F 4"],
    predicted: Bool[Array, "B T"],
    grid: tuple[int, int],
    face_weight: float,
    lips_weight: float,
) -> Float[Array, "B T H W"]:
    """(4); `grid` is (H, W), F = 4 (T - 1) + 1."""
    lower = boxes.at[..., 1].set((boxes[..., 1] + boxes[..., 3]) / 2)
    face = jnp.where(covered(boxes, grid), face_weight, 1.0)
    weight = jnp.where(covered(lower, grid), lips_weight, face)
    return weight * predicted[:, :, None, None]


def covered(
    boxes: Float[Array, "B F 4"], grid: tuple[int, int]
) -> Bool[Array, "B T H W"]:
    """(1), (2): the cells of each latent that a box of one of its frames touches."""
    left, top, right, bottom = jnp.moveaxis(boxes, -1, 0)[..., None]
    height, width = grid
    # in numpy: the compiler divides by a product that may miss an edge by a bit
    rows, columns = (np.arange(n + 1, dtype=np.float32)[None, None] / n for n in grid)
    down = (top < rows[..., 1:]) & (rows[..., :-1] < bottom) & (top < bottom)
    along = (left < columns[..., 1:]) & (columns[..., :-1] < right) & (left < right)
    frames = down[:, :, :, None] & along[:, :, None, :]
    later = frames[:, 1:].reshape(len(boxes), -1, FRAMES, height, width).any(2)
    return jnp.concatenate([frames[:, :1], later], axis=1)


def weighted_mean(
    squares: Float[Array, "B T H W C"], weight: Float[Array, "B T H W"]
) -> Float[Array, " B"]:
    """(5)."""
    axes = (1, 2, 3)
    return (squares.mean(-1) * weight).sum(axes) / weight.sum(axes)
