"""Speech and captions to rows, by the networks that a config names.

networks.speech   a wav2vec 2.0 folder, or "mini": log-mel rows (ours)
networks.text     a umT5 file and its tokenizer, or "mini": hashed words (ours)
"""

from pathlib import Path

import numpy as np
from jaxtyping import Float
from ml_collections import ConfigDict
from numpy import ndarray

from data_pipelines import features, records, speech_rows
from data_pipelines.features import Driving, Readers, SpeechReader, TextReader
from data_pipelines.prepare import encode
from data_pipelines.sources import Encoder, paths
from launch import build
from launch.build import PACKAGED
from launch.weights_source import resolve
from tavr_jax import storage
from tavr_jax.encoders import captions, text
from tavr_jax.encoders.speech import STEPS, SpeechConfig, log_mel
from tavr_jax.encoders.wav2vec2_wave import Listener
from tavr_jax.encoders.weights import fingerprint
from tavr_jax.encoders.weights_umt5 import load_umt5
from tavr_jax.encoders.weights_wav2vec2 import published_wav2vec2
from tavr_jax.evaluation.generate import num_frames


def load(config: ConfigDict) -> Readers:
    """Both. InputError: a network is not there, or is another one."""
    return Readers(load_speech(config), load_text(config))


def make_encoder(config: ConfigDict) -> Encoder | None:
    """What encodes clips while training; None where nothing has to be.

    InputError: no dataset, networks whose rows the model does not read.
    """
    stored = all(records.is_encoded(storage.place(path)) for path in paths(config))
    if stored or config.stage == "codec":  # which reads pictures alone
        return None
    heard, codec = load(config), build.codec(config)
    features.check(heard, config)
    made = encode.make_encoder(codec, fingerprint(codec), heard, config)
    return Encoder(made, encode.null_text(heard))


def load_speech(config: ConfigDict) -> SpeechReader:
    """The reader of networks.speech."""
    if config.networks.speech == PACKAGED:
        return _log_mel(config)
    return _wav2vec(config)


def load_text(config: ConfigDict) -> TextReader:
    """The reader of networks.text and networks.tokenizer."""
    if config.networks.text == PACKAGED:
        words = text.TextConfig(**config.text)
        return TextReader(lambda caption: text.embed(caption, words), words.dim)
    tokenizer = captions.Tokenizer(_file(config, "tokenizer"))
    network = load_umt5(_file(config, "text"), config.text.dtype)
    encoder = captions.TextEncoder(network, tokenizer, config.text.length)
    return TextReader(encoder, network.config.dim)


def _log_mel(config: ConfigDict) -> SpeechReader:
    speech = SpeechConfig(**config.speech)
    width = STEPS * speech.mel_bins

    def driving(wave: Float[ndarray, " n"]) -> Driving:
        rows = len(wave) * speech.fps // speech.sample_rate
        frames = num_frames(rows)
        return Driving(log_mel(wave, frames, speech), frames, rows)

    def clip(wave: Float[ndarray, " n"], count: int) -> Float[ndarray, "F U"]:
        return log_mel(wave, count, speech)

    return SpeechReader(driving, clip, clip, width, width)


def _wav2vec(config: ConfigDict) -> SpeechReader:
    network = published_wav2vec2(_file(config, "speech"))
    listen = Listener(network)
    rows = speech_rows.SpeechRowsConfig(**config.wav2vec)
    exact = config.output.exact_release

    def driving(wave: Float[ndarray, " n"]) -> Driving:
        found = speech_rows.driving_rows(wave, listen, rows, exact_release=exact)
        seconds = len(wave) / config.speech.sample_rate
        written = speech_rows.frame_limit(seconds, exact_release=exact)
        return Driving(found, speech_rows.num_frames(len(found)), written)

    def clip(wave: Float[ndarray, " n"], count: int) -> Float[ndarray, "F U"]:
        found = speech_rows.spoken_rows(wave, listen, rows)[:count]
        # a convolution's reach short of the clip's end: its last row stands
        return np.pad(found, [(0, count - len(found)), (0, 0)], mode="edge")

    def reference(wave: Float[ndarray, " n"], count: int) -> Float[ndarray, "n V"]:
        return speech_rows.reference_rows(wave, count, listen, exact_release=exact)

    width = 2 * network.config.hidden_size
    return SpeechReader(driving, clip, reference, width * len(rows.states), width)


def _file(config: ConfigDict, name: str) -> Path:
    return resolve(config.networks[name], flag=f"--config.networks.{name}")
