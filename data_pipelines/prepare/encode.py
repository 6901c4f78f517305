"""A clip -> what the transformer reads: latents, tokens, speech rows, text.

    still      frame 0 with the person's cells at 0            [TAVR_SPEC 7, conditions]
    reference  25 copies of frame 0 in front, last F // 4 kept [TAVR_SPEC 9-5]
    reference_audio   3 copies of row 0 in front               [TAVR_SPEC 4]

Rows of speech and text are what the config's readers make of them (`features.py`).
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Float, UInt8
from ml_collections import ConfigDict
from numpy import ndarray

from data_pipelines import conditions, media, records, speech_rows
from data_pipelines.features import Readers
from tavr_jax.encoders.speech import SpeechConfig, log_mel
from tavr_jax.encoders.vae import Codec
from tavr_jax.encoders.vae_stream import encode_reference_stream, encode_stream
from tavr_jax.errors import InputError

Frames = UInt8[ndarray, "F Y X 3"]
Encode = Callable[[Mapping[str, Any]], dict[str, Any]]


def features(config: ConfigDict) -> tfds.features.FeaturesDict:
    """The schema of the encoded records under this config."""
    model = config.model
    return records.encoded_features(
        config.codec.z_dim,
        model.audio_dim,
        model.videoref_audio_dim,
        (config.text.length, config.text.dim),
    )


def null_text(readers: Readers) -> Float[ndarray, "L E"]:
    """Rows of the empty caption, which the reference reads."""
    return np.asarray(readers.text.read(""), np.float16)


def make_encoder(
    codec: Codec, name: str, readers: Readers, config: ConfigDict
) -> Encode:
    """A function from a clip record to its encoded record.

    Args: the codec, the fingerprint of its weights, speech and text, the config.
    """
    mel_config = SpeechConfig(**config.speech)
    encode_video = _video_encoder(codec, config.output.decode_latents)

    def encode(clip: Mapping[str, Any]) -> dict[str, Any]:
        frames = media.decode_mp4(clip["video"])
        size = frames.shape[1:3]
        person = conditions.still_mask(clip["person_box"], size)
        still = conditions.grey_person(frames[0], person)
        latents, reference, still = encode_video(frames, still)
        wave = clip["wave"].astype(np.float32) / 32767
        count = len(frames)
        heard = readers.speech.reference(wave, count)
        return {
            "clip_id": _text(clip["clip_id"]),
            "latents": latents,
            "still": still,
            "still_tokens": conditions.still_tokens(person),
            "reference": reference,
            "reference_tokens": conditions.face_tokens(clip["face_boxes"], size),
            "audio": np.asarray(readers.speech.clip(wave, count), np.float16),
            # no model is at hand to have a null row: the last stands in for it
            "reference_audio": np.asarray(
                speech_rows.reference_track(heard, count, heard[-1:]), np.float16
            ),
            "mel": np.asarray(log_mel(wave, count, mel_config), np.float16),
            "text": np.asarray(readers.text.read(_text(clip["caption"])), np.float16),
            "face_boxes": clip["face_boxes"],
            "faces": clip["faces"],
            "codec": name,
        }

    return encode


def _video_encoder(codec: Codec, step: int) -> Callable:
    """(frames, grey still) -> float16 latents, reference latents, still latent.

    In steps of `step` latents: memory and compiled programs are the same for all clips.
    """

    def encode_video(frames: Frames, still: ndarray) -> tuple[ndarray, ...]:
        found = (
            encode_stream(codec, _blocks(frames, step), step=step),
            encode_reference_stream(codec, _blocks(frames, step), step=step),
            encode_stream(codec, [still[None, None]], step=step),
        )
        latents = tuple(
            np.concatenate([np.asarray(part[0], np.float16) for part in parts])
            for parts in found
        )
        if not all(np.isfinite(part).all() for part in latents):
            raise InputError(
                "networks.codec: its latents leave the range of float16; train it "
                "longer, or set codec.latents_mean and codec.latents_std to it"
            )
        return latents

    return encode_video


def _blocks(frames: Frames, step: int) -> Iterator[Float[ndarray, "1 _ Y X 3"]]:
    size = conditions.SPAN * step
    for start in range(0, len(frames), size):
        yield frames[None, start : start + size].astype(np.float32) / 127.5 - 1


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
