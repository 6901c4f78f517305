"""Which samples are scored, and what their scores say."""

import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import cross_scene
from launch import held_out
from tavr_jax.evaluation import benchmark


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
    rng = np.random.default_rng(0)
    scene = rng.integers(0, 255, (48, 48, 3))
    frames = np.repeat(scene[None], 24, axis=0).astype(np.uint8)
    for index, frame in enumerate(frames):
        frame[30 : 30 + index % 5, 18:30] = 0
    return benchmark.Truth(
        frames=frames,
        boxes=np.tile(np.float32([0.3, 0.3, 0.7, 0.8]), (24, 1)),
        reference_faces=rng.integers(0, 255, (3, 16, 16, 3)).astype(np.uint8),
        mel=rng.normal(size=(24, config.lipsync.audio_dim)).astype(np.float32),
        opening=-(np.arange(24) % 5).astype(np.float32),
    )


def test_the_real_video_scores_ideal_and_a_still_does_not_speak(truth, config):
    judges, networks = held_out.make_judges(config)
    real, _ = benchmark.score(truth.frames, truth, judges)
    assert real["psnr"] is None  # infinite
    assert real["ssim"] == pytest.approx(1)
    assert real["sharpness"] == pytest.approx(1)
    assert real["flicker"] == 0
    assert real["mouth"] > 0.9  # the sign of the true opening is found
    still, _ = benchmark.score(truth.frames[:1].repeat(24, axis=0), truth, judges)
    assert still["mouth"] == 0
    assert still["psnr"] > 10
    described = benchmark.methods(networks)
    assert described.keys() == real.keys()
    for method in described.values():
        assert {"network", "version", "preprocessing"} <= method.keys()


def test_paired_differences_cancel_what_samples_share():
    rng = np.random.default_rng(0)
    keys = [metric.key for metric in benchmark.METRICS]
    base = [dict.fromkeys(keys, float(v)) for v in rng.normal(0, 10, 6)]
    better = [{k: v + 0.5 for k, v in row.items()} for row in base]
    better[0]["psnr"] = None
    found = benchmark.differences(better, base)
    assert found["identity"].mean == pytest.approx(0.5)
    assert found["identity"].error == pytest.approx(0, abs=1e-12)
    assert found["psnr"].count == 5
    assert benchmark.summarise(base)["identity"].error > 1
    assert benchmark.summarise(base[:1])["identity"].error is None
    assert benchmark.summarise(base)["offset"].mean >= 0  # -3 and 3 do not cancel
    assert jnp.isfinite(found["offset"].mean)
