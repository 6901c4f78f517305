"""What turns speech and captions into the rows a model reads.

The networks are named by a config and loaded by `launch/readers.py`; here is only what
the data engine and generation ask of them. A row of speech is one 25 Hz step.
"""

from collections.abc import Callable
from typing import NamedTuple

from jaxtyping import Float, Float32
from ml_collections import ConfigDict
from numpy import ndarray

from tavr_jax.errors import InputError


class Driving(NamedTuple):
    """The speech a whole video is made to."""

    rows: Float[ndarray, "n U"]
    frames: int  # 1 + 4k, of the video to generate
    written: int  # frames of it that are kept


class SpeechReader(NamedTuple):
    """Mono waves at speech.sample_rate to rows.

    `driving` reads the whole speech of a video to generate, `clip` that of a clip of so
    many frames to train on, `reference` up to so many rows of a reference's sound.
    """

    driving: Callable[[Float[ndarray, " n"]], Driving]
    clip: Callable[[Float[ndarray, " n"], int], Float[ndarray, "F U"]]
    reference: Callable[[Float[ndarray, " n"], int], Float[ndarray, "n V"]]
    width: int  # U
    reference_width: int  # V


class TextReader(NamedTuple):
    """A caption to its rows, zero rows up to text.length."""

    read: Callable[[str], Float32[ndarray, "L E"]]
    width: int  # E


class Readers(NamedTuple):
    """Everything heard and read."""

    speech: SpeechReader
    text: TextReader


def check(readers: Readers, config: ConfigDict) -> None:
    """InputError where the model reads rows of another width than are made."""
    model = config.model
    made = {
        "model.audio_dim": (model.audio_dim, readers.speech.width, "speech"),
        "model.videoref_audio_dim": (
            model.videoref_audio_dim,
            readers.speech.reference_width,
            "speech",
        ),
        "model.text_dim": (model.text_dim, readers.text.width, "text"),
        "text.dim": (config.text.dim, readers.text.width, "text"),
        "model.text_len": (model.text_len, config.text.length, ""),
        "model.out_dim": (model.out_dim, config.codec.z_dim, ""),
    }
    for field, (asked, have, network) in made.items():
        if asked != have:
            source = f"networks.{network} makes" if network else "the config has"
            raise InputError(
                f"config: {field}={asked}, but {source} {have}; give the network that "
                f"the model was trained with, or --config.{field}={have}"
            )
