"""Replays of the video autoencoder: the release's wrapper of it, and the published one.

Videos go through step by step (`vae_stream.py`), as long ones do; that whole clips give
the same is tested in tests/test_vae.py.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, UInt8
from numpy import ndarray

from configs.base import get_config
from data_pipelines import conditions, letterbox, reference, still
from launch.parity_oracle import EXACT, FORWARD, Check, Oracle, to_ours, to_theirs
from tavr_jax.encoders import vae_stream
from tavr_jax.encoders.vae import Codec, CodecConfig
from tavr_jax.encoders.weights_vae import load_vae
from tavr_jax.errors import InputError
from tavr_jax.evaluation.generate import to_pixels

Candidates = dict[str, tuple[Callable[[], ndarray], float]]

HANDED_ON = 8  # `max_frames` of dec_chunk_sizes: its README says it, no file does
HALF = 3.0  # float16 against float16, in units of float16 against float32
FLIPS = 1e-3  # share of pixels whose value lies on the edge between two levels
STEP = 1  # latents: short videos still take several steps


def replay_vae(oracle: Oracle) -> list[Check]:
    """The released wrapper: references, still, decoding in two precisions, pixels."""
    codec = _load(oracle.folder / "vae.safetensors", oracle.config["vae"])
    config = codec.config
    candidates: Candidates = {
        "latent_mean": (lambda: np.float32(config.latents_mean), EXACT),
        # the release keeps 1 / std and turns it again
        "latent_std": (lambda: 1 / (1 / np.float32(config.latents_std)), EXACT),
        **_decoded(oracle, codec),
    }
    for case in _cases(oracle, "_frames", np.uint8):
        candidates |= _encoded(oracle, codec, case)
    if "target_still" in oracle:
        candidates |= _target(oracle, codec)
    return oracle.checks(candidates)


def replay_wan_vae(oracle: Oracle) -> list[Check]:
    """The published autoencoder, its two layouts taking turns."""
    files = sorted(oracle.folder.glob("*.safetensors"))
    if not files:
        raise InputError(f"{oracle.folder}: no .safetensors with the weights")
    codecs = [_load(file, oracle.config) for file in files]
    first, last = codecs[0], codecs[-1]
    candidates: Candidates = {
        "latents_mean": (lambda: np.float32(first.config.latents_mean), EXACT),
        "latents_std": (lambda: np.float32(first.config.latents_std), EXACT),
    }
    for case in _cases(oracle, "_video_i8", np.int8):
        video = _last(oracle[f"{case}_video_i8"]).astype(np.float32) / 128
        posterior = functools.cache(functools.partial(_posterior, first, [video]))
        latents = functools.partial(_encode, last, [video])
        candidates |= {
            f"{case}_mean": (lambda p=posterior: _first(p()[0]), FORWARD),
            f"{case}_logvar": (lambda p=posterior: _first(p()[1]), FORWARD),
            f"{case}_latent_norm": (lambda f=latents: _first(f()), FORWARD),
        }
        if f"{case}_z_norm" in oracle:
            decode = functools.partial(_decode, last, _last(oracle[f"{case}_z_norm"]))
            candidates[f"{case}_decoded"] = (lambda f=decode: _first(f()), FORWARD)
    return oracle.checks(candidates)


def _cases(oracle: Oracle, ending: str, dtype: type) -> list[str]:
    return [
        name.removesuffix(ending)
        for name in oracle.names
        if name.endswith(ending) and oracle.expected(name).dtype == dtype
    ]


def _load(path: Path, sizes: dict) -> Codec:
    """Sizes as in config.json, in diffusers' spelling too; the rest is the official."""
    settings = get_config().codec.to_dict()
    sizes = {name.replace("temperal", "temporal"): v for name, v in sizes.items()}
    for field in dataclasses.fields(CodecConfig):
        value = sizes.get(field.name, settings[field.name])
        settings[field.name] = tuple(value) if isinstance(value, list) else value
    config = CodecConfig(**settings)
    return load_vae(path, nnx.eval_shape(lambda: Codec(config, rngs=nnx.Rngs(0))))


def _encoded(oracle: Oracle, codec: Codec, case: str) -> Candidates:
    """References get their prefix, every other video none."""
    video = [_released_pixels(oracle[f"{case}_frames"])]

    def referred() -> ndarray:
        blocks = vae_stream.encode_reference_stream(codec, video, step=STEP)
        return to_theirs(_whole(blocks))

    plain = functools.partial(_encode, codec, video)
    latents = referred if case.startswith("ref") else lambda: to_theirs(plain())
    return {
        f"{case}_latents": (latents, FORWARD),
        f"{case}_mu": (lambda: to_theirs(_posterior(codec, video)[0]), FORWARD),
    }


def _decoded(oracle: Oracle, codec: Codec) -> Candidates:
    latents = np.asarray(to_ours(oracle["dec_latents"]))
    decode = functools.cache(functools.partial(_decode, codec, latents))
    exact, half = oracle.expected("dec_frames"), oracle.expected("dec_frames_fp16")
    cost = float(np.linalg.norm(exact - half) / np.linalg.norm(exact))

    def sizes() -> ndarray:
        stream = vae_stream.decode_stream(codec, [latents], step=1, dtype=jnp.float32)
        pieces = joined(stream, HANDED_ON)
        return np.array([piece.shape[1] for piece in pieces])

    def pixels() -> ndarray:
        unsigned = (decode(jnp.float32)[0] + np.float32(1)) * np.float32(0.5)
        return (unsigned * np.float32(255)).astype(np.uint8)

    return {
        "dec_frames": (lambda: to_theirs(decode(jnp.float32)), FORWARD),
        "dec_frames_fp16": (
            lambda: to_theirs(decode(jnp.float16)).astype(np.float32),
            HALF * cost,
        ),
        "dec_chunk_sizes": (sizes, EXACT),
        "dec_uint8": (pixels, FLIPS),
        # the rule of TAVR_SPEC 13 by itself: float16 rounds elsewhere on every machine
        "dec_uint8_fp16": (lambda: to_pixels(np.moveaxis(half, 0, -1)), EXACT),
    }


def _target(oracle: Oracle, codec: Codec) -> Candidates:
    source = oracle["target_still"]
    fitted = still.fit(source, source.shape[:2])
    box = letterbox.choose([oracle["target_raw_box"][None]], fitted.shape[:2])
    person = conditions.person_map(box, fitted.shape[:2])
    grey = conditions.grey_person(fitted, person)[None, None]
    return {
        "target_foreground": (lambda: person[None].astype(np.float32), EXACT),
        "target_latents": (lambda: to_theirs(_encode(codec, [grey])), FORWARD),
    }


def _posterior(codec: Codec, video: list[ndarray]) -> list[ndarray]:
    """Mean and log-variance."""
    pieces = vae_stream.posterior_stream(codec, video, step=STEP)
    return [_whole(parts) for parts in zip(*pieces, strict=True)]


def _encode(codec: Codec, video: list[ndarray]) -> ndarray:
    return _whole(vae_stream.encode_stream(codec, video, step=STEP))


def _decode(codec: Codec, latents: ndarray, dtype=jnp.float32) -> ndarray:
    blocks = vae_stream.decode_stream(codec, [latents], step=STEP, dtype=dtype)
    return _whole(blocks)


def _whole(blocks: Iterable) -> ndarray:
    return np.concatenate([np.asarray(block) for block in blocks], axis=1)


def _last(array: ndarray) -> ndarray:
    """(B, C, T, H, W) to ours."""
    return np.moveaxis(array, 1, -1)


def _first(array: ndarray) -> ndarray:
    """The way back of `_last`."""
    return np.moveaxis(array, -1, 1)


def _released_pixels(
    frames: UInt8[ndarray, "F Y X 3"],
) -> Float[ndarray, "1 F Y X 3"]:
    """The chain of bfloat16 steps of a reference, TAVR_SPEC 9-4."""
    size = frames.shape[1:3]
    seen = np.stack([reference.unsigned(reference.fit(f, size)) for f in frames])
    return reference.for_codec(seen).astype(np.float32)[None]


def joined(
    blocks: Iterable[Float[Array | ndarray, "B _ Y X 3"]], at_least: int
) -> Iterator[Float[ndarray, "B F Y X 3"]]:
    """Blocks put together until they hold that many frames, as the release hands them
    on (TAVR_SPEC 13); the last piece has what is left."""
    held: list[ndarray] = []
    for block in blocks:
        held.append(np.asarray(block))
        if sum(part.shape[1] for part in held) >= at_least:
            yield np.concatenate(held, axis=1)
            held = []
    if held:
        yield np.concatenate(held, axis=1)
