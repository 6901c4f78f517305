import json
import subprocess
import sys

import numpy as np
import pytest

from data_pipelines import records
from tavr_jax.errors import InputError


def clip(number):
    generator = np.random.default_rng(number)
    return {
        "clip_id": f"zoë/{number}",
        "video_id": "zoë/a.mp4",
        "person": "zoë",
        "scene": "a",
        "caption": "a person is talking",
        "licence": "CC-BY-4.0",
        "start": np.float32(number / 3),
        "quality": '{"sharpness": 3.5}',
        "identity": generator.normal(size=16).astype(np.float32),
        "scene_signature": generator.normal(size=7).astype(np.float32),
        "orientation": "landscape",
        "num_frames": 5 + 4 * number,
        "video": generator.bytes(1000) + b"\x00\xff",
        "wave": generator.integers(-(2**15), 2**15, 50 + number).astype(np.int16),
        "face_boxes": generator.random((5 + 4 * number, 4), np.float32),
        "person_box": generator.random((2, 4), np.float32),
        "faces": generator.integers(0, 256, (2, 8, 8, 3), np.uint8),
    }


def encoded(number):
    generator = np.random.default_rng(number)
    half = lambda *shape: generator.normal(size=shape).astype(np.float16)  # noqa: E731
    return {
        "clip_id": f"zoë/{number}",
        "latents": half(2 + number, 4, 6, 16),
        "still": half(1, 4, 6, 16),
        "still_tokens": generator.random((2, 3)) < 0.5,
        "reference": half(1 + number, 4, 6, 16),
        "reference_tokens": generator.random((1 + number, 2, 3)) < 0.5,
        "audio": half(5 + 4 * number, 8),
        "reference_audio": half(8 + 4 * number, 12),
        "mel": half(5 + 4 * number, 8),
        "text": half(4, 6),
        "face_boxes": generator.random((5 + 4 * number, 4), np.float32),
        "faces": generator.integers(0, 256, (2, 8, 8, 3), np.uint8),
        "codec": "abc",
    }


def write(root, name, features, made):
    writer = records.RecordWriter(root, name, features, "A test.", 3)
    for record in made:
        writer.add("train", record)
    writer.close()


def same(found, record):
    for name, value in record.items():
        got = found[name].decode() if isinstance(value, str) else found[name]
        np.testing.assert_array_equal(got, value)
        if isinstance(value, np.ndarray):
            assert got.dtype == value.dtype


def test_records_come_back_bit_by_bit_over_several_files(tmp_path):
    clips, rows = [clip(i) for i in range(7)], [encoded(i) for i in range(7)]
    write(tmp_path, "clips", records.clip_features(), clips)
    write(tmp_path, "encoded", records.encoded_features(16, 8, 12, (4, 6)), rows)
    for name, made in (("clips", clips), ("encoded", rows)):
        source = records.open_records(tmp_path, name, "train")
        assert len(source) == 7
        for index in (6, 0, 3, 1, 2, 5, 4):
            assert set(source[index]) == set(made[index])
            same(source[index], made[index])
    assert len(list((tmp_path / "clips").rglob("*array_record*"))) == 3


def test_tfds_alone_opens_both_datasets_where_there_is_no_tensorflow(tmp_path):
    write(tmp_path, "clips", records.clip_features(), [clip(0)])
    features = records.encoded_features(16, 8, 12, (4, 6))
    write(tmp_path, "encoded", features, [encoded(0)])
    program = """
import sys
import tensorflow_datasets as tfds
for name in ("clips", "encoded"):
    builder = tfds.builder_from_directory(f"{sys.argv[1]}/{name}/{sys.argv[2]}")
    record = builder.as_data_source("train")[0]
    assert set(record) == set(builder.info.features), record.keys()
    assert record["clip_id"].decode() == "zo\\u00eb/0"
    assert "2604.27918" in builder.info.citation
    assert "rights" in builder.info.redistribution_info.license
assert "tensorflow" not in sys.modules
"""
    command = [sys.executable, "-c", program, str(tmp_path), records.VERSION]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_index_survives_the_disk(tmp_path):
    row = records.Row(
        "zoë/a:0", "zoë/a", "zoë", "a", "test", 3, 33, (32, 48), "landscape", 5, (4, 0)
    )
    other = row._replace(record=4, licence="CC0", negatives=("a:0", "b:0"))
    records.write_index(tmp_path, [row, other])
    assert records.read_index(tmp_path) == [row, other]


def test_other_versions_and_other_folders_are_refused_with_the_remedy(tmp_path):
    with pytest.raises(InputError, match="prepare_data --source"):
        records.read_summary(tmp_path)
    (tmp_path / records.SUMMARY).write_text(json.dumps({"version": "0.9.0"}))
    with pytest.raises(
        InputError, match=r"0\.9\.0.*migrate it with: .*launch\.prepare"
    ):
        records.read_summary(tmp_path)
    (tmp_path / records.SUMMARY).write_text("[")
    with pytest.raises(InputError, match="cannot be read"):
        records.read_summary(tmp_path)
    with pytest.raises(InputError, match="cannot be opened"):
        records.open_records(tmp_path, "clips", "train")
