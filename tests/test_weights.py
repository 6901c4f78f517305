import os
import re

import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from configs.base import get_config
from configs.models import apply
from tavr_jax.encoders import weights
from tavr_jax.encoders.tensors import read_metadata
from tavr_jax.encoders.vae import Codec, CodecConfig
from tavr_jax.errors import InputError


def build(seed: int) -> Codec:
    config = CodecConfig(**apply(get_config(), "tiny").codec)
    return Codec(config, rngs=nnx.Rngs(seed))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "codec.safetensors"
    weights.save_network(path, build(0), {"command": "python -m x", "seed": "0"})
    return path


def test_what_is_saved_is_loaded(saved):
    first, second = build(0), build(1)
    assert weights.fingerprint(first) != weights.fingerprint(second)
    loaded = weights.load_network(saved, second)
    assert weights.fingerprint(loaded) == weights.fingerprint(first)
    assert weights.fingerprint(second) == weights.fingerprint(build(1))  # untouched
    abstract = nnx.eval_shape(lambda: build(0))
    assert weights.fingerprint(weights.load_network(saved, abstract)) == (
        weights.fingerprint(first)
    )
    assert read_metadata(saved) == {"command": "python -m x", "seed": "0"}
    assert "encoder.blocks.0.conv1.kernel" in load_file(saved)
    assert [p.name for p in saved.parent.iterdir()] == [saved.name]


def test_a_parameter_changed_in_one_place_has_another_fingerprint():
    codec = build(0)
    before = weights.fingerprint(codec)
    codec.quant.bias[...] = codec.quant.bias[...].at[3].add(1e-7)
    assert weights.fingerprint(codec) != before


def broken(tensors: dict, case: str) -> str:
    """Break one tensor in place; what the error must name."""
    name = sorted(tensors)[7]
    if case == "missing":
        del tensors[name]
    elif case == "unknown":
        name = f"{name}.more"
        tensors[name] = np.zeros(1, np.float32)
    elif case == "misshapen":
        tensors[name] = np.zeros((*tensors[name].shape, 2), np.float32)
    else:
        tensors[name] = tensors[name].astype(np.int32)
    return name


@pytest.mark.parametrize("case", ["missing", "unknown", "misshapen", "integers"])
def test_a_tensor_that_does_not_fit_is_named(saved, tmp_path, case):
    tensors = load_file(saved)
    name = broken(tensors, case)
    path = tmp_path / "bad.safetensors"
    save_file(tensors, path)
    with pytest.raises(InputError, match=rf"bad\.safetensors: .*{re.escape(name)}"):
        weights.load_network(path, build(0))


def test_a_damaged_or_absent_file_is_named(saved, tmp_path):
    whole = saved.read_bytes()
    for content in (b"", whole[:1000], b"\xff" * 64, whole[:-4]):
        path = tmp_path / "damaged.safetensors"
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"damaged\.safetensors: not a readable"):
            weights.load_network(path, build(0))
    with pytest.raises(InputError, match=r"absent\.safetensors: no such file"):
        weights.load_network(tmp_path / "absent.safetensors", build(0))


def test_an_interrupted_save_keeps_the_old_file(saved, tmp_path, monkeypatch):
    path = tmp_path / "codec.safetensors"
    path.write_bytes(saved.read_bytes())

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        weights.save_network(path, build(1), {})
    assert path.read_bytes() == saved.read_bytes()
