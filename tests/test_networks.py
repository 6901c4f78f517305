import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from configs.base import get_config
from configs.models import apply
from tavr_jax.encoders.face import FaceConfig, FaceNet
from tavr_jax.encoders.lipsync import LipsyncConfig, SyncNet
from tavr_jax.encoders.vae import Codec, CodecConfig
from tavr_jax.training import networks
from tavr_jax.types import Faces, Frames, Sync

TINY = apply(get_config(), "tiny")
contrast = jax.jit(networks.supervised_contrast, static_argnums=2)
augment = jax.jit(networks.augment)
random_crops = jax.jit(networks.random_crops, static_argnums=1)
GRID = np.mgrid[-1:1:16j, -1:1:16j]


def learn(net, draw, make_loss, config, batches, steps: int, rate: float):
    """Metrics before and after a few Adam steps."""
    graphdef, params = nnx.split(net, nnx.Param)
    loss = make_loss(graphdef, config)
    optimizer = optax.adam(rate)

    @jax.jit
    def step(params, state, batch, key):
        (value, metrics), grads = jax.value_and_grad(loss, has_aux=True)(
            params, draw(batch, key)
        )
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(params, updates), state, {"loss": value, **metrics}

    state, seen = optimizer.init(params), []
    for i in range(steps):
        batch = batches[i % len(batches)]
        params, state, metrics = step(params, state, batch, jax.random.key(i))
        seen.append(jax.tree.map(float, metrics))
    mean = {k: np.mean([m[k] for m in seen[-8:]]) for k in seen[0]}
    return seen[0], mean


def discs(rng, count: int, frames: int, size: int = 32) -> np.ndarray:
    """A coloured disc that moves over a coloured ground."""
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    clips = np.empty((count, frames, size, size, 3), np.uint8)
    for clip in clips:
        ground, colour = rng.integers(0, 256, (2, 3))
        at, way = rng.uniform(-0.5, 0.5, 2), rng.uniform(-0.1, 0.1, 2)
        for i, frame in enumerate(clip):
            frame[:] = ground
            frame[(y - at[0] - i * way[0]) ** 2 + (x - at[1]) ** 2 < 0.2] = colour
    return clips


def test_the_codec_learns_pictures_and_latents_of_unit_scale():
    rng = np.random.default_rng(0)
    config = CodecConfig(**TINY.codec)
    config = dataclasses.replace(
        config,
        dim_mult=(2, 4, 4),
        temporal_downsample=(True, True),
        num_res_blocks=1,
        crop=16,
    )
    net = Codec(config, rngs=nnx.Rngs(0))
    batches = [Frames(jnp.asarray(discs(rng, 4, 5))) for _ in range(16)]
    draw = networks.codec_draw(net.config)
    first, after = learn(net, draw, networks.codec_loss, net.config, batches, 40, 5e-3)
    assert after["psnr"] > first["psnr"] + 2.0
    assert abs(first["latent_std"] - 1) > 0.3 and abs(after["latent_std"] - 1) < 0.25


def test_the_face_network_learns_who_it_is():
    rng = np.random.default_rng(0)

    def crops(person: int) -> np.ndarray:
        look = np.random.default_rng(person)
        skin, eyes = look.integers(40, 220, (2, 3))
        apart, wide = look.uniform(0.2, 0.6), look.uniform(0.02, 0.1)
        faces = np.empty((4, 16, 16, 3), np.uint8)
        for face in faces:
            x, y = GRID[1] - rng.uniform(-0.1, 0.1), GRID[0]
            face[:] = skin
            face[((abs(x) - apart) ** 2 + y**2) < wide] = eyes
        return faces

    def batch() -> Faces:
        people = rng.integers(0, 500, 8)
        faces = np.stack([crops(p) for p in people])
        return Faces(jnp.asarray(faces), jnp.asarray(people, jnp.int32))

    net = FaceNet(FaceConfig(**TINY.face), rngs=nnx.Rngs(0))
    batches = [batch() for _ in range(12)]
    first, after = learn(
        net, networks.face_draw, networks.face_loss, net.config, batches, 70, 1e-2
    )
    assert after["accuracy"] > 0.9 > first["accuracy"] + 0.2


def mouths(rng, count: int, frames: int) -> Sync:
    """Dark mouths that open with the loudness of one direction of the rows."""
    faces = np.empty((count, frames, 16, 16, 3), np.uint8)
    opening = rng.uniform(0, 1, (count, frames))
    for face, clip in zip(faces, opening, strict=True):
        face[:] = rng.integers(90, 250, 3)
        for frame, o in zip(face, clip, strict=True):
            frame[(abs(GRID[0] - 0.3) < 0.05 + 0.6 * o) & (abs(GRID[1]) < 0.5)] = 20
    rows = opening[..., None] * np.random.default_rng(1).standard_normal(128)
    rows += 0.1 * rng.standard_normal(rows.shape)
    return Sync(jnp.asarray(faces), jnp.asarray(rows, jnp.float32))


def test_the_lipsync_network_learns_when_it_was_said():
    rng = np.random.default_rng(0)
    net = SyncNet(LipsyncConfig(**TINY.lipsync), rngs=nnx.Rngs(0))
    span = net.config.span
    batches = [mouths(rng, 4, span) for _ in range(12)]
    first, after = learn(
        net,
        networks.lipsync_draw,
        networks.lipsync_loss,
        net.config,
        batches,
        110,
        1e-2,
    )
    # thirteen windows of a clip: guessing is right once in 13
    assert after["accuracy"] > 0.4 > first["accuracy"] + 0.2


def test_the_lipsync_loss_is_infonce_among_the_windows_of_a_clip():
    """Whose voice it is must not help: other clips are no choices."""
    net = SyncNet(LipsyncConfig(**TINY.lipsync), rngs=nnx.Rngs(0))
    rng = np.random.default_rng(0)
    faces, mel = (x[:2] for x in mouths(rng, 3, 9))
    graphdef, params = nnx.split(net, nnx.Param)
    signed = faces / 127.5 - 1.0
    loss = jax.jit(networks.lipsync_loss(graphdef, net.config))
    value, metrics = loss(params, (signed, mel))
    embed = nnx.jit(lambda net, f, m: (net.embed_faces(f), net.embed_speech(m)))
    near = jnp.einsum("bvz,bwz->bvw", *embed(net, signed, mel))
    odds = np.exp(np.asarray(near, np.float64) / net.config.temperature)
    own = np.einsum("bww->bw", odds)
    wanted = -np.log(own**2 / odds.sum(1) / odds.sum(2)).mean() / 2
    np.testing.assert_allclose(value, wanted, rtol=1e-4)
    assert np.isclose(metrics["accuracy"], (odds.argmax(2) == np.arange(5)).mean())


def test_contrast_is_lowest_where_people_are_points_apart():
    person = jnp.array([0, 0, 1, 1, 2])
    apart = jnp.eye(3)[person]
    value, metrics = contrast(apart, person, 0.1)
    mixed, _ = contrast(apart[::-1], person, 0.1)
    assert value < 1e-3 < mixed
    assert metrics["accuracy"] == 1.0
    # one person alone has no pair: no loss, no NaN
    alone, _ = contrast(apart[:3], jnp.arange(3), 0.1)
    assert alone == 0.0


def test_the_prior_is_zero_for_unit_gaussians_only():
    latents = jax.random.normal(jax.random.key(0), (8, 4, 16, 16, 2))
    at_unit, deviation = networks.unit_gaussian(latents)
    assert abs(at_unit) < 1e-2 and abs(deviation - 1) < 1e-2
    assert networks.unit_gaussian(2 * latents)[0] > 0.5
    assert networks.unit_gaussian(latents + 1)[0] > 0.4


@pytest.mark.parametrize("rows,columns", [(32, 48), (16, 40)])
def test_crops_are_cut_from_the_clip_alike_in_all_frames(rows, columns):
    y, x = np.mgrid[0:rows, 0:columns]
    clip = np.stack([y, x, 0 * x], axis=-1)[None, None]
    frames = jnp.asarray(clip + np.array([0, 100])[None, :, None, None, None])
    key = jax.random.key(3)
    crops = np.array(random_crops(jnp.repeat(frames, 32, axis=0), 24, key))
    height = min(24, rows)
    assert crops.shape == (32, 2, height, 24, 3)
    np.testing.assert_array_equal(crops[:, 1] - crops[:, 0], 100)
    corners = {tuple(map(int, c)) for c in crops[:, 0, 0, 0, :2]}
    assert len(corners) > 20 or rows == 16
    for crop, (top, left) in zip(crops, crops[:, 0, 0, 0, :2], strict=True):
        np.testing.assert_array_equal(crop[0, :, 0, 0], top + np.arange(height))
        np.testing.assert_array_equal(crop[0, 0, :, 1], left + np.arange(24))


def test_jitter_is_shared_by_the_frames_of_a_clip():
    still = np.random.default_rng(0).integers(0, 256, (3, 1, 16, 16, 3), np.uint8)
    faces = augment(jnp.asarray(still.repeat(2, axis=1)), jax.random.key(0))
    np.testing.assert_array_equal(faces[:, 0], faces[:, 1])
    plain = still.astype(np.float32) / 127.5 - 1
    moved = np.abs(np.asarray(faces[:, 0]) - plain[:, 0])
    assert (moved.max(axis=(1, 2, 3)) > 0.05).all()


def test_worn_clips_lose_change_and_detail_and_no_more():
    clips = np.random.default_rng(0).uniform(-1, 1, (48, 9, 8, 8, 3)).astype(np.float32)
    out = np.asarray(jax.jit(networks.worn)(clips, jax.random.key(0)))
    change, detail = (
        [np.abs(np.diff(x, axis=axis)).mean((1, 2, 3, 4)) for x in (clips, out)]
        for axis in (1, 3)
    )
    for before, after in (change, detail):
        assert (after < before * 1.02).all()
        assert (after < 0.7 * before).any()
    kept = (out == clips).all((1, 2, 3, 4))
    assert 0.05 < kept.mean() < 0.6
    still = np.repeat(clips[:, :1], 9, axis=1)
    still_out = np.asarray(jax.jit(networks.worn)(still, jax.random.key(0)))
    np.testing.assert_allclose(still_out, np.repeat(still_out[:, :1], 9, 1), atol=1e-5)
