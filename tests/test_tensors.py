import json
import os

import ml_dtypes
import numpy as np
import pytest
from damage import check_all_survive, damaged
from safetensors.numpy import load_file, save_file

from tavr_jax.encoders import tensors
from tavr_jax.encoders.tensors import open_tensors, read_tensors, write_tensors
from tavr_jax.errors import InputError


def some(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((3, 5))
    types = (np.float64, np.float32, np.float16, ml_dtypes.bfloat16, np.int32)
    types += (np.int8, np.uint8, np.uint16, np.int16, np.uint32, np.int64, np.uint64)
    return {
        **{f"layer.{np.dtype(t).name}": abs(values).astype(t) for t in types},
        "scalar": np.full((), 2.5, np.float32),
        "empty": np.zeros((0, 4), np.float32),
        "true": np.array([True, False]),
        "odd 'näme'\n": np.ones(1, np.int64),
    }


def equal(a, b) -> bool:
    return a.keys() == b.keys() and all(
        a[k].dtype == b[k].dtype
        and a[k].shape == b[k].shape
        and a[k].tobytes() == b[k].tobytes()
        for k in a
    )


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "x.safetensors"
    write_tensors(path, some(), {"seed": "0"})
    return path


def with_header(header: object, data: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def test_the_package_writes_and_reads_the_same_bytes(file, tmp_path):
    save_file(some(), tmp_path / "theirs", {"seed": "0"})
    assert (tmp_path / "theirs").read_bytes() == file.read_bytes()
    assert equal(load_file(file), some()) and equal(read_tensors(file), some())
    assert tensors.read_metadata(file) == {"seed": "0"}


def test_what_is_asked_for_is_read_and_nothing_else(file):
    found = open_tensors(file)
    size = file.stat().st_size
    os.truncate(file, size - 1)  # the last tensor's
    last = "true"
    early = [name for name in found if name != last]
    for name in early:
        assert found[name].tobytes() == some()[name].tobytes()
    assert found.shape(last) == some()[last].shape and last in found
    with pytest.raises(InputError, match="ends too early"):
        found[last]


def write_shards(folder, ending="safetensors"):
    places = {}
    for i, name in enumerate(some()):
        places[name] = f"part-{i % 3}.safetensors"
    for shard in set(places.values()):
        held = {k: v for k, v in some().items() if places[k] == shard}
        write_tensors(folder / shard, held, {})
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return index


def test_shards_and_folders_are_the_whole(file, tmp_path):
    folder = tmp_path / "shards"
    folder.mkdir()
    index = write_shards(folder)
    assert equal(dict(open_tensors(index)), some())
    assert equal(dict(open_tensors(folder)), some())
    assert equal(dict(open_tensors(file.parent)), some())


def test_a_prefix_is_taken_off_where_it_is(tmp_path):
    path = tmp_path / "x.safetensors"
    one = np.ones(1, np.float32)
    write_tensors(path, {"a.b": one, "a.a.c": one, "d": one}, {})
    assert set(open_tensors(path).without_prefix("a.")) == {"b", "a.c", "d"}
    write_tensors(path, {"a.b": one, "b": one}, {})
    with pytest.raises(InputError, match=r"'b' is there with and without 'a\.'"):
        open_tensors(path).without_prefix("a.")


ONE = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("header", "data", "reason"),
    [
        ({"a": ONE}, bytes(7), "has 69 bytes, its header says 70|bytes"),
        ({"a": ONE}, bytes(9), "bytes"),
        ({"a": ONE, "b": ONE}, bytes(8), "overlap"),
        ({"a": ONE | {"data_offsets": [8, 16]}}, bytes(16), "hole"),
        ({"a": ONE | {"data_offsets": [8, 0]}}, bytes(8), "place"),
        ({"a": ONE | {"data_offsets": [0, 2**70]}}, bytes(8), "place"),
        ({"a": ONE | {"shape": [2**62, 2**62]}}, bytes(8), "bytes"),
        ({"a": ONE | {"shape": [-2]}}, bytes(8), "shape"),
        ({"a": ONE | {"shape": [True, 2]}}, bytes(8), "shape"),
        ({"a": ONE | {"shape": [1] * 40}}, bytes(8), "shape"),
        ({"a": ONE | {"dtype": "F7"}}, bytes(8), "type"),
        ({"a": ONE | {"dtype": []}}, bytes(8), "type"),
        ({"a": ONE | {"more": 1}}, bytes(8), "described"),
        ({"a": [1]}, bytes(8), "described"),
        ({"__metadata__": {"a": 1}}, b"", "text"),
        ([1], b"", "object"),
        (b"[" * 100_000, b"", "recursion|readable"),
        (b"\xff\xfe", b"", "decode"),
        (b'{"a":{},"a":{}}', b"", "repeated"),
        (b"9" * 5000, b"", "digits"),
    ],
)
def test_a_header_that_lies_is_refused(tmp_path, header, data, reason):
    path = tmp_path / "x.safetensors"
    path.write_bytes(with_header(header, data))
    with pytest.raises(InputError, match=rf"not a readable safetensors.*({reason})"):
        open_tensors(path)


def test_a_header_longer_than_the_file_is_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    for length in (1, 9, 2**40, 2**64 - 1):
        path.write_bytes(length.to_bytes(8, "little"))
        with pytest.raises(InputError, match=f"claims {length} bytes"):
            open_tensors(path)


def test_a_folder_or_index_that_is_unclear_is_refused(tmp_path):
    with pytest.raises(InputError, match="no weights in this folder"):
        open_tensors(tmp_path)
    index = write_shards(tmp_path)
    whole = json.loads(index.read_text())
    places = whole["weight_map"]
    name = next(iter(places))
    for change, reason in (
        ({name: "../x.safetensors"}, "not the name of a file"),
        ({name: "model.safetensors.index.json"}, "not the name of a file"),
        ({name: 7}, "'7'|/7: no such file"),
        ({name: "absent.safetensors"}, "no such file"),
        ({"more": places[name]}, "'more' is not in"),
        ({name: "part-1.safetensors"}, "which the index does not say"),
    ):
        index.write_text(json.dumps({"weight_map": places | change}))
        with pytest.raises(InputError, match=reason):
            open_tensors(index)
    index.write_text("{}")
    with pytest.raises(InputError, match="weight_map: missing"):
        open_tensors(index)
    index.unlink()
    with pytest.raises(InputError, match=r"holds part-0\S+ and part-1"):
        open_tensors(tmp_path)


def test_damage_is_survived(file, tmp_path):
    check_all_survive(tmp_path / "d.safetensors", damaged(file.read_bytes(), 300, 1))


def test_damage_to_an_index_is_survived(tmp_path):
    index = write_shards(tmp_path)
    check_all_survive(index, damaged(index.read_bytes(), 150, 2))
