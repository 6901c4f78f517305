"""Latents to frames in pieces: the pieces are the whole, and as even as they can be."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from configs import cross_scene
from launch import build
from tavr_jax.evaluation import generate


@pytest.fixture(scope="module")
def config():
    return cross_scene.get_config("tiny")


@pytest.fixture(scope="module")
def codec(config):
    return build.codec(config)


def test_frames_that_come_in_pieces_are_those_of_the_whole(codec, config):
    shape = (1, 9, 4, 4, config.codec.z_dim)
    latents = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    output = generate.OutputConfig(**config.output)
    whole = generate.to_pixels(np.asarray(codec.decode(jnp.asarray(latents))[0, :30]))
    pieces = iter([latents[:, :5], latents[:, 5:8], latents[:, 8:]])
    found = np.concatenate(list(generate.frames(codec, pieces, 30, output)))
    assert found.shape == whole.shape
    assert np.abs(found.astype(int) - whole).max() <= 1


def test_a_short_video_is_decoded_in_even_pieces(codec, config):
    output = generate.OutputConfig(**config.output)
    for most in range(1, 10):
        limit = dataclasses.replace(output, decode_latents=most)
        for count in range(1, 40):
            step, rest = generate.even_step(count, limit), max(count - 1, 1)
            pieces = -(-rest // step)
            assert 1 <= step <= most and pieces == -(-rest // most)  # no more pieces
            assert pieces * step - rest < pieces  # and no more filling than it takes
    shape = (1, 9, 4, 4, config.codec.z_dim)
    latents = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    limit = dataclasses.replace(output, decode_latents=5)
    found = generate.decode(codec, jnp.asarray(latents), 30, limit)  # 1 + 4 + 4
    whole = generate.to_pixels(np.asarray(codec.decode(jnp.asarray(latents))[0, :30]))
    assert found.shape == whole.shape
    assert np.abs(found.astype(int) - whole).max() <= 1
