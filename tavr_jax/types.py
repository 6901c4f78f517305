"""The vocabulary: what travels between rooms, and the one alphabet of shapes.

Shape letters, the same in signatures, einsums and sharding names:

    B  samples of a batch                H W  rows, columns of the latent grid
    T  video latents of a chunk (21)     h w  rows, columns of the token grid (H/2, W/2)
    R  reference latents (5)             C    latent channels (16)
    P  motion latents of a chunk (2)     F    pixel frames      Y X  pixel rows, columns
    N  packed main tokens                D    width of the transformer
    M  packed reference tokens           K    attention heads   d    width of one head
    L  text rows (512)                   E    width of a text row
    A  driving-audio rows, 4(T-1)+1      U    width of a driving-audio row
    Q  reference-audio rows, 4R          V    width of a reference-audio row
    G  members of a policy group         Z    width of a face or sync embedding
    J  faces in an identity pool         S    steps of a sampler

Latents are channel-last everywhere in this code: (B, T, H, W, C).
Carriers are NamedTuples: they pass through jit, eval_shape, vmap and tree.map.
A "row" of audio is one 25 Hz step: one row a video frame.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxtyping import Array, Bool, Float, Int, UInt8

PyTree = Any
Metrics = dict[str, Array]


class Conditions(NamedTuple):
    """Everything the network is told about one chunk besides noise and time.

    `has_audio`, `has_reference_audio` false mean the learned null takes its place.
    `has_motion` true marks a continuation chunk: `motion` holds its first P latents.
    A reference without a valid token is no reference.
    """

    still: Float[Array, "B 1 H W C"]  # ref-row latent: the target scene
    still_tokens: Bool[Array, "B h w"]  # which ref-row tokens are valid
    motion: Float[Array, "B P H W C"]  # last latents of the previous chunk
    has_motion: Bool[Array, " B"]
    reference: Float[Array, "B R H W C"]  # latents of the reference video
    reference_tokens: Bool[Array, "B R h w"]  # which of its tokens show the face
    text: Float[Array, "B L E"]  # caption, zero rows up to L
    null_text: Float[Array, "B L E"]  # the empty caption, read by the reference
    audio: Float[Array, "B A U"]  # driving speech, 25 rows a second
    has_audio: Bool[Array, " B"]
    reference_audio: Float[Array, "B Q V"]
    has_reference_audio: Bool[Array, " B"]


class Batch(NamedTuple):
    """One batch of (target chunk, reference) pairs, as the loader yields it."""

    latents: Float[Array, "B T H W C"]  # clean latents of the target chunk
    conditions: Conditions
    faces: UInt8[Array, "B J Y X 3"]  # face crops of the reference video
    face_box: Float[Array, "B F 4"]  # target face, left top right bottom in 0..1
    mel: Float[Array, "B A U"]  # log-mel of the driving speech, for sync rewards
    clip: Int[Array, " B"]  # index of the target clip, to name a bad sample


class Frames(NamedTuple):
    """A batch for the video autoencoder."""

    frames: UInt8[Array, "B F Y X 3"]


class Faces(NamedTuple):
    """A batch for the face network: several crops of several people."""

    faces: UInt8[Array, "B J Y X 3"]
    person: Int[Array, " B"]


class Sync(NamedTuple):
    """A batch for the lip-sync network: face crops and the speech they go with."""

    faces: UInt8[Array, "B F Y X 3"]
    mel: Float[Array, "B F U"]


# (latents "B T H W C" at noise, integer timestep "B", Conditions) -> velocity.
Velocity = Callable[[Array, Array, Conditions], Array]
