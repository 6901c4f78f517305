import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs import base, same_scene
from tavr_jax.encoders.weights_tavr import load_transformer, save_transformer
from tavr_jax.errors import InputError
from tavr_jax.models.layers import linear
from tavr_jax.models.transformer import Transformer, TransformerConfig
from tavr_jax.training import lora
from tavr_jax.training.lora import LoraConfig, graft, merge
from tavr_jax.types import Conditions

CONFIG = TransformerConfig(**same_scene.get_config("tiny").model)
RANK, GRID, BATCH = 4, 4, 2
ADDED = dataclasses.replace(LoraConfig(**base.lora()), rank=RANK, alpha=6.0)


def drawn(seed: int, model: nnx.Module) -> nnx.Module:
    """No weight of it is zero."""
    graph, state = nnx.split(model)
    rng = np.random.default_rng(seed)
    return nnx.merge(
        graph,
        jax.tree.map(
            lambda s: jnp.asarray(0.2 * rng.standard_normal(s.shape, np.float32)), state
        ),
    )


def transformer(dtype: str = "float32") -> Transformer:
    config = dataclasses.replace(CONFIG, dtype=dtype)
    return drawn(1, nnx.eval_shape(lambda: Transformer(config, rngs=nnx.Rngs(0))))


def flat(model: nnx.Module) -> dict[str, np.ndarray]:
    state = nnx.to_flat_state(nnx.state(model, nnx.Param))
    return {"/".join(map(str, k)): np.asarray(v[...]) for k, v in state}


def conditions() -> Conditions:
    rng, slots = np.random.default_rng(3), CONFIG.num_videoref_latents

    def normal(*shape):
        return jnp.asarray(rng.standard_normal((BATCH, *shape)), jnp.float32)

    there = jnp.ones(BATCH, bool)
    return Conditions(
        still=normal(1, GRID, GRID, 16),
        still_tokens=jnp.ones((BATCH, GRID // 2, GRID // 2), bool),
        motion=normal(2, GRID, GRID, 16),
        has_motion=there,
        reference=normal(slots, GRID, GRID, 16),
        reference_tokens=jnp.ones((BATCH, slots, GRID // 2, GRID // 2), bool),
        text=normal(CONFIG.text_len, CONFIG.text_dim),
        null_text=normal(CONFIG.text_len, CONFIG.text_dim),
        audio=normal(4 * (CONFIG.num_video_latents - 1) + 1, CONFIG.audio_dim),
        has_audio=there,
        reference_audio=normal(4 * slots, CONFIG.videoref_audio_dim),
        has_reference_audio=there,
    )


TOLD = conditions()
LATENTS = jax.random.normal(
    jax.random.key(7), (BATCH, CONFIG.num_video_latents, GRID, GRID, 16)
)


@nnx.jit
def outputs(model: Transformer) -> tuple[jax.Array, jax.Array]:
    """The reference's keys, and the velocity that reads them."""
    cache = model.prefill(TOLD)
    return cache.keys, model(LATENTS, jnp.array([311.0, 872.5]), TOLD, cache)


@pytest.fixture(scope="module")
def trained() -> Transformer:
    """Additions as large as the weights."""
    model = graft(transformer(), ADDED, nnx.Rngs(0))
    graph, factors, rest = nnx.split(model, is_factor, nnx.Param)
    factors = nnx.state(drawn(2, nnx.merge(graph, factors, rest)), is_factor)
    return nnx.merge(graph, factors, rest)


def is_factor(path: tuple, _) -> bool:
    return path[-1] in lora.FACTORS


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_fresh_addition_changes_no_bit(dtype):
    plain = Holder(drawn(5, linear(WIDTH, 2 * WIDTH, dtype, nnx.Rngs(0))))
    model = graft(plain, LoraConfig(RANK, 6.0, "layer"), nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(1), (3, 50, WIDTH))
    found, expected = (nnx.jit(lambda m, x: m.layer(x))(m, x) for m in (model, plain))
    assert np.abs(expected).max() > 1
    np.testing.assert_array_equal(found, expected)


def test_a_freshly_grafted_transformer_is_the_plain_one():
    """But for what XLA reorders in a larger program."""
    plain = transformer()
    model = graft(plain, ADDED, nnx.Rngs(0))
    assert {"blocks/ffn/up/lora_a", "blocks/audio_attn/o/lora_b"} <= flat(model).keys()
    for found, expected in zip(outputs(model), outputs(plain), strict=True):
        scale = np.abs(expected).max()
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6 * scale)


def test_the_given_network_is_left_alone():
    plain = transformer()
    before = flat(plain)
    graft(plain, ADDED, nnx.Rngs(0)).blocks.ffn.up.kernel[...] = jnp.zeros(())
    assert flat(plain).keys() == before.keys()
    np.testing.assert_array_equal(
        plain.blocks.ffn.up.kernel, before["blocks/ffn/up/kernel"]
    )


def test_merged_is_the_same_function(trained):
    merged = merge(trained)
    assert flat(merged).keys() == flat(transformer()).keys()
    before = outputs(transformer())
    for k, (found, expected) in enumerate(
        zip(outputs(merged), outputs(trained), strict=True)
    ):
        scale = np.abs(expected).max()
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * scale)
        assert np.abs(expected - before[k]).max() > 0.1 * scale


def test_the_change_has_the_rank(trained):
    before = flat(transformer())
    change = {name: v - before[name] for name, v in flat(merge(trained)).items()}
    moved = {name for name, value in change.items() if np.any(value)}
    assert len(moved) == 14 and all(re.search(r"[qkvo]/|ffn", n) for n in moved)
    for name in moved:
        for layer in change[name]:
            singular = np.linalg.svd(layer, compute_uv=False)
            assert singular[RANK - 1] > 1e-2 * singular[0]
            assert singular[RANK] < 1e-5 * singular[0]


def test_merged_weights_have_official_names(trained, tmp_path):
    path = save_transformer(tmp_path / "tavr.safetensors", merge(trained), {})
    shapes = nnx.eval_shape(lambda: Transformer(CONFIG, rngs=nnx.Rngs(0)))
    loaded = flat(load_transformer(path, shapes))
    for name, value in flat(merge(trained)).items():
        np.testing.assert_array_equal(loaded[name], value)


def test_merging_keeps_the_dtype_and_the_place_of_the_weights(trained):
    mesh = jax.make_mesh((8,), ("fsdp",))
    place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "fsdp"))
    model = merge(merge(trained))  # of a plain network: a copy
    model = graft(model, ADDED, nnx.Rngs(0))
    kernel = model.blocks.self_attn.q.kernel
    kernel.set_value(jax.device_put(kernel[...].astype(jnp.bfloat16), place))
    merged = merge(model).blocks.self_attn.q.kernel[...]
    assert merged.sharding == place and merged.dtype == jnp.bfloat16


def test_gradients_are_of_the_factors_alone_and_low_rank():
    """Equal to those of the merged layer by the chain rule, without the matrix."""
    layer = graft(Stack(), LoraConfig(RANK, 6.0, "layers"), nnx.Rngs(0))
    layer = drawn(4, layer)
    x = jax.random.normal(jax.random.key(1), (7, WIDTH))
    graph, factors, rest = nnx.split(layer, is_factor, nnx.Param)

    def loss(factors):
        return jnp.sin(nnx.merge(graph, factors, rest)(x)).sum()

    def merged_loss(factors):
        return jnp.sin(merge_by_hand(nnx.merge(graph, factors, rest))(x)).sum()

    compiled = jax.jit(jax.grad(loss)).lower(factors).compile()
    found, expected = compiled(factors), jax.grad(merged_loss)(factors)
    assert {p[-1] for p, _ in nnx.to_flat_state(found)} == set(lora.FACTORS)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), found, expected
    )
    # Nothing of the size of a kernel is multiplied together, forward or backward.
    made = re.findall(r"f32\[([\d,]+)\]\S* (?:dot|convolution)\(", compiled.as_text())
    assert made and f"{WIDTH},{WIDTH}" not in made


def test_additions_below_the_last_bit_of_bfloat16_are_not_lost():
    """On average over inputs; rounded on their own they would never change anything."""
    layer = linear(WIDTH, WIDTH, "bfloat16", nnx.Rngs(0))
    holder = graft(Holder(layer), LoraConfig(1, 1.0, "layer"), nnx.Rngs(0))
    x = 1.0 + 0.2 * jax.random.normal(jax.random.key(1), (4000, WIDTH))
    x = x.at[:, 0].set(1.0)
    low = holder.layer
    low.kernel[...] = jnp.abs(low.kernel[...])  # outputs near 4: last bit 2^-6
    low.lora_a[...] = jnp.zeros((WIDTH, 1)).at[0].set(1.0)
    before = low(x).astype(jnp.float32)
    small = 2.0**-10
    low.lora_b[...] = jnp.full((1, WIDTH), small)
    after = low(x)
    assert after.dtype == jnp.bfloat16
    change = np.asarray(after.astype(jnp.float32) - before).mean()
    np.testing.assert_allclose(change, small, rtol=0.1)


def test_an_abstract_network_can_be_grafted():
    shapes = nnx.eval_shape(transformer)
    found = graft(shapes, ADDED, nnx.Rngs(0))
    expected = graft(transformer(), ADDED, nnx.Rngs(0))
    for (k, a), (q, b) in zip(
        *(nnx.to_flat_state(nnx.state(m)) for m in (found, expected)), strict=True
    ):
        assert k == q and (a.shape, a.dtype) == (b.shape, b.dtype)
    assert found.blocks.ffn.down.lora_a.shape == (2, CONFIG.ffn_dim, RANK)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"rank": 0}, r"lora\.rank: 0: expected 1"),
        ({"alpha": 0.0}, r"lora\.alpha"),
        ({"layers": "("}, r"lora\.layers: '\(': no regular expression"),
        (
            {"layers": "blocks/none"},
            r"lora\.layers: .* matches no dense .*there are \w",
        ),
        ({"layers": "blocks/norm3"}, r"lora\.layers: .* matches no dense"),
        ({"rank": 33}, r"lora\.rank: 33: layer blocks/.* is 32 x 32; give at most 32"),
    ],
)
def test_a_config_that_fits_nothing_is_named(fields, told):
    with pytest.raises(InputError, match=told):
        graft(transformer(), dataclasses.replace(ADDED, **fields), nnx.Rngs(0))


WIDTH = 24


class Holder(nnx.Module):
    def __init__(self, layer):
        self.layer = layer


class Stack(nnx.Module):
    """Three layers on a leading axis, scanned as the transformer scans its blocks."""

    def __init__(self):
        @nnx.split_rngs(splits=3)
        @nnx.vmap(in_axes=(0,), out_axes=0)
        def create(rngs):
            return linear(WIDTH, WIDTH, "float32", rngs)

        self.layers = create(nnx.Rngs(0))

    def __call__(self, x):
        graph, layers = nnx.split(self.layers)
        return jax.lax.scan(
            lambda x, w: (jnp.tanh(nnx.merge(graph, w)(x)), None), x, layers
        )[0]


def merge_by_hand(model: Stack) -> Stack:
    low = model.layers
    kernel = low.kernel[...] + 6.0 / RANK * low.lora_a[...] @ low.lora_b[...]
    plain = Stack()
    plain.layers.kernel[...], plain.layers.bias[...] = kernel, low.bias[...]
    return plain
