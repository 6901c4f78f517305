import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx

from configs.base import get_config
from configs.models import apply
from tavr_jax.encoders.vae import Codec, CodecConfig, encode_reference
from tavr_jax.encoders.vae_blocks import ChannelNorm
from tavr_jax.encoders.weights import load_wan_vae

encode = nnx.jit(lambda codec, frames: codec.encode(frames))
decode = nnx.jit(lambda codec, latents: codec.decode(latents))
encode_clip = nnx.jit(encode_reference)


def build(base_dim: int) -> Codec:
    section = get_config().codec
    section.base_dim = base_dim
    config = CodecConfig(**section)
    return nnx.eval_shape(lambda: Codec(config, rngs=nnx.Rngs(0)))


@pytest.fixture(scope="module")
def fresh() -> Codec:
    config = apply(get_config(), "tiny").codec
    config.num_res_blocks = 1
    return Codec(CodecConfig(**config), rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def codec(fresh) -> Codec:
    """No weight of it is zero, as after training."""
    rng = np.random.default_rng(1)

    def moved(w: jax.Array) -> jax.Array:
        noise = 0.2 * rng.standard_normal(w.shape, np.float32)
        return jnp.asarray(np.asarray(w) + noise)

    graphdef, params = nnx.split(fresh)
    return nnx.merge(graphdef, jax.tree.map(moved, params))


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    shape = (1, 13, 16, 24, 3)
    return np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)


def relative(ours, theirs) -> float:
    return np.linalg.norm(np.asarray(ours) - theirs) / np.linalg.norm(theirs)


def last(array) -> np.ndarray:
    """(C, T, ...) of the published code -> (T, ..., C) of ours."""
    return np.moveaxis(array, -4, -1)


def released_pixels(frames: np.ndarray) -> np.ndarray:
    """The bfloat16 chain of the release, TAVR_SPEC 9.4."""

    def rounded(x):
        return x.astype(ml_dtypes.bfloat16).astype(np.float32)

    x = rounded(frames.astype(np.float32) / 255)
    x = rounded(rounded(x - 0.5) / 0.5)
    unsigned = rounded(rounded(x + 1) / 2)
    return np.clip(rounded(rounded(2 * unsigned) - 1), -1, 1)[None]


def test_released_model_is_reproduced(shared):
    oracle = shared / "oracles/tavr_seed0"
    codec = load_wan_vae(oracle / "vae.safetensors", build(4))
    data = np.load(oracle / "vae.npz")
    plain = encode(codec, released_pixels(data["plain_frames"]))
    assert relative(plain[0], last(data["plain_latents"])) < 1e-5
    decoded = decode(codec, last(data["dec_latents"])[None])
    assert relative(decoded[0], last(data["dec_frames"])) < 1e-5


def test_released_reference_latents_are_reproduced(shared):
    oracle = shared / "oracles/tavr_seed0"
    codec = load_wan_vae(oracle / "vae.safetensors", build(4))
    data = np.load(oracle / "vae.npz")
    latents = encode_clip(codec, released_pixels(data["ref23_frames"]))
    assert relative(latents[0], last(data["ref23_latents"])) < 1e-5


CASES = [  # what the other oracle has no example of; the rest takes a minute
    pytest.param("b", id="batch"),
    pytest.param("c", id="still"),
    *(pytest.param(case, marks=pytest.mark.slow) for case in "ad"),
]


@pytest.mark.parametrize("case", CASES)
def test_wan_is_reproduced(shared, case):
    oracle = shared / "oracles/wan_seed0/vae"
    codec = load_wan_vae(oracle / "wan.safetensors", build(6))
    data = np.load(oracle / "cases.npz")
    latents = encode(codec, last(data[f"{case}_video_i8"]).astype(np.float32) / 128)
    assert relative(latents, last(data[f"{case}_latent_norm"])) < 1e-5
    if case != "b":
        decoded = decode(codec, last(data[f"{case}_z_norm"]))
        assert relative(decoded, last(data[f"{case}_decoded"])) < 1e-5


def test_a_changed_frame_leaves_earlier_latents_alone(codec, frames):
    changed = frames.copy()
    changed[:, 6] *= -1  # frames 5..8 are latent 2
    before, after = encode(codec, frames), encode(codec, changed)
    np.testing.assert_array_equal(after[:, :2], before[:, :2])
    assert (np.abs(after - before).max(axis=(0, 2, 3, 4))[2:] > 1e-4).all()


def test_a_changed_latent_leaves_earlier_frames_alone(codec, frames):
    latents = np.array(encode(codec, frames))
    before = decode(codec, latents)
    latents[:, 2] += 1
    after = decode(codec, latents)
    np.testing.assert_array_equal(after[:, :5], before[:, :5])
    assert (np.abs(after - before).max(axis=(0, 2, 3, 4))[5:] > 1e-4).all()


def test_frames_beyond_a_multiple_of_four_are_ignored(codec, frames):
    assert encode(codec, frames).shape == (1, 4, 2, 3, 16)
    longer = np.concatenate([frames, frames[:, :2]], axis=1)
    np.testing.assert_allclose(encode(codec, longer), encode(codec, frames), atol=1e-6)


def test_a_reference_latent_covers_its_own_four_frames(codec, frames):
    before = encode_clip(codec, frames[:, :8])
    for frame, latent in ((3, 0), (4, 1)):
        changed = frames[:, :8].copy()
        changed[:, frame] *= -1
        moved = np.abs(encode_clip(codec, changed) - before).max(axis=(0, 2, 3, 4))
        assert moved.shape == (2,)
        assert (moved[latent:] > 1e-4).all() and (moved[:latent] == 0).all()


def test_a_fresh_codec_is_one_of_stills(fresh, frames):
    clip = frames[:, :5]
    latents = encode(fresh, clip)
    np.testing.assert_allclose(latents[:, 1:], encode(fresh, clip[:, 4:]), atol=1e-5)
    pixels = np.asarray(decode(fresh, latents))
    np.testing.assert_allclose(pixels[:, 1:4], pixels[:, 2:5], atol=1e-5)


def test_the_gradient_at_a_greyed_pixel_is_finite():
    """It is exactly zero, where a norm has no slope."""
    norm = ChannelNorm(4)
    gradient = jax.grad(lambda x: norm(x).sum())(jnp.zeros((2, 4)))
    assert np.isfinite(gradient).all()
