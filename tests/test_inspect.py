"""What `python -m data_pipelines.inspect` says and draws."""

import json
import subprocess
import sys

import cv2
import numpy as np
import pytest

from data_pipelines import conditions, inspect, media, records, video_files

SIZE, FRAMES, RATE = (64, 96), 17, 16000
BOX = np.float32([0.4, 0.2, 0.6, 0.7])
CLIPS = [("zoë", "a"), ("zoë", "b"), ("ann", "a")]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    root = tmp_path_factory.mktemp("out") / "dataset"
    root.mkdir()
    clips = records.RecordWriter(root, "clips", records.clip_features(), "t", 2)
    encoded = records.RecordWriter(
        root, "encoded", records.encoded_features(16, 8, 8, (4, 6)), "t", 2
    )
    boxes, rows = np.tile(BOX, (FRAMES, 1)), []
    for number, (person, scene) in enumerate(CLIPS):
        frames = np.full((FRAMES, *SIZE, 3), 60 + 40 * number, np.uint8)
        clip = {
            "clip_id": f"{person}/{scene}.mp4:000000",
            "video_id": f"{person}/{scene}.mp4",
            "person": person,
            "scene": scene,
            "caption": "somebody is talking",
            "licence": "CC0-1.0",
            "orientation": "landscape",
            "num_frames": FRAMES,
            "quality": json.dumps({"sharpness": 12.5, "note": "x"}),
            "video": video_files.encode_mp4(frames, 25, 5),
            "wave": np.full(FRAMES * 640, 1000 * number, np.int16),
            "face_boxes": boxes,
            "person_box": conditions.person_box_from_face(BOX),
            "faces": np.zeros((2, 8, 8, 3), np.uint8),
        }
        tokens = conditions.face_tokens(boxes, SIZE)
        clips.add("train", clip)
        half = lambda *shape: np.zeros(shape, np.float16)  # noqa: E731
        encoded.add(
            "train",
            {
                "clip_id": clip["clip_id"],
                "latents": half(5, 8, 12, 16),
                "still": half(1, 8, 12, 16),
                "still_tokens": np.ones((4, 6), bool),
                "reference": half(4, 8, 12, 16),
                "reference_tokens": tokens,
                "audio": half(17, 8),
                "reference_audio": half(20, 8),
                "mel": half(17, 8),
                "text": half(4, 6),
                "face_boxes": boxes,
                "faces": clip["faces"],
                "codec": "abc",
            },
        )
        names = [f"{p}/{s}.mp4:000000" for p, s in CLIPS if p != person]
        row = records.Row(
            *(clip["clip_id"], clip["video_id"], person, scene, "train", number),
            *(FRAMES, SIZE, "landscape", 9, tuple(tokens.sum(axis=(1, 2)).tolist())),
            licence="CC0-1.0",
            negatives=tuple(names[:1]),
        )
        rows.append(row)
    clips.close()
    encoded.close()
    records.write_index(root, rows)
    (root / records.REJECTS).write_text('{"reason": "no face"}\n' * 2)
    summary = {"version": records.VERSION, "config": "c", "codec": "abc"}
    (root / records.SUMMARY).write_text(json.dumps(summary))
    return root


@pytest.fixture(scope="module")
def made(dataset):
    command = [sys.executable, "-m", "data_pipelines.inspect", str(dataset)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout, dataset.with_name("dataset.inspect")


def test_the_card_counts_what_is_there_and_what_is_not(made, dataset):
    text, folder = made
    assert (folder / "card.txt").read_text() in text
    line = next(line for line in text.splitlines() if line.startswith("  train"))
    assert line.split()[1:4] == ["3", "2", "3"] and line.split()[5] == "2"
    for part in (
        *(f"version {records.VERSION}", "3 x CC0-1.0", "3 x 1 a clip"),
        *("left out: 2 (2 x no face)", "zoë/a.mp4:000000", "3 x 96x64"),
        "reference_tokens   bool      4 x 4 x 6",
    ):
        assert part in text, part


def test_samples_play_with_their_sound_and_the_boxes_are_where_the_record_says(made):
    _, folder = made
    samples = sorted(folder.glob("sample_*.mp4"))
    assert len(samples) == 3
    frames = media.read_frames(samples[1], 25)
    scale = frames.shape[1] // SIZE[0]
    assert frames.shape == (FRAMES, SIZE[0] * scale, SIZE[1] * scale, 3)
    assert abs(len(media.read_audio(samples[1], RATE)) - FRAMES * 640) < 1100
    green = np.abs(frames[8].astype(int) - inspect.FACE).sum(axis=-1) < 120
    rows, columns = np.nonzero(green)
    found = [columns.min(), rows.min(), columns.max(), rows.max()]
    expected = BOX * np.array([SIZE[1], SIZE[0]] * 2) * scale
    np.testing.assert_allclose(found, expected, atol=4)


def test_the_sheet_has_a_row_a_clip_and_every_person_comes_first(made, dataset):
    sheet = cv2.imread(str(made[1] / "contact.png"))
    assert sheet.shape[0] > 3 * 100 and sheet.std() > 20
    rows = records.read_index(dataset)
    assert inspect.choose(rows, 2) == [0, 2] and inspect.choose(rows, 9) == [0, 2, 1]
    assert inspect.choose(rows, 1) == [0] and inspect.choose(rows, 0) == []


def test_no_dataset_is_one_line(tmp_path):
    command = [sys.executable, "-m", "data_pipelines.inspect", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "holds no dataset" in done.stderr
