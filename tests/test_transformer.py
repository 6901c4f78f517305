"""Laws of the transformer; its numbers are pinned by tests/test_parity.py."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs import same_scene
from tavr_jax.encoders.tensors import read_tensors, write_tensors
from tavr_jax.encoders.weights_tavr import load_transformer, save_transformer
from tavr_jax.errors import InputError
from tavr_jax.models import tokens
from tavr_jax.models.transformer import Transformer, TransformerConfig
from tavr_jax.types import Conditions

CONFIG = TransformerConfig(**same_scene.get_config("tiny").model)
GRID = 4


@pytest.fixture(scope="module")
def model() -> Transformer:
    """Random weights everywhere, the zero-initialised ones too."""
    made = Transformer(CONFIG, rngs=nnx.Rngs(0))
    key = jax.random.key(1)
    for name, variable in nnx.to_flat_state(nnx.state(made, nnx.Param)):
        key, this = jax.random.split(key)
        noise = jax.random.normal(this, variable.shape)
        base = 1.0 if name[-1] == "scale" else 0.0
        variable[...] = base + 0.2 * noise
    return made


def conditions(seed: int = 0, batch: int = 2, grid: int = GRID) -> Conditions:
    c, rng = CONFIG, np.random.default_rng(seed)
    rows, slots = 4 * (c.num_video_latents - 1) + 1, c.num_videoref_latents

    def normal(*shape):
        return jnp.asarray(rng.standard_normal((batch, *shape)), jnp.float32)

    def coin(*shape):
        return jnp.asarray(rng.random((batch, *shape)) < 0.5)

    return Conditions(
        still=normal(1, grid, grid, 16),
        still_tokens=coin(grid // 2, grid // 2),
        motion=normal(2, grid, grid, 16),
        has_motion=jnp.arange(batch) % 2 == 0,
        reference=normal(slots, grid, grid, 16),
        reference_tokens=coin(slots, grid // 2, grid // 2),
        text=normal(c.text_len, c.text_dim),
        null_text=normal(c.text_len, c.text_dim),
        audio=normal(rows, c.audio_dim),
        has_audio=jnp.ones(batch, bool),
        reference_audio=normal(4 * slots, c.videoref_audio_dim),
        has_reference_audio=jnp.ones(batch, bool),
    )


LATENTS = jax.random.normal(
    jax.random.key(7), (2, CONFIG.num_video_latents, GRID, GRID, 16)
)
TIME = jnp.array([311.0, 872.5])


def velocity(model: Transformer, told: Conditions) -> np.ndarray:
    run = jax.jit(lambda c: model(LATENTS, TIME, c, model.prefill(c)))
    return np.asarray(run(told))


def resized(model: Transformer, **fields) -> Transformer:
    """The same weights under another config."""
    config = dataclasses.replace(model.config, **fields)
    other = Transformer(config, rngs=nnx.Rngs(0))
    nnx.update(other, nnx.state(model, nnx.Param))
    return other


def test_packed_into_a_bucket_equals_unpacked(model):
    told = conditions()
    still = int(told.still_tokens.sum((1, 2)).max())
    faces = int(told.reference_tokens.sum((1, 2, 3)).max())
    packed = resized(model, still_bucket=still, reference_bucket=faces)
    np.testing.assert_allclose(
        velocity(packed, told), velocity(model, told), rtol=0, atol=2e-5
    )


@pytest.mark.parametrize("field", ["attention", "reference_attention", "remat"])
def test_an_unknown_choice_is_named(field):
    with pytest.raises(InputError, match=rf"model\.{field}: 'x': expected"):
        dataclasses.replace(CONFIG, **{field: "x"})


def longer(told: Conditions, times: int) -> Conditions:
    """Its reference, `times` times in a row, no two of them the same."""

    def repeat(x, axis: int = 1):
        return jnp.concatenate([x] * times, axis)

    reference = repeat(told.reference)
    return told._replace(
        reference=reference + jnp.arange(reference.size).reshape(reference.shape) % 7,
        reference_tokens=repeat(told.reference_tokens),
        reference_audio=repeat(told.reference_audio),
    )


def shown(model: Transformer, told: Conditions) -> tuple:
    return tuple(jax.device_get(jax.jit(model.prefill)(told)))


def test_a_reference_read_nearby(model):
    """Frame is window 0; a window over everything is global; further is unseen."""
    told = longer(conditions(), 2)
    told = told._replace(reference_tokens=jnp.ones_like(told.reference_tokens))
    area, slots = GRID * GRID // 4, told.reference.shape[1]
    assert slots >= 4

    def window(reach: int) -> Transformer:
        fields = {"reference_attention": "window", "reference_window": reach}
        return resized(model, **fields)

    frame = shown(resized(model, reference_attention="frame"), told)
    for a, b in zip(frame, shown(window(0), told), strict=True):
        np.testing.assert_array_equal(a, b)
    whole, few = shown(model, told), shown(window(slots - 2), told)
    for i, (a, b) in enumerate(zip(shown(window(slots), told), whole, strict=True)):
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-5)
        assert i == 2 or np.abs(few[i] - b).max() > 1e-3
    # two layers: the keys of the second know what is one latent away, no more
    assert CONFIG.num_layers == 2
    changed = told._replace(reference=told.reference.at[:, 2].add(5.0))
    for a, b in zip(shown(window(1), told), shown(window(1), changed), strict=True):
        if a.ndim == 5:
            np.testing.assert_array_equal(a[:, :, :area], b[:, :, :area])
            assert (a[1, :, area : 2 * area] != b[1, :, area : 2 * area]).any()


def test_latents_that_are_packed_alone_are_the_unpacked(model):
    told = conditions()
    local = resized(model, reference_attention="window", reference_window=1)
    faces = 2 * int(told.reference_tokens.sum((2, 3)).max())
    packed = resized(local, reference_bucket=faces)
    np.testing.assert_allclose(
        velocity(packed, told), velocity(local, told), rtol=0, atol=2e-5
    )
    assert shown(packed, told)[2].shape[1] == faces < told.reference_tokens[0].size


def test_sound_read_latent_by_latent_is_the_dense_read(model):
    told = conditions()
    local = resized(model, reference_attention="frame", reference_bucket=6)
    x, context = local.embed_reference(told)
    assert not context.valid.all() and context.audio_mask is None
    graph, layers = nnx.split(local.blocks)
    heard = nnx.merge(graph, jax.tree.map(lambda w: w[0], layers)).audio_attn.reference

    def dense(shift: int) -> np.ndarray:
        """Scores of all pairs; each latent reads the rows of one `shift` later."""
        slots = told.reference.shape[1]
        tokens = (np.repeat(np.arange(slots), x.shape[1] // slots) + shift) % slots
        rows = np.repeat(np.arange(slots), CONFIG.audio_per_latent)
        mask = np.broadcast_to(tokens[:, None] == rows, (*x.shape[:2], len(rows)))
        return heard(x, context._replace(near=None, audio_mask=jnp.asarray(mask)))

    found = heard(x, context)
    np.testing.assert_allclose(found, dense(0), rtol=0, atol=1e-5)
    assert np.abs(found - dense(1)).max() > 1e-3


def test_a_cache_is_the_reference_itself(model):
    """Bit by bit: made once and read by two steps, or made where it is read."""
    told = conditions()
    cache = jax.jit(model.prefill)(told)
    read = jax.jit(model.__call__)
    both = jax.jit(lambda x, t, told: model(x, t, told, model.prefill(told)))
    for time in (TIME, TIME - 100.0):
        found, again = read(LATENTS, time, told, cache), both(LATENTS, time, told)
        np.testing.assert_array_equal(found, again)


def test_members_of_a_group_read_one_cache(model):
    told, group = conditions(), 3
    members = jax.tree.map(lambda x: jnp.repeat(x, group, axis=0), told)
    shape = (len(LATENTS) * group, *LATENTS.shape[1:])
    latents = jax.random.normal(jax.random.key(5), shape)
    time = jnp.linspace(100, 900, len(latents))

    def run(of: Conditions):
        return model(latents, time, members, model.prefill(of))

    found, expected = (jax.jit(run)(of) for of in (told, members))
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)
    with pytest.raises(ValueError, match="6 members of 4 references"):
        jax.eval_shape(run, conditions(batch=4))


def test_invalid_tokens_never_matter(model):
    told = conditions()
    pixel = (..., None)
    wide = jnp.repeat(jnp.repeat(told.reference_tokens, 2, 2), 2, 3)[pixel]
    still = jnp.repeat(jnp.repeat(told.still_tokens, 2, 1), 2, 2)[:, None][pixel]
    changed = told._replace(
        reference=jnp.where(wide, told.reference, 7.0),
        still=jnp.where(still, told.still, -7.0),
    )
    np.testing.assert_allclose(
        velocity(model, changed), velocity(model, told), rtol=0, atol=2e-5
    )


def test_masking_every_reference_token_is_no_reference(model):
    told = conditions()
    none = told._replace(reference_tokens=jnp.zeros_like(told.reference_tokens))
    empty = none._replace(
        reference=none.reference[:, :0],
        reference_tokens=none.reference_tokens[:, :0],
        reference_audio=none.reference_audio[:, :0],
    )
    masked = velocity(model, none)
    assert np.isfinite(masked).all()
    np.testing.assert_allclose(masked, velocity(model, empty), rtol=0, atol=2e-5)
    assert np.abs(masked - velocity(model, told)).max() > 1e-3


def test_gradients_are_finite_without_any_reference_token(model):
    told = conditions()
    told = told._replace(reference_tokens=jnp.zeros_like(told.reference_tokens))
    graph, params = nnx.split(model, nnx.Param)

    @jax.jit
    @jax.grad
    def gradient(params):
        net = nnx.merge(graph, params)
        return jnp.square(net(LATENTS, TIME, told, net.prefill(told))).mean()

    leaves = jax.tree.leaves(gradient(params))
    assert all(np.isfinite(leaf).all() for leaf in leaves)


def test_the_reference_ignores_noise_time_caption_and_driving_audio(model):
    told = conditions()
    other = conditions(seed=5)
    changed = told._replace(
        text=other.text, audio=other.audio, still=other.still, motion=other.motion
    )
    for a, b in zip(model.prefill(told), model.prefill(changed), strict=True):
        np.testing.assert_array_equal(a, b)


def test_motion_latents_replace_the_head_of_a_continuation(model):
    told = conditions()
    changed = LATENTS.at[:, :2].add(3.0)
    run = jax.jit(lambda x: model(x, TIME, told, model.prefill(told)))
    same, different = np.asarray(run(changed) - run(LATENTS))
    assert np.abs(same).max() == 0.0  # has_motion: sample 0
    assert np.abs(different).max() > 1e-3


def test_samples_of_a_batch_do_not_meet(model):
    told = conditions()
    together = velocity(model, told)
    one = jax.tree.map(lambda leaf: leaf[1:], told)
    alone = model(LATENTS[1:], TIME[1:], one, model.prefill(one))
    np.testing.assert_allclose(alone[0], together[1], rtol=0, atol=2e-5)


def slopes(model: Transformer, remat: str):
    """Gradients as a function of parameters, and the parameters."""
    told = conditions()
    graph, params = nnx.split(resized(model, remat=remat), nnx.Param)

    def loss(params):
        net = nnx.merge(graph, params)
        return jnp.square(net(LATENTS, TIME, told, net.prefill(told))).mean()

    return jax.grad(loss), params


def test_remat_says_what_is_computed_again(model):
    def products(remat: str) -> int:
        function, params = slopes(model, remat)
        return str(jax.make_jaxpr(function)(params)).count("dot_general")

    counts = [products(x) for x in ("none", "offload", "attention", "full")]
    # full: q k and p v of self-attention in both streams too
    assert counts[0] < counts[1] == counts[2] == counts[3] - 4


@pytest.mark.parametrize(
    "remat",
    [
        "attention",
        pytest.param("full", marks=pytest.mark.slow),
        pytest.param("offload", marks=pytest.mark.slow),
    ],
)
def test_remat_changes_no_gradient(model, remat):
    """The others: pytest -m slow tests/test_transformer.py"""
    (found, params), (expected, _) = slopes(model, remat), slopes(model, "none")
    pairs = (jax.tree.leaves(jax.jit(f)(params)) for f in (found, expected))
    for a, b in zip(*pairs, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-5 * np.abs(b).max())


def test_unpatchify_undoes_patchify():
    x = jax.random.normal(jax.random.key(0), (2, 3, 4, 6, 5))
    again = tokens.unpatchify(tokens.patchify(x, (1, 2, 2)), (1, 2, 2))
    np.testing.assert_array_equal(again, x)


def test_ours_to_published_names_and_back_is_the_identity(model, tmp_path):
    path = tmp_path / "tavr.safetensors"
    save_transformer(path, model, {})
    other = Transformer(CONFIG, rngs=nnx.Rngs(3))
    other = load_transformer(path, other)
    for (name, a), (_, b) in zip(
        nnx.to_flat_state(nnx.state(model)),
        nnx.to_flat_state(nnx.state(other)),
        strict=True,
    ):
        np.testing.assert_array_equal(a[...], b[...], err_msg=str(name))


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda t: t.pop("blocks.1.ffn.0.bias"), "blocks.1.ffn.0.bias"),
        (lambda t: t.update(extra=np.zeros(1, np.float32)), "extra"),
        (lambda t: t.update({"head.head.bias": np.zeros(3)}), "head.head.bias"),
    ],
)
def test_a_bad_tensor_is_named(model, tmp_path, damage, named):
    path = tmp_path / "tavr.safetensors"
    save_transformer(path, model, {})
    tensors = read_tensors(path)
    damage(tensors)
    write_tensors(path, tensors, {})
    with pytest.raises(InputError, match=named):
        load_transformer(path, model)
