"""Laws of conditions, through the loss of stages 1 and 2 and the real transformer."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from test_supervised import KEY, drawn, errors_of, recipe
from test_training import MOTION, global_batch
from test_transformer import CONFIG, GRID, conditions

from tavr_jax.diffusion.guidance import Network
from tavr_jax.models.transformer import Transformer
from tavr_jax.training import supervised
from tavr_jax.training.accumulate import value_and_grad

WEIGHTS = {"face_weight": 2.0, "lips_weight": 4.0}


def tiny_batch(rows: int):
    latents = jax.random.normal(KEY, (rows, CONFIG.num_video_latents, GRID, GRID, 16))
    batch = global_batch(rows)
    return batch._replace(latents=latents, conditions=conditions(batch=rows))


@functools.cache
def tiny(**sizes):
    """(the transformer as a function of its parameters, parameters): random values
    everywhere, also where training starts from zero."""
    config = dataclasses.replace(CONFIG, **sizes)
    abstract = nnx.eval_shape(lambda: Transformer(config, rngs=nnx.Rngs(0)))
    graph, shapes = nnx.split(abstract, nnx.Param)
    rng = np.random.default_rng(0)

    def value(path, leaf):
        noise = 0.2 * rng.standard_normal(leaf.shape, np.float32)
        return jnp.asarray(noise + ("scale" in jax.tree_util.keystr(path)))

    def network(params):
        model = nnx.merge(graph, params)
        return Network(model.prefill, model)

    return network, jax.tree_util.tree_map_with_path(value, shapes)


@functools.cache
def gradient(parts: int):
    """Of the whole loss, tokens packed, in `parts` parts; and the parameters."""
    c = tiny_batch(4).conditions
    network, params = tiny(
        still_bucket=int(c.still_tokens.sum((1, 2)).max()),
        reference_bucket=int(c.reference_tokens.sum((1, 2, 3)).max()),
    )
    loss = supervised.flow_loss(network, recipe(**WEIGHTS))
    return jax.jit(value_and_grad(loss, parts)), params


def test_masking_every_reference_and_still_is_having_none():
    run, params = gradient(1)
    batch = tiny_batch(4)

    def errors(**fields) -> np.ndarray:
        return np.asarray(run(params, drawn(batch, **fields))[0][1]["clip_loss"])

    masked = drawn(batch, drop_reference=1.0, drop_still=1.0)
    told = masked.conditions
    absent = masked._replace(
        conditions=told._replace(
            reference=told.reference[:, :0],
            reference_tokens=told.reference_tokens[:, :0],
            reference_audio=told.reference_audio[:, :0],
            still=told.still[:, :0],
            still_tokens=told.still_tokens[:, :0],
        )
    )
    network, _ = tiny(num_ref=0)
    none = errors_of(network, params, absent, **WEIGHTS)
    both = errors(drop_reference=1.0, drop_still=1.0)
    np.testing.assert_allclose(both, none, rtol=2e-6)
    for fields in ({}, {"drop_reference": 1.0}, {"drop_still": 1.0}):
        assert np.abs(errors(**fields) - none).mean() > 1e-3


def test_permuting_padding_changes_neither_loss_nor_gradient():
    def turned(latents, tokens):
        """Contents of the tokens that are not valid, each at another one's place."""
        b, t, rows, columns, c = latents.shape
        x = np.array(latents).reshape(b, t, rows // 2, 2, columns // 2, 2, c)
        x = x.transpose(0, 1, 2, 4, 3, 5, 6).reshape(b, -1, 2, 2, c)
        for sample, valid in zip(x, np.asarray(tokens).reshape(b, -1), strict=True):
            places = np.flatnonzero(~valid)
            sample[places] = sample[np.roll(places, 1)]
        x = x.reshape(b, t, rows // 2, columns // 2, 2, 2, c)
        return x.transpose(0, 1, 2, 4, 3, 5, 6).reshape(latents.shape)

    run, params = gradient(1)
    example = drawn(tiny_batch(4))
    c = example.conditions
    padded = c._replace(
        still=turned(c.still, c.still_tokens),
        reference=turned(c.reference, c.reference_tokens),
    )
    for name in ("still", "reference"):
        assert (getattr(padded, name) != getattr(c, name)).any((1, 2, 3, 4)).sum() > 1
    (loss, _), grads = run(params, example)
    (same, _), equal = run(params, example._replace(conditions=padded))
    assert same == loss
    jax.tree.map(np.testing.assert_array_equal, equal, grads)
    moved = c._replace(reference=turned(c.reference, ~c.reference_tokens))
    (other, _), _ = run(params, example._replace(conditions=moved))
    assert abs(other - loss) > 1e-5


def test_what_lies_under_motion_latents_is_neither_seen_nor_judged():
    run, params = gradient(1)
    example = drawn(tiny_batch(4))
    other = example._replace(
        clean=example.clean.at[:, :MOTION].add(3.0),
        noise=example.noise.at[:, :MOTION].multiply(-1.0),
    )
    told = example.conditions
    told = told._replace(motion=told.motion + 1.0)
    losses = [
        np.asarray(run(params, e)[0][1]["clip_loss"])
        for e in (example, other, example._replace(conditions=told))
    ]
    continues = np.asarray(told.has_motion)
    np.testing.assert_array_equal((losses[1] == losses[0]), continues)
    np.testing.assert_array_equal((losses[2] != losses[0]), continues)


def test_the_transformer_in_parts_is_the_transformer():
    example = drawn(tiny_batch(4))
    (loss, metrics), grads = gradient(1)[0](gradient(1)[1], example)
    (cut, in_parts), summed = gradient(4)[0](gradient(4)[1], example)
    np.testing.assert_allclose(cut, loss, rtol=1e-6)
    for name, value in metrics.items():
        np.testing.assert_allclose(in_parts[name], value, rtol=2e-6)
    for a, b in zip(*map(jax.tree.leaves, (summed, grads)), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-6 * float(jnp.abs(b).max()))
