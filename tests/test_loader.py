"""Batches of a made-up dataset whose values say where they come from."""

import json
import re

import jax
import numpy as np
import pytest
from absl import flags

from configs import codec, cross_scene, face, lipsync, same_scene
from data_pipelines import loader, records, video_files
from tavr_jax.errors import InputError

SIZE, CELLS, TOKENS, PEOPLE = (32, 32), (4, 4), (2, 2), 5


def value(clip, track, position):
    """A float16 that names clip, track and position exactly."""
    return np.float16(clip * 64 + track * 32 + position) / 4


def made_rows():
    """13 clips: people 0-3 in two or three scenes, person 4 in one."""
    rows = []
    for number in range(13):
        person = min(number // 3, PEOPLE - 1)
        frames = 33 if number % 2 else 65
        name = f"p{person}/s{number % 3}.mp4"
        rows.append(
            records.Row(
                clip_id=f"{name}:0",
                video_id=name,
                person=f"p{person}",
                scene=f"s{number % 3}",
                split="train",
                record=number,
                frames=frames,
                size=SIZE,
                orientation="landscape",
                still_tokens=3,
                face_tokens=(1,) * (frames // 4),
            )
        )
    return rows


def track(number, kind, count, shape):
    values = [value(number, kind, i % 32) for i in range(count)]
    return np.float16(values).reshape(-1, *[1] * len(shape)) + np.zeros(
        shape, np.float16
    )


def made_clip(row, crops, size):
    frames = np.zeros((row.frames, *SIZE, 3), np.uint8)
    frames[:] = (np.arange(row.frames) * 3 + 20)[:, None, None, None]
    return {
        "clip_id": row.clip_id,
        "video_id": row.video_id,
        "person": row.person,
        "scene": row.scene,
        "caption": "",
        "orientation": "landscape",
        "num_frames": row.frames,
        "video": video_files.encode_mp4(frames, 25, 1),
        "wave": np.zeros(row.frames * 640, np.int16),
        "face_boxes": np.tile(np.float32([0.2, 0.2, 0.8, 0.8]), (row.frames, 1)),
        "person_box": np.float32([[0, 0.1, 1, 1]]),
        "faces": np.full((crops, size, size, 3), row.record, np.uint8),
    }


def made_encoded(row, clip, config):
    mel = track(row.record, 0, row.frames, (config.model.audio_dim,))
    prefix = np.concatenate([mel[:1].repeat(3, axis=0), mel])
    return {
        "clip_id": row.clip_id,
        "latents": track(row.record, 0, row.frames // 4 + 1, (*CELLS, 16)),
        "still": np.full((1, *CELLS, 16), -1, np.float16),
        "still_tokens": np.array([[True, True], [True, False]]),
        "reference": track(row.record, 1, row.frames // 4, (*CELLS, 16)),
        "reference_tokens": np.ones((row.frames // 4, *TOKENS), bool),
        "audio": mel,
        "reference_audio": prefix,
        "mel": mel,
        "text": np.ones((config.text.length, config.text.dim), np.float16),
        "face_boxes": clip["face_boxes"],
        "faces": clip["faces"],
        "codec": "none",
    }


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    root, config = tmp_path_factory.mktemp("data"), same_scene.get_config("tiny")
    model, rows = config.model, made_rows()
    widths = (16, model.audio_dim, model.videoref_audio_dim)
    text = (config.text.length, config.text.dim)
    clips = records.RecordWriter(root, "clips", records.clip_features(), "t", 5)
    features = records.encoded_features(*widths, text)
    encoded = records.RecordWriter(root, "encoded", features, "t", 5)
    for row in rows:
        clip = made_clip(row, config.prepare.identity_faces, config.face.size)
        clips.add("train", clip)
        encoded.add("train", made_encoded(row, clip, config))
    clips.close()
    encoded.close()
    records.write_index(root, rows)
    np.save(root / records.NULL_TEXT, np.zeros(text, np.float16))
    summary = {"version": records.VERSION}
    (root / records.SUMMARY).write_text(json.dumps(summary))
    return root


def config_for(dataset, module=same_scene):
    config = module.get_config("tiny")
    config.data.path = str(dataset)
    config.data.threads, config.data.prefetch = 2, 4
    return config


def every_row(config):
    """Of a batch: what one host alone loads."""
    return np.arange(config.data.batch_size)


def rows_of(count, scattered=True):
    """The rows of a batch of 8 that each of `count` hosts loads."""
    order = np.array([0, 3, 5, 6, 1, 2, 7, 4]) if scattered else np.arange(8)
    return np.sort(order.reshape(count, -1), axis=1)


class Hosts:
    """Loaders over all rows of a batch, as many as `rows` has entries."""

    def __init__(self, config, rows):
        self._rows = rows
        self.each = [loader.make_loader(config, rows=ours) for ours in rows]

    def __next__(self):
        """The global batch of what every host has of it."""
        order = np.argsort(np.concatenate(self._rows))
        parts = [next(host) for host in self.each]
        return jax.tree.map(lambda *leaves: np.concatenate(leaves)[order], *parts)


LAYOUTS = [rows_of(1), rows_of(2, False), rows_of(2), rows_of(4), rows_of(8)]
UNEVEN = [np.array([0, 1, 6]), np.array([2, 3, 4, 5, 7])]


def stream(config, rows, batches):
    """Clips of the first global batches, in the order of the endless sequence."""
    hosts = Hosts(config, rows)
    return np.concatenate([next(hosts).clip for _ in range(batches)])


def test_every_clip_comes_once_an_epoch_over_any_number_of_hosts(dataset):
    config = config_for(dataset)
    orders = [stream(config, rows, 13) for rows in [*LAYOUTS, UNEVEN]]
    for order in orders[1:]:
        np.testing.assert_array_equal(order, orders[0])
    epochs = orders[0].reshape(8, 13)
    np.testing.assert_array_equal(np.sort(epochs, axis=1), [range(13)] * 8)
    assert len({tuple(epoch) for epoch in epochs.tolist()}) == 8
    config.seed = 43
    assert (stream(config, rows_of(1), 2) != orders[0][:16]).any()


def parts_of(config, rows, count):
    """(part, clip) of the first global batches, in the order of the endless sequence.

    A clip's part shows in its reference: the same clip, another one, another dataset.
    """
    hosts, found = Hosts(config, rows), []
    for _ in range(count):
        batch = next(hosts)
        for place in range(len(batch.clip)):
            clip, other = int(batch.clip[place]), reference_of(batch, place)[0]
            found.append((clip // 13, other != clip % 13, clip % 13))
    return found


MIXED = "same_scene:0.3,cross_scene:0.7"


def test_every_example_of_every_part_comes_once_an_epoch_also_when_mixed(
    dataset, tmp_path
):
    (tmp_path / "again").symlink_to(dataset)
    config = config_for(dataset)
    config.data.path = f"{dataset}:3,{tmp_path / 'again'}:1"
    config.data.pairs = MIXED
    orders = [parts_of(config, rows, 60) for rows in LAYOUTS]
    assert orders.count(orders[0]) == len(LAYOUTS)
    epochs = 0
    for part, share in zip(
        [(d, k) for d in (0, 1) for k in (False, True)],
        [0.225, 0.525, 0.075, 0.175],
        strict=True,
    ):
        clips = [clip for *where, clip in orders[0] if tuple(where) == part]
        assert abs(len(clips) - share * 480) < 2
        usable = list(range(12)) if part[1] else list(range(13))
        for first in range(0, len(clips) - len(usable) + 1, len(usable)):
            assert sorted(clips[first : first + len(usable)]) == usable
            epochs += 1
    assert epochs > 25


def test_a_run_continues_on_any_number_of_hosts_from_any_hosts_state(dataset):
    config = config_for(dataset)
    config.data.pairs, config.data.curriculum = MIXED, 70
    config.data.reference_latents = (1, 2)
    hosts = Hosts(config, rows_of(2))
    for _ in range(7):
        next(hosts)
    states = [host.get_state() for host in hosts.each]
    assert states[0] == states[1]
    state = json.loads(json.dumps(states[1]))
    expected = [next(hosts) for _ in range(3)]
    for rows in [*LAYOUTS, UNEVEN]:
        others = Hosts(config, rows)
        for host in others.each:
            host.set_state(state)
        for batch in expected:
            jax.tree.map(np.testing.assert_array_equal, next(others), batch)


def test_a_curriculum_starts_with_the_first_kind_and_ends_with_the_weights(dataset):
    config = config_for(dataset)
    config.data.pairs, config.data.curriculum = "same_scene:1,cross_scene:9", 400
    crossing = np.array(
        [crosses for _, crosses, _ in parts_of(config, rows_of(1), 100)]
    )
    shares = crossing.reshape(4, 200).mean(axis=1)
    assert shares[0] < shares[1] < shares[2] and abs(shares[2] - 0.9) < 0.02
    assert not crossing[:40].any() and abs(shares[3] - 0.9) < 0.02


def test_shorter_references_leave_the_rest_absent(dataset):
    config, counts = config_for(dataset, cross_scene), set()
    config.data.reference_latents = (1, 2)
    for batch in batches(config, 20):
        given = batch.conditions
        assert given.reference.shape[1] == 2
        for i in range(len(batch.clip)):
            shown = given.reference_tokens[i].any(axis=(1, 2))
            counts.add(int(shown.sum()))
            assert shown[0] and (given.reference[i, ~shown] == 0).all()
            rows = given.reference_audio[i].reshape(2, -1)
            assert (rows[~shown] == 0).all()
            if shown.all():
                reference_of(batch, i)
    assert counts == {1, 2}
    for bad in ((-1, 2), (2, 1)):
        config.data.reference_latents = bad
        with pytest.raises(InputError, match=r"data.reference_latents=.*from 1 on"):
            loader.make_loader(config, rows=every_row(config))


def test_nobody_gives_more_targets_an_epoch_than_asked(dataset):
    config, rows = config_for(dataset), made_rows()
    config.data.per_person = 2
    order = stream(config, rows_of(1), 9)
    epochs = order.reshape(-1, 9)  # four people with two of three clips, one with one
    for epoch in epochs:
        people = [rows[clip].person for clip in epoch]
        assert sorted(people) == sorted(["p0", "p1", "p2", "p3"] * 2 + ["p4"])
        assert len(set(epoch.tolist())) == 9
    seen = np.bincount(epochs[:6].ravel(), minlength=13)
    assert (seen[:12] == 4).all() and seen[12] == 6


def test_a_restored_iterator_continues_exactly(dataset):
    for stage in (same_scene, cross_scene, codec, face, lipsync):
        config = config_for(dataset, stage)
        first = loader.make_loader(config, rows=rows_of(2)[1])
        for _ in range(5):
            next(first)
        state = json.loads(json.dumps(first.get_state()))
        later = [next(first) for _ in range(4)]
        fresh = loader.make_loader(config, rows=rows_of(2)[1])
        fresh.set_state(state)
        for batch in later:
            jax.tree.map(np.testing.assert_array_equal, batch, next(fresh))


def leading(leaf):
    """One number of each position: (B, T, ...) -> (B, T)."""
    return leaf.reshape(*leaf.shape[:2], -1)[..., 0].astype(np.float64)


def batches(config, count):
    host = loader.make_loader(config, rows=every_row(config))
    return [next(host) for _ in range(count)]


def test_chunk_speech_boxes_and_stills_lie_under_one_offset(dataset):
    config, rows, seen = config_for(dataset), made_rows(), set()
    for batch in batches(config, 60):
        given = batch.conditions
        latents, audio = leading(batch.latents), leading(given.audio)
        for i, clip in enumerate(batch.clip):
            offset = int(latents[i, 0] * 4 - clip * 64)
            goes_on = offset > 0
            seen.add((rows[clip].frames, offset))
            assert offset + 5 <= rows[clip].frames // 4 + 1
            np.testing.assert_array_equal(
                latents[i], [value(clip, 0, offset + j) for j in range(5)]
            )
            speech = [value(clip, 0, (4 * offset + j) % 32) for j in range(17)]
            np.testing.assert_array_equal(audio[i], speech)
            np.testing.assert_array_equal(leading(batch.mel)[i], speech)
            assert given.has_motion[i] == goes_on
            motion = latents[i, :2] if goes_on else 0
            np.testing.assert_array_equal(leading(given.motion)[i], motion)
            still = value(clip, 0, 0) if goes_on else -1
            assert leading(given.still)[i, 0] == still
            assert given.still_tokens[i].sum() == (4 if goes_on else 3)
    assert {offset for frames, offset in seen if frames == 33} == set(range(5))
    assert {offset for frames, offset in seen if frames == 65} == set(range(13))


def test_no_continuation_where_none_is_asked_for(dataset):
    config = config_for(dataset)
    config.data.continuation = 0.0
    assert not any(batch.conditions.has_motion.any() for batch in batches(config, 5))
    config.data.continuation = 1.0
    assert all(batch.conditions.has_motion.all() for batch in batches(config, 5))


def reference_of(batch, i):
    """(clip, window start) of a reference, from its latents and its speech."""
    first = int(leading(batch.conditions.reference)[i, 0] * 4)
    clip, start = first // 64, first % 64 - 32
    rows = [value(clip, 0, max(0, 4 * start + j - 3) % 32) for j in range(8)]
    np.testing.assert_array_equal(leading(batch.conditions.reference_audio)[i], rows)
    assert (batch.faces[i] == clip).all()
    return clip, start


def test_same_scene_references_are_of_the_clip_and_apart_from_the_chunk(dataset):
    for batch in batches(config_for(dataset), 20):
        for i, clip in enumerate(batch.clip):
            other, start = reference_of(batch, i)
            offset = int(leading(batch.latents)[i, 0] * 4 - clip * 64)
            assert other == clip
            chunk = set(range(4 * offset, 4 * offset + 17))
            shown = set(range(4 * start, 4 * start + 8))
            room = offset >= 2 or offset + 5 + 2 <= made_rows()[clip].frames // 4
            assert not (room and chunk & shown)


def test_cross_scene_references_are_the_same_person_in_another_scene(dataset):
    rows, pairs = made_rows(), set()
    for batch in batches(config_for(dataset, cross_scene), 20):
        for i, clip in enumerate(batch.clip):
            other, _ = reference_of(batch, i)
            assert rows[other].person == rows[clip].person
            assert rows[other].scene != rows[clip].scene
            pairs.add((int(clip), other))
    assert len(pairs) == 24  # four people, three scenes, both ways; person 4 has none


def test_faces_of_a_batch_belong_to_the_person_named(dataset):
    rows = made_rows()
    for batch in batches(config_for(dataset, face), 10):
        for crops, person in zip(batch.faces, batch.person, strict=True):
            clips = {int(crop.flat[0]) for crop in crops}
            assert {rows[clip].person for clip in clips} == {f"p{person}"}


def test_frames_and_lips_are_consecutive_and_lips_go_with_their_speech(dataset):
    config = config_for(dataset, codec)
    batch = batches(config, 1)[0]
    steps = np.diff(batch.frames.astype(int).mean(axis=(2, 3, 4)), axis=1)
    samples = config.data.batch_size, config.data.frames
    assert batch.frames.shape == (*samples, 32, 32, 3) and (np.abs(steps - 3) < 2).all()
    for batch in batches(config_for(dataset, lipsync), 3):
        assert batch.faces.shape[1] == config.lipsync.span
        levels = batch.faces.astype(int).mean(axis=(2, 3, 4))
        frame = np.rint((levels - 20) / 3).astype(int)
        assert (np.diff(frame, axis=1) == 1).all()
        spoken = np.rint(leading(batch.mel) * 4).astype(int) % 32
        np.testing.assert_array_equal(spoken, frame % 32)


def test_a_sample_is_a_first_chunk_and_always_the_same(dataset):
    config = config_for(dataset, cross_scene)
    for index in (0, 3, 15):
        one, two = (
            loader.sampler(config, "train", "cross_scene")(index) for _ in range(2)
        )
        jax.tree.map(np.testing.assert_array_equal, one, two)
        assert one.latents.shape == (1, 5, 4, 4, 16)
        assert not one.conditions.has_motion.any()


def test_worker_processes_change_nothing(dataset):
    config = config_for(dataset)
    expected = batches(config, 2)
    config.data.workers = 1
    flags.FLAGS.mark_as_parsed()  # as launch does; Grain's workers read flags
    for ours, theirs in zip(batches(config, 2), expected, strict=True):
        jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.mark.parametrize(
    ("field", "setting", "message"),
    [
        ("data.batch_size", 0, "data.batch_size=0: expected above 0"),
        ("data.split", "test", "data.split=test: no clip"),
        ("data.pairs", "any", "data.pairs=any: choose"),
        ("data.pairs", "same_scene:0", "data.pairs=same_scene:0: .*weights above 0"),
        ("data.path", "a:1,a:2", "data.path=a:1,a:2: 'a:2': give NAME"),
        ("data.path", "", "data.path: empty"),
        ("model.still_bucket", 3, "model.still_bucket=3: .*has 4 valid"),
        ("model.reference_bucket", 1, "model.reference_bucket=1: .*has 2 valid"),
        ("model.num_video_latents", 12, "model.num_video_latents=12.*of the 45"),
        ("model.audio_dim", 96, "model.audio_dim=96: the records .* hold 128"),
        ("model.text_len", 4, "model.text_len=4: the records .* hold 8"),
        ("face.size", 24, "face.size=24: the records"),
    ],
)
def test_what_does_not_fit_is_named(dataset, field, setting, message):
    config = config_for(dataset)
    config.update_from_flattened_dict({field: setting})
    with pytest.raises(InputError, match=message):
        loader.make_loader(config, rows=every_row(config))


def test_room_for_tokens_is_only_asked_for_where_it_is_used(dataset):
    config = config_for(dataset)
    config.data.continuation = 0.0
    config.model.still_bucket, config.model.reference_bucket = 3, 2
    loader.make_loader(config, rows=every_row(config))


def test_people_in_one_scene_cannot_refer_across_scenes(dataset, tmp_path):
    for path in dataset.iterdir():
        (tmp_path / path.name).symlink_to(path)
    index = (dataset / records.INDEX).read_text()
    (tmp_path / records.INDEX).unlink()
    one_scene = re.sub(r'"scene": "s\d"', '"scene": "s0"', index)
    (tmp_path / records.INDEX).write_text(one_scene)
    with pytest.raises(InputError, match=r"nobody .* in two scenes; give footage"):
        loader.make_loader(config_for(tmp_path, cross_scene), rows=np.arange(8))
