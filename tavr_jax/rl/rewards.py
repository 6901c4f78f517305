"""Rewards: functions of decoded frames and of the speech they were made for.

    (1) identity  = mean over generated frames f and over all faces j of the reference
                    of cos(z_f, z_j)
    (2) lipsync   = confidence of the sync network: median - min of its distance over
                    time shifts
    (3) sharpness = mean over frames f of like(detail(f), detail of the real frame f)
                    detail = sqrt(avg (Laplacian Y)^2 / (var Y + c))
    (4) motion    = like(change, change of the real window)
                    change = sqrt(avg (Y_{f+1} - Y_f)^2 / (avg var Y + c))

    (5) light     = mean over frames f and tones t of h / (h + |t_f - t of the real f|)
                    tones = mean and deviation of R, G and B over the whole frame

    like(a, b) = (min(a, b) + d) / (max(a, b) + d),  Y = luma of a face crop

(1) averages over the whole pool, because a single reference face can be copied: a rigid
frontal face is close to one frame of a person, not to all of them (IPRO, 2510.14255).
(2) keeps the mouth moving, (4) the rest of the face.

(3) and (4) are shares of what the real target has, decoded from its latents by the same
codec, in 0..1. Detail or movement without bound would be reached by noise and flicker;
here more than the real video has is as wrong as less. Both are relative to contrast, so
that neither is gained by exaggerating it. The frames of (4) are cut at one place, the
mean of the window's boxes: a still picture has no motion, whatever path the real head
took. (5) holds what the others leave free: face networks learn to see past light and
contrast, and a policy that brightens its pictures a little in every chunk loses none of
(1)-(4). All five are ours.

A held-out evaluator adds one more number, "judged_identity": (1) by another
face network. It is measured only; where it parts from (1), the reward is being hacked.

Decoding dominates the cost, so a window of a few latents is judged, drawn per step and
shared by all members of a group. A window that does not begin at the first latent is
decoded as if it did; its first frame is softer, for every member and the real one.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from tavr_jax.parallel.sharding import constrain
from tavr_jax.rl.crop import crop
from tavr_jax.types import Batch

FRAMES_PER_LATENT = 4
LUMA = (0.299, 0.587, 0.114)
_CONTRAST_FLOOR = 1e-3  # c: a deviation of 0.03, of pixels in [-1, 1]
_LEAST = 0.01  # d: less detail or change than this is none
_HALF = 0.05  # h: a tone that is so far off, of pixels in [-1, 1], is worth half


class Judges(NamedTuple):
    """The frozen networks, as functions; pixels are in [-1, 1]."""

    decode: Callable[[Array], Array]  # latents "N n H W C" -> frames "N F Y X 3"
    embed_face: Callable[[Array], Array]  # faces "N Y X 3" -> unit vectors "N Z"
    confidence: Callable[[Array, Array], Array]  # faces "N F Y X 3", mel -> " N"
    face_size: int  # Y = X of the crops that embed_face reads
    lips_size: int  # of those that confidence reads
    # another face network, for the same crops; its score is never learned from
    held_out: Callable[[Array], Array] | None = None


def rewards(
    judges: Judges,
    latents: Float[Array, "N T H W C"],
    batch: Batch,
    length: int,
    key: Array,
) -> dict[str, Float[Array, " N"]]:
    """(1)-(5) of N = B G samples, and "judged_identity" where a judge is given.

    `length` latents are decoded; key is consumed.
    """
    group = latents.shape[0] // batch.clip.shape[0]
    first = jax.random.randint(key, (), 0, latents.shape[1] - length + 1)
    # what follows works on whole frames: without a word XLA spreads channels instead,
    # and every device holds the frames of all members
    frames, real = (
        constrain(judges.decode(constrain(window, "B")), "B")
        for window in (
            jax.lax.dynamic_slice_in_dim(x, first, length, axis=1)
            for x in (latents, batch.latents)
        )
    )

    def under(rows: Array) -> Array:
        """The rows (one a frame) below the decoded window."""
        start = first * FRAMES_PER_LATENT
        return jax.lax.dynamic_slice_in_dim(rows, start, frames.shape[1], axis=1)

    def for_members(rows: Array) -> Array:
        return constrain(jnp.repeat(rows, group, axis=0), "B")

    target_boxes = under(batch.face_box)
    boxes = for_members(target_boxes)
    faces = crop(frames, boxes, judges.face_size)
    lips = crop(frames, boxes, judges.lips_size)
    targets = crop(real, target_boxes, judges.face_size)
    changed, change_wanted = (
        change(crop(shown, _one_place(where), judges.face_size))
        for shown, where in ((frames, boxes), (real, target_boxes))
    )
    pool = batch.faces.astype(jnp.float32) / 127.5 - 1.0
    scores = {
        "identity": _identity(judges.embed_face, faces, pool),
        "lipsync": judges.confidence(lips, for_members(under(batch.mel))),
        "sharpness": like(detail(faces), for_members(detail(targets))).mean(1),
        "motion": like(changed, for_members(change_wanted)),
        "light": light(tones(frames), for_members(tones(real))),
    }
    if judges.held_out is not None:
        scores["judged_identity"] = _identity(judges.held_out, faces, pool)
    return scores


def identity(
    faces: Float[Array, "N F Z"], pool: Float[Array, "N J Z"]
) -> Float[Array, " N"]:
    """(1) of unit vectors: the mean of all cosines is the cosine of the means."""
    return jnp.einsum("nz,nz->n", faces.mean(1), pool.mean(1))


def detail(faces: Float[Array, "N F Y X 3"]) -> Float[Array, "N F"]:
    """Of (3): how much of the contrast of each frame lies between neighbours."""
    y = _luma(faces)
    neighbours = y[..., 2:, 1:-1] + y[..., :-2, 1:-1] + y[..., 1:-1, 2:]
    laplacian = neighbours + y[..., 1:-1, :-2] - 4.0 * y[..., 1:-1, 1:-1]
    energy = jnp.square(laplacian).mean((2, 3))
    return jnp.sqrt(energy / (y.var((2, 3)) + _CONTRAST_FLOOR))


def change(faces: Float[Array, "N F Y X 3"]) -> Float[Array, " N"]:
    """Of (4): of consecutive frames, cut at one place; F > 1."""
    y = _luma(faces)
    energy = jnp.square(y[:, 1:] - y[:, :-1]).mean((1, 2, 3))
    return jnp.sqrt(energy / (y.var((2, 3)).mean(1) + _CONTRAST_FLOOR))


def tones(frames: Float[Array, "N F Y X 3"]) -> Float[Array, "N F 6"]:
    """Of (5)."""
    return jnp.concatenate([frames.mean((2, 3)), frames.std((2, 3))], axis=-1)


def light(
    shown: Float[Array, "N F 6"], wanted: Float[Array, "N F 6"]
) -> Float[Array, " N"]:
    """(5) of tones: 1 where light, colour and contrast are the real video's."""
    return (_HALF / (_HALF + jnp.abs(shown - wanted))).mean((1, 2))


def like(a: Array, b: Array) -> Array:
    """Share of the smaller in the larger: 1 where they are equal, else less."""
    return (jnp.minimum(a, b) + _LEAST) / (jnp.maximum(a, b) + _LEAST)


def _luma(faces: Float[Array, "N F Y X 3"]) -> Float[Array, "N F Y X"]:
    return faces @ jnp.asarray(LUMA, faces.dtype)


def _one_place(boxes: Float[Array, "N F 4"]) -> Float[Array, "N F 4"]:
    return jnp.broadcast_to(boxes.mean(1, keepdims=True), boxes.shape)


def _identity(
    embed: Callable[[Array], Array],
    faces: Float[Array, "N F Y X 3"],
    pool: Float[Array, "B J Y X 3"],
) -> Float[Array, " N"]:
    """(1) by one face network; the pool of a sample serves all members of its group."""
    group = faces.shape[0] // pool.shape[0]
    embedded = [_embed(embed, crops) for crops in (faces, pool)]
    return identity(embedded[0], jnp.repeat(embedded[1], group, axis=0))


def _embed(
    embed: Callable[[Array], Array], faces: Float[Array, "N F Y X 3"]
) -> Float[Array, "N F Z"]:
    flat = embed(faces.reshape(-1, *faces.shape[2:]))
    return flat.reshape(*faces.shape[:2], -1)
