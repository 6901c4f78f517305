"""What faces do: curves against the truth of drawn people, style, leaks."""

import numpy as np
import pytest
from scipy.signal import find_peaks

from data_pipelines import synthetic, synthetic_speech
from data_pipelines.synthetic_people import person
from tavr_jax.evaluation import metrics_face, metrics_leakage, metrics_style
from tavr_jax.evaluation.metrics_face import Curves

FPS = 25.0


@pytest.fixture(scope="module")
def drawn():
    """Clips of drawn people and their curves."""
    found = []
    for index in range(5):
        clip = synthetic.clip(100, index, 0, 3.0, 128)
        box = np.median(clip.face_boxes, axis=0)[None].repeat(len(clip.frames), axis=0)
        found.append((clip, metrics_face.from_frames(clip.frames, box)))
    return found


@pytest.fixture(scope="module")
def talkers():
    """True curves of people in two scenes each, 12 s, without their sound."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(synthetic_speech, "_voice", lambda *_: np.zeros(1, np.float32))
        return [
            [true_curves(index, scene) for scene in range(2)] for index in range(16)
        ]


def true_curves(index, scene, seconds=12.0):
    seed = (5, index, scene)
    _, track = synthetic_speech.speech(person((5, index)), seed, seconds)
    head = np.stack([track.yaw, track.pitch], axis=1)
    return Curves(track.opening, track.lid, head, "points", 1.0)


def points_of(opening, lids, turn=0.0, size=1.0, tilt=0.0):
    """68 points of a schematic face, one row a frame."""
    frames = []
    for gap, lid in zip(opening, lids, strict=True):
        p = np.zeros((68, 2))
        for eye, x in ((36, -30.0), (42, 30.0)):
            outline = [(-10, 0), (-4, -1), (4, -1), (10, 0), (4, 1), (-4, 1)]
            p[eye : eye + 6] = np.array(outline) * [1, 5 * lid] + [x, 0]
        p[30] = turn * 60, 30
        for i, x in ((1, -8), (2, 0), (3, 8)):
            p[60 + i], p[68 - i] = (x, 60 - gap / 2), (x, 60 + gap / 2)
        frames.append(p)
    angle = np.array([[np.cos(tilt), np.sin(tilt)], [-np.sin(tilt), np.cos(tilt)]])
    placed = size * np.stack(frames) @ angle + 200
    return np.concatenate([placed, np.ones((len(placed), 68, 1))], axis=2)


def test_curves_of_points_are_the_formulas_and_ignore_size_place_and_tilt():
    gap, lid = np.linspace(0, 20, 30), np.linspace(1, 0.2, 30)
    plain = metrics_face.from_points(points_of(gap, lid, turn=0.1))
    np.testing.assert_allclose(plain.mouth, gap / 60, atol=1e-12)
    np.testing.assert_allclose(plain.eyes, lid / 2, atol=1e-12)
    np.testing.assert_allclose(plain.head, np.tile([0.1, 0.5], (30, 1)), atol=1e-12)
    moved = metrics_face.from_points(points_of(gap, lid, turn=0.1, size=2.5, tilt=0.4))
    for a, b in zip(plain[:3], moved[:3], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-9)


def test_frames_without_a_face_are_interpolated_and_told():
    points = points_of(np.linspace(0, 20, 21), np.ones(21))
    whole = metrics_face.from_points(points)
    points[5:9, 40, 2] = 0.1
    holes = metrics_face.from_points(points)
    np.testing.assert_allclose(holes.mouth, whole.mouth, atol=1e-12)
    assert holes.coverage == pytest.approx(17 / 21)
    points[:11, 40, 2] = 0.1
    assert metrics_face.from_points(points) is None


def test_curves_of_frames_follow_the_truth(drawn):
    mouth = [np.corrcoef(c.mouth, clip.track.opening)[0, 1] for clip, c in drawn]
    sway = [np.corrcoef(c.head[:, 0], clip.track.yaw)[0, 1] for clip, c in drawn]
    assert np.mean(mouth) > 0.55
    assert np.mean(sway) > 0.6


def test_curves_of_frames_ignore_light_and_see_nobody_in_no_box(drawn):
    clip, curves = drawn[0]
    box = np.median(clip.face_boxes, axis=0)[None].repeat(len(clip.frames), axis=0)
    dark = metrics_face.from_frames((clip.frames * 0.6).astype(np.uint8), box)
    for name in ("mouth", "eyes"):
        a, b = getattr(dark, name), getattr(curves, name)
        np.testing.assert_allclose(a, b, rtol=0.05)
    assert metrics_face.from_frames(clip.frames, 0 * box) is None


def test_blinks_are_those_drawn(drawn):
    hits, missed, wrong = 0, 0, 0
    for clip, curves in drawn:
        true = find_peaks(np.pad(1 - clip.track.lid, 1), prominence=0.4)[0] - 1
        found = metrics_face.blinks(curves.eyes, FPS)
        near = [min((abs(t - f) for f in found.frames), default=99) <= 2 for t in true]
        hits, missed = hits + sum(near), missed + len(true) - sum(near)
        wrong += len(found.frames) - sum(near)
        assert found.per_minute == pytest.approx(20 * len(found.frames))
    assert hits >= 5
    assert missed + wrong <= 2


def test_a_stare_and_a_long_closing_are_no_blinks():
    rng = np.random.default_rng(0)
    stare = 0.3 + 0.004 * rng.normal(size=200)
    assert metrics_face.blinks(stare, FPS).per_minute == 0
    stare[50:90] = 0.05  # 1.6 s: asleep
    assert metrics_face.blinks(stare, FPS).frames == []
    stare[120:124] = 0.08
    found = metrics_face.blinks(stare, FPS)
    assert len(found.frames) == 1 and 119 <= found.frames[0] <= 124
    assert 0.1 < found.seconds < 0.3
    twice = metrics_face.blinks(np.repeat(stare, 2), 2 * FPS)
    assert twice.per_minute == pytest.approx(found.per_minute)


def test_a_person_is_nearer_to_oneself_than_to_others(talkers):
    def distance(a, b):
        return metrics_style.style_distance(a, b, FPS).total

    same = np.array([distance(*scenes) for scenes in talkers])
    others = np.array(
        [
            distance(talkers[i][0], talkers[j][1])
            for i in range(len(talkers))
            for j in range(len(talkers))
            if i != j
        ]
    )
    assert same.mean() < 0.8 * others.mean()
    assert np.mean(same[:, None] < others) > 0.75


def test_style_forgets_time_place_and_sign_of_time_but_not_size(talkers):
    one, two = talkers[0][0], talkers[1][0]
    style = metrics_style.style_distance
    assert style(one, one, FPS) == (0, 0, 0, 0, 0, 0)
    assert style(one, two, FPS) == pytest.approx(style(two, one, FPS))
    back = Curves(one.mouth[::-1], one.eyes[::-1], one.head[::-1] + 7, "points", 1.0)
    np.testing.assert_allclose(style(back, one, FPS), 0, atol=0.03)
    still = one._replace(mouth=np.full_like(one.mouth, 0.2))
    wide = one._replace(mouth=2 * one.mouth)
    assert style(wide, one, FPS).mouth_range > 0.3
    assert style(wide, one, FPS).mouth_rhythm == pytest.approx(0, abs=1e-6)
    assert style(still, one, FPS).total > style(wide, one, FPS).total
    fast = one._replace(mouth=np.concatenate([one.mouth[::2], one.mouth[1::2]]))
    assert style(fast, one, FPS).mouth_rhythm > 0.3  # twice as fast, as wide
    assert style(fast, one, FPS).mouth_range < 0.05
    with pytest.raises(ValueError, match="do not compare"):
        style(one, one._replace(source="frames"), FPS)


def test_a_copied_mouth_is_a_leak_and_a_driven_one_is_none(talkers):
    reference, driving = talkers[2][0].mouth, talkers[2][1].mouth
    late = np.roll(reference, 3) + 0.1 * np.random.default_rng(0).normal(size=300)
    copied = metrics_leakage.following(late, reference, 6, FPS)
    assert copied.leak > 0.5
    assert copied.p < 0.01
    assert copied.shift == 3
    honest = metrics_leakage.following(driving, reference, 6, FPS)
    assert honest.leak < 0.25
    half = metrics_leakage.following(driving + late, reference, 6, FPS)
    assert honest.leak < half.leak < copied.leak
    assert metrics_leakage.following(driving[:20], reference[:20], 6, FPS) is None
    frozen = metrics_leakage.following(np.ones(300), reference, 6, FPS)
    assert (frozen.value, frozen.leak) == (0, 0)


def test_the_leak_of_strangers_is_nothing_on_average(talkers):
    """The largest of 13 correlations is far from 0; less its chance it is not."""
    found = [
        metrics_leakage.following(talkers[i][0].mouth, talkers[j][0].mouth, 6, FPS)
        for i in range(8)
        for j in range(8, 16)
    ]
    leaks = np.array([f.leak for f in found])
    assert np.mean([f.value for f in found]) > 0.1
    assert abs(leaks.mean()) < 4 * leaks.std() / np.sqrt(len(leaks))
    assert np.mean([f.p <= 0.05 for f in found]) < 0.15


def test_silence_should_close_the_mouth(talkers):
    talking = talkers[3][0].mouth
    closed = np.full(100, np.percentile(talking, 5))
    quiet = metrics_leakage.silence(closed, talking)
    assert quiet == pytest.approx((0, 0), abs=1e-6)
    assert metrics_leakage.silence(talking, talking).moves == pytest.approx(1)
    gaping = metrics_leakage.silence(np.full(100, talking.max()), talking)
    assert gaping == pytest.approx((0, 1), abs=1e-6)
    assert metrics_leakage.silence(talking, closed) is None


def test_a_mouth_without_speech_is_what_other_peoples_clips_share():
    rng = np.random.default_rng(0)
    people = [str(i // 2) for i in range(80)]
    alone = [rng.normal(size=85) for _ in people]
    shared = rng.normal(size=85)
    free = np.mean(metrics_leakage.unspoken(alone, people))
    assert abs(free) < 0.05
    same = metrics_leakage.unspoken([shared] * 80, people)
    np.testing.assert_allclose(same, 1)
    # half of the variance is shared: corr(s + n, s) = 1 / sqrt(2)
    both = np.mean(metrics_leakage.unspoken([shared + a for a in alone], people))
    assert both == pytest.approx(0.5**0.5, abs=0.05)
    longer = [np.append(shared, [7.0] * (i == 0)) for i in range(80)]
    np.testing.assert_allclose(metrics_leakage.unspoken(longer, people), 1)
    assert metrics_leakage.unspoken(alone[:2], people[:2]) == [None, None]
