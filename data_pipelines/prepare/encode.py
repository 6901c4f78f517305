"""A clip -> what the transformer reads: latents, tokens, speech rows, text.

The codec is causal: a latent sees no later frame. Clips are therefore padded at the end
to few lengths, each compiled once, and the padding's latents are cut off: exact.

    still      frame 0 with the person's cells at 0            [TAVR_SPEC 7, conditions]
    reference  25 copies of frame 0 in front, last F // 4 kept [TAVR_SPEC 9-5]
    reference_audio   3 copies of row 0 in front               [TAVR_SPEC 4]

Speech rows are log-mel and text rows are hashed words: the features of the mini world.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tensorflow_datasets as tfds
from flax import nnx
from jaxtyping import Float
from ml_collections import ConfigDict
from numpy import ndarray

from data_pipelines import conditions, media, records
from tavr_jax.encoders.speech import SpeechConfig, log_mel
from tavr_jax.encoders.text import TextConfig, embed
from tavr_jax.encoders.vae import Codec, encode_reference
from tavr_jax.errors import InputError

PREFIX_ROWS = 3  # copies of the first row before the reference's speech
_LENGTHS = 8  # padded clips have a multiple of this many latents, plus one

Encode = Callable[[Mapping[str, Any]], dict[str, Any]]


def check_features(config: ConfigDict) -> None:
    """InputError where the model expects other features than are prepared here."""
    rows = 4 * config.speech.mel_bins
    model = config.model
    wanted = {
        "model.audio_dim": (model.audio_dim, rows),
        "model.videoref_audio_dim": (model.videoref_audio_dim, rows),
        "model.text_dim": (model.text_dim, config.text.dim),
        "model.text_len": (model.text_len, config.text.length),
        "model.out_dim": (model.out_dim, config.codec.z_dim),
    }
    for field, (asked, made) in wanted.items():
        if asked != made:
            raise InputError(
                f"{field}={asked}: records hold {made} (log-mel rows, hashed words); "
                f"set --config.{field}={made} or choose a mini config"
            )


def features(config: ConfigDict) -> tfds.features.FeaturesDict:
    """The schema of the encoded records under this config."""
    model = config.model
    return records.encoded_features(
        config.codec.z_dim,
        model.audio_dim,
        model.videoref_audio_dim,
        (config.text.length, config.text.dim),
    )


def null_text(config: ConfigDict) -> Float[ndarray, "L E"]:
    """Rows of the empty caption, which the reference reads."""
    return np.asarray(embed("", TextConfig(**config.text)), np.float16)


def make_encoder(codec: Codec, name: str, config: ConfigDict) -> Encode:
    """A function from a clip record to its encoded record.

    Args: the codec, the fingerprint of its weights, the config.
    """
    speech, text = SpeechConfig(**config.speech), TextConfig(**config.text)
    encode_video = _video_encoder(codec, config.prepare.clip_frames)

    def encode(clip: Mapping[str, Any]) -> dict[str, Any]:
        frames = media.decode_mp4(clip["video"])
        size = frames.shape[1:3]
        person = conditions.still_mask(clip["person_box"], size)
        still = conditions.grey_person(frames[0], person)
        latents, reference, still = encode_video(frames, still)
        wave = clip["wave"].astype(np.float32) / 32767
        mel = np.asarray(log_mel(wave, len(frames), speech), np.float16)
        prefix = mel[:1].repeat(PREFIX_ROWS, axis=0)
        return {
            "clip_id": _text(clip["clip_id"]),
            "latents": latents,
            "still": still,
            "still_tokens": conditions.still_tokens(person),
            "reference": reference,
            "reference_tokens": conditions.face_tokens(clip["face_boxes"], size),
            "audio": mel,
            "reference_audio": np.concatenate([prefix, mel]),
            "mel": mel,
            "text": np.asarray(embed(_text(clip["caption"]), text), np.float16),
            "face_boxes": clip["face_boxes"],
            "faces": clip["faces"],
            "codec": name,
        }

    return encode


@partial(jax.jit, static_argnums=0)
def _encode(graph: nnx.GraphDef, weights: nnx.State, frames, still) -> list[jax.Array]:
    codec = nnx.merge(graph, weights)
    video = frames[None].astype(jnp.float32) / 127.5 - 1
    outputs = (
        codec.encode(video),
        encode_reference(codec, video),
        codec.encode(still[None, None]),
    )
    return [latents[0].astype(jnp.float16) for latents in outputs]


def _video_encoder(codec: Codec, longest: int) -> Callable:
    """(frames, grey still) -> float16 latents, reference latents, still latent."""
    graph, weights = nnx.split(codec)

    def encode_video(frames, still):
        count = len(frames)
        length = padded_length(count, longest)
        padding = [(0, length - count), (0, 0), (0, 0), (0, 0)]
        outputs = _encode(graph, weights, np.pad(frames, padding, mode="edge"), still)
        latents, reference, still = (np.asarray(latents) for latents in outputs)
        if not (np.isfinite(latents).all() and np.isfinite(reference).all()):
            raise InputError(
                "networks.codec: its latents leave the range of float16; train it "
                "longer, or set codec.latents_mean and codec.latents_std to it"
            )
        return latents[: 1 + (count - 1) // 4], reference[: count // 4], still

    return encode_video


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def padded_length(count: int, longest: int) -> int:
    """Frames a clip of `count` = 1 + 4k frames is padded to before it is encoded."""
    latents = (count - 1) // 4
    padded = -(-latents // _LENGTHS) * _LENGTHS
    return max(count, 1 + 4 * min(padded, (longest - 1) // 4))
