"""References of fewer latents than there is room for are to the model what they are."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from configs import same_scene
from data_pipelines import transforms
from data_pipelines.records import Row
from tavr_jax.models.transformer import Transformer, TransformerConfig


def test_latents_without_a_token_are_absent_and_their_speech_with_them():
    config = same_scene.get_config("tiny")
    config.model.num_videoref_latents, config.data.reference_latents = 4, (1, 4)
    generator, model = np.random.default_rng(0), config.model
    record = {
        "latents": generator.normal(size=(9, 4, 4, 16)),
        "still": generator.normal(size=(1, 4, 4, 16)),
        "still_tokens": np.ones((2, 2), bool),
        "reference": generator.normal(size=(8, 4, 4, 16)),
        "reference_tokens": generator.random((8, 2, 2)) < 0.7,
        "audio": generator.normal(size=(33, model.audio_dim)),
        "reference_audio": generator.normal(size=(36, model.videoref_audio_dim)),
        "mel": generator.normal(size=(33, 8)),
        "text": generator.normal(size=(model.text_len, model.text_dim)),
        "face_boxes": np.zeros((33, 4), np.float32),
        "faces": np.zeros((2, 8, 8, 3), np.uint8),
    }
    empty = np.zeros((model.text_len, model.text_dim), np.float32)
    network = Transformer(TransformerConfig(**model), rngs=nnx.Rngs(0))
    graph, weights = nnx.split(network)
    keys = jax.random.split(jax.random.key(0), len(jax.tree.leaves(weights)))
    leaves, tree = jax.tree.flatten(weights)
    leaves = [
        leaf + 0.1 * jax.random.normal(key, leaf.shape)
        for leaf, key in zip(leaves, keys, strict=True)
    ]
    network = nnx.merge(graph, jax.tree.unflatten(tree, leaves))

    @jax.jit
    def run(batch):
        cache = network.prefill(batch.conditions)
        return network(batch.latents, jnp.full((1,), 500.0), batch.conditions, cache)

    def velocity(room, window):
        length = transforms.lengths(config)._replace(reference=room)
        made = transforms.pair_example(record, record, empty, 0, 0, window, length)
        batch = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], made)
        return np.asarray(run(batch))

    for window in (range(2, 4), range(5, 8)):
        exact = velocity(len(window), window)
        np.testing.assert_allclose(velocity(4, window), exact, atol=2e-5)
        assert np.abs(velocity(4, range(0, 4)) - exact).max() > 1e-3


def test_the_length_drawn_is_even_and_short_clips_give_what_they_have():
    config = same_scene.get_config("tiny")
    config.model.num_videoref_latents, config.data.reference_latents = 6, (2, 6)
    length, generator = transforms.lengths(config), np.random.default_rng(0)
    row = Row("a", "a", "a", "a", "train", 0, 81, (32, 32), "landscape", 1, (1,) * 20)
    drawn = [transforms.draw_window(generator, row, None, length) for _ in range(2000)]
    counts = np.bincount([len(window) for window in drawn])
    assert (np.abs(counts[2:] - 400) < 80).all() and len(counts) == 7
    assert min(w.start for w in drawn) == 0 and max(w.stop for w in drawn) == 20
    short = row._replace(frames=17, face_tokens=(1,) * 4)
    drawn = [transforms.draw_window(generator, short, 0, length) for _ in range(200)]
    assert {len(window) for window in drawn} == {2, 3, 4}
