"""What a checkpoint is shown and hears under each protocol, and that nothing else
changes."""

import json

import cv2
import numpy as np
import pytest
from test_score_rows import judges, material

from configs import cross_scene
from data_pipelines import benchmark_file, benchmark_media, media, video_files
from launch import benchmark_inputs, benchmark_protocols, samples
from launch.benchmark_protocols import Protocol
from launch.checkpoints import Checkpoint
from launch.held_out import Way
from tavr_jax.encoders.speech import SpeechConfig, log_mel
from tavr_jax.errors import InputError
from tavr_jax.evaluation import benchmark, failures
from tavr_jax.evaluation.score_video import Scorer

RATE, FRAMES = 16000, 30
CONFIG = cross_scene.get_config("tiny")


def test_protocols_are_read_from_a_list(tmp_path):
    adapted = f"adapted={tmp_path}"
    given = ["video", "image", adapted, "none", "k=1", "4", "12", "image"]
    found = benchmark_protocols.protocols(given)
    assert found == [
        Protocol("video"),
        Protocol("image"),
        Protocol("adapted", folder=tmp_path),
        Protocol("none"),
        *(Protocol(f"k{k}", k) for k in (1, 4, 12)),
    ]
    assert [p.latents for p in found[3:]] == [None, 1, 1, 3]
    assert [p.is_still for p in found] == [0, 1, 1, 0, 1, 0, 0]
    (tmp_path / "other").mkdir()
    with pytest.raises(InputError, match="--protocol adapted: give it once"):
        benchmark_protocols.protocols([adapted, f"{adapted}/other"])


@pytest.mark.parametrize("given", ["12", "k=3", "k=0", "k=x", "picture", "adapted=/no"])
def test_a_protocol_that_does_not_exist_is_named(given):
    with pytest.raises(InputError, match=f"--protocol .*{given[-1]}"):
        benchmark_protocols.protocols([given])


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Three pairs of two people, and their sample folders."""
    root = tmp_path_factory.mktemp("benchmark")
    rng = np.random.default_rng(0)
    for name in "abcd":
        coarse = rng.integers(30, 220, (FRAMES, 6, 8, 3)).astype(np.uint8)
        frames = coarse.repeat(8, axis=1).repeat(8, axis=2)
        wave = (0.1 * rng.normal(size=FRAMES * 640)).astype(np.float32)
        video_files.write_video(root / f"{name}.mp4", frames, 25, wave, RATE)

    def span(name):
        about = {"video_id": name, "video_url": "", "fps": 25, "width": 64}
        about |= {"height": 48, "start_time": 0, "end_time": FRAMES / 25}
        return about | {"start_frame": 0, "end_frame": FRAMES}

    listed = [
        {"reference": span(r), "target": span(t), "target_caption": "talks"}
        for r, t in (("a", "b"), ("b", "a"), ("c", "d"))
    ]
    (root / "list.json").write_text(json.dumps(listed))
    found = benchmark_file.read(root / "list.json")
    made, _ = benchmark_inputs.locate(found, benchmark_media.find(found, root)[0])
    for pair in made:
        benchmark_inputs.write(pair, root / "inputs")
    return root, made


class Asked:
    """A request that says what was asked of it."""

    def __init__(self, folder=None, hidden=False):
        self.folder, self.hidden = folder, hidden

    def under(self, folder, hidden):
        return Asked(folder, hidden)


def row(pairs, protocol, seen):
    """The row of a stub under a protocol; `seen` gets what it is asked."""
    root, made = pairs

    def make(sample):
        seen.append(sample.request)
        return sample.truth.frames

    way = Way("net", "net_1", make, {"seed": 0}, {"checkpoint": "x"}, True)
    others = benchmark_protocols.others(made)
    return benchmark_protocols.under([way], protocol, root / "inputs", others, CONFIG)[
        0
    ]


def ask(pairs, protocol, index=0):
    """What a model is asked for a sample under a protocol."""
    seen, pair = [], pairs[1][index]
    sample = material(index)._replace(key=pair.sample.key, request=Asked())
    row(pairs, protocol, seen).make(sample)
    return seen[0], sample


def kept(pairs, inside, but):
    """Whether all of a sample folder is as it was, but one file."""
    whole = pairs[0] / "inputs" / inside.name
    return {
        path.name
        for path in whole.iterdir()
        if path.read_bytes() != (inside / path.name).read_bytes()
    } == {but}


def test_a_picture_is_repeated_in_place_of_the_reference(pairs, tmp_path):
    key = pairs[1][0].sample.key
    adapted = np.full((48, 64, 3), (200, 120, 40), np.uint8)
    cv2.imwrite(str(tmp_path / f"{key}.png"), adapted[..., ::-1])
    first = next(media.iterate_frames(pairs[0] / f"inputs/{key}/ref.mp4", 25))
    for protocol, picture in (
        (Protocol("image"), first),
        (Protocol("adapted", folder=tmp_path), adapted),
        (Protocol("k1", 1), first),
    ):
        asked, _ = ask(pairs, protocol)
        assert kept(pairs, asked.folder, samples.REFERENCE) and not asked.hidden
        shown = media.read_frames(asked.folder / samples.REFERENCE, 25)
        assert len(shown) == FRAMES
        assert np.abs(shown - picture.astype(float)).mean() < 3
    with pytest.raises(InputError, match="no such file"):  # a failure of the row
        ask(pairs, Protocol("adapted", folder=tmp_path), index=1)


def test_adapted_pictures_are_looked_for_and_watched(pairs, tmp_path):
    protocol, key = Protocol("adapted", folder=tmp_path), pairs[1][0].sample.key
    keys = [pair.sample.key for pair in pairs[1]]
    with pytest.raises(InputError, match=rf"none of 3 .*{keys[0]}\.png"):
        benchmark_protocols.check_pictures([Protocol("none"), protocol], keys)
    made = row(pairs, protocol, [])
    assert made.of(key) == {"picture": None}
    (tmp_path / f"{key}.png").write_bytes(b"1")
    benchmark_protocols.check_pictures([protocol], keys)
    before = made.of(key)
    (tmp_path / f"{key}.png").write_bytes(b"2")
    assert made.of(key) != before != {"picture": None}


def test_rows_of_a_sweep_differ_in_k_alone(pairs):
    few, many = (row(pairs, Protocol(f"k{k}", k), []) for k in (4, 12))
    assert (few.frames, many.frames) == (4, 12)
    assert few.family == many.family == "net"
    assert few.name != many.name and few.slug != many.slug
    changed = {"name", "slug", "make", "made_with", "tags", "protocol", "of", "frames"}
    for field in set(Way._fields) - changed:
        assert getattr(few, field) == getattr(many, field), field
    for field in ("made_with", "tags"):
        one, other = getattr(few, field), getattr(many, field)
        assert {k for k in one | other if one.get(k) != other.get(k)} == {"protocol"}
    key = pairs[1][0].sample.key
    assert few.of(key) == many.of(key) == {}
    asked, _ = ask(pairs, Protocol("k12", 12))
    assert asked.folder is None and not asked.hidden
    blank = Checkpoint(**dict.fromkeys(Checkpoint._fields))._replace(config=CONFIG)
    one, other = (
        benchmark_protocols.with_latents([blank], n)[0].config.to_dict() for n in (1, 3)
    )
    counts = [c["model"].pop("num_videoref_latents") for c in (one, other)]
    assert counts == [1, 3] and one == other
    assert benchmark_protocols.with_latents([blank], None)[0] is blank


def test_without_a_reference_it_is_hidden(pairs):
    asked, _ = ask(pairs, Protocol("none"))
    assert asked.hidden and asked.folder is None


def test_silence_and_another_persons_speech_replace_the_sound(pairs):
    root, made = pairs
    silence, swapped = benchmark_protocols.SILENT
    asked, sample = ask(pairs, silence)
    assert kept(pairs, asked.folder, samples.SPEECH[-1])
    heard = row(pairs, silence, []).heard(sample)
    assert heard.silent and heard.mel is None and not heard.wave.any()
    asked, sample = ask(pairs, swapped)
    assert kept(pairs, asked.folder, samples.SPEECH[-1])
    found = media.read_audio(asked.folder / samples.SPEECH[-1], RATE)
    theirs = media.read_audio(root / "inputs/002_d" / samples.SPEECH[-1], RATE)
    np.testing.assert_allclose(found, theirs, atol=1e-4)  # of the other person
    heard = row(pairs, swapped, []).heard(sample)
    wanted = log_mel(found, len(heard.mel), SpeechConfig(**CONFIG.speech))
    np.testing.assert_allclose(heard.mel, wanted, atol=1e-5)
    assert not heard.silent and len(heard.wave) <= len(sample.wave)
    of = row(pairs, swapped, []).of(made[0].sample.key)
    assert of["speech"]["video_id"] == "d"
    with pytest.raises(InputError, match="--silent"):
        benchmark_protocols.others(made[:1])
    alone = benchmark_protocols.others(made[:2])  # one person: the next pair
    assert [alone[p.sample.key] for p in made[:2]] == made[1::-1]


def test_silence_has_columns_of_its_own_and_no_sync():
    truth = material(0).truth
    known = truth._replace(reference_mel=truth.mel[::-1].copy())
    still = truth.frames[:1].repeat(len(truth.frames), axis=0)
    scorer = Scorer(known, judges())
    keys = {m.key for m in benchmark.SILENT}
    quiet = scorer.score(still, silent=True).scores
    assert quiet["silence_moves"] == pytest.approx(0, abs=1e-6)
    assert quiet["sync_c"] is quiet["sync_d"] is quiet["offset"] is None
    talks = scorer.score(truth.reference, silent=True).scores
    assert talks["silence_moves"] == pytest.approx(1)
    told = Scorer(truth._replace(mel=known.reference_mel), judges())
    assert talks["silence_sync"] == told.score(truth.reference).scores["sync_c"]
    mute = Scorer(truth, judges()).score(still, silent=True).scores
    assert mute["silence_sync"] is None
    limits = failures.FailureConfig(**CONFIG.evaluation.failures)
    spoken = scorer.score(still).scores
    assert not keys & spoken.keys()
    assert "frozen" in failures.tags(spoken, spoken, limits)
    assert "frozen" not in failures.tags(quiet, spoken, limits)
    nobody = dict.fromkeys(("face", "lipsync"), benchmark.Network("n", "l", True))
    for silent in (False, True):
        columns = {m.key for m in benchmark.metrics_of(nobody, silent)}
        assert bool(keys & columns) == silent


def test_lips_are_held_against_the_speech_that_was_heard():
    truth = material(0).truth
    heard = np.random.default_rng(5).normal(size=truth.mel.shape).astype(np.float32)
    swapped = Scorer(truth, judges()).score(truth.frames, mel=heard).scores
    wanted = Scorer(truth._replace(mel=heard), judges()).score(truth.frames).scores
    own = Scorer(truth, judges()).score(truth.frames).scores
    assert swapped == wanted
    assert swapped["sync_d"] != own["sync_d"]
    assert {k for k in own if own[k] != swapped[k]} <= {"sync_c", "sync_d", "offset"}
