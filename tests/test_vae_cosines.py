"""The codec of cosine coefficients: configs/models.py, :mini."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from test_vae_flops import traced

from configs.base import get_config
from configs.models import apply
from data_pipelines import media, synthetic
from launch import build
from tavr_jax.encoders import vae_flops, vae_transform
from tavr_jax.encoders.vae import Codec, CodecConfig, encode_reference
from tavr_jax.encoders.vae_stream import (
    decode_stream,
    encode_reference_stream,
    encode_stream,
)
from tavr_jax.errors import InputError
from tavr_jax.parallel.mesh import MeshConfig, make_mesh

CONFIG = dataclasses.replace(
    CodecConfig(**apply(get_config(), "mini").codec), base_dim=8, cosines=32
)

encode = nnx.jit(lambda codec, frames: codec.encode(frames))
decode = nnx.jit(lambda codec, latents: codec.decode(latents))


@pytest.fixture(scope="module")
def codec() -> Codec:
    """No weight of it is zero, as after training."""
    rng = np.random.default_rng(1)
    graph, params = nnx.split(Codec(CONFIG, rngs=nnx.Rngs(0)))
    return nnx.merge(
        graph,
        jax.tree.map(
            lambda w: w + 0.1 * rng.standard_normal(w.shape, np.float32), params
        ),
    )


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    shape = (2, 13, 24, 40, 3)
    return np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)


def joined(blocks) -> np.ndarray:
    return np.concatenate([np.asarray(block) for block in blocks], axis=1)


def test_the_products_are_a_turn_of_the_pixels(frames):
    """Orthonormal; all of them lose nothing, and w has the deviations (4) says."""
    waves, deviation = vae_transform.products(768)
    np.testing.assert_allclose(waves @ waves.T, np.eye(768), atol=1e-5)
    assert (np.diff(deviation) <= 0).all()
    for first, clip in ((True, frames), (False, frames[:, :8])):
        found = vae_transform.forward(jnp.asarray(clip), 768, first=first)
        np.testing.assert_allclose(
            vae_transform.inverse(found, first=first), clip, atol=1e-4
        )


def test_the_first_coefficient_is_the_mean_of_a_block():
    """And waves along rows are not those along columns."""
    clip = np.zeros((1, 5, 16, 8, 3), np.float32)
    clip[:, 1:, 8:] = 0.5
    found = np.asarray(vae_transform.forward(jnp.asarray(clip), 4, first=True))
    assert found.shape == (1, 2, 2, 1, 4)
    expected = 0.5 * 768**0.5 / vae_transform.SCALE
    np.testing.assert_allclose(found[0, 1, :, 0, 0], [0, expected], atol=1e-5)
    np.testing.assert_allclose(found[0, 0], 0, atol=1e-6)
    slope = np.linspace(-1, 1, 8, dtype=np.float32)
    clip[:] = slope[:, None]
    along = [
        vae_transform.forward(jnp.asarray(x[:, :, :8]), 24, first=True)
        for x in (clip, clip.swapaxes(2, 3)[:, :, :, :8])
    ]
    assert float(jnp.abs(along[0] - along[1]).max()) > 0.5


def test_a_fresh_codec_is_the_transform(frames):
    """Equation (3): what is kept comes back, whatever the network is."""
    fresh = Codec(CONFIG, rngs=nnx.Rngs(3))
    found = np.asarray(encode(fresh, frames))
    plain = vae_transform.forward(jnp.asarray(frames), CONFIG.z_dim, first=True)
    mean, std = np.array(CONFIG.latents_mean), np.array(CONFIG.latents_std)
    np.testing.assert_allclose(found, (np.asarray(plain) - mean) / std, atol=1e-5)
    back = np.clip(vae_transform.inverse(plain, first=True), -1, 1)
    np.testing.assert_allclose(decode(fresh, found), back, atol=1e-5)


@pytest.mark.parametrize("step", [1, 2])
def test_a_stream_is_the_whole_clip(codec, frames, step):
    latents = encode(codec, frames)
    decoded = decode(codec, latents)
    assert np.abs(decoded).min() < 0.5  # not all is clamped
    for count in (1, 5, 8, 13):
        blocks = np.split(frames[:, :count], [2, 3, 11], axis=1)
        kept = 1 + (count - 1) // 4
        found = joined(encode_stream(codec, blocks, step=step))
        np.testing.assert_allclose(found, latents[:, :kept], atol=3e-5)
        pieces = np.split(np.asarray(latents[:, :kept]), [1, 3], axis=1)
        found = joined(decode_stream(codec, pieces, step=step, dtype=jnp.float32))
        np.testing.assert_allclose(found, decoded[:, : 4 * kept - 3], atol=5e-5)
    reference = nnx.jit(encode_reference)(codec, frames[:, :8])
    found = joined(encode_reference_stream(codec, [frames[:, :8]], step=step))
    np.testing.assert_allclose(found, reference, atol=3e-5)


def test_a_changed_frame_leaves_earlier_latents_alone(codec, frames):
    changed = frames.copy()
    changed[:, 6] *= -1  # frames 5..8 are latent 2
    before, after = encode(codec, frames), encode(codec, changed)
    np.testing.assert_array_equal(after[:, :2], before[:, :2])
    assert (np.abs(after - before).max(axis=(0, 2, 3, 4))[2:] > 1e-4).all()


def test_devices_of_one_video_are_one_device(codec, frames):
    """5 columns of latents over 4 devices."""
    latents = encode(codec, frames)
    decoded = decode(codec, latents)
    graph, params = nnx.split(codec)
    four = make_mesh(MeshConfig(1, 1, 4, 1), jax.devices()[:4])

    @partial(jax.jit, static_argnums=2)
    def run(params, x, name):
        return getattr(nnx.merge(graph, params), name)(x)

    with jax.set_mesh(four):
        np.testing.assert_allclose(run(params, frames, "encode"), latents, atol=5e-5)
        np.testing.assert_allclose(run(params, latents, "decode"), decoded, atol=5e-5)


@pytest.mark.parametrize("count", [1, 9])
def test_flops_are_those_that_are_traced(codec, count):
    graph, params = nnx.split(codec)
    video = jax.ShapeDtypeStruct((1, count, 16, 32, 3), jnp.float32)
    latents = jax.ShapeDtypeStruct((1, 1 + count // 4, 2, 4, CONFIG.z_dim), jnp.float32)
    for name, x in (("encode", video), ("decode", latents)):
        made = jax.make_jaxpr(lambda p, x, n=name: getattr(nnx.merge(graph, p), n)(x))
        found = traced(made(params, x).jaxpr)
        assert getattr(vae_flops, name)(codec, count, 16, 32) == found


@pytest.mark.parametrize(
    "change",
    [
        {"cosines": 23},
        {"cosines": 769},
        {"dim_mult": (1, 2)},
        {"temporal_downsample": (True, True)},
    ],
)
def test_a_config_of_no_such_codec_is_refused(change):
    with pytest.raises(InputError, match=r"codec\.cosines"):
        dataclasses.replace(CONFIG, **change)


def test_the_shipped_codec_reaches_thirty_decibels():
    """On drawn people whom it has not seen, over all of their pixels; a learned codec
    is better than its fresh self."""
    config = apply(get_config(), "mini")
    clips = [
        synthetic.clip(0, index, 0, 1.4, 192).frames for index in range(1200, 1204)
    ]
    small = [media.cover_resize(frames[:33], (96, 96)) for frames in clips]
    frames = np.stack(small).astype(np.float32) / 127.5 - 1

    def decibels(codec: Codec) -> float:
        error = decode(codec, encode(codec, frames)) - frames
        return float(-10 * np.log10(np.mean(np.square(error)) / 4))

    shipped = build.codec(config)
    assert decibels(shipped) > 30
    fresh = Codec(CodecConfig(**config.codec), rngs=nnx.Rngs(0))
    assert decibels(shipped) > decibels(fresh) + 0.3
