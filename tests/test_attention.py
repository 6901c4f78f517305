"""Every kernel of attention computes the same softmax, forwards and backwards."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tavr_jax.errors import InputError
from tavr_jax.models import attention_chunked, attention_cudnn, attention_splash
from tavr_jax.models.attention import attend, choose
from tavr_jax.models.attention_chunked import QUERY_TILE
from tavr_jax.models.attention_splash import BLOCKS, LANES, Blocks, fit


def inputs(n: int, m: int, batch: int = 2, heads: int = 2, d: int = 8, seed: int = 0):
    keys = jax.random.split(jax.random.key(seed), 3)
    shapes = [(batch, n, heads, d), (batch, m, heads, d), (batch, m, heads, d)]
    return [jax.random.normal(k, s) for k, s in zip(keys, shapes, strict=True)]


def plain(q, k, v, mask):
    """The softmax as it is written in a book; rows without a key are zero."""
    scores = jnp.einsum("bnkd,bmkd->bknm", q, k) / jnp.sqrt(q.shape[-1] * 1.0)
    if mask is None:
        mask = jnp.ones((1, 1, k.shape[1]), bool)
    scores = jnp.where(mask[:, None], scores, -jnp.inf)
    most = jnp.where(mask.any(-1)[:, None], scores.max(-1), 0.0)
    weights = jnp.exp(scores - jax.lax.stop_gradient(most)[..., None])
    total = weights.sum(-1, keepdims=True)
    return jnp.einsum("bknm,bmkd->bnkd", weights / jnp.where(total, total, 1.0), v)


def with_gradients(function, arrays, read):
    """Output and gradients of a loss that reads `read` ("B n") of the output."""

    def loss(*arrays):
        out = function(*arrays)
        told = jnp.sin(jnp.arange(out.size).reshape(out.shape))
        return (jnp.where(read[..., None, None], out, 0.0) * told).sum(), out

    run = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))
    (_, out), gradients = run(*arrays)
    assert np.isfinite(out).all()
    return [jnp.where(read[..., None, None], out, 0.0), *gradients]


def agree(function, arrays, mask, tolerance=2e-5):
    q = arrays[0]
    seen = jnp.ones((1, 1), bool) if mask is None else mask.any(-1)
    read = jnp.broadcast_to(seen, q.shape[:2])
    found = with_gradients(function, arrays, read)
    expected = with_gradients(lambda *a: plain(*a, mask), arrays, read)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance)


def key_mask(m: int):
    """Sample 0 keeps some keys, sample 1 none: all of it is padding."""
    kept = np.random.default_rng(1).random((2, 1, m)) < 0.6
    kept[0, 0, 0], kept[1] = True, False
    return jnp.asarray(kept)


@pytest.mark.parametrize("at_once", [0, 2**30])
@pytest.mark.parametrize(
    ("queries", "masked"), [(QUERY_TILE, False), (2 * QUERY_TILE + 3, True)]
)
def test_tiles_of_queries_are_the_plain_softmax(monkeypatch, queries, masked, at_once):
    monkeypatch.setattr(attention_chunked, "AT_ONCE", at_once)
    mask = key_mask(11) if masked else None
    agree(lambda *a: attend(*a, mask, "chunked"), inputs(queries, 11), mask)


def test_keys_in_parts_are_all_keys():
    """Forwards and backwards, as the ring reads them; a part may be all masked."""
    q, k, v = inputs(40, 24)
    kept = np.random.default_rng(1).random((2, 1, 24)) < 0.6
    kept[0, 0, :8], kept[:, 0, -1] = False, True
    kept = jnp.asarray(kept)
    whole = attention_chunked.part(q, k, v, kept)
    parts = [slice(i, i + 8) for i in (0, 8, 16)]
    read = [attention_chunked.part(q, k[:, p], v[:, p], kept[..., p]) for p in parts]
    read = functools.reduce(attention_chunked.joined, read)
    for a, b in zip(read, whole, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)
    told = attention_chunked.slopes(whole, jnp.cos(q))
    slopes = [
        attention_chunked.part_gradients(q, k[:, p], v[:, p], kept[..., p], told)
        for p in parts
    ]
    dq, dk, dv = attention_chunked.part_gradients(q, k, v, kept, told)
    np.testing.assert_allclose(sum(s[0] for s in slopes), dq, rtol=0, atol=1e-5)
    for i, all_of in ((1, dk), (2, dv)):
        found = jnp.concatenate([s[i] for s in slopes], axis=1)
        np.testing.assert_allclose(found, all_of, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("n", "m", "masked"), [(5, 3, True), (200, 301, True), (129, 128, False)]
)
def test_splash_is_the_plain_softmax(n, m, masked):
    mask = key_mask(m) if masked else None
    agree(lambda *a: attend(*a, mask, "splash"), inputs(n, m), mask)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_splash_asks_for_exact_products_of_float32_alone(dtype):
    """Commands set the precision (launch/cli.py), and Mosaic compiles no such product
    of 16-bit numbers; the gradient's are traced outside of the call."""
    arrays = [x.astype(dtype) for x in inputs(5, 3)]

    def loss(*arrays):
        return attend(*arrays, None, "splash").astype(jnp.float32).sum()

    with jax.default_matmul_precision("float32"):
        traced = jax.make_jaxpr(jax.grad(loss, argnums=(0, 1, 2)))(*arrays)
    assert str(traced).count("pallas_call[") == 3
    assert ("HIGHEST" in str(traced)) == (dtype == "float32")


@pytest.mark.parametrize("m", [1, 37])
def test_kept_keys_in_front_and_a_length_are_the_mask(monkeypatch, m):
    """cuDNN's call, answered by XLA: what is ours of it."""
    monkeypatch.setattr(attention_cudnn, "IMPLEMENTATION", "xla")
    for mask in (key_mask(m), None):
        kept = None if mask is None else mask[:, 0]
        agree(lambda *a, k=kept: attention_cudnn.attend(*a, k), inputs(9, m), mask)


def test_a_mask_of_pairs_is_obeyed_whatever_the_kernel(monkeypatch):
    monkeypatch.setattr(attention_chunked, "AT_ONCE", 0)
    mask = jax.random.bernoulli(jax.random.key(3), 0.5, (2, QUERY_TILE + 6, 11))
    agree(lambda *a: attend(*a, mask, "splash"), inputs(QUERY_TILE + 6, 11), mask)


def temporary_bytes(n: int) -> int:
    def loss(q, k, v):
        return attend(q, k, v, key_mask(n), "chunked").sum()

    shapes = jax.eval_shape(lambda: inputs(n, n))
    compiled = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(*shapes).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def test_memory_of_the_backward_pass_is_linear_in_the_sequence():
    """Scores that were kept would be four times as many for twice the tokens."""
    few, some, many = (temporary_bytes(n * QUERY_TILE) for n in (8, 16, 32))
    assert some < 2.1 * few and many < 2.1 * some


def test_auto_is_what_the_devices_can_do(monkeypatch):
    for name, dtype, expected in [
        ("tpu", "float32", "splash"),
        ("tpu", "bfloat16", "splash"),
        ("gpu", "bfloat16", "cudnn"),
        ("gpu", "float32", "chunked"),
        ("cpu", "bfloat16", "chunked"),
    ]:
        monkeypatch.setattr("tavr_jax.models.attention.platform", lambda n=name: n)
        assert choose("auto", jnp.dtype(dtype)) == expected
        assert choose("chunked", jnp.dtype(dtype)) == "chunked"
    with pytest.raises(InputError, match=r"model\.attention: cudnn reads 16-bit"):
        choose("cudnn", jnp.dtype("float32"))
    with pytest.raises(InputError, match="cudnn does not run on a cpu"):
        choose("cudnn", jnp.dtype("bfloat16"))


@pytest.mark.parametrize("kind", BLOCKS)
@pytest.mark.parametrize(("n", "m"), [(1, 1), (1560, 12), (33_120, 40_001)])
def test_blocks_fit_the_table_and_waste_little(kind, n, m):
    most = BLOCKS[kind]
    size = fit(n, m, most)
    assert all(a <= b for a, b in zip(size, most, strict=True))
    assert all(block % LANES == 0 for block in size) and size.kv % size.compute == 0
    for length, block, step in [(n, size.q, size.q), (m, size.kv, size.compute)]:
        padded = length + -length % block
        assert padded - length < LANES * padded // step
    assert fit(most.q, most.kv, most) == most


def test_an_unknown_chip_is_named(monkeypatch):
    monkeypatch.setattr(attention_splash, "device_kind", lambda: "TPU v99")
    with pytest.raises(InputError, match="TPU v99"):
        attend(*inputs(1, 1), None, "splash")
    assert Blocks(128, 128, 128) == fit(1, 1, BLOCKS["cpu"])
