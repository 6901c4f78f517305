"""Laws of the umT5 encoder, and the rows that PyTorch makes of the same weights."""

import dataclasses
import json
import math
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx

from launch.parity import compare
from launch.parity_oracle import Oracle
from launch.parity_text import replay_umt5, replay_wan_umt5
from tavr_jax.encoders.tensors import read_tensors, write_tensors
from tavr_jax.encoders.umt5 import Umt5, Umt5Config, relative_buckets
from tavr_jax.encoders.weights_umt5 import HUGGING_FACE, entries, load_umt5
from tavr_jax.errors import InputError

GOLDEN = Path(__file__).parent / "golden" / "text"
CONFIG = Umt5Config(
    vocabulary=40,
    dim=16,
    ffn_dim=24,
    head_dim=4,
    num_heads=3,
    num_layers=2,
    buckets=32,
    max_distance=128,
    eps=1e-6,
    dtype="float32",
)


@pytest.fixture(scope="module")
def model() -> Umt5:
    return load_umt5(GOLDEN / "hf.safetensors", "float32")


def ids(seed: int, batch: int, length: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(2, 40, (batch, length)).astype(np.int32)


def rows(model: Umt5, tokens: np.ndarray, mask=None) -> np.ndarray:
    mask = np.ones(tokens.shape, bool) if mask is None else mask
    return np.asarray(model(jnp.asarray(tokens), jnp.asarray(mask)))


def assert_reproduced(oracle: Oracle, checks: list) -> None:
    assert {c.name for c in checks} | oracle.inputs == set(oracle.names)
    for check in checks:
        error = compare(np.asarray(check.compute()), oracle.expected(check.name))
        assert error <= check.tolerance, check.name


def test_sizes_come_from_the_file(model):
    assert model.config == CONFIG


def test_recorded_rows_are_reproduced():
    oracle = Oracle.open(GOLDEN / "cases.npz")
    assert_reproduced(oracle, replay_wan_umt5(oracle))


@pytest.mark.parametrize(
    ("path", "replay"),
    [
        ("tavr_seed0/umt5.npz", replay_umt5),
        ("wan_seed0/umt5/cases.npz", replay_wan_umt5),
    ],
)
def test_released_rows_are_reproduced(shared, path, replay):
    oracle = Oracle.open(shared / "oracles" / path)
    assert_reproduced(oracle, replay(oracle))


def test_padding_changes_nothing(model):
    tokens, length = ids(0, 1, 30), 11
    alone = rows(model, tokens[:, :length])
    mask = np.arange(30)[None] < length
    for filler in (0, 7, 39):
        padded = np.where(mask, tokens, filler)
        found = rows(model, padded, mask)[:, :length]
        np.testing.assert_allclose(found, alone, rtol=0, atol=1e-5)


def test_a_batch_is_its_samples_side_by_side(model):
    tokens = ids(1, 3, 20)
    mask = np.arange(20)[None] < np.array([[20], [9], [1]])
    together = rows(model, tokens, mask)
    for i in range(3):
        one = slice(i, i + 1)
        single = rows(model, tokens[one], mask[one])
        np.testing.assert_allclose(together[one], single, rtol=0, atol=1e-5)


def test_positions_matter_only_by_their_distances(model):
    """A caption further to the right, its left side masked, has the same rows."""
    tokens = ids(2, 1, 12)
    moved = np.concatenate([ids(3, 1, 25), tokens], axis=1)
    mask = np.arange(37)[None] >= 25
    np.testing.assert_allclose(
        rows(model, moved, mask)[:, 25:], rows(model, tokens), rtol=0, atol=1e-5
    )
    turned = rows(model, tokens[:, ::-1].copy())[:, ::-1]
    assert np.abs(turned - rows(model, tokens)).max() > 0.1


def test_buckets_are_exact_then_logarithmic():
    relative = np.arange(-600, 601)
    found = relative_buckets(relative, 32, 128)
    before, after = found[:600][::-1], found[601:]
    np.testing.assert_array_equal(after, before + 16)
    assert found[600] == 0
    np.testing.assert_array_equal(before[:7], np.arange(1, 8))
    for m in range(8, 601):
        exact = 8 + math.log2(m / 8) * 2  # 8 ln(m / 8) / ln 16
        on_boundary = m in (16, 32, 64)
        expected = round(exact) if on_boundary else min(15, math.floor(exact))
        assert before[m - 1] == expected, m


@pytest.mark.parametrize(("buckets", "distance"), [(8, 20), (64, 300)])
def test_buckets_of_other_sizes_grow_to_the_last(buckets, distance):
    found = relative_buckets(-np.arange(2 * distance), buckets, distance)
    assert (np.diff(found) >= 0).all() and (np.diff(found) <= 1).all()
    assert found[-1] == buckets // 2 - 1
    assert (found[distance:] == found[-1]).all()
    np.testing.assert_array_equal(found[: buckets // 4], np.arange(buckets // 4))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_keep_the_dtype_of_the_file(tmp_path, dtype):
    half = {
        name: array.astype(ml_dtypes.bfloat16)
        for name, array in read_tensors(GOLDEN / "hf.safetensors").items()
    }
    path = tmp_path / "half.safetensors"
    write_tensors(path, half, {})
    model = load_umt5(path, dtype)
    for _, variable in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        assert variable.dtype == jnp.bfloat16
    found = rows(model, ids(4, 1, 20))
    assert found.dtype == np.dtype(dtype)
    exact = rows(load_umt5(GOLDEN / "hf.safetensors", "float32"), ids(4, 1, 20))
    assert compare(found.astype(np.float32), exact) < 5e-2


def test_both_layouts_are_the_same_network(model, tmp_path):
    source = read_tensors(GOLDEN / "hf.safetensors")
    pairs = zip(entries(model), entries(model, HUGGING_FACE), strict=True)
    path = tmp_path / "wan.safetensors"
    write_tensors(path, {wan.official: source[hf.official] for wan, hf in pairs}, {})
    other = load_umt5(path, "float32")
    assert other.config == model.config
    tokens = ids(5, 2, 9)
    np.testing.assert_array_equal(rows(other, tokens), rows(model, tokens))


def test_a_whole_umt5_and_its_tied_copy_are_read_too(model, tmp_path):
    tensors = read_tensors(GOLDEN / "hf.safetensors")
    table = tensors["shared.weight"]
    more = {
        "encoder.embed_tokens.weight": table,
        "decoder.final_layer_norm.weight": np.ones(16, np.float32),
        "lm_head.weight": table,
    }
    write_tensors(tmp_path / "whole.safetensors", tensors | more, {})
    tied = {"encoder.embed_tokens.weight": tensors.pop("shared.weight")}
    write_tensors(tmp_path / "tied.safetensors", tensors | tied, {})
    for name in ("whole", "tied"):
        found = load_umt5(tmp_path / f"{name}.safetensors", "float32")
        for ours, theirs in zip(
            jax.tree.leaves(nnx.state(found)),
            jax.tree.leaves(nnx.state(model)),
            strict=True,
        ):
            np.testing.assert_array_equal(ours, theirs)


def test_settings_that_shapes_do_not_tell_are_read_beside_the_weights(tmp_path):
    shutil.copy(GOLDEN / "hf.safetensors", tmp_path)
    settings = {"model_type": "umt5", "relative_attention_max_distance": 64}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    changed = dataclasses.replace(CONFIG, max_distance=64)
    assert load_umt5(tmp_path, "float32").config == changed
    for content in ('{"model_type": "t2v"}', "[1]", "{"):
        (tmp_path / "config.json").write_text(content)
        assert load_umt5(tmp_path, "float32").config == CONFIG


@pytest.mark.parametrize(
    ("drop", "add", "named"),
    [
        ("shared.weight", None, "token_embedding.weight"),
        ("encoder.block.0.layer.1.DenseReluDense.wi_1.weight", None, "wi_1"),
        ("encoder.block.1.layer.1.DenseReluDense.wo.weight", None, "wo.weight"),
        (None, "encoder.block.1.extra", "extra"),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(tmp_path, drop, add, named):
    tensors = read_tensors(GOLDEN / "hf.safetensors")
    tensors.pop(drop, None)
    if add:
        tensors[add] = np.zeros(3, np.float32)
    path = tmp_path / "bad.safetensors"
    write_tensors(path, tensors, {})
    with pytest.raises(InputError, match=rf"bad\.safetensors: .*{named}"):
        load_umt5(path, "float32")


def test_the_released_encoder_has_242_tensors():
    sizes = {"vocabulary": 256384, "dim": 4096, "ffn_dim": 10240, "num_layers": 24}
    heads = {"num_heads": 64, "head_dim": 64}
    config = dataclasses.replace(CONFIG, **sizes, **heads)
    table = entries(nnx.eval_shape(lambda: Umt5(config, rngs=nnx.Rngs(0))))
    assert len(table) == len({e.official for e in table}) == 242
    shapes = {e.official: e.shape for e in table}
    assert shapes["blocks.23.ffn.gate.0.weight"] == (10240, 4096)
    assert shapes["blocks.0.pos_embedding.embedding.weight"] == (32, 64)
    assert sum(math.prod(shape) for shape in shapes.values()) == 5_680_910_336
