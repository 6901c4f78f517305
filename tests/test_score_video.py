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
