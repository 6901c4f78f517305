"""Laws of the scores, and the numbers of the published tools."""

import numpy as np
import pytest

from tavr_jax.evaluation import metrics

BOXES = np.tile(np.float32([0.3, 0.25, 0.7, 0.75]), (20, 1))


@pytest.fixture(scope="module")
def oracle(shared):
    return np.load(shared / "oracles/wan_seed0/metrics/cases.npz", allow_pickle=False)


@pytest.fixture(scope="module")
def clip():
    """Twenty frames of a textured scene whose mouth region opens and closes."""
    rng = np.random.default_rng(0)
    scene = rng.integers(40, 200, (48, 56, 3))
    video = np.repeat(scene[None], 20, axis=0)
    opening = np.rint(3 + 3 * np.sin(np.arange(20) * 0.9)).astype(int)
    for frame, rows in zip(video, opening, strict=True):
        frame[32 : 32 + rows, 24:33] = 10
    return video.astype(np.uint8), opening.astype(np.float32)


@pytest.mark.parametrize("case", ["p3", "m2", "0", "none"])
def test_lip_sync_equals_the_published_evaluation(oracle, case):
    result = metrics.lip_sync(
        oracle[f"sync_{case}_video"], oracle[f"sync_{case}_audio"], 15, zero_ends=True
    )
    np.testing.assert_allclose(
        result.curve, oracle[f"sync_{case}_mean_dist"], atol=1e-12
    )
    assert result.offset == oracle[f"sync_{case}_offset"]
    np.testing.assert_allclose(result.distance, oracle[f"sync_{case}_min_dist"])
    np.testing.assert_allclose(result.confidence, oracle[f"sync_{case}_conf"])


def test_image_and_identity_scores_equal_the_published_ones(oracle):
    one, two = oracle["img1"][None], oracle["img2"][None]
    np.testing.assert_allclose(metrics.psnr(one, two), oracle["psnr"])
    np.testing.assert_allclose(metrics.ssim(one, two), oracle["ssim"], rtol=1e-12)
    score = metrics.identity(oracle["id_frames"], oracle["id_ref"])
    np.testing.assert_allclose(score.mean, oracle["id_mean"], atol=1e-7)
    assert score.best == pytest.approx(score.mean)  # one reference is the best one


@pytest.mark.parametrize("zero_ends", [True, False])
@pytest.mark.parametrize("shift", [-4, 0, 1, 5])
def test_speech_that_runs_ahead_by_k_has_offset_k(shift, zero_ends):
    lips = np.random.default_rng(1).normal(size=(60, 32))
    speech = np.roll(lips, -shift, axis=0)
    assert metrics.lip_sync(lips, speech, 6, zero_ends).offset == shift


def test_unit_embeddings_without_sync_prefer_no_shift():
    rng = np.random.default_rng(4)
    curves = {True: [], False: []}
    for _ in range(50):
        lips, speech = rng.normal(size=(2, 40, 64))
        lips /= np.linalg.norm(lips, axis=1, keepdims=True)
        speech /= np.linalg.norm(speech, axis=1, keepdims=True)
        for ends, found in curves.items():
            found.append(metrics.lip_sync(lips, speech, 15, ends).curve)
    fair, padded = (np.mean(curves[ends], axis=0) for ends in (False, True))
    assert np.ptp(fair) < 0.02
    assert padded[15] - padded[0] > 0.1  # why such embeddings are not padded


def test_identity_ignores_scale_and_order_and_prefers_the_person():
    rng = np.random.default_rng(2)
    person, stranger = rng.normal(size=(2, 1, 64))
    faces = person + 0.3 * rng.normal(size=(10, 64))
    references = person + 0.3 * rng.normal(size=(5, 64))
    score = metrics.identity(faces, references)
    same = metrics.identity(3 * faces[::-1], 0.1 * references[::-1])
    np.testing.assert_allclose(same, score)
    assert score.best >= score.mean > metrics.identity(faces, stranger).mean + 0.3
    np.testing.assert_allclose(metrics.identity(person, person), 1.0)


def test_an_identical_video_is_ideal(clip):
    video, _ = clip
    assert metrics.psnr(video, video) == float("inf")
    assert metrics.ssim(video, video) == pytest.approx(1)
    way = metrics.mouth_direction(video, BOXES)
    curves = [metrics.mouth_motion(x, BOXES, way) for x in (video, video.copy())]
    assert metrics.correlation(*curves) == pytest.approx(1)


def test_blur_noise_and_flicker_each_move_their_own_score(clip):
    video, _ = clip
    rng = np.random.default_rng(3)
    noisy = np.clip(video + rng.normal(0, 8, video.shape), 0, 255).astype(np.uint8)
    blurred = np.stack([_blur(frame) for frame in video])
    assert metrics.sharpness(blurred, BOXES) < 0.5 * metrics.sharpness(video, BOXES)
    assert metrics.flicker(video, BOXES) == 0  # only the mouth moves
    assert metrics.flicker(noisy, BOXES) > 3
    assert metrics.psnr(noisy, video) < metrics.psnr(video // 2 * 2, video)
    assert metrics.ssim(blurred, video) < metrics.ssim(noisy, video) < 1


def test_mouth_motion_follows_the_true_opening_and_only_its_own(clip):
    video, opening = clip
    still = np.repeat(video[:1], len(video), axis=0)
    way = metrics.mouth_direction(video, BOXES)
    shown = (video, video[::-1], still)
    curves = [metrics.mouth_motion(each, BOXES, way) for each in shown]
    follows = [abs(metrics.correlation(curve, opening)) for curve in curves]
    assert follows[0] > 0.95
    assert follows[1] < 0.6
    assert follows[2] == 0


def test_flicker_without_background_is_not_a_number(clip):
    whole = np.tile(np.float32([0, 0, 1, 1]), (20, 1))
    assert np.isnan(metrics.flicker(clip[0], whole))


def _blur(frame):
    padded = np.pad(frame.astype(float), ((1, 1), (1, 1), (0, 0)), mode="edge")
    shifts = [
        padded[i : i + frame.shape[0], j : j + frame.shape[1]]
        for i in range(3)
        for j in range(3)
    ]
    return (sum(shifts) / 9).astype(np.uint8)


def test_frechet_distance_equals_the_published_ones(oracle):
    for case in ("full", "singular"):
        both = (metrics.moments(oracle[f"fid_{case}_f{i}"]) for i in (1, 2))
        found = metrics.frechet_distance(*both)
        assert found == pytest.approx(float(oracle[f"fid_{case}_ddof1"]), rel=1e-7)


def test_frechet_distance_is_a_squared_distance():
    rng = np.random.default_rng(0)
    first, other = rng.normal(size=(2, 40, 6)) @ rng.normal(size=(6, 6))
    a, b = metrics.moments(first), metrics.moments(3.0 * other + 1.0)
    assert metrics.frechet_distance(a, a) == pytest.approx(0.0, abs=1e-6)
    assert metrics.frechet_distance(a, b) == pytest.approx(
        metrics.frechet_distance(b, a)
    )
    moved = metrics.moments(first + np.arange(6.0))
    assert metrics.frechet_distance(a, moved) == pytest.approx(55.0)
    wider = metrics.moments(2.5 * (first - a.mean) + a.mean)
    expected = 1.5**2 * np.trace(a.covariance)
    assert metrics.frechet_distance(a, wider) == pytest.approx(expected)
