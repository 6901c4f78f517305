"""What rewards see, and that none of them can be had without end."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_training import global_batch

from data_pipelines.people import crop_faces
from tavr_jax.rl import rewards
from tavr_jax.rl.crop import crop


def test_crops_are_those_of_the_identity_pool():
    # a smooth picture, boxes inside and across the edge, shrunk and enlarged
    rng = np.random.default_rng(0)
    coarse = rng.random((3, 6, 8, 3)).astype(np.float32)
    smooth = jax.image.resize(coarse, (3, 72, 96, 3), "cubic")
    frames = np.clip(np.asarray(smooth) * 255, 0, 255).astype(np.uint8)
    boxes = np.array(
        [[0.3, 0.2, 0.6, 0.6], [0.0, 0.5, 0.3, 1.0], [0.4, 0.4, 0.5, 0.5]], np.float32
    )
    theirs = crop_faces(frames, boxes, 16, 3).astype(np.float32)
    pixels = jnp.asarray(frames[None], jnp.float32)
    ours = crop(pixels, jnp.asarray(boxes)[None], 16)[0]
    assert np.abs(np.asarray(ours) - theirs).mean() < 3.0  # of 255 levels


def test_rewards_see_the_frames_and_speech_of_the_decoded_window():
    # Latents number their time; decoding keeps the numbers, as if each latent after
    # the first made 4 frames: frame f of window start w shows w + f / 4.
    batch = global_batch(2)
    frames = 4 * (batch.latents.shape[1] - 1) + 1
    mel = jnp.broadcast_to(jnp.arange(1.0 * frames)[None, :, None], (2, frames, 3))
    batch = batch._replace(mel=mel)
    latents = jnp.broadcast_to(
        jnp.arange(5.0).reshape(1, 5, 1, 1, 1), (4, *batch.latents.shape[1:])
    )
    decoded = []

    def decode(window):
        decoded.append(window.shape[:2])
        steps = jnp.arange(4 * window.shape[1] - 3) / 4
        shown = window[:, 0, 0, 0, 0][:, None] + steps[None]
        return jnp.broadcast_to(
            shown[:, :, None, None, None], (*shown.shape, 16, 16, 3)
        )

    def confidence(faces, mel):
        return jnp.abs(faces[..., 0, 0, 0] * 4 - mel[..., 0]).max(1)

    judges = rewards.Judges(decode, lambda f: f[:, 0, 0], confidence, 8, 8)
    score = jax.jit(lambda key: rewards.rewards(judges, latents, batch, 3, key))
    for seed in range(5):
        scores = score(jax.random.key(seed))
        np.testing.assert_allclose(scores["lipsync"], 0, atol=1e-4)
    # the window of the rollouts and that of their targets, nothing else
    assert set(decoded) == {(4, 3), (2, 3)}


def test_identity_is_the_mean_over_all_pairs():
    key = jax.random.key(0)
    faces, pool = jax.random.normal(key, (2, 3, 4)), jax.random.normal(key, (2, 5, 4))
    pairs = jnp.einsum("nfz,njz->nfj", faces, pool).mean((1, 2))
    np.testing.assert_allclose(rewards.identity(faces, pool), pairs, rtol=1e-4)


def film(latents: np.ndarray, path: float = 0.0) -> dict[str, np.ndarray]:
    """Scores of films "N F Y X" given as latents; the target film is `moving()`.

    Its face box goes to the right by `path` of the frame.
    """
    shown = jnp.asarray(latents, jnp.float32)
    along = np.linspace(0.0, path, 9)[None, :, None] * np.array([1.0, 0, 1, 0])
    boxes = np.array([0.1, 0.1, 0.7, 0.9]) + along
    batch = global_batch(1)
    batch = batch._replace(
        latents=jnp.asarray(moving())[..., None],
        face_box=jnp.asarray(boxes, jnp.float32),
        faces=jnp.full((1, 2, 32, 32, 3), 200, jnp.uint8),
    )
    judges = rewards.Judges(
        decode=lambda x: jnp.repeat(x, 3, axis=-1),
        embed_face=lambda f: f.mean((1, 2)),
        confidence=lambda faces, mel: mel.mean((1, 2)),
        face_size=32,
        lips_size=8,
        held_out=lambda f: f[:, 0, 0],
    )
    # one latent is one frame here; the window is all of them
    score = jax.jit(lambda x: rewards.rewards(judges, x, batch, 9, jax.random.key(0)))
    return jax.device_get(score(shown[..., None]))


WIDE = 40


def moving() -> np.ndarray:
    """Edges and waves that drift: "1 9 Y X", contrast and detail of a picture."""
    y, x = np.mgrid[:WIDE, :WIDE] / WIDE
    frames = [
        0.5 * np.sin(12 * x + 0.15 * f) * np.cos(9 * y)
        + 0.3 * np.sign(np.sin(5 * (x - y) + 0.1 * f))
        for f in range(9)
    ]
    return np.stack(frames)[None].astype(np.float32)


def blurred(film: np.ndarray, times: int) -> np.ndarray:
    for _ in range(times):
        for axis in (-1, -2):
            around = np.roll(film, 1, axis) + np.roll(film, -1, axis)
            film = film / 2 + around / 4
    return film


def noised(film: np.ndarray, amount: float) -> np.ndarray:
    noise = np.random.default_rng(0).standard_normal(film.shape)
    return film + np.float32(amount) * noise.astype(np.float32)


def test_sharpness_is_most_at_the_detail_of_the_real_video():
    real = moving()
    films = [blurred(real, n) for n in (8, 3, 1, 0)]
    films += [noised(real, a) for a in (0.1, 0.3, 1.0, 10.0)]
    scores = film(np.concatenate(films))["sharpness"]
    assert scores[3] > 0.999
    assert (np.diff(scores[:4]) > 0.05).all()  # less and less blurred
    assert (np.diff(scores[3:7]) < -0.05).all()  # more and more noise
    assert scores[7] < 0.5 and (scores > 0).all()


def test_motion_is_most_at_the_motion_of_the_real_video():
    real = moving()
    still = np.broadcast_to(real[:, :1], real.shape)
    films = [still, (still + real) / 2, real, noised(real, 0.2), noised(real, 2.0)]
    scores = film(np.concatenate(films))["motion"]
    assert scores.argmax() == 2 and scores[2] > 0.999
    assert scores[0] < 0.15 and scores[0] < scores[1] < 0.8
    assert scores[4] < scores[3] < 0.8


def test_a_still_picture_has_no_motion_under_boxes_that_move():
    # the real head moved, and the boxes with it: what they cut from a still one moves
    still = np.broadcast_to(moving()[:, :1], moving().shape)
    for path in (0.0, 0.2):
        assert film(np.concatenate([still, moving()]), path)["motion"][0] < 0.15


def test_detail_and_change_are_relative_to_contrast():
    real = jnp.asarray(moving())[..., None].repeat(3, -1)
    for measure in (rewards.detail, rewards.change):
        strong, weak = measure(1.5 * real + 0.2), measure(real)
        np.testing.assert_allclose(strong, weak, rtol=0.01)


def test_a_flat_picture_has_no_detail():
    flat = film(np.full((1, 9, WIDE, WIDE), 0.3))
    assert flat["sharpness"] < 0.1 and flat["motion"] < 0.15


def test_light_is_most_at_that_of_the_real_video_where_the_rest_is_blind():
    real = moving()
    changes = [real, real + 0.1, real - 0.1, 1.3 * real, 0.7 * real, real + 0.3]
    scores = film(np.concatenate(changes))
    light = scores["light"]
    assert light[0] == pytest.approx(1.0, abs=1e-5)
    assert (light[1:] < 0.9).all() and light[5] < min(light[1:3])
    # a constant has no detail and no motion: neither sees light that is added
    for name in ("sharpness", "motion"):
        np.testing.assert_allclose(scores[name][[1, 2, 5]], 1.0, rtol=1e-3)


def test_the_judged_identity_is_that_of_the_other_network():
    real = moving()
    both = film(np.concatenate([real, 0.5 * real]))
    assert set(both) == {
        "identity",
        "lipsync",
        "sharpness",
        "motion",
        "light",
        "judged_identity",
    }
    # the toy networks are linear: one sees the mean of a crop, the other a corner
    halves = [both[name][1] / both[name][0] for name in ("identity", "judged_identity")]
    np.testing.assert_allclose(halves, 0.5, rtol=1e-4)
    assert abs(both["identity"][0] - both["judged_identity"][0]) > 1e-3
