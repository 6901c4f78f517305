"""Rewards: functions of decoded frames and of the speech they were made for.

    (1) identity = mean over generated frames f and over all faces j of the reference
                   of cos(z_f, z_j)
    (2) lipsync  = confidence of the sync network: median - min of its distance over
                   time shifts

(1) averages over the whole pool, because a single reference face can be copied: a rigid
frontal face is close to one frame of a person, not to all of them (IPRO, 2510.14255).
(2) keeps the face moving. Both networks differ from those of the evaluation. Ours.

Decoding dominates the cost, so a window of a few latents is judged, drawn per step and
shared by all members of a group. A window that does not begin at the first latent is
decoded as if it did; its first frame is softer, for every member alike.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from tavr_jax.types import Batch

FRAMES_PER_LATENT = 4
CROP = 1.25  # side of a face crop / longer side of the face box


class Judges(NamedTuple):
    """The frozen networks, as functions; pixels are in [-1, 1]."""

    decode: Callable[[Array], Array]  # latents "N n H W C" -> frames "N F Y X 3"
    embed_face: Callable[[Array], Array]  # faces "N Y X 3" -> unit vectors "N Z"
    confidence: Callable[[Array, Array], Array]  # faces "N F Y X 3", mel -> " N"
    face_size: int  # Y = X of the crops that embed_face reads
    lips_size: int  # of those that confidence reads


def rewards(
    judges: Judges,
    latents: Float[Array, "N T H W C"],
    batch: Batch,
    length: int,
    key: Array,
) -> dict[str, Float[Array, " N"]]:
    """(1) and (2) of N = B G samples. `length` latents are decoded; key is consumed."""
    group = latents.shape[0] // batch.clip.shape[0]
    first = jax.random.randint(key, (), 0, latents.shape[1] - length + 1)
    window = jax.lax.dynamic_slice_in_dim(latents, first, length, axis=1)
    frames = judges.decode(window)

    def under(rows: Array) -> Array:
        """The rows (one a frame) below the decoded window, for all members."""
        start = first * FRAMES_PER_LATENT
        rows = jax.lax.dynamic_slice_in_dim(rows, start, frames.shape[1], axis=1)
        return jnp.repeat(rows, group, axis=0)

    boxes = under(batch.face_box)
    faces = crop(frames, boxes, judges.face_size)
    embedded = _embed(judges.embed_face, faces)
    pool = _embed(judges.embed_face, batch.faces.astype(jnp.float32) / 127.5 - 1.0)
    lips = crop(frames, boxes, judges.lips_size)
    return {
        "identity": identity(embedded, jnp.repeat(pool, group, axis=0)),
        "lipsync": judges.confidence(lips, under(batch.mel)),
    }


def identity(
    faces: Float[Array, "N F Z"], pool: Float[Array, "N J Z"]
) -> Float[Array, " N"]:
    """(1) of unit vectors: the mean of all cosines is the cosine of the means."""
    return jnp.einsum("nz,nz->n", faces.mean(1), pool.mean(1))


def crop(
    frames: Float[Array, "N F Y X 3"], boxes: Float[Array, "N F 4"], size: int
) -> Float[Array, "N F size size 3"]:
    """Faces cut out as the pool's faces were: squares on the centre of the box, 1.25
    times its longer side wide, the frame's edge repeated outside of it.

    `boxes` are (left, top, right, bottom) in 0..1.
    """
    rows, columns = frames.shape[2:4]
    pixels = boxes * jnp.array([columns, rows, columns, rows], jnp.float32)[None, None]
    low, high = pixels[..., :2], pixels[..., 2:]
    side = jnp.maximum(CROP * (high - low).max(-1), 1.0)
    start = (low + high - side[..., None]) / 2
    across = _resampling(start[..., 0], side, columns, size)
    down = _resampling(start[..., 1], side, rows, size)
    cut = jnp.einsum("nfoy,nfyxc->nfoxc", down, frames)
    return jnp.einsum("nfpx,nfoxc->nfopc", across, cut)


def _resampling(
    start: Float[Array, "N F"], side: Float[Array, "N F"], pixels: int, size: int
) -> Float[Array, "N F size pixels"]:
    """Rows of weights: `size` samples of an axis from `start` on, `side` pixels wide.

    Linear between pixels; wider triangles where the crop shrinks, against aliasing.
    """
    step = side[..., None] / size
    at = start[..., None] + (jnp.arange(size) + 0.5)[None, None] * step - 0.5
    at = jnp.clip(at, 0.0, pixels - 1.0)[..., None]
    distance = jnp.abs(jnp.arange(pixels)[None, None, None] - at)
    weights = jnp.maximum(1.0 - distance / jnp.maximum(step, 1.0)[..., None], 0.0)
    return weights / weights.sum(-1, keepdims=True)


def _embed(
    embed: Callable[[Array], Array], faces: Float[Array, "N F Y X 3"]
) -> Float[Array, "N F Z"]:
    flat = embed(faces.reshape(-1, *faces.shape[2:]))
    return flat.reshape(*faces.shape[:2], -1)
