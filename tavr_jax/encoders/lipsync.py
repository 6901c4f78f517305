"""The lip-sync network: do these lips say this speech, and how far apart (ours).

With v_t, a_t unit embeddings of the face crops and of the speech rows of frames
t..t+frames-1:

    (1) D(s) = mean_t |v_t - a_{t+s}|, over the t where both exist, s = -k..k
    (2) distance = min D,  confidence = median D - min D,  offset = -argmin_s D

These are SyncNet's definitions (Chung and Zisserman 2016) but for the ends of a clip:
there (1) compares fewer windows instead of inventing silence, so that clips of a few
frames can be judged. The score with SyncNet's own ends is in `evaluation/metrics.py`.
A positive offset means that the speech runs ahead of the lips.

Of a face crop only the part around the mouth is looked at (`mouth`): in the whole of
it the lips are 2 % of the pixels, and training is slow to find them. Every crop and
every row is read once by itself and then joined to its neighbours, so the windows of a
clip share the work. Trained by stage "lipsync" of `launch.train`.
"""

import dataclasses

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from tavr_jax.encoders.convnet import STRIDE, Trunk, linear, unit


@dataclasses.dataclass(frozen=True)
class LipsyncConfig:
    """The section `lipsync` of a config; meanings and values are there."""

    size: int
    frames: int
    span: int
    width: int
    audio_dim: int
    embedding_dim: int
    max_shift: int
    temperature: float


class Window(nnx.Module):
    """Features of neighbouring rows to one unit vector."""

    def __init__(self, frames: int, dim: int, *, rngs: nnx.Rngs):
        self.frames = frames
        self.norm = nnx.LayerNorm(frames * dim, rngs=rngs)
        self.hidden = linear(frames * dim, 2 * dim, rngs)
        self.out = linear(2 * dim, dim, rngs)

    def __call__(self, rows: Float[Array, "B F Z"]) -> Float[Array, "B W Z"]:
        """All W = F - frames + 1 windows."""
        count = rows.shape[1] - self.frames + 1
        if count < 1:
            raise ValueError(f"{rows.shape[1]} rows: a window needs {self.frames}")
        taps = [rows[:, i : i + count] for i in range(self.frames)]
        joined = self.norm(jnp.concatenate(taps, axis=-1))
        return unit(self.out(nnx.silu(self.hidden(joined))))


class SyncNet(nnx.Module):
    """Two encoders into one sphere, where what belongs together is close."""

    def __init__(self, config: LipsyncConfig, *, rngs: nnx.Rngs):
        dim = config.embedding_dim
        self.config = config
        self.face = Trunk(mouth_side(config.size), config.width, dim, rngs=rngs)
        self.face_window = Window(config.frames, dim, rngs=rngs)
        self.speech = linear(config.audio_dim, 2 * dim, rngs)
        self.speech_out = linear(2 * dim, dim, rngs)
        self.speech_window = Window(config.frames, dim, rngs=rngs)

    def embed_faces(self, faces: Float[Array, "B F Y X 3"]) -> Float[Array, "B W Z"]:
        """v_t of all windows of face crops in [-1, 1]; W = F - frames + 1."""
        seen = mouth(faces)
        rows = self.face(seen.reshape(-1, *seen.shape[2:]))
        return self.face_window(rows.reshape(*faces.shape[:2], -1))

    def embed_speech(self, mel: Float[Array, "B F U"]) -> Float[Array, "B W Z"]:
        """a_t of all windows of log-mel rows; W = F - frames + 1."""
        return self.speech_window(self.speech_out(nnx.silu(self.speech(mel))))

    def curve(
        self, faces: Float[Array, "B F Y X 3"], mel: Float[Array, "B F U"]
    ) -> Float[Array, "B shifts"]:
        """(1) of each clip, up to `max_shift` or half of the clip's windows."""
        lips, speech = self.embed_faces(faces), self.embed_speech(mel)
        return sync_curve(lips, speech, min(self.config.max_shift, lips.shape[1] // 2))


def mouth_side(size: int) -> int:
    """Pixels of the mouth's part of a crop of `size`: two thirds, in whole strides."""
    return -(-2 * size // (3 * STRIDE)) * STRIDE


def mouth(faces: Float[Array, "B F Y X 3"]) -> Float[Array, "B F y x 3"]:
    """The lowest rows and middle columns of face crops: mouth and chin."""
    size = faces.shape[2]
    side = mouth_side(size)
    left = (size - side) // 2
    return faces[:, :, size - side :, left : left + side]


def sync_curve(
    lips: Float[Array, "B W Z"], speech: Float[Array, "B W Z"], max_shift: int
) -> Float[Array, "B shifts"]:
    """(1) for s = -max_shift..max_shift; max_shift < W."""
    count = lips.shape[1]
    if max_shift >= count:
        raise ValueError(f"shifts of {max_shift} frames need more than {count} windows")

    def distance(shift: int) -> Array:
        here = slice(max(0, -shift), count - max(0, shift))
        there = slice(max(0, shift), count - max(0, -shift))
        apart = lips[:, here] - speech[:, there]
        return jnp.sqrt(jnp.sum(apart * apart, axis=-1) + 1e-12).mean(axis=1)

    shifts = range(-max_shift, max_shift + 1)
    return jnp.stack([distance(shift) for shift in shifts], axis=1)


def distance(curve: Float[Array, "B shifts"]) -> Float[Array, " B"]:
    """(2): how far the lips are from the speech at the best shift; 0..2."""
    return curve.min(axis=1)


def confidence(curve: Float[Array, "B shifts"]) -> Float[Array, " B"]:
    """(2): how much better the best shift is than the typical one."""
    return jnp.median(curve, axis=1) - curve.min(axis=1)


def offset(curve: Float[Array, "B shifts"]) -> Int[Array, " B"]:
    """(2), in frames: by how much the speech runs ahead of the lips."""
    return curve.shape[1] // 2 - curve.argmin(axis=1)
