"""Long videos: colours, people and joins; the scene around a person; motion."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from tavr_jax.evaluation import metrics, metrics_drift, metrics_scene

GOLDEN = Path(__file__).parent / "golden/metrics/cases.npz"
FPS, EDGE = 25.0, 1.0
BOX = np.float32([0.3, 0.2, 0.7, 0.8])


@pytest.fixture(scope="module")
def texture():
    """A picture with detail at every scale."""
    rng = np.random.default_rng(0)
    layers = [
        cv2.resize(
            rng.uniform(-1, 1, (n, n, 3)), (96, 96), interpolation=cv2.INTER_CUBIC
        )
        for n in (4, 9, 20)
    ]
    return np.clip(120 + 35 * sum(layers), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def still(texture):
    return np.repeat(texture[None], 100, axis=0)


def test_lab_equals_scikit_image():
    golden = np.load(GOLDEN, allow_pickle=False)
    frame = golden["rgb"][0]
    for row in range(8):
        for column in range(8):
            region = np.zeros((8, 8), bool)
            region[row, column] = True
            found = metrics_drift.mean_lab(frame, region)
            np.testing.assert_allclose(found, golden["lab"][0, row, column], atol=0.01)


def test_a_trend_is_its_slope_and_one_bad_frame_does_not_turn_it():
    times = np.arange(250) / FPS
    values = 3 - 0.5 * times
    found = metrics_drift.trend(values, times, EDGE)
    assert found.slope == pytest.approx(-0.5)
    assert found.change == pytest.approx(-0.5 * 9, abs=0.03)
    values[100:110] += 50
    assert metrics_drift.trend(values, times, EDGE).slope == pytest.approx(
        -0.5, abs=0.02
    )
    assert metrics_drift.trend(values[:40], times[:40], EDGE) is None


def test_brightening_moves_lightness_and_fading_moves_chroma(still):
    outside = metrics.outside(BOX[None], (96, 96))
    same = metrics_drift.colour_drift(still, outside, FPS, EDGE)
    assert same == ((0, 0), (0, 0), 0)
    ramp = np.linspace(0.5, 1, len(still))[:, None, None, None]
    grey = still.mean(axis=-1, keepdims=True)
    brighter = (still * ramp).astype(np.uint8)
    fading = (still + (grey - still) * (2 * ramp - 1) + 0.5).astype(np.uint8)
    light = metrics_drift.colour_drift(brighter, outside, FPS, EDGE)
    faded = metrics_drift.colour_drift(fading, outside, FPS, EDGE)
    assert light.lightness.change > 15 and light.lightness.slope > 4
    assert faded.chroma.change < -1 and abs(faded.lightness.change) < 2
    assert light.apart > faded.apart > 1
    # doubled light is nobody's identity, place or noise
    turned = metrics_drift.colour_drift(brighter[::-1], outside, FPS, EDGE)
    assert turned.lightness.slope == pytest.approx(-light.lightness.slope, rel=0.02)


def test_drift_of_one_region_is_not_seen_in_the_other(still):
    boxes = np.repeat(BOX[None], len(still), axis=0)
    faces = metrics_drift.inside(boxes, (96, 96))
    outside = metrics.outside(boxes, (96, 96))
    assert (faces ^ outside).all()
    video = still.copy()
    for frame, mask, gain in zip(video, faces, np.linspace(1, 1.5, 100), strict=True):
        frame[mask] = np.clip(frame[mask] * gain, 0, 255)
    assert metrics_drift.colour_drift(video, faces, FPS, EDGE).apart > 10
    assert metrics_drift.colour_drift(video, outside, FPS, EDGE).apart == 0


def test_the_colour_of_a_face_is_followed_where_it_goes(still):
    shift = np.linspace(-0.2, 0.2, len(still))[:, None] * np.float32([1, 0, 1, 0])
    faces = metrics_drift.inside((BOX + shift).astype(np.float32), (96, 96))
    video = still.copy()
    video[faces] = (200, 150, 120)
    assert metrics_drift.colour_drift(video, faces, FPS, EDGE) == ((0, 0), (0, 0), 0)


def test_identity_that_walks_away_has_a_slope():
    rng = np.random.default_rng(1)
    person, other = np.linalg.qr(rng.normal(size=(64, 2)))[0].T
    noise = 0.05 * rng.normal(size=(300, 64))
    angle = np.linspace(0, 1, 300)[:, None]
    stays = metrics_drift.identity_drift(person + noise, FPS, EDGE)
    walks = np.cos(angle) * person + np.sin(angle) * other + noise
    found = metrics_drift.identity_drift(walks, FPS, EDGE)
    assert abs(stays.slope) < 0.002
    assert found.slope == pytest.approx(-0.043, abs=0.01)  # cos 1 - 1 over 11 s
    assert found.change < -0.3
    walks[rng.permutation(300)[:60]] = np.nan
    holes = metrics_drift.identity_drift(5 * walks, FPS, EDGE)
    assert holes.slope == pytest.approx(found.slope, abs=0.005)
    assert metrics_drift.identity_drift(walks[:30], FPS, EDGE) is None
    assert metrics_drift.identity_drift(np.full((300, 4), np.nan), FPS, EDGE) is None


def test_a_join_shows_where_the_scene_jumps(texture):
    rng = np.random.default_rng(2)
    walk = np.clip(texture + rng.normal(0, 2, (60, 96, 96, 3)), 0, 255)
    video = walk.astype(np.uint8)
    assert metrics_drift.seam(video, [20, 40], FPS) == pytest.approx(1, abs=0.05)
    video[40:] = np.clip(video[40:].astype(int) + 12, 0, 255)
    assert metrics_drift.seam(video, [20, 40], FPS) > 3
    assert metrics_drift.seam(video, [20], FPS) == pytest.approx(1, abs=0.05)
    assert metrics_drift.seam(video, [0, 60], FPS) is None
    video[1::3] = np.clip(video[1::3].astype(int) + 12, 0, 255)
    most = [i for i in range(1, 60) if i % 3]  # the usual change must not be theirs
    assert metrics_drift.seam(video, most, FPS) > 3


def test_steps_that_every_latent_makes_are_no_seam(texture):
    walk = texture[None] + 9.0 * ((np.arange(60) + 3) // 4 % 2)[:, None, None, None]
    video = np.clip(walk, 0, 255).astype(np.uint8)
    assert metrics_drift.seam(video, [21, 41], FPS) < 1.5
    video[41:] = np.clip(video[41:].astype(int) + 60, 0, 255)
    assert metrics_drift.seam(video, [21, 41], FPS) > 3


def test_background_sees_the_scene_and_not_the_person(still):
    persons = BOX[None]
    person, scene = still.copy(), still.copy()
    person[:, 19:77, 29:67] = 0  # all of the box
    scene[:, :10] = np.clip(scene[:, :10].astype(int) + 20, 0, 255)
    perfect = metrics_scene.background(person, still, persons)
    assert perfect.psnr == float("inf")
    assert perfect.ssim == pytest.approx(1)
    assert perfect.share == pytest.approx(1 - 0.4 * 0.6, abs=0.02)
    changed = metrics_scene.background(scene, still, persons)
    assert changed.psnr < 35 and changed.ssim < 0.99
    whole = np.float32([[0, 0, 1, 1]])
    assert metrics_scene.background(scene, still, whole) is None
    noise = np.random.default_rng(3).normal(0, 5, still.shape)
    noisy = np.clip(still + noise, 0, 255).astype(np.uint8)
    everything = np.float32([[0, 0, 0.01, 0.01]])  # nearly all is background
    found = metrics_scene.background(noisy, still, everything)
    assert found.psnr == pytest.approx(metrics.psnr(noisy, still), 0.01)
    assert found.ssim == pytest.approx(metrics.ssim(noisy, still), 0.01)
    assert found.picture == metrics.ssim(noisy, still) != changed.picture


def shifted(texture, pixels, size):
    """Frames of a picture that moves `pixels` to the right per frame."""
    big = cv2.resize(texture, (2 * size, 2 * size), interpolation=cv2.INTER_CUBIC)
    frames = []
    for step in range(12):
        matrix = np.float64([[1, 0, pixels * step - size / 2], [0, 1, -size / 2]])
        frames.append(cv2.warpAffine(big, matrix, (size, size)))
    return np.stack(frames)


def test_motion_is_speed_in_faces_a_second(texture):
    boxes = np.repeat(BOX[None], 12, axis=0)
    still = shifted(texture, 0.0, 96)
    assert metrics_scene.motion(still, boxes, FPS) == pytest.approx(0, abs=0.01)
    slow = metrics_scene.motion(shifted(texture, 0.5, 96), boxes, FPS)
    assert slow == pytest.approx(0.5 * FPS / (0.6 * 96), rel=0.15)
    fast = metrics_scene.motion(shifted(texture, 1.0, 96), boxes, FPS)
    large = metrics_scene.motion(shifted(texture, 2.0, 192), boxes, FPS)
    dark = metrics_scene.motion(shifted(texture // 2, 1.0, 96), boxes, FPS)
    assert fast == pytest.approx(2 * slow, rel=0.15)
    assert [large, dark] == pytest.approx([fast, fast], rel=0.1)
    light = np.linspace(0.6, 1, 12)[np.random.default_rng(4).permutation(12)]
    flicker = (still * light[:, None, None, None]).astype(np.uint8)
    assert metrics_scene.motion(flicker, boxes, FPS) < 0.3 * slow
    twice = metrics_scene.motion(shifted(texture, 0.5, 96), boxes, 2 * FPS)
    assert twice == pytest.approx(2 * slow)
    assert metrics_scene.motion(still[:1], boxes[:1], FPS) is None
    assert metrics_scene.motion(still, 0 * boxes, FPS) is None
