"""Drawn people on drawn footage, through everything that prepares a dataset."""

import json
import shutil
from pathlib import Path

import cv2
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs import same_scene
from data_pipelines import conditions, media, records
from data_pipelines.prepare import clips, dataset, encode, pairs
from tavr_jax.encoders.vae import Codec, CodecConfig, encode_reference
from tavr_jax.errors import InputError

ROWS, COLUMNS = 120, 160
SKIN, DARK, LIPS = (220, 170, 140), (50, 35, 30), (170, 70, 70)


def draw_person(image, centre, height, mouth):
    """A face that the detector takes for one, four times as large as asked."""
    wide, tall = 0.74 * 4 * height, 4.0 * height
    x0, y0 = 4 * centre[0], 4 * centre[1]

    def blob(x, y, a, b, color):
        middle = (int(x0 + x * wide), int(y0 + y * tall))
        axes = (int(a * wide), int(b * tall))
        cv2.ellipse(image, middle, axes, 0, 0, 360, color, -1, cv2.LINE_AA)

    blob(0, 1.05, 1.1, 0.55, (40, 50, 90))
    blob(0, 0.5, 0.22, 0.25, (190, 140, 115))
    blob(0, -0.12, 0.58, 0.58, DARK)
    blob(0, 0, 0.5, 0.5, SKIN)
    for side in (-1, 1):
        blob(side * 0.22, -0.08, 0.1, 0.045, (240, 240, 240))
        blob(side * 0.22, -0.08, 0.045, 0.042, DARK)
        blob(side * 0.22, -0.2, 0.11, 0.016, DARK)
        blob(side * 0.05, 0.12, 0.02, 0.012, (120, 80, 70))
    blob(0, 0.27, 0.17, 0.03 + 0.05 * mouth, LIPS)
    blob(0, 0.27, 0.12, 0.005 + 0.04 * mouth, (70, 20, 20))


def footage(count, people=((80, 54, 54),), background=(90, 140, 120), size=None):
    """`count` frames of people (x, y, height) who open and close their mouths."""
    rows, columns = size or (ROWS, COLUMNS)
    frames = []
    for index in range(count):
        image = np.empty((rows * 4, columns * 4, 3), np.uint8)
        image[:] = background
        for x, y, height in people:
            draw_person(image, (x, y), height, (index % 8) / 8)
        image = cv2.GaussianBlur(image, (0, 0), 3)
        frames.append(cv2.resize(image, (columns, rows), interpolation=cv2.INTER_AREA))
    return np.stack(frames)


def save(path, frames, loudness=0.1):
    path.parent.mkdir(parents=True, exist_ok=True)
    wave = None
    if loudness is not None:
        noise = np.random.default_rng(len(frames)).normal(size=len(frames) * 640)
        wave = (loudness * noise).astype(np.float32)
    media.write_video(path, frames, 25, wave)


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
    made.prepare.workers, made.prepare.min_face = 1, 0.25
    return made


def make_codec(config, seed=42):
    return Codec(CodecConfig(**config.codec), rngs=nnx.Rngs(seed))


@pytest.fixture(scope="module")
def prepared(source, config, tmp_path_factory):
    output = tmp_path_factory.mktemp("out") / "dataset"
    assert dataset.prepare(source, output, config, make_codec(config))
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
    assert "2 at once" in found["x_crowd.mp4"]["detail"]


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
    assert not dataset.prepare(source, output, config, make_codec(config))
    assert "nothing to do" in capsys.readouterr().out
    assert contents(output, ".") == before

    def cut(*_):
        raise AssertionError("cut again")

    monkeypatch.setattr(dataset, "cut_videos", cut)
    assert dataset.prepare(source, output, config, make_codec(config, seed=1))
    assert contents(output, "clips") == contents(prepared, "clips")
    assert contents(output, "encoded") != contents(prepared, "encoded")
    assert [path.name for path in tmp_path.iterdir()] == ["dataset"]
    other = config.copy_and_resolve_references()
    other.prepare.crf = 30
    with pytest.raises(AssertionError, match="cut again"):
        dataset.prepare(source, output, other, make_codec(config))


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
        dataset.prepare(source, output, config, make_codec(config))
    assert not output.exists()

    def cut(*_):
        raise AssertionError("cut again")

    monkeypatch.setattr(clips, "_clips", cut)
    assert dataset.prepare(source, output, config, make_codec(config))
    assert len(calls) == 6  # two were kept, the third was made again
    for name in (records.INDEX, records.REJECTS):
        assert (output / name).read_text() == (prepared / name).read_text()
    made_by_codecs = {"video", "latents", "still", "reference"}  # x264 is not exact
    for ours, theirs in zip(opened(output), opened(prepared), strict=True):
        for mine, other in zip(ours[1:], theirs[1:], strict=True):
            for name in other.keys() - made_by_codecs:
                np.testing.assert_array_equal(mine[name], other[name])
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
        dataset.prepare(source, tmp_path / "out", strict, make_codec(config))
    assert not list(tmp_path.iterdir())


def test_folders_in_the_way_and_impossible_settings_are_refused(
    source, config, tmp_path
):
    codec = make_codec(config)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/photo.jpg").touch()
    for folder, output, field, setting, message in [
        (source, "mine", "seed", 0, "is no dataset; choose another folder"),
        (tmp_path / "none", "out", "seed", 0, "no such folder"),
        (tmp_path / "mine", "out", "seed", 0, "no video in it"),
        (source, "out", "prepare.min_frames", 99, "prepare.clip_frames=33: shorter"),
        (source, "out", "prepare.portrait", (40, 40), "use multiples of 16"),
        (source, "out", "model.audio_dim", 8192, "model.audio_dim=8192: records"),
        (source, "out", "prepare.held_out", 1.0, "everybody is held out"),
    ]:
        other = config.copy_and_resolve_references()
        other.update_from_flattened_dict({field: setting})
        with pytest.raises(InputError, match=message):
            dataset.prepare(Path(folder), tmp_path / output, other, codec)
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
    dataset.prepare(source, tmp_path / "out", other, make_codec(config))
    sides = {
        split: {row.person for row, *_ in opened(tmp_path / "out", split)}
        for split in ("train", "test")
    }
    assert sides["train"] | sides["test"] == {"ann", "bob", "cat"}
    assert not sides["train"] & sides["test"] and len(sides["test"]) == 1


def test_padded_lengths_are_few_and_never_shorter():
    for longest in (33, 81, 321):
        lengths = {}
        for count in range(5, longest + 1, 4):
            lengths[count] = encode.padded_length(count, longest)
            assert count <= lengths[count] <= longest and lengths[count] % 4 == 1
        assert len(set(lengths.values())) <= -(-longest // 32)


def test_processes_cut_as_one_does(source, config, prepared, tmp_path):
    videos = [video for video in pairs.find_videos(source) if video.person == "ann"]
    other = config.copy_and_resolve_references()
    other.prepare.workers = 2
    rejects = dataset.cut_videos(videos, other, tmp_path)
    assert [reject.reason for reject in rejects] == ["leftover"]
    paths = [path for video in videos for path in clips.clip_paths(video, tmp_path)]
    for path, (_, clip, _) in zip(paths, opened(prepared), strict=False):
        np.testing.assert_array_equal(clips.load_record(path)["faces"], clip["faces"])
    assert len(paths) == 3
