"""What a checkpoint is shown and hears under each protocol, and that nothing else
changes."""

import json

import cv2
import numpy as np
import pytest
from test_score_rows import judges, material

from configs import cross_scene
from data_pipelines import (
    benchmark_file,
    benchmark_media,
    media,
    speech_rows,
    video_files,
)
from launch import benchmark_inputs, benchmark_protocols, samples
from launch.benchmark_protocols import Protocol
from launch.checkpoints import Checkpoint
from launch.held_out import Video, Way
from tavr_jax.diffusion import chunks
from tavr_jax.encoders.speech import SpeechConfig, log_mel
from tavr_jax.errors import InputError
from tavr_jax.evaluation import benchmark, failures, generate
from tavr_jax.evaluation.score_video import Scorer

RATE, FRAMES = 16000, 30
CONFIG = cross_scene.get_config("tiny")
REQUEST = generate.Request(
    still=np.ones((1, 4, 4, 2), np.float32),
    still_tokens=np.eye(2, dtype=bool),
    reference=np.ones((3, 4, 4, 2), np.float32),
    reference_tokens=np.eye(2, dtype=bool)[None].repeat(3, axis=0),
    reference_audio=np.ones((12, 5), np.float32),
    text=np.zeros((8, 4), np.float32),
    null_text=np.zeros((8, 4), np.float32),
    negative_text=np.zeros((8, 4), np.float32),
    audio=np.ones((17, 5), np.float32),
)


def kept_as_it_is(told, *but):
    for field in set(generate.Request._fields) - set(but):
        assert getattr(told, field) is getattr(REQUEST, field), field


def test_protocols_are_read_from_a_list(tmp_path):
    adapted = f"adapted={tmp_path}"
    given = ["video", "image", adapted, "none", "k=1", "4", "12", "image", "deaf"]
    given += ["chunks=1", "6", "unselected"]
    found = benchmark_protocols.protocols(given)
    assert found == [
        Protocol("video"),
        Protocol("image"),
        Protocol("adapted", folder=tmp_path),
        Protocol("none"),
        *(Protocol(f"k{k}", k) for k in (1, 4, 12)),
        Protocol("deaf"),
        *(Protocol(f"chunks{n}", chunks=n) for n in (1, 6)),
        Protocol("unselected"),
    ]
    assert [p.latents for p in found[3:7]] == [None, 1, 1, 3]
    assert [p.is_still for p in found] == [0, 1, 1, 0, 1, *[0] * 6]
    assert [p.has_own_speech for p in found] == [1] * 8 + [0, 0, 1]
    assert len({p.label for p in found}) == len(found)
    (tmp_path / "other").mkdir()
    with pytest.raises(InputError, match="--protocol adapted: give it once"):
        benchmark_protocols.protocols([adapted, f"{adapted}/other"])


@pytest.mark.parametrize(
    "given",
    ["12", "k=3", "k=0", "k=x", "picture", "adapted=/no", "chunks=0", "chunks=", "k="],
)
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

    def __init__(self, folder=None, change=None):
        self.folder, self.change = folder, change

    def under(self, folder, change):
        return Asked(folder, change)

    def length(self, config):
        speech = media.read_audio(self.folder / samples.SPEECH[-1], RATE)
        written = len(speech) * 25 // RATE
        return chunks.plan(generate.num_frames(written), 5, 2, 4), written


def row(pairs, protocol, seen):
    """The row of a stub under a protocol; `seen` gets what it is asked."""
    root, made = pairs

    def make(sample):
        seen.append(sample)
        return Video(sample.truth.frames)

    way = Way("net", "net_1", make, {"seed": 0}, {"checkpoint": "x"})
    others = benchmark_protocols.others(made)
    return benchmark_protocols.under([way], protocol, root / "inputs", others, CONFIG)[
        0
    ]


def ask(pairs, protocol, index=0):
    """What a model is asked for a sample under a protocol."""
    seen, pair = [], pairs[1][index]
    sample = material(index)._replace(key=pair.sample.key, request=Asked())
    row(pairs, protocol, seen).make(sample)
    return seen[0].request, sample


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
        assert kept(pairs, asked.folder, samples.REFERENCE) and asked.change is None
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
    changed |= {"first"}
    for field in set(Way._fields) - changed:
        assert getattr(few, field) == getattr(many, field), field
    for field in ("made_with", "tags"):
        one, other = getattr(few, field), getattr(many, field)
        assert {k for k in one | other if one.get(k) != other.get(k)} == {"protocol"}
    key = pairs[1][0].sample.key
    assert few.of(key) == many.of(key) == {}
    asked, _ = ask(pairs, Protocol("k12", 12))
    assert asked.folder is None and asked.change is None
    blank = Checkpoint(**dict.fromkeys(Checkpoint._fields))._replace(config=CONFIG)
    one, other = (
        benchmark_protocols.with_latents([blank], n)[0].config.to_dict() for n in (1, 3)
    )
    counts = [c["model"].pop("num_videoref_latents") for c in (one, other)]
    assert counts == [1, 3] and one == other
    assert benchmark_protocols.with_latents([blank], None)[0] is blank


def test_without_a_reference_it_is_hidden(pairs):
    asked, _ = ask(pairs, Protocol("none"))
    assert asked.folder is None
    told = asked.change(REQUEST)
    assert not told.reference.any() and not told.reference_tokens.any()
    assert told.reference_audio is None
    kept_as_it_is(told, "reference", "reference_tokens", "reference_audio")


def test_a_deaf_reference_is_seen_and_an_unselected_one_is_seen_whole(pairs):
    asked, _ = ask(pairs, Protocol("deaf"))
    told = asked.change(REQUEST)
    assert asked.folder is None and told.reference_audio is None
    conditions = generate.first_conditions(told, 1)
    assert not conditions.has_reference_audio and conditions.has_audio
    kept_as_it_is(told, "reference_audio")
    asked, _ = ask(pairs, Protocol("unselected"))
    told = asked.change(REQUEST)
    assert asked.folder is None and told.reference_tokens.all()
    assert told.reference_tokens.dtype == bool
    kept_as_it_is(told, "reference_tokens")


@pytest.mark.parametrize("count", [1, 6])
def test_speech_is_repeated_until_the_video_has_so_many_chunks(pairs, count):
    protocol, seen = Protocol(f"chunks{count}", chunks=count), []
    sample = material(0)._replace(key=pairs[1][0].sample.key, request=Asked())
    way = row(pairs, protocol, seen)
    way.make(sample)
    asked = seen[0]
    assert len(asked.plan.spans) == count
    assert asked.plan.latents == asked.plan.spans[-1].read + 5  # all of the last one
    assert asked.plan.frames - 1 == asked.frames == 16 + 12 * (count - 1)
    assert kept(pairs, asked.request.folder, samples.SPEECH[-1])
    own = media.read_audio(pairs[0] / "inputs" / sample.key / samples.SPEECH[-1], RATE)
    made = media.read_audio(asked.request.folder / samples.SPEECH[-1], RATE)
    assert len(made) == asked.frames * RATE // 25
    for start in range(0, len(made), len(own)):
        piece = made[start : start + len(own)]
        np.testing.assert_allclose(piece, own[: len(piece)], atol=1e-4)
    heard = way.heard(sample)
    assert len(heard.mel) == asked.frames and not heard.silent
    np.testing.assert_array_equal(heard.wave, made)
    assert way.hears == "own" and way.chunks == count


@pytest.mark.parametrize("size", ["tiny", "mini", "tavr_14b"])
def test_whole_chunks_are_whole_for_whoever_listens(size):
    config = cross_scene.get_config(size)
    parts = config.model.num_video_latents, config.chunks.motion_latents, 4
    for count in range(1, 8):
        frames = benchmark_protocols.speech_frames(count, config)
        for rows in (generate.num_frames(frames), speech_rows.num_frames(2 * frames)):
            plan = chunks.plan(rows, *parts)
            assert len(plan.spans) == count
            assert plan.latents == plan.spans[-1].read + parts[0]


def test_the_page_says_what_each_protocol_is():
    given = ["video", "k=1", "12", "chunks=1", "6", "deaf"]
    (line,) = benchmark_protocols.explained(benchmark_protocols.protocols(given))
    for told in ('"1 frame"', '"1 chunk"', '"deaf"'):
        assert told in line
    assert line.count('"') == 6
    assert benchmark_protocols.explained([Protocol("video")]) == []
    names = {*benchmark_protocols.PLAIN, *benchmark_protocols.COUNTED, "adapted"}
    silent = {protocol.name for protocol in benchmark_protocols.SILENT}
    assert benchmark_protocols.MEANINGS.keys() == (names | silent) - {"video"}


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
