"""Laws of the attention maps: shares of the model's own attention, at their places."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs import same_scene
from tavr_jax.evaluation.attention_map import (
    GAP,
    SIDE,
    attention_map,
    kept,
    overlay,
    reference_places,
    shares,
    sheet,
)
from tavr_jax.models.transformer import Transformer, TransformerConfig
from tavr_jax.types import Conditions

SIZES = same_scene.get_config("tiny").model
GRID, BATCH = 6, 2  # latents; tokens are 3 x 3
TARGETS = np.array([[0, 0, 0], [3, 1, 2], [4, 2, 1]])
KINDS = {
    "whole": {},
    "packed": {"still_bucket": 7, "reference_bucket": 14},
    "window": {"reference_attention": "window", "reference_bucket": 14},
}


def make(**fields) -> Transformer:
    """Random weights everywhere, the zero-initialised ones too."""
    config = TransformerConfig(**{**SIZES.to_dict(), **fields})
    made = Transformer(config, rngs=nnx.Rngs(0))
    key = jax.random.key(1)
    for name, variable in nnx.to_flat_state(nnx.state(made, nnx.Param)):
        key, this = jax.random.split(key)
        base = 1.0 if name[-1] == "scale" else 0.0
        variable[...] = base + 0.2 * jax.random.normal(this, variable.shape)
    return made


def conditions() -> Conditions:
    rng, side = np.random.default_rng(0), GRID // 2
    rows, slots = 4 * (SIZES.num_video_latents - 1) + 1, SIZES.num_videoref_latents

    def normal(*shape):
        return jnp.asarray(rng.standard_normal((BATCH, *shape)), jnp.float32)

    def valid(count, *shape):
        """The same number in every row: buckets have room for them, and no more."""
        order = rng.permuted(np.tile(np.arange(np.prod(shape)), (BATCH, 1)), axis=1)
        return jnp.asarray((order < count).reshape(BATCH, *shape))

    return Conditions(
        still=normal(1, GRID, GRID, 16),
        still_tokens=valid(5, side, side),
        motion=normal(2, GRID, GRID, 16),
        has_motion=jnp.arange(BATCH) % 2 == 0,
        reference=normal(slots, GRID, GRID, 16),
        reference_tokens=jnp.stack([valid(6, side, side) for _ in range(slots)], 1),
        text=normal(SIZES.text_len, SIZES.text_dim),
        null_text=normal(SIZES.text_len, SIZES.text_dim),
        audio=normal(rows, SIZES.audio_dim),
        has_audio=jnp.ones(BATCH, bool),
        reference_audio=normal(4 * slots, SIZES.videoref_audio_dim),
        has_reference_audio=jnp.ones(BATCH, bool),
    )


LATENTS = jax.random.normal(
    jax.random.key(7), (BATCH, SIZES.num_video_latents, GRID, GRID, 16)
)
TIME = jnp.array([311.0, 872.5])
TOLD = conditions()


@functools.cache
def reader(model: Transformer):
    def run(told: Conditions):
        cache = model.prefill(told)
        return attention_map(model, LATENTS, TIME, told, cache, TARGETS)

    return jax.jit(run)


def read(model: Transformer, told: Conditions = TOLD):
    return jax.device_get(reader(model)(told))


@pytest.fixture(scope="module", params=KINDS, ids=list(KINDS))
def model(request) -> Transformer:
    return make(**KINDS[request.param])


def test_all_that_is_read_is_one_and_masked_tokens_are_not_read(model):
    found = read(model)
    layers, heads, side = SIZES.num_layers, SIZES.num_heads, GRID // 2
    grid = (layers, BATCH, len(TARGETS), heads)
    assert found.video.shape == (*grid, SIZES.num_video_latents, side, side)
    total = found.video.sum((-3, -2, -1)) + found.still.sum((-2, -1))
    total += found.reference.sum((-3, -2, -1))
    np.testing.assert_allclose(total, 1, atol=1e-5)
    for shown, valid in (
        (found.still, TOLD.still_tokens),
        (found.reference, TOLD.reference_tokens),
    ):
        valid = np.broadcast_to(np.asarray(valid)[None, :, None, None], shown.shape)
        assert (shown[valid] > 0).all() and (shown[~valid] == 0).all()


def test_what_a_block_reads_of_the_reference_is_shares_times_values(model):
    """Block by block of the real model: its self-attention, less the same with a
    reference whose values are zero."""

    @jax.jit
    def both(found):
        cache = model.prefill(TOLD)
        x, context = model.embed_main(LATENTS, TIME, TOLD)
        places = reference_places(TOLD.reference_tokens, context.layout, model.config)
        samples, side = np.arange(BATCH)[:, None], GRID // 2
        asking = TARGETS @ [side * side, side, 1]
        graph, layers = nnx.split(model.blocks)
        kept = cache.values * cache.valid[None, :, :, None, None]
        pairs = []
        for number, shown in enumerate(kept):
            weights = jax.tree.map(lambda leaf, number=number: leaf[number], layers)
            block, keys = nnx.merge(graph, weights), cache.keys[number]
            parts = block.main(x, context, keys, shown, cache.valid)
            silent = block.main(x, context, keys, 0 * shown, cache.valid)
            seen = (parts.self_attn - silent.self_attn)[:, asking]
            shape = (BATCH, TOLD.reference_tokens[0].size, *shown.shape[2:])
            values = jnp.zeros(shape).at[samples, places].add(shown)
            flat = found.reference[number].reshape(*seen.shape[:2], shape[2], -1)
            sums = jnp.einsum("bnkm,bmkd->bnkd", flat, values)
            merge = block.self_attn.merge
            pairs.append((seen, merge(sums) - merge(0 * sums)))
            x = parts.x
        return pairs

    for seen, expected in both(read(model)):
        assert np.abs(seen).max() > 0.01
        np.testing.assert_allclose(seen, expected, atol=1e-5)


def test_an_only_token_is_where_it_was_put(model):
    """One token is left of still and reference: all that is not video is read there."""
    side = GRID // 2
    for place in ((0, 1, 2), (1, 2, 0)):
        only = jnp.zeros_like(TOLD.reference_tokens).at[:, *place].set(True)
        still = jnp.zeros((BATCH, side, side), bool).at[:, place[2], place[1]].set(True)
        found = read(model, TOLD._replace(reference_tokens=only, still_tokens=still))
        assert (found.reference[..., *place] > 0).all()
        assert np.count_nonzero(found.reference[0, 0, 0, 0]) == 1
        assert (found.still[..., place[2], place[1]] > 0).all()
        assert np.count_nonzero(found.still[0, 0, 0, 0]) == 1


def test_shares_by_hand():
    q = jnp.array([[[[2.0, 0.0]]]])
    k = jnp.array([[[[1.0, 5.0]], [[3.0, 1.0]], [[9.0, 9.0]]]])
    valid = jnp.array([[True, True, False]])
    first, second = np.exp(np.array([2.0, 6.0]) / np.sqrt(2))
    expected = [first / (first + second), second / (first + second), 0]
    np.testing.assert_allclose(shares(q, k, valid)[0, 0, 0], expected, rtol=1e-6)


def test_an_overlay_shines_where_it_is_read():
    frames = np.full((2, 32, 48, 3), 100, np.uint8)
    heat = np.zeros((2, 2, 3), np.float32)
    heat[1, 0, 2] = 0.02
    made = overlay(frames, heat).astype(int).sum(axis=-1)
    bright = made[1, :16, 32:]
    assert bright.min() > 2 * made[0].max()
    made[1, :16, 32:] = made[0, 0, 0]
    assert (made == made[0, 0, 0]).all()


def test_a_sheet_holds_every_frame():
    """Frames lie in reading order, whole; what is kept is unchanged, the rest black."""
    frames = np.arange(3 * 32 * 32 * 3, dtype=np.uint8).reshape(3, 32, 32, 3)
    valid = np.zeros((3, 2, 2), bool)
    valid[0, 1, 0] = True
    seen = kept(frames, valid)
    assert (seen[0, 16:, :16] == frames[0, 16:, :16]).all()
    assert not seen[1:].any() and not seen[0, :16].any() and not seen[0, :, 16:].any()
    page, scale = sheet([frames, frames[:1]]), -(-SIDE // 32)
    side = 32 * scale + 2 * GAP
    assert page.shape == (2 * side, 3 * side, 3)
    for row, column, index in ((0, 0, 0), (0, 2, 2), (1, 0, 0)):
        tile = page[row * side : (row + 1) * side, column * side : (column + 1) * side]
        inside = tile[GAP:-GAP, GAP:-GAP]
        assert (inside[::scale, ::scale] == frames[index]).all()
    assert (page[side:, side:] == 255).all()
