import os
import re
import tracemalloc

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx

from configs import same_scene
from launch import build
from launch.parity_oracle import Oracle
from tavr_jax.encoders.published import Entry, fill, save
from tavr_jax.encoders.tensors import open_tensors, read_tensors, write_tensors
from tavr_jax.encoders.weights_tavr import (
    entries,
    load_transformer,
    save_transformer,
)
from tavr_jax.errors import InputError
from tavr_jax.models.transformer import Transformer, TransformerConfig
from tavr_jax.parallel import sharding
from tavr_jax.parallel.mesh import MeshConfig, make_mesh

# What the released constructor keeps in float32 (TAVR_SPEC 11).
WIDE = r"patch_embedding.*|.*modulation|.*pos_embedding.*|null.*|time_embedding_video.*"


@pytest.fixture(scope="module")
def model() -> Transformer:
    """The shapes of the smallest transformer."""
    return build.abstract_transformer(same_scene.get_config("tiny"))


@pytest.fixture(scope="module")
def file(model, tmp_path_factory):
    """Random numbers under published names; some float32, most bfloat16."""
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("published") / "tavr.safetensors"
    tensors = {
        e.official: rng.standard_normal(e.shape).astype(
            np.float32 if re.fullmatch(WIDE, e.official) else ml_dtypes.bfloat16
        )
        for e in entries(model)
    }
    write_tensors(path, tensors, {})
    return path


def same_bytes(one, other) -> bool:
    a, b = read_tensors(one), read_tensors(other)
    return a.keys() == b.keys() and all(
        (x.dtype, x.shape, x.tobytes()) == (b[n].dtype, b[n].shape, b[n].tobytes())
        for n, x in a.items()
    )


def leaves(module):
    return jax.tree.leaves(nnx.state(module, nnx.Param))


def test_published_to_ours_and_back_is_the_identity(file, model, tmp_path):
    loaded = load_transformer(file, model, dtype="file")
    assert {x.dtype.name for x in leaves(loaded)} == {"float32", "bfloat16"}
    save_transformer(tmp_path / "back.safetensors", loaded, {})
    assert same_bytes(file, tmp_path / "back.safetensors")


def test_the_official_release_s_own_file_comes_back_byte_for_byte(shared, tmp_path):
    folder = shared / "oracles/tavr_seed0"
    sizes = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in Oracle.open(folder / "chunking.npz")
        .config["transformer"]
        .items()
    }
    config = same_scene.get_config("tavr_14b").model
    config.update({name: sizes[name] for name in config if name in sizes})
    model = nnx.eval_shape(
        lambda: Transformer(TransformerConfig(**config), rngs=nnx.Rngs(0))
    )
    source = folder / "transformer.safetensors"
    loaded = load_transformer(source, model, dtype="file")
    assert {x.dtype.name for x in leaves(loaded)} == {"bfloat16"}
    back = save_transformer(tmp_path / "x.safetensors", loaded, {}, shard_bytes=100_000)
    assert back.name == "x.safetensors.index.json"
    assert len(list(tmp_path.glob("*-of-00005.safetensors"))) == 5
    assert same_bytes(source, back)


@pytest.mark.parametrize("shape", [(1, 8, 1, 1), (2, 2, 2, 1)])
def test_every_device_gets_its_part_of_the_same_weights(file, model, shape):
    whole = load_transformer(file, model)
    mesh = make_mesh(MeshConfig(*shape))
    graph, params = nnx.split(model, nnx.Param)
    asked = sharding.abstract(mesh, params)
    split = load_transformer(file, nnx.merge(graph, asked))
    pairs = zip(leaves(split), leaves(whole), jax.tree.leaves(asked), strict=True)
    for ours, expected, place in pairs:
        assert ours.sharding == place.sharding and ours.dtype == expected.dtype
        np.testing.assert_array_equal(ours, expected)
    assert any(len(x.sharding.device_set) > 1 for x in leaves(split))


def test_the_dtype_is_the_parameter_s_the_asked_or_the_file_s(file, model):
    assert {x.dtype.name for x in leaves(load_transformer(file, model))} == {"float32"}
    half = load_transformer(file, model, dtype=jnp.bfloat16)
    assert {x.dtype.name for x in leaves(half)} == {"bfloat16"}
    expected = read_tensors(file)["patch_embedding.bias"].astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(half.patch_embedding.bias[...], expected)


class Stack(nnx.Module):
    """A stack, a kernel and a bias, large enough to see what loading them takes."""

    def __init__(self, layers: int, width: int):
        self.stack = nnx.Param(jnp.zeros((layers, width, width)))
        self.kernel = nnx.Param(jnp.zeros((4, width)))
        self.bias = nnx.Param(jnp.zeros(width))

    def table(self) -> list[Entry]:
        layers, width, _ = self.stack.shape
        return [
            *(
                Entry(f"l{i}", (width, width), ("stack",), i, (1, 0))
                for i in range(layers)
            ),
            Entry("kernel", (width, 2, 2), ("kernel",), None, (1, 2, 0)),
            Entry("bias", (1, width), ("bias",), None, None),
        ]


def write_stack(path, module):
    rng = np.random.default_rng(0)
    tensors = {e.official: rng.random(e.shape, np.float32) for e in module.table()}
    write_tensors(path, tensors, {})
    return tensors


def test_equations_1_and_2_by_hand(tmp_path):
    module = Stack(3, 4)
    path = tmp_path / "x.safetensors"
    tensors = write_stack(path, module)
    filled = fill(open_tensors(path), module, module.table())
    assert not module.stack[...].any()  # untouched
    np.testing.assert_array_equal(filled.stack[1], tensors["l1"].T)
    np.testing.assert_array_equal(filled.kernel[2], tensors["kernel"][:, 1, 0])
    np.testing.assert_array_equal(filled.bias[...], tensors["bias"][0])
    save(tmp_path / "y.safetensors", filled, filled.table(), {})
    assert same_bytes(path, tmp_path / "y.safetensors")


@pytest.mark.parametrize("devices", [1, 8])
def test_beside_the_weights_there_is_one_tensor(tmp_path, devices):
    """Of many layers, never the stack. `launch.bench load` does it in full size."""
    excess = []
    for layers in (4, 16):
        module = nnx.eval_shape(lambda layers=layers: Stack(layers, 512))
        path = tmp_path / f"{layers}.safetensors"
        write_stack(path, module)
        if devices > 1:
            graph, params = nnx.split(module, nnx.Param)
            mesh = make_mesh(MeshConfig(1, devices, 1, 1))
            module = nnx.merge(graph, sharding.abstract(mesh, params))
        tensors = open_tensors(path)
        tracemalloc.start()
        filled = fill(tensors, module, module.table())
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        excess.append(peak - sum(x.nbytes for x in leaves(filled)))
    largest = 512 * 512 * 4
    assert all(e < 1.3 * largest for e in excess), excess


def test_only_what_is_named_as_ignored_is_ignored(tmp_path):
    module = Stack(2, 4)
    path = tmp_path / "x.safetensors"
    more = {"step": np.zeros(1), "stepped": np.zeros(1)}
    write_tensors(path, write_stack(path, module) | more, {})
    with pytest.raises(InputError, match=r"x\.safetensors: unknown tensor 'stepped'"):
        fill(open_tensors(path), module, module.table(), ignored=("step",))
    fill(open_tensors(path), module, module.table(), ignored=("step.*",))


def test_a_table_that_does_not_fit_its_module_is_a_bug(tmp_path):
    module = Stack(2, 4)
    path = tmp_path / "x.safetensors"
    whole = write_stack(path, module)
    for table in (
        module.table()[1:],
        module.table()[:-1],
        [e._replace(ours=("other",)) for e in module.table()],
    ):
        names = {e.official for e in table}
        write_tensors(path, {n: a for n, a in whole.items() if n in names}, {})
        with pytest.raises(ValueError, match="table"):
            fill(open_tensors(path), module, table)


def test_an_interrupted_save_leaves_nothing(file, model, tmp_path, monkeypatch):
    loaded, calls = load_transformer(file, model), []

    def interrupted(source, target):
        calls.append(target)
        if len(calls) > 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    path = tmp_path / "x.safetensors"
    with pytest.raises(KeyboardInterrupt):
        save_transformer(path, loaded, {}, shard_bytes=10_000)
    assert not list(tmp_path.iterdir())
