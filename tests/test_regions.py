"""Which errors count how much."""

import jax
import jax.numpy as jnp
import numpy as np
from test_supervised import KEY, errors_of
from test_training import MOTION, global_batch, make_batch

from tavr_jax.diffusion.guidance import Network
from tavr_jax.training import regions
from tavr_jax.training.supervised import Example

WEIGHTS = {"face_weight": 3.0, "lips_weight": 5.0}


def charged(errors, boxes, has_motion, **weights) -> np.ndarray:
    """Loss of each sample whose velocity is wrong by `errors`, "B T H W C"."""
    batch = global_batch(len(errors))
    zeros = jnp.zeros_like(errors)
    example = Example(
        clean=zeros,
        noise=zeros,
        sigma=jnp.full(len(errors), 0.5),
        conditions=batch.conditions._replace(has_motion=jnp.asarray(has_motion)),
        face_box=jnp.asarray(boxes),
        clip=batch.clip,
    )
    return errors_of(constant, errors, example, **weights)


def constant(params) -> Network:
    return Network(lambda conditions: None, lambda x, t, c, cache: params)


def test_an_error_counts_by_where_it_is():
    weights = {
        (0, 0, 0): 1,
        (3, 1, 1): 3,
        (3, 1, 3): 1,
        (4, 2, 2): 5,
        (2, 3, 2): 1,
    }
    cells = jnp.array(list(weights))
    wrong = jnp.zeros((5, 5, 4, 4, 3)).at[jnp.arange(5), *cells.T].set(1.0)
    boxes = make_batch(5).face_box  # 0.25 to 0.75, of 4 x 4 cells
    latent = 16 + 2 * (3 - 1) + 2 * (5 - 1)  # sum of weights: 2 cells each
    for first in (0, MOTION):  # of a first chunk, of a continuation
        continues = np.full(5, first > 0)
        seen = np.asarray(cells[:, 0] >= first)
        share = charged(wrong, boxes, continues, **WEIGHTS)
        expected = seen * np.array(list(weights.values())) / (latent * (5 - first))
        np.testing.assert_allclose(share, expected, rtol=1e-6)
        share = charged(wrong, boxes, continues)
        np.testing.assert_allclose(share, seen / (16 * (5 - first)), rtol=1e-6)


def test_weights_of_one_are_the_plain_loss_to_the_bit():
    wrong = jax.random.normal(KEY, (5, 5, 4, 4, 3))
    boxes = make_batch(5).face_box
    has_motion = [True, False, True, False, False]
    one = charged(wrong, boxes, has_motion)
    none = charged(wrong, 0 * boxes, has_motion, **WEIGHTS)
    np.testing.assert_array_equal(one, none)
    squares = np.asarray(wrong, np.float64) ** 2
    starts = [MOTION if m else 0 for m in has_motion]
    plain = [s[start:].mean() for s, start in zip(squares, starts, strict=True)]
    np.testing.assert_allclose(one, plain, rtol=1e-6)
    more = charged(wrong, boxes, has_motion, **WEIGHTS)
    assert np.abs(more - one).min() > 1e-4


def test_regions_are_drawn_boxes_pooled_to_cells_and_latents():
    rng = np.random.default_rng(0)
    rows, columns, frames = 32, 48, 9  # pixels; cells of 8 x 8
    x = np.sort(rng.integers(0, columns + 1, (20, frames, 2)), axis=-1)
    y = np.sort(rng.integers(0, rows + 1, (20, frames, 2)), axis=-1)
    x[rng.random((20, frames)) < 0.5] = -1  # frames without a face, as they are marked
    pixels = np.zeros((20, frames, rows, columns), bool)
    for at in np.ndindex(20, frames):
        (left, right), (top, bottom) = x[at], y[at]
        pixels[at][top:bottom, max(left, 0) : max(right, 0)] = True
    cells = pixels.reshape(20, frames, rows // 8, 8, columns // 8, 8).any((3, 5))
    first, later = cells[:, :1], cells[:, 1:].reshape(20, 2, 4, *cells.shape[2:])
    expected = np.concatenate([first, later.any(2)], axis=1)
    edges = np.stack([x / columns, y / rows], axis=-1)  # (left, top), (right, bottom)
    boxes = jnp.asarray(edges.reshape(20, frames, 4), jnp.float32)
    covered = jax.jit(regions.covered, static_argnums=1)(boxes, (4, 6))
    np.testing.assert_array_equal(covered, expected)
