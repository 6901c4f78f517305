import io
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from damage import check_all_survive, damaged

from tavr_jax.encoders import torch_files
from tavr_jax.encoders.tensors import open_tensors, read_tensors
from tavr_jax.errors import InputError

GOLDEN = Path(__file__).parent / "golden" / "weights"
NUMBERS = np.arange(6, dtype=np.float32)


def text(value: str) -> bytes:
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def whole(value: int) -> bytes:
    return b"\x8a\x09" + value.to_bytes(9, "little", signed=True)


def tensor(shape=(6,), strides=(1,), offset=0, key="0", count=6, kind="FloatStorage"):
    """The program that pushes one tensor."""
    storage = b"(" + text("storage") + f"ctorch\n{kind}\n".encode() + text(key)
    storage += text("cpu") + whole(count) + b"tQ"
    sizes = [b"(" + b"".join(map(whole, v)) + b"t" for v in (shape, strides)]
    function = b"ctorch._utils\n_rebuild_tensor_v2\n("
    return function + storage + whole(offset) + b"".join(sizes) + b"\x89}tR"


def named(*items: tuple[str, bytes]) -> bytes:
    pairs = b"".join(text(name) + value for name, value in items)
    return b"\x80\x02}(" + pairs + b"u."


def archive(path, program, *, method=zipfile.ZIP_STORED, more=(), blocks=None):
    blocks = {"0": NUMBERS.tobytes()} if blocks is None else blocks
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("x/data.pkl", program)
        for key, data in blocks.items():
            file.writestr(f"x/data/{key}", data, method)
        for name, data in more:
            file.writestr(name, data)
    return path


def test_every_layout_of_a_tensor_reads_as_pytorch_reads_it():
    ours = read_tensors(GOLDEN / "state_dict.pth")
    theirs = read_tensors(GOLDEN / "state_dict.safetensors")
    assert ours.keys() == theirs.keys() and len(ours) == 14
    for name, array in ours.items():
        assert array.dtype == theirs[name].dtype and array.shape == theirs[name].shape
        assert array.tobytes() == theirs[name].tobytes(), name


def test_a_wrapped_state_dict_is_found():
    found = open_tensors(GOLDEN / "parameters.pth")
    expected = {"0.weight": (2, 3), "0.bias": (2,), "1.weight": (2,), "1.bias": (2,)}
    assert {n: found.shape(n) for n in found} == expected | {"1.extra": (8,)}
    np.testing.assert_array_equal(
        found["1.extra"], read_tensors(GOLDEN / "state_dict.pth")["plain"][0]
    )


def test_the_oracles_files_hold_the_numbers_of_the_files_beside_them(shared):
    pairs = {
        "vae/wan_fp16.pth": "vae/wan.safetensors",
        "umt5/wan_bf16.pth": "umt5/wan.safetensors",
        "wav2vec2/pytorch_model.bin": "wav2vec2/hf.safetensors",
        "wav2vec2_stable/pytorch_model.bin": "wav2vec2_stable/hf.safetensors",
    }
    for ours, theirs in pairs.items():
        folder = shared / "oracles/wan_seed0"
        found = open_tensors(folder / ours).without_prefix("wav2vec2.")
        expected = open_tensors(folder / theirs)
        common = found.keys() & expected.keys()
        assert len(common) >= len(expected) - 2  # the positional kernel's two names
        for name in common:
            rounded = expected[name].astype(found.dtype(name))
            np.testing.assert_array_equal(found[name], rounded, name)


def test_a_tensor_is_read_alone(tmp_path):
    blocks = {"0": NUMBERS.tobytes(), "1": bytes(8)}
    program = named(("a", tensor()), ("b", tensor((2,), key="1", count=2)))
    found = open_tensors(archive(tmp_path / "x.pth", program, blocks=blocks))
    data = bytearray((tmp_path / "x.pth").read_bytes())
    data[data.index(NUMBERS.tobytes())] ^= 1
    (tmp_path / "x.pth").write_bytes(data)  # opened, nothing read yet
    assert found["a"][0] != 0 and not found["b"].any()


def evil(tmp_path) -> bytes:
    class Command:
        def __reduce__(self):
            import os

            return os.system, (f"touch {tmp_path}/executed",)

    return pickle.dumps({"a": Command()}, protocol=2)


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_command_is_refused_and_nothing_runs(tmp_path, protocol):
    program = evil(tmp_path)
    if protocol == 4:
        program = b"\x80\x04" + text("posix") + text("system") + b"\x93" + text("x")
        program += b"\x85R."
    path = archive(tmp_path / "x.pth", program)
    with pytest.raises(InputError, match=r"x\.pth: refused: .*'posix\.system'"):
        open_tensors(path)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        (b"\x80\x02cbuiltins\neval\n.", "refused.*builtins.eval"),
        (b"\x80\x02ctorch\nload\n.", "refused.*torch.load"),
        (b"\x80\x02(i__main__\nX\n.", "refused.*INST"),
        (b"\x80\x02(cos\nsystem\no.", "refused.*os.system"),
        (b"\x80\x02\x82\x01.", "refused.*EXT1"),
        (b"\x80\x02ctorch\nFloatStorage\n)R.", "refused.*no function"),
        (b"\x80\x02}(X\x01\0\0\0aK\x01u.", "'a' is not a tensor"),
        (b"\x80\x02]K\x01a.", "no state dict"),
        (b"\x80\x02}.", "no state dict"),
        (b"\x80\x02", "not enough|no end|exhausted"),
        (b"\x80\x02.", "readable"),
        (b"\x80\x02u.", "readable"),
        (b"\x80\x02h\x05.", "readable"),
        # A key whose hash would take 2^60 steps.
        (b"\x80\x02})" + b"q\x00h\x00\x86" * 60 + b"K\x01s.", "neither text nor"),
        (named(("a", tensor()), ("a", tensor())), "'a' is there twice"),
        (named(("a", tensor(key="1"))), "numbers of tensor 'a' are not there"),
        (named(("a", tensor(count=7))), "numbers of tensor 'a' are not there"),
        (named(("a", tensor(kind="DoubleStorage"))), "are not there"),
        (named(("a", tensor((7,)))), "does not fit its numbers"),
        (named(("a", tensor(offset=1))), "does not fit its numbers"),
        (named(("a", tensor((2, 3), (4, 1)))), "does not fit its numbers"),
        (named(("a", tensor((2**40, 2**40), (0, 0)))), "does not fit its numbers"),
        (named(("a", tensor((-1,)))), "impossible shape"),
        (named(("a", tensor((1,), (-1,)))), "impossible shape"),
        (named(("a", tensor((1,) * 99, (1,) * 99))), "impossible shape"),
        (named(("a", tensor((2, 3), (1,)))), "without numbers or shape"),
        (named(("a", tensor(kind="UntypedStorage"))), "refused.*UntypedStorage"),
    ],
)
def test_a_program_of_another_kind_is_refused(tmp_path, program, reason):
    path = archive(tmp_path / "x.pth", program)
    with pytest.raises(InputError, match=rf"x\.pth: .*({reason})"):
        open_tensors(path)


def test_an_archive_that_lies_is_refused(tmp_path, monkeypatch):
    path, program = tmp_path / "x.pth", named(("a", tensor()))
    reasons = {
        "compressed": {"method": zipfile.ZIP_DEFLATED},
        "big-endian": {"more": [("x/byteorder", b"big")]},
        "there twice": {"more": [("x/data/0", bytes(24))]},
        "not an archive of torch": {"more": [("y/data.pkl", b"")]},
    }
    for reason, options in reasons.items():
        if reason == "there twice":
            with pytest.warns(UserWarning, match="Duplicate"):
                archive(path, program, **options)
        else:
            archive(path, program, **options)
        with pytest.raises(InputError, match=rf"x\.pth: .*{reason}"):
            open_tensors(path)
    archive(path, b"\x80\x02" + bytes(5000))
    monkeypatch.setattr(torch_files, "_LARGEST_READ", 1000)
    with pytest.raises(InputError, match="5002 bytes"):
        open_tensors(path)


def test_other_formats_are_named(tmp_path):
    with pytest.raises(InputError, match=r"refused.*torch\.nn\.modules"):
        open_tensors(GOLDEN / "module.pth")
    with pytest.raises(InputError, match=r"format before 1\.6"):
        open_tensors(GOLDEN / "legacy.pth")
    path = tmp_path / "empty.pth"
    path.write_bytes(b"")
    with pytest.raises(InputError, match=r"empty\.pth: not a readable PyTorch file"):
        open_tensors(path)
    with pytest.raises(InputError, match="no such file"):
        open_tensors(tmp_path / "absent.pth")


def test_damage_is_survived(tmp_path):
    for name, seed in (("state_dict.pth", 1), ("parameters.pth", 2)):
        content = (GOLDEN / name).read_bytes()
        check_all_survive(tmp_path / "d.pth", damaged(content, 150, seed))


def test_damage_to_the_program_is_survived(tmp_path):
    """Inside an archive that is sound."""
    with zipfile.ZipFile(GOLDEN / "parameters.pth") as file:
        program = file.read("parameters/data.pkl")

    def archives():
        for bad in damaged(program, 300, 3):
            memory = io.BytesIO()
            archive(memory, bad, blocks={str(i): bytes(192) for i in range(5)})
            yield memory.getvalue()

    check_all_survive(tmp_path / "d.pth", archives())
