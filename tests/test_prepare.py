"""Drawn people on drawn footage, through everything that prepares a dataset."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from drawn import SKIN, footage, save
from flax import nnx

from configs import same_scene
from data_pipelines import conditions, media, records
from data_pipelines.prepare import dataset, encode, pairs, pipeline
from launch import readers
from tavr_jax.encoders.vae import Codec, CodecConfig, encode_reference
from tavr_jax.errors import InputError

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    root = tmp_path_factory.mktemp("source")
    one_shot, another = footage(20), footage(20, background=(200, 60, 160))
    save(root / "ann/garden.mp4", np.concatenate([one_shot, another]))
    save(root / "ann/kitchen/day.mp4", footage(40))
    save(root / "bob/office.mp4", footage(33, [(80, 110, 90)], size=(200, 160)))
    (root / "bob/office.txt").write_text("bob  reads\nthe news\n")
    save(root / "cat.mp4", footage(25))
    (root / "cat.json").write_text('{"caption": "cat sings"}')
    save(root / "x_mute.mp4", footage(20), loudness=None)
    save(root / "x_quiet.mp4", footage(20), loudness=1e-4)
    save(root / "x_nobody.mp4", footage(20, people=()))
    save(root / "x_short.mp4", footage(10))
    save(root / "x_small.mp4", footage(20, [(80, 60, 26)]))
    save(root / "x_edge.mp4", footage(20, [(40, 54, 54)], size=(120, 240)))
    save(root / "x_crowd.mp4", footage(20, [(40, 54, 54), (120, 54, 54)]))
    (root / "x_broken.mp4").write_bytes(b"not a video" * 99)
    save(root / "x_caption.mp4", footage(20))
    (root / "x_caption.json").write_text("{}")
    (root / "notes.txt").write_text("no video")
    return root


@pytest.fixture(scope="module")
def config():
    made = same_scene.get_config("tiny")
    made.prepare.workers, made.prepare.min_face = 2, 0.25
    return made


def make_codec(config, seed=42):
    return Codec(CodecConfig(**config.codec), rngs=nnx.Rngs(seed))


HERE = pipeline.Runner()


def networks(config, seed=42):
    return dataset.Networks(make_codec(config, seed), readers.load(config), None)


@pytest.fixture(scope="module")
def prepared(source, config, tmp_path_factory):
    output = tmp_path_factory.mktemp("out") / "dataset"
    assert dataset.prepare(source, output, config, networks(config), HERE)
    return output


def opened(folder, split="train"):
    rows = [row for row in records.read_index(folder) if row.split == split]
    pictures = records.open_records(folder, "clips", split)
    encoded = records.open_records(folder, "encoded", split)
    return [(row, pictures[row.record], encoded[row.record]) for row in rows]


def test_clips_are_whole_latents_of_one_shot_with_names_from_the_folders(prepared):
    found = {
        row.clip_id: (row.person, row.scene, row.frames)
        for row in records.read_index(prepared)
    }
    assert found == {
        "ann/garden.mp4:000000": ("ann", "garden", 17),
        "ann/garden.mp4:000020": ("ann", "garden", 17),
        "ann/kitchen/day.mp4:000000": ("ann", "kitchen/day", 33),
        "bob/office.mp4:000000": ("bob", "office", 33),
        "cat.mp4:000000": ("cat", "cat", 25),
    }
    captions = {row.video_id: clip["caption"] for row, clip, _ in opened(prepared)}
    assert captions["ann/garden.mp4"] == b"a person is talking"
    assert captions["bob/office.mp4"] == b"bob reads the news"
    assert captions["cat.mp4"] == b"cat sings"


def test_whatever_is_left_out_has_its_reason_and_numbers(prepared):
    lines = (prepared / records.REJECTS).read_text().splitlines()
    found = {line["video_id"]: line for line in map(json.loads, lines)}
    assert {name: line["reason"] for name, line in found.items()} == {
        "ann/kitchen/day.mp4": "leftover",
        "x_broken.mp4": "unreadable",
        "x_caption.mp4": "unreadable",
        "x_crowd.mp4": "several people",
        "x_edge.mp4": "face cut off",
        "x_mute.mp4": "no sound",
        "x_nobody.mp4": "no face",
        "x_quiet.mp4": "too quiet",
        "x_short.mp4": "too short",
        "x_small.mp4": "face too small",
    }
    assert found["x_short.mp4"]["detail"] == "9 frames of 17"
    assert found["ann/kitchen/day.mp4"]["first"] == 33
    assert found["x_crowd.mp4"]["numbers"]["faces"] == 2


def test_boxes_lie_on_the_faces_at_bucket_size(prepared):
    for row, clip, encoded in opened(prepared):
        frames = media.decode_mp4(clip["video"]).astype(int)
        assert frames.shape == (row.frames, 32, 32, 3)
        left, top, right, bottom = np.rint(clip["face_boxes"][0] * 32).astype(int)
        inside = np.abs(frames[0] - SKIN).sum(axis=-1) < 90
        assert inside[top:bottom, left:right].sum() > 0.9 * inside.sum() > 20
        assert clip["faces"].shape == (2, 16, 16, 3)
        np.testing.assert_array_equal(clip["faces"], encoded["faces"])


def test_sound_and_speech_start_where_the_clip_starts(source, prepared):
    wave = media.read_audio(source / "ann/garden.mp4", 16000)
    _, clip, encoded = opened(prepared)[1]
    expected = wave[20 * 640 : 37 * 640] * 32767
    np.testing.assert_allclose(clip["wave"], expected, atol=0.5)
    assert encoded["mel"].shape == (17, 128)
    np.testing.assert_array_equal(encoded["audio"], encoded["mel"])
    track = encoded["reference_audio"]
    np.testing.assert_array_equal(track[3:], encoded["mel"])
    np.testing.assert_array_equal(track[:3], encoded["mel"][[0, 0, 0]])


def test_latents_are_the_codecs_of_the_clip_alone(prepared, config):
    """Clips are padded before they are encoded; nothing of it may show."""
    row, clip, encoded = opened(prepared)[1]
    frames = media.decode_mp4(clip["video"])
    person = conditions.still_mask(clip["person_box"], (32, 32))
    grey = jnp.asarray(conditions.grey_person(frames[0], person))

    @nnx.jit
    def direct(codec, video):
        return {
            "latents": codec.encode(video),
            "reference": encode_reference(codec, video),
            "still": codec.encode(grey[None, None]),
        }

    video = jnp.asarray(frames, jnp.float32)[None] / 127.5 - 1
    for name, expected in direct(make_codec(config), video).items():
        assert encoded[name].shape == expected.shape[1:]
        np.testing.assert_allclose(encoded[name], expected[0], atol=2e-3, rtol=2e-3)
    tokens = conditions.still_tokens(person)
    np.testing.assert_array_equal(encoded["still_tokens"], tokens)
    tokens = conditions.face_tokens(clip["face_boxes"], (32, 32))
    np.testing.assert_array_equal(encoded["reference_tokens"], tokens)
    assert row.face_tokens == tuple(tokens.sum(axis=(1, 2)))


def contents(folder, name):
    return {
        path.relative_to(folder): (path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted((folder / name).rglob("*"))
        if path.is_file()
    }


def test_a_second_run_does_nothing_and_a_new_codec_only_encodes(
    source, config, prepared, tmp_path, monkeypatch, capsys
):
    output = tmp_path / "dataset"
    shutil.copytree(prepared, output)
    before = contents(output, ".")
    assert not dataset.prepare(source, output, config, networks(config), HERE)
    assert "nothing to do" in capsys.readouterr().out
    assert contents(output, ".") == before

    def cut(*_):
        raise AssertionError("cut again")

    monkeypatch.setattr(dataset, "cut_videos", cut)
    assert dataset.prepare(source, output, config, networks(config, seed=1), HERE)
    assert contents(output, "clips") == contents(prepared, "clips")
    assert contents(output, "encoded") != contents(prepared, "encoded")
    assert [path.name for path in tmp_path.iterdir()] == ["dataset"]
    other = config.copy_and_resolve_references()
    other.prepare.crf = 30
    with pytest.raises(AssertionError, match="cut again"):
        dataset.prepare(source, output, other, networks(config), HERE)


def test_a_stopped_run_leaves_the_dataset_alone_and_goes_on(
    source, config, prepared, tmp_path, monkeypatch
):
    output, whole, calls = tmp_path / "dataset", encode.make_encoder, []

    def stopping(*arguments):
        run = whole(*arguments)

        def encode_some(clip):
            calls.append(clip["clip_id"])
            if len(calls) == 3:
                raise KeyboardInterrupt
            return run(clip)

        return encode_some

    monkeypatch.setattr(encode, "make_encoder", stopping)
    with pytest.raises(KeyboardInterrupt):
        dataset.prepare(source, output, config, networks(config), HERE)
    assert not output.exists()

    def cut(*_):
        raise AssertionError("cut again")

    monkeypatch.setattr(pipeline, "each_video", cut)
    assert dataset.prepare(source, output, config, networks(config), HERE)
    assert len(calls) == 6  # two were kept, the third was made again
    for path in sorted(prepared.rglob("*")):
        if path.is_file():
            name = path.relative_to(prepared)
            assert (output / name).read_bytes() == path.read_bytes(), name
    assert [path.name for path in tmp_path.iterdir()] == ["dataset"]


def test_nothing_kept_names_the_commonest_reason_and_leaves_nothing(
    source, config, tmp_path
):
    strict = config.copy_and_resolve_references()
    strict.prepare.min_face = 0.9
    strict.prepare.min_loudness = -200.0
    with pytest.raises(
        InputError, match=r"no clip .*'face too small'.*prepare\.min_face"
    ):
        dataset.prepare(source, tmp_path / "out", strict, networks(config), HERE)
    assert not list(tmp_path.iterdir())


def test_folders_in_the_way_and_impossible_settings_are_refused(
    source, config, tmp_path
):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/photo.jpg").touch()
    for folder, output, field, setting, message in [
        (source, "mine", "seed", 0, "is no dataset; choose another folder"),
        (tmp_path / "none", "out", "seed", 0, "no such folder"),
        (tmp_path / "mine", "out", "seed", 0, "no video in it"),
        (source, "out", "prepare.min_frames", 99, "prepare.clip_frames=33: shorter"),
        (source, "out", "prepare.portrait", (40, 40), "use multiples of 16"),
        (source, "out", "model.audio_dim", 8192, "model.audio_dim=8192, but"),
        (source, "out", "prepare.held_out", 1.0, "everybody is held out"),
    ]:
        other = config.copy_and_resolve_references()
        other.update_from_flattened_dict({field: setting})
        with pytest.raises(InputError, match=message):
            dataset.prepare(
                Path(folder), tmp_path / output, other, networks(other), HERE
            )
    assert [path.name for path in tmp_path.rglob("*")] == ["mine", "photo.jpg"]


def test_held_out_people_stay_so_whoever_joins(source, config, tmp_path):
    names = [f"person_{number:04d}" for number in range(4000)]
    few = {name for name in names if pairs.is_held_out(name, 0.1)}
    more = {name for name in names if pairs.is_held_out(name, 0.2)}
    assert few < more and 320 < len(few) < 480 and 700 < len(more) < 900
    share = next(
        share / 100
        for share in range(100)
        if sum(pairs.is_held_out(name, share / 100) for name in ("ann", "bob", "cat"))
    )
    other = config.copy_and_resolve_references()
    other.prepare.held_out = share
    dataset.prepare(source, tmp_path / "out", other, networks(config), HERE)
    sides = {
        split: {row.person for row, *_ in opened(tmp_path / "out", split)}
        for split in ("train", "test")
    }
    assert sides["train"] | sides["test"] == {"ann", "bob", "cat"}
    assert not sides["train"] & sides["test"] and len(sides["test"]) == 1


def test_a_dataset_is_not_made_in_a_bucket(tmp_path):
    """A local folder called gs: would be."""
    asked = ["--source", str(tmp_path), "--output", "gs://bucket/dataset"]
    command = [sys.executable, "-m", "launch.prepare_data", *asked]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "made on a disk" in done.stderr
    assert done.stderr.count("\n") == 1
