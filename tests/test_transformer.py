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


@pytest.mark.parametrize("field", ["attention", "reference_attention"])
def test_an_unknown_choice_is_named(field):
    with pytest.raises(InputError, match=rf"model\.{field}: 'x': expected"):
        dataclasses.replace(CONFIG, **{field: "x"})


def test_a_reference_read_latent_by_latent(model):
    """Each latent shows what it would if the others were not there."""
    local = resized(model, reference_attention="frame")
    told = conditions()
    changed = told._replace(reference=told.reference.at[:, 1].add(5.0))
    first = slice(0, GRID * GRID // 4)
    for a, b in zip(local.prefill(told), local.prefill(changed), strict=True):
        if a.ndim == 5:
            np.testing.assert_array_equal(a[:, :, first], b[:, :, first])
    assert np.abs(velocity(local, told) - velocity(model, told)).max() > 1e-3
    # one latent alone has nothing else to read
    one = told._replace(
        reference=told.reference[:, :1],
        reference_tokens=told.reference_tokens[:, :1],
        reference_audio=told.reference_audio[:, :4],
    )
    np.testing.assert_allclose(velocity(local, one), velocity(model, one), atol=2e-5)
    faces = 2 * int(told.reference_tokens.sum((2, 3)).max())
    packed = resized(local, reference_bucket=faces)
    assert packed.prefill(told).valid.shape[1] == faces < told.reference_tokens[0].size
    np.testing.assert_allclose(
        velocity(packed, told), velocity(local, told), rtol=0, atol=2e-5
    )


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


def test_remat_changes_nothing(model):
    told = conditions()
    np.testing.assert_allclose(
        velocity(resized(model, remat=True), told), velocity(model, told), atol=2e-5
    )


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
