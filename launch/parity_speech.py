"""Replays of what happens to sound: loudness, speech networks, rows of speech."""

import functools
import re
import tempfile
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float
from numpy import ndarray
from scipy.io import wavfile

from configs.base import get_config
from data_pipelines import loudness, media, speech_rows
from launch.parity_oracle import EXACT, FORWARD, Check, Oracle
from tavr_jax.encoders import whisper
from tavr_jax.encoders.wav2vec2 import Heard, Wav2Vec2, Wav2Vec2Config
from tavr_jax.encoders.wav2vec2_wave import Listener, normalised
from tavr_jax.encoders.weights_wav2vec2 import load_wav2vec2
from tavr_jax.encoders.weights_whisper import load_whisper
from tavr_jax.encoders.whisper import WhisperConfig, WhisperEncoder, log_mel
from tavr_jax.errors import InputError

LOUDNESS = 1e-6  # recorded as float32
# bfloat16 values: one in some thousands lies near a rounding edge and falls on the
# other side, where it is 2^-8 off
ROWS = 1e-3
RATE, STEREO_RATE = 16000, 44100
_FILES = ("hf.safetensors", "pytorch_model.bin")  # the layouts of one network

Candidates = dict[str, tuple[Callable[[], np.ndarray], float]]


def replay_audio(oracle: Oracle) -> list[Check]:
    """TAVR's sound, from the file to driving rows and the reference's track."""
    source = f"{oracle.folder}/config.json"
    if "wav2vec" not in oracle.config:
        raise InputError(f"{source}: wav2vec: missing; is it a folder of TAVR's?")
    config = Wav2Vec2Config.from_fields(oracle.config["wav2vec"], source)
    network = _load(config, [oracle.folder / "wav2vec.safetensors"])
    listen = Listener(network)
    return oracle.checks(
        {
            **_loudness(oracle),
            **_small_rules(oracle),
            **_driving(oracle, listen, config.num_hidden_layers),
            **_reference(oracle, listen),
        }
    )


def replay_wan_audio(oracle: Oracle) -> list[Check]:
    """The processor alone, and how many steps a wave has."""
    waves = [oracle[name] for name in ("long", "short") if name in oracle]
    padded = np.zeros((len(waves), max(map(len, waves))), np.float32)
    lengths = np.array([len(wave) for wave in waves])
    for row, wave in zip(padded, waves, strict=True):
        row[: len(wave)] = wave
    inside = np.arange(padded.shape[1])[None] < lengths[:, None]
    silence = np.zeros(
        oracle.expected("silence_out").shape if "silence_out" in oracle else 0
    )
    sizes = [(10, 5), *[(3, 2)] * 4, *[(2, 2)] * 2]  # of every published model

    def frames() -> np.ndarray:
        counts = oracle["samples"]
        for size, stride in sizes:
            counts = (counts - size) // stride + 1
        return counts

    return oracle.checks(
        {
            "single_mask0": (lambda: normalised(waves[0]), FORWARD),
            "single_mask1": (lambda: normalised(waves[0]), FORWARD),
            "batch_mask0": (lambda: normalised(padded), FORWARD),
            "batch_mask1": (lambda: normalised(padded, lengths), FORWARD),
            "batch_attention_mask": (lambda: inside.astype(np.int32), EXACT),
            "silence_out": (lambda: normalised(silence), FORWARD),
            "const_out": (lambda: normalised(oracle["const_in"]), FORWARD),
            "int16_as_float_out": (lambda: normalised(oracle["int16"]), FORWARD),
            "frames": (frames, EXACT),
        }
    )


def replay_wav2vec2(oracle: Oracle) -> list[Check]:
    """One network in every layout of its weights: hidden states of batches."""
    config = Wav2Vec2Config.from_json(oracle.folder / "config.json")
    paths = [oracle.folder / name for name in _FILES]
    paths = [path for path in paths if path.is_file()] or paths[:1]
    network = _load(config, paths)
    found: Candidates = {}
    for name in oracle.names:
        case, _, kind = name.partition("_")
        if kind == "wave":
            wave = oracle[name]
            lengths = np.full(len(wave), wave.shape[1])
            found[f"{case}_input_values"] = (
                functools.partial(normalised, wave, lengths),
                FORWARD,
            )
        elif kind == "input_values":
            if f"{case}_wave" not in oracle:
                oracle.inputs.add(name)
            run = functools.partial(_hear, network, oracle.expected(name))
            run = functools.cache(run)
            found |= {
                f"{case}_extract_features": (lambda r=run: r().features, FORWARD),
                f"{case}_hidden_states": (lambda r=run: r().hidden, FORWARD),
                f"{case}_last": (lambda r=run: r().last, FORWARD),
                **_stretched(oracle, case, run),
            }
    return oracle.checks(found)


def replay_whisper(oracle: Oracle) -> list[Check]:
    """Whisper's encoder: log-mel of waves as they are and of 30 s, hidden states."""
    config = WhisperConfig.from_json(oracle.folder / "config.json")
    empty = nnx.eval_shape(lambda: WhisperEncoder(config, rngs=nnx.Rngs(0)))
    encoder = load_whisper(oracle.folder / "hf.safetensors", empty)
    found: Candidates = {}
    for name in oracle.names:
        case, _, kind = name.partition("_")
        if kind == "wave":
            found |= _whisper_case(oracle, encoder, case)
    return oracle.checks(found)


def _whisper_case(oracle: Oracle, encoder: WhisperEncoder, case: str) -> Candidates:
    waves, config = oracle[f"{case}_wave"], encoder.config

    @functools.cache
    def mel() -> np.ndarray:
        return np.stack([log_mel(wave, config) for wave in waves])

    @functools.cache
    def padded() -> np.ndarray:
        longest = np.zeros(30 * RATE, np.float32)
        longest[: waves.shape[1]] = waves[0]
        return log_mel(longest, config)

    @functools.cache
    def heard() -> whisper.Heard:
        return _encode(encoder, jnp.asarray(mel()))

    def head() -> np.ndarray:
        return padded()[: oracle.expected(f"{case}_mel_30s_head").shape[1]].T

    def hidden() -> np.ndarray:
        # transformers 5 records the last layer's output after the final norm
        return np.stack([*heard().hidden[:-1], heard().last])

    return {
        f"{case}_mel": (lambda: mel().transpose(0, 2, 1), FORWARD),
        f"{case}_mel_30s_head": (head, FORWARD),
        f"{case}_mel_30s_pad_value": (lambda: padded()[-1, 0], FORWARD),
        f"{case}_hidden_states": (hidden, FORWARD),
        f"{case}_last": (lambda: heard().last, FORWARD),
    }


def _stretched(oracle: Oracle, case: str, run: Callable[[], Heard]) -> Candidates:
    """Last hidden states at other rates: {case}_interp{count}_{corners}."""
    found: Candidates = {}
    for name in oracle.names:
        match = re.fullmatch(rf"{case}_interp(\d+)_(no)?corners", name)
        if match:
            count, corners = int(match[1]), match[2] is None
            found[name] = (
                lambda n=count, c=corners: stretched(
                    np.asarray(run().last), n, corners=c
                ),
                FORWARD,
            )
    return found


def _loudness(oracle: Oracle) -> Candidates:
    def outcome(length: int) -> int:
        if loudness.release_raises(length):
            return -1
        return len(loudness.normalise(np.zeros(length)))

    def metered() -> np.ndarray:
        ends = np.cumsum(oracle["meter_len"])[:-1]
        waves = np.split(oracle["meter_in"].astype(np.float64), ends)
        return np.array([loudness.loudness(wave) for wave in waves])

    found: Candidates = {
        "loud_len_out": (
            lambda: np.array([outcome(int(n)) for n in oracle["loud_len_in"]]),
            EXACT,
        ),
        "meter_lufs": (metered, LOUDNESS),
        "meter_sos": (loudness.weighting, LOUDNESS),
    }
    for name in oracle.names:
        match = re.fullmatch(r"loud_(?!len)(\w+)_out", name)
        if match:
            given = f"loud_{match[1]}_in"
            wave = (
                oracle[given]
                if given in oracle
                else np.zeros(oracle.expected(name).shape)  # the case of silence
            )
            found[name] = (functools.partial(loudness.normalise, wave), LOUDNESS)
    return found


def _small_rules(oracle: Oracle) -> Candidates:
    def counted() -> np.ndarray:
        rows = oracle["numframes_in"].tolist()
        return np.array([speech_rows.num_frames(n) for n in rows])

    def resampled() -> np.ndarray:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "stereo.wav"
            wavfile.write(path, STEREO_RATE, oracle["resample_in"])
            return media.read_audio(path, RATE)

    return {
        "pair_out": (lambda: speech_rows.paired(oracle["pair_in"]), EXACT),
        "proc_out": (lambda: normalised(oracle["proc_in"]), FORWARD),
        "numframes_out": (counted, EXACT),
        "resample_out": (resampled, FORWARD),
    }


def _driving(oracle: Oracle, listen: Listener, layers: int) -> Candidates:
    if "driving_pcm" not in oracle:
        return {}
    wave = oracle["driving_pcm"].astype(np.float32) / 32768
    speech = functools.cache(lambda: speech_rows.spoken(wave))

    @functools.cache
    def hidden() -> np.ndarray:
        return listen(speech(), range(layers + 1))

    @functools.cache
    def rows() -> np.ndarray:
        config = speech_rows.SpeechRowsConfig(**get_config().wav2vec)
        return speech_rows.driving_rows(wave, listen, config, exact_release=False)

    found: Candidates = {
        "driving_speech": (speech, LOUDNESS),
        "driving_last": (lambda: hidden()[-1], FORWARD),
        "driving_features": (lambda: rows()[None], ROWS),
        "driving_num_frames": (
            lambda: np.array(speech_rows.num_frames(len(rows()))),
            EXACT,
        ),
    }
    for state in range(layers + 1):
        found[f"driving_hidden{state}"] = (lambda i=state: hidden()[i], FORWARD)
    return found


def _reference(oracle: Oracle, listen: Listener) -> Candidates:
    if "ref_pcm" not in oracle:
        return {}
    wave = oracle["ref_pcm"].astype(np.float32) / 32768
    null = oracle["ref_null"]

    @functools.cache
    def track(count: int) -> np.ndarray:
        rows = speech_rows.reference_rows(wave, count, listen, exact_release=False)
        return speech_rows.reference_track(rows, count, null)

    def window(count: int, start: int, latents: int) -> np.ndarray:
        end = start + latents
        return speech_rows.reference_window(track(count), start, end)[None]

    found: Candidates = {}
    for name in oracle.names:
        if match := re.fullmatch(r"ref_track_(\d+)", name):
            found[name] = (lambda n=int(match[1]): track(n)[None], FORWARD)
        elif match := re.fullmatch(r"ref_window_(\d+)_(\d+)", name):
            latents = oracle.expected(name).shape[1] // speech_rows.ROWS_PER_LATENT
            count, start = int(match[1]), int(match[2])
            found[name] = (functools.partial(window, count, start, latents), FORWARD)
    return found


def _load(config: Wav2Vec2Config, paths: list[Path]) -> Wav2Vec2:
    """The network, from every layout the folder holds; they have to agree."""
    empty = nnx.eval_shape(lambda: Wav2Vec2(config, rngs=nnx.Rngs(0)))
    first, *others = [load_wav2vec2(path, empty) for path in paths]
    weights = jax.tree.leaves(nnx.state(first))
    for path, other in zip(paths[1:], others, strict=True):
        pairs = zip(weights, jax.tree.leaves(nnx.state(other)), strict=True)
        if not all(bool((a == b).all()) for a, b in pairs):
            raise InputError(f"{path}: holds another network than {paths[0].name}")
    return first


def _hear(network: Wav2Vec2, waves: np.ndarray) -> Heard:
    return _jitted(network, jnp.asarray(waves))


@nnx.jit
def _jitted(network: Wav2Vec2, waves: jax.Array) -> Heard:
    return network(waves)


@nnx.jit
def _encode(encoder: WhisperEncoder, mel: jax.Array) -> whisper.Heard:
    return encoder(mel)


def stretched(
    steps: Float[ndarray, "*B steps D"], count: int, *, corners: bool
) -> Float[ndarray, "*B count D"]:
    """Steps read at `count` times by straight lines, for models with a row a frame.

    The network gives 49.8 steps a second, not 50, so a fixed ratio drifts. `corners`
    puts the first and last row on the first and last step; without, the ends of both
    agree, each step and row in the middle of its share. TAVR pairs instead, (1).
    """
    size = steps.shape[-2]
    if corners:
        place = np.linspace(0, size - 1, count)
    else:
        place = (np.arange(count) + 0.5) * size / count - 0.5
    place = np.clip(place, 0, size - 1)
    left = np.floor(place).astype(int)
    right = np.minimum(left + 1, size - 1)
    part = (place - left)[:, None].astype(steps.dtype)
    return steps[..., left, :] * (1 - part) + steps[..., right, :] * part
