"""What is kept of a sample between its videos changes none of their scores."""

import json

import numpy as np
from test_score_rows import FRAMES, judges, material

from tavr_jax.evaluation import score_video
from tavr_jax.evaluation.score_video import Scorer


def noisy(frames, seed):
    noise = np.random.default_rng(seed).normal(0, 9, frames.shape)
    return np.clip(frames + noise, 0, 255).astype(np.uint8)


def told(found):
    """All of a `Scored`, to compare."""
    features = {name: rows.tolist() for name, rows in found.features.items()}
    return json.dumps([found.scores, found.sync_curve, features])


def test_scores_do_not_depend_on_what_was_scored_before():
    truth = material(0).truth
    real, short = truth.frames, noisy(truth.frames, 1)[: FRAMES - 7]
    videos = [real, short, noisy(real, 2), real.copy(), short[::-1].copy()]
    one_by_one = [told(Scorer(truth, judges()).score(video)) for video in videos]
    scorer = Scorer(truth, judges())
    for order in (range(5), (4, 2, 0, 3, 1)):
        assert [told(scorer.score(videos[i])) for i in order] == [
            one_by_one[i] for i in order
        ]
    assert one_by_one[0] == one_by_one[3]  # the real video, by any other name
    assert len(set(one_by_one)) == 4


def test_a_longer_video_is_held_against_the_real_one_as_far_as_that_goes():
    truth = material(0).truth
    own = noisy(truth.frames, 1)
    after = 255 - noisy(truth.frames, 2)
    long, mel = np.concatenate([own, after]), np.concatenate([truth.mel] * 2)
    scorer = Scorer(truth, judges())
    alone, found = scorer.score(own), scorer.score(long, [FRAMES], mel)
    whole = {"identity", "identity_best", "identity_target", "identity_lost"}
    whole |= {"facesim", "sync_c", "sync_d", "offset", "seam"}
    whole |= {"identity_drift", "colour_scene", "colour_face"}
    for key in alone.scores.keys() - whole:
        assert found.scores[key] == alone.scores[key], key
    assert found.scores["ssim"] is not None and found.scores["follows"] is not None
    for name, rows in alone.features.items():
        np.testing.assert_array_equal(found.features[name], rows)
    faces = [scorer.score(part, mel=truth.mel) for part in (own, after)]
    halves = [scores.scores["identity"] for scores in faces]
    np.testing.assert_allclose(found.scores["identity"], np.mean(halves), atol=1e-6)
    assert halves[0] != halves[1]
    assert found.scores["colour_scene"] > 10 and found.scores["seam"] > 4
    assert scorer.score(long).scores["sync_d"] == alone.scores["sync_d"]


def test_the_real_video_is_looked_at_once(monkeypatch):
    looks = []
    look = score_video.metrics_scene.motion

    def counted(video, boxes, fps):
        looks.append(len(video))
        return look(video, boxes, fps)

    monkeypatch.setattr(score_video.metrics_scene, "motion", counted)
    truth = material(0).truth
    scorer = Scorer(truth, judges())
    for video in (truth.frames, noisy(truth.frames, 1), truth.frames):
        scorer.score(video)
    assert looks == [FRAMES, FRAMES]  # the real one, and the other
