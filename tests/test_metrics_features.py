"""Distances of sets of features, and formulas of networks that do not ship."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from data_pipelines import people, synthetic
from tavr_jax.evaluation import (
    metrics,
    metrics_features,
    metrics_identity,
    metrics_method,
    metrics_mini,
    metrics_quality,
)

GOLDEN = Path(__file__).parent / "golden/metrics/cases.npz"


@pytest.fixture(scope="module")
def golden():
    return np.load(GOLDEN, allow_pickle=False)


@pytest.fixture(scope="module")
def crops():
    """Face crops of drawn people, (people, frames, Y, X, 3)."""
    found = []
    for index in range(10):
        clip = synthetic.clip(11, index, 0, 0.64, 96)
        box = np.median(clip.face_boxes, axis=0, keepdims=True).repeat(16, axis=0)
        found.append(people.crop_faces(clip.frames, box, 48, 16))
    return np.stack(found)


def test_distances_equal_torchmetrics(golden):
    x, y = golden["features_x"], golden["features_y"]
    gathered = metrics_features.gather(x), metrics_features.gather(y)
    found = metrics_features.distance(*gathered)
    assert found.value == pytest.approx(float(golden["fid"]), rel=1e-6)
    assert found[1:] == ((60, 60), 12, False)
    kernel = metrics_features.kernel_distance(x, y)
    # theirs divides the cross term by n^2 as well: the same for equal sizes
    assert kernel == pytest.approx(float(golden["kid"]), rel=1e-6)


def test_parts_gathered_apart_are_the_whole():
    rows = np.random.default_rng(0).normal(size=(50, 7)) + 100
    cuts = [rows[:3], rows[3:3], rows[3:4], rows[4:50]]
    parts = [metrics_features.gather(part) for part in cuts]
    whole = metrics_features.gather(rows)
    for order in (parts, parts[::-1]):
        for a, b in zip(metrics_features.together(order), whole, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-9)
    moments = metrics.moments(rows)
    np.testing.assert_allclose(whole.scatter / 49, moments.covariance)
    assert metrics_features.distance(parts[2], whole) is None  # one sample


def test_turning_all_features_changes_no_distance():
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(2, 80, 6)) * np.array([[[1]], [[1.4]]]) + 0.3
    turn, _ = np.linalg.qr(rng.normal(size=(6, 6)))

    def both(a, b):
        gathered = metrics_features.gather(a), metrics_features.gather(b)
        value = metrics_features.distance(*gathered).value
        return value, metrics_features.kernel_distance(a, b)

    np.testing.assert_allclose(both(x @ turn, y @ turn), both(x, y), rtol=1e-9)


def test_few_samples_inflate_frechet_and_leave_kid():
    rng, found = np.random.default_rng(2), {20: [], 80: []}
    for count, values in found.items():
        for _ in range(60):
            x, y = rng.normal(size=(2, count, 8))
            parts = metrics_features.gather(x), metrics_features.gather(y)
            kernel = metrics_features.kernel_distance(x, y)
            values.append((metrics_features.distance(*parts).value, kernel))
    few, many = (np.mean(found[count], axis=0) for count in (20, 80))
    assert few[0] > 3 * many[0] > 0.3  # of two halves of one set
    spread = np.std(np.array(found[20])[:, 1]) / np.sqrt(60)
    assert abs(few[1]) < 3.5 * spread


@pytest.mark.parametrize(
    ("clips", "frames", "starts"),
    [
        (metrics_features.LATENTSYNC, 81, [20]),
        (metrics_features.LATENTSYNC, 35, []),
        (metrics_features.EVERY, 81, [0, 16, 32, 48, 64]),
        (metrics_features.EVERY, 15, []),
        (metrics_features.EVERY, 16, [0]),
        (metrics_features.Clips(4, 3, 1, 2), 12, [1, 4]),
    ],
)
def test_clips_start_where_the_rule_says(clips, frames, starts):
    video = np.arange(frames, dtype=np.uint8)[:, None, None, None] * np.ones(
        (1, 2, 2, 3), np.uint8
    )
    found = metrics_features.cut(video, clips)
    assert found.shape == (len(starts), clips.length, 2, 2, 3)
    assert found[:, 0, 0, 0, 0].tolist() == starts
    assert (np.diff(found[..., 0, 0, 0].astype(int), axis=1) == 1).all()


def test_the_middle_square_is_seen():
    video = np.zeros((1, 8, 16, 3), np.uint8)
    video[:, :, 4:12] = 200
    assert (metrics_features.square(video, 4) == 200).all()


def test_mini_features_order_blur_noise_and_stillness(crops):
    frames, clips = metrics_mini.frame_features, metrics_mini.clip_features
    rng = np.random.default_rng(3)
    noisy = np.clip(crops + rng.normal(0, 6, crops.shape), 0, 255).astype(np.uint8)
    soft = np.stack([[cv2.GaussianBlur(f, (0, 0), 1) for f in clip] for clip in crops])
    frozen = crops[:, :1].repeat(16, axis=1)

    def apart(features, first, second):
        flat = (len(first), *first.shape[1:])
        if features is frames:
            first, second = (x.reshape(-1, *flat[2:]) for x in (first, second))
        return metrics_features.kernel_distance(features(first), features(second))

    people_apart = apart(frames, crops[::2], crops[1::2])
    assert apart(frames, crops[:, ::2], crops[:, 1::2]) < 0.1 * people_apart
    for worse in (noisy, soft):
        assert apart(frames, crops, worse) > 2 * people_apart
    # a frozen frame is a good frame, and no video
    assert apart(frames, crops, frozen) < 0.1 * people_apart
    assert apart(clips, crops, frozen) > 2 * apart(clips, crops[::2], crops[1::2])


def test_mini_features_do_not_depend_on_how_many_are_taken_at_once(crops):
    frames = crops[0][:, :37]  # sizes that no halving divides
    one_by_one = [metrics_mini.frame_features(frame[None])[0] for frame in frames]
    whole = metrics_mini.frame_features(np.concatenate([frames, frames[:3]]))
    np.testing.assert_array_equal(whole, [*one_by_one, *one_by_one[:3]])
    fine = frames[0].astype(np.float32) / 255 @ metrics_mini._COLOURS
    rows = np.log(np.diff(fine, axis=0).reshape(-1, 3).std(axis=0) + 1e-3)
    np.testing.assert_allclose(whole[0, :3], rows, rtol=1e-5)  # (1), its first numbers


def test_lpips_is_the_released_formula(golden):
    first, second, weights = (
        [golden[f"lpips_{kind}{layer}"] for layer in range(5)] for kind in "xyw"
    )
    found = metrics_quality.lpips(first, second, weights)
    np.testing.assert_allclose(found, golden["lpips"], rtol=1e-5)
    np.testing.assert_array_equal(metrics_quality.lpips(first, first, weights), 0)
    brighter = [3 * layer for layer in second]  # directions count, not sizes
    np.testing.assert_allclose(
        metrics_quality.lpips(first, brighter, weights), found, rtol=1e-7
    )


def test_level_words_become_a_score():
    logits = np.array([[50.0, 0, 0, 0, 0], [0, 0, 0, 0, 50], [1, 1, 1, 1, 1]])
    found = metrics_quality.level_score(logits)
    np.testing.assert_allclose(found, [1, 0, 0.5], atol=1e-12)
    np.testing.assert_allclose(metrics_quality.level_score(logits + 900), found)


def test_likeness_looks_at_the_person_from_every_side():
    rng = np.random.default_rng(4)
    person, scene, stranger = rng.normal(size=(3, 64))
    references = person + 0.4 * rng.normal(size=(6, 64))
    target = person + 0.6 * scene + 0.4 * rng.normal(size=(20, 64))
    perfect = metrics_identity.likeness(target, references, target)
    assert perfect.reference == perfect.ceiling
    assert (perfect.lost, perfect.coverage) == (0, 1)
    video = np.tile(stranger, (20, 1))
    video[:5] = np.nan
    found = metrics_identity.likeness(video, references, target)
    assert found.coverage == 0.75
    assert found.lost > 0.4
    assert found.facesim >= 0 > found.reference.mean - 0.5
    assert found.ceiling == perfect.ceiling
    without = metrics_identity.likeness(np.full((4, 64), np.nan), references, None)
    assert without == (None, None, None, None, None, 0)


def test_only_permissive_weights_are_silent():
    quiet = metrics_method.given("i3d_kinetics400", "abc", "1")
    loud = metrics_method.given("q_align", "abc", "1")
    assert metrics_method.notice(quiet) is None
    assert "non-commercial" in metrics_method.notice(loud)
