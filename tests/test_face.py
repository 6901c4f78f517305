import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs.base import get_config
from configs.models import apply
from tavr_jax.encoders import lipsync
from tavr_jax.encoders.face import FaceConfig, FaceNet
from tavr_jax.encoders.lipsync import LipsyncConfig, SyncNet

TINY = apply(get_config(), "tiny")
RNG = np.random.default_rng(0)

embed = nnx.jit(lambda net, faces: net(faces))
embed_faces = nnx.jit(lambda net, faces: net.embed_faces(faces))
embed_speech = nnx.jit(lambda net, mel: net.embed_speech(mel))
sync_curve = jax.jit(lipsync.sync_curve, static_argnums=2)


def pixels(*shape: int) -> jax.Array:
    return jnp.asarray(RNG.uniform(-1, 1, shape), jnp.float32)


@pytest.fixture(scope="module")
def sync_net() -> SyncNet:
    return SyncNet(LipsyncConfig(**TINY.lipsync), rngs=nnx.Rngs(0))


def test_a_face_has_one_direction_whatever_batch_it_is_in():
    net = FaceNet(FaceConfig(**TINY.face), rngs=nnx.Rngs(0))
    faces = pixels(3, 16, 16, 3)
    together = embed(net, faces)
    np.testing.assert_allclose(jnp.linalg.norm(together, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(embed(net, faces[1:2]), together[1:2], atol=1e-5)
    assert jnp.abs(together[0] - together[1]).max() > 1e-2


def test_a_window_is_read_alike_alone_and_in_its_clip(sync_net):
    faces, mel = pixels(2, 8, 16, 16, 3), pixels(2, 8, 128)
    lips, speech = embed_faces(sync_net, faces), embed_speech(sync_net, mel)
    assert lips.shape == speech.shape == (2, 4, 16)
    np.testing.assert_allclose(
        embed_faces(sync_net, faces[:, 2:7])[:, 0], lips[:, 2], atol=1e-5
    )
    np.testing.assert_allclose(
        embed_speech(sync_net, mel[:, 2:7])[:, 0], speech[:, 2], atol=1e-5
    )


def test_clips_shorter_than_a_window_are_refused(sync_net):
    with pytest.raises(ValueError, match="a window needs 5"):
        sync_net.embed_speech(pixels(1, 4, 128))


def directions(windows: int) -> jax.Array:
    rows = RNG.standard_normal((1, windows, 64)).astype(np.float32)
    return jnp.asarray(rows / np.linalg.norm(rows, axis=-1, keepdims=True))


@pytest.mark.parametrize("late", [-3, 0, 2])
def test_speech_late_by_k_rows_moves_the_offset_by_minus_k(late):
    lips = directions(30)
    curve = sync_curve(lips, jnp.roll(lips, late, axis=1), 5)
    assert curve.shape == (1, 11)
    assert lipsync.offset(curve)[0] == -late
    # unrelated directions are about sqrt 2 apart, and the right ones not at all
    assert lipsync.distance(curve)[0] < 0.3
    assert abs(lipsync.confidence(curve)[0] - 2**0.5) < 0.3


def test_offsets_are_those_of_syncnet(shared):
    data = np.load(shared / "oracles/wan_seed0/metrics/cases.npz")
    for case in ("p3", "m2", "0"):
        lips, speech = (
            jnp.asarray(data[f"sync_{case}_{name}"], jnp.float32)[None]
            for name in ("video", "audio")
        )
        curve = sync_curve(lips, speech, 15)
        assert lipsync.offset(curve)[0] == data[f"sync_{case}_offset"]
        # no shift, no ends: there the definitions are one
        apart = np.linalg.norm(lips[0] - speech[0] + 1e-6, axis=1).mean()
        np.testing.assert_allclose(curve[0, 15], apart, rtol=1e-5)
        np.testing.assert_allclose(
            curve[0, 15], data[f"sync_{case}_mean_dist"][15], rtol=1e-4
        )


def test_shifts_stay_within_half_of_a_short_clip(sync_net):
    def shifts(frames: int) -> int:
        faces, mel = pixels(1, frames, 16, 16, 3), pixels(1, frames, 128)
        return nnx.eval_shape(SyncNet.curve, sync_net, faces, mel).shape[1]

    assert shifts(9) == 5  # 5 windows: 2 shifts either way
    assert shifts(20) == 2 * sync_net.config.max_shift + 1
