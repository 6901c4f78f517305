"""Which samples are scored, and what their scores say."""

import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import cross_scene
from launch import held_out
from tavr_jax.evaluation import benchmark, results, score_video


@pytest.fixture(scope="module")
def config() -> ConfigDict:
    return cross_scene.get_config("tiny")


def _row(person, scene, number):
    clip = f"{person}/{scene}.mp4:{number:06d}"
    return held_out.Row(
        clip, f"{person}/{scene}.mp4", person, scene, "test", 0, 33, (32, 32), "", 1, ()
    )


def test_pairs_cross_scenes_first_and_take_turns_over_people():
    rows = [_row(p, s, n) for p in "cba" for s in ("x", "y") for n in (0, 33)]
    rows.append(_row("alone", "x", 0))
    pairs = held_out.choose_pairs(rows, 100)
    assert len(pairs) == len(rows)
    assert sorted(pair.target for pair in pairs) == list(range(len(rows)))
    people = [rows[pair.target].person for pair in pairs]
    assert people[:3] == ["a", "b", "c"]
    assert pairs[-1].reference == pairs[-1].target  # nobody else to refer to
    for target, reference in pairs[:-1]:
        assert rows[target].person == rows[reference].person
        assert rows[target].scene != rows[reference].scene
    shuffled = held_out.choose_pairs(rows[::-1], 4)
    names = [[rows[::-1][i].clip_id for i in pair] for pair in shuffled]
    assert names == [[rows[i].clip_id for i in pair] for pair in pairs[:4]]


@pytest.fixture(scope="module")
def truth(config):
    """60 frames of a mouth that opens and closes in a scene of noise."""
    rng = np.random.default_rng(0)
    scene = rng.integers(0, 255, (96, 96, 3))
    opening = rng.integers(0, 5, 60)
    boxes = np.tile(np.float32([0.38, 0.3, 0.62, 0.58]), (60, 1))

    def video(openings):
        frames = np.repeat(scene[None], len(openings), axis=0).astype(np.uint8)
        for frame, wide in zip(frames, openings, strict=True):
            frame[46 : 46 + 2 * wide, 42:54] = 0
        return frames

    return score_video.Truth(
        frames=video(opening),
        boxes=boxes,
        persons=held_out.persons(boxes)[:1],
        reference=video(rng.integers(0, 5, 80))[:, :, ::-1],
        reference_boxes=np.tile(boxes[:1], (80, 1)),
        reference_faces=rng.integers(0, 255, (3, 16, 16, 3)).astype(np.uint8),
        mel=rng.normal(size=(60, config.lipsync.audio_dim)).astype(np.float32),
        opening=-opening.astype(np.float32),
        fps=25.0,
    )


@pytest.fixture(scope="module")
def scorer(truth, config):
    return score_video.Scorer(truth, held_out.make_judges(config)[0])


def test_the_real_video_scores_ideal_and_a_still_does_not_speak(truth, scorer):
    real = scorer.score(truth.frames).scores
    ideal = {"psnr": None, "bg_psnr": None, "seam": None, "ssim": 1, "bg_ssim": 1}
    ideal |= {"sharpness": 1, "motion": 1, "identity_target": real["identity_target"]}
    ideal |= dict.fromkeys(("identity_lost", "flicker", "blinks"), 0)
    ideal |= dict.fromkeys(("colour_scene", "colour_face"), 0)
    for key, value in ideal.items():
        near = value is None or pytest.approx(value, abs=0.5 * key.startswith("colour"))
        assert real[key] is None if value is None else real[key] == near, key
    assert real["mouth"] > 0.9  # the sign of the true opening is found
    assert real["follows"] > 0.5 > abs(real["leak"])
    still = scorer.score(truth.frames[:1].repeat(60, axis=0)).scores
    assert still["mouth"] == 0
    assert still["psnr"] > 10
    assert still["motion"] < 0.5
    assert abs(still["follows"]) < 0.2
    assert still["style"] > real["style"]
    assert (
        real.keys() == still.keys() == {m.key for m in benchmark.METRICS} | {"leak_p"}
    )


def test_a_copied_reference_leaks_and_does_not_follow(truth, scorer):
    copied = scorer.score(truth.reference[:60]).scores
    assert copied["leak"] > 0.5 > abs(copied["follows"])
    assert copied["leak_p"] < 0.05
    assert copied["ssim"] < 0.9
    shorter = scorer.score(truth.frames[:40]).scores
    assert shorter["ssim"] == pytest.approx(1)  # as far as it goes


def test_a_cut_between_chunks_is_a_seam_where_it_is_known(truth, scorer):
    broken = truth.frames.copy()
    broken[25:] = 255 - broken[25:]
    assert scorer.score(broken, joins=[25]).scores["seam"] > 10
    assert scorer.score(truth.frames, joins=[25]).scores["seam"] < 4
    assert scorer.score(broken).scores["seam"] is None
    drifts = scorer.score(broken).scores
    assert drifts["colour_scene"] is not None


def test_every_metric_names_its_network_and_licence(config):
    _, networks = held_out.make_judges(config)
    described = results.described(benchmark.methods(networks))
    assert described.keys() == {m.key for m in benchmark.METRICS}
    for method in described.values():
        assert method["preprocessing"] and method["licence"] == "Apache-2.0"
        assert method["better"] in benchmark.ARROWS
    assert "FaceNet random" in described["identity"]["network"]
    config = config.copy_and_resolve_references()
    given = {"face": held_out._network("FaceNet x.safetensors", "x.safetensors")}
    theirs = benchmark.methods(networks | given)["identity"]
    assert not theirs.commercial and "you gave" in theirs.licence
