"""Winograd's form of the codec's convolutions against XLA's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs.base import get_config
from tavr_jax.encoders import vae_conv, vae_conv_direct, vae_conv_winograd
from tavr_jax.encoders.vae import Codec, CodecConfig
from tavr_jax.encoders.vae_stream import decode_stream, encode_stream

ALL = ((1, 1), (1, 1))


def drawn(*shape: int) -> jax.Array:
    rng = np.random.default_rng(sum(shape))
    return jnp.asarray(rng.standard_normal(shape, np.float32))


def distance(a, b) -> float:
    a, b = np.float32(a), np.float32(b)
    assert a.shape == b.shape
    return np.linalg.norm(a - b) / np.linalg.norm(b)


@pytest.mark.parametrize(
    ("seen", "steps", "out", "padding"),
    [
        ((1, 3, 5, 7, 8), 3, 4, ALL),  # tiles beyond the end
        ((2, 6, 12, 8, 4), 3, 8, ALL),  # blocks of each axis, the last one shifted
        ((1, 21, 4, 20, 4), 3, 2, ALL),  # frames too
        ((1, 2, 9, 10, 4), 1, 3, ((1, 1), (0, 0))),  # columns from the neighbours
        ((1, 2, 1, 3, 2), 2, 5, ((0, 2), (2, 0))),
    ],
)
def test_it_is_the_direct_convolution_and_so_is_its_gradient(seen, steps, out, padding):
    x, kernel = drawn(*seen), drawn(steps, 3, 3, seen[-1], out)

    def both(convolve, x, kernel):
        y, back = jax.vjp(lambda x, k: convolve(x, k, padding), x, kernel)
        return y, *back(drawn(*y.shape))

    ours, theirs = (
        jax.jit(both, static_argnums=0)(form.convolve, x, kernel)
        for form in (vae_conv_winograd, vae_conv_direct)
    )
    for a, b in zip(ours, theirs, strict=True):
        assert distance(a, b) < 1e-5


def test_half_precision_is_rounded_once():
    x, kernel = drawn(1, 3, 16, 16, 64), drawn(3, 3, 3, 64, 8)
    exact = vae_conv_direct.convolve(x, kernel, ALL)
    half = x.astype(jnp.float16), kernel.astype(jnp.float16)
    found = vae_conv_winograd.convolve(*half, ALL)
    assert found.dtype == jnp.float16
    rounded = vae_conv_direct.convolve(*(v.astype(jnp.float32) for v in half), ALL)
    assert distance(found, rounded) < 3e-4 < distance(found, exact)


@pytest.mark.parametrize(
    ("chip", "seen", "kernel", "direct"),
    [
        ("cpu", (1, 3, 32, 32, 96), (3, 3, 3, 96, 96), False),
        ("tpu", (1, 3, 32, 32, 96), (3, 3, 3, 96, 96), True),
        ("gpu", (1, 3, 32, 32, 96), (3, 3, 3, 96, 96), True),
        ("cpu", (1, 3, 32, 32, 3), (3, 3, 3, 3, 96), True),
        ("cpu", (1, 3, 16, 16, 384), (3, 3, 3, 384, 384), True),
        ("cpu", (1, 1, 32, 32, 96), (1, 1, 1, 96, 96), False),  # a matmul
    ],
)
def test_the_form_is_chosen_by_chip_and_size(monkeypatch, chip, seen, kernel, direct):
    monkeypatch.setattr(vae_conv, "platform", lambda: chip)
    half = kernel[1] // 2, kernel[2] // 2
    shapes = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in (seen, kernel))
    made = jax.make_jaxpr(
        lambda x, k: vae_conv.convolve(x, k, tuple((n, n) for n in half))
    )(*shapes)
    assert ("conv_general_dilated" in str(made)) == direct


def test_a_wide_codec_in_this_form_is_the_direct_one_and_its_stream(monkeypatch):
    settings = get_config().codec.to_dict() | {
        "base_dim": 32,
        "dim_mult": (1, 1, 1),
        "num_res_blocks": 1,
        "temporal_downsample": (True, True),
    }
    fresh = Codec(CodecConfig(**settings), rngs=nnx.Rngs(0))
    graph, params = nnx.split(fresh)
    params = jax.tree.map(lambda w: w + 0.05 * drawn(*w.shape), params)
    codec, frames = nnx.merge(graph, params), jnp.tanh(drawn(1, 9, 36, 44, 3))

    def run():
        # of this call: a program made for one form is not taken for the other
        encode = nnx.jit(lambda codec, frames: codec.encode(frames))
        decode = nnx.jit(lambda codec, latents: codec.unclamped(latents))
        latents = encode(codec, frames)
        return latents, decode(codec, latents)

    fast = run()
    blocks = list(encode_stream(codec, [frames], step=1))
    assert distance(np.concatenate(blocks, axis=1), fast[0]) < 1e-5
    decoded = decode_stream(codec, [fast[0]], step=2, dtype=jnp.float32)
    decoded = np.concatenate(list(decoded), axis=1)
    assert distance(decoded, np.clip(fast[1], -1, 1)) < 1e-5
    monkeypatch.setattr(vae_conv, "CHANNELS", 10**6)
    for a, b in zip(fast, run(), strict=True):
        assert 1e-8 < distance(a, b) < 2e-5
