"""Supervised flow matching, the optimizer and the loop, on solvable networks."""

import dataclasses
import functools
import json
import subprocess
import sys

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from configs import same_scene
from tavr_jax.diffusion.guidance import Network
from tavr_jax.errors import InputError
from tavr_jax.parallel import sharding
from tavr_jax.parallel.mesh import MeshConfig, make_mesh
from tavr_jax.training import loop, optimizer, report, supervised
from tavr_jax.training.checkpoint import Checkpoints
from tavr_jax.training.optimizer import OptimizerConfig
from tavr_jax.training.state import sampling_params
from tavr_jax.training.supervised import FlowConfig
from tavr_jax.types import Batch, Conditions

NO_DROPS = FlowConfig(3.0, 1000, 0.0, 0.0, 0.0)
ADAM = OptimizerConfig(0.05, 2, 0.0, 0.9, 0.95, 1.0, 0.9)
LATENTS, GRID, CHANNELS, MOTION = 5, 4, 3, 2


def make_batch(rows: int, seed: int = 0, continues: bool = False) -> Batch:
    """Random but for the latents, whose mean per channel is 1, 2, 3."""
    rng = np.random.default_rng(seed)
    frames = 4 * (LATENTS - 1) + 1

    def normal(*shape):
        return rng.standard_normal((rows, *shape)).astype(np.float32)

    latents = normal(LATENTS, GRID, GRID, CHANNELS) + np.arange(1, 4, dtype=np.float32)
    yes = np.ones(rows, bool)
    conditions = Conditions(
        still=normal(1, GRID, GRID, CHANNELS),
        still_tokens=np.ones((rows, 2, 2), bool),
        motion=latents[:, :MOTION],
        has_motion=yes if continues else ~yes,
        reference=normal(2, GRID, GRID, CHANNELS),
        reference_tokens=np.ones((rows, 2, 2, 2), bool),
        text=normal(4, 6),
        null_text=np.zeros((rows, 4, 6), np.float32),
        audio=normal(frames, 3),
        has_audio=yes,
        reference_audio=normal(8, 3),
        has_reference_audio=yes,
    )
    box = np.array([0.25, 0.25, 0.75, 0.75], np.float32)
    return Batch(
        latents=latents,
        conditions=conditions,
        faces=rng.integers(0, 256, (rows, 3, 8, 8, 3)).astype(np.uint8),
        face_box=np.broadcast_to(box, (rows, frames, 4)),
        mel=normal(frames, 3),
        clip=np.arange(rows, dtype=np.int32) + 100 * seed,
    )


def global_batch(rows: int, **kwargs) -> Batch:
    """The same as jax arrays, as a step sees it."""
    return jax.tree.map(jnp.asarray, make_batch(rows, **kwargs))


def toy_network(params) -> Network:
    """x K + b + a trace of the reference: linear, and cheap enough to trust."""

    def prefill(conditions):
        return conditions.reference.mean((1, 2, 3))

    def velocity(x, timestep, conditions, cache):
        time = (timestep / 1000)[:, None, None, None, None]
        shift = params["bias"][None, None, None, None]
        traces = 0.1 * cache[:, None, None, None]
        return (x @ params["kernel"] + shift) * (1 - 0.5 * time) + traces

    return Network(prefill, velocity)


def toy_params() -> dict:
    return {"kernel": 0.1 * jnp.eye(CHANNELS), "bias": jnp.zeros(CHANNELS)}


def toy_batches(rows: int, make=make_batch):
    """An endless shuffled grain iterator, as the loader's."""
    source = grain.MapDataset.source(range(12)).seed(3).shuffle().repeat(None)
    one = source.map(lambda i: jax.tree.map(lambda x: x[0], make(1, seed=int(i))))
    reading = grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)
    return iter(one.batch(rows, drop_remainder=True).to_iter_dataset(reading))


def tiny_config(**train):
    c = same_scene.get_config("tiny")
    c.train.update(train)
    return c


def run_toy(workdir, steps, step=None, batches=None, on_sample=None, **train):
    """The real loop around a toy step, on two devices."""
    config = tiny_config(**{"steps": steps, "checkpoint_every": 100, **train})
    mesh, abstract, create, update = compiled_toy(step or toy_step)
    split = sharding.batch(mesh, 8)
    return loop.run(
        loop.LoopConfig(**config.train),
        create=create,
        abstract=abstract,
        update=update,
        batches=toy_batches(8) if batches is None else batches,
        place=lambda local: sharding.place(split, 8, local),
        checkpoints=Checkpoints(workdir, config),
        report=report.Report(workdir, config.stage, steps),
        on_sample=on_sample,
    )


@functools.cache  # compiling a toy takes longer than running it
def compiled_toy(step):
    mesh = make_mesh(MeshConfig(-1, 1, 1, 1), jax.devices()[:2])
    abstract = sharding.abstract(mesh, jax.eval_shape(create_toy))
    shardings = jax.tree.map(lambda x: x.sharding, abstract)
    create = jax.jit(create_toy, out_shardings=shardings)
    return mesh, abstract, create, loop.compiled(step, 42, mesh, shardings)


def toy_step(state, batch, key):
    loss = supervised.flow_loss(toy_network, NO_DROPS)
    return supervised.make_step(loss, ADAM)(state, batch, key)


def create_toy():
    return optimizer.create_state(toy_params(), ADAM)


def test_loss_of_a_solvable_flow_falls_to_its_optimum():
    # Every clean latent is the point m. Then v = (x - m) / sigma exactly, so a network
    # (x - mu) / sigma has loss 0 at mu = m and nowhere else.
    point = jnp.array([1.0, -2.0, 0.5])

    def network(params):
        def velocity(x, timestep, conditions, cache):
            sigma = (timestep / 1000)[:, None, None, None, None]
            return (x - params["mu"][None, None, None, None]) / sigma

        return Network(lambda conditions: None, velocity)

    batch = global_batch(8)
    batch = batch._replace(latents=jnp.broadcast_to(point, batch.latents.shape))
    step = jax.jit(supervised.make_step(supervised.flow_loss(network, NO_DROPS), ADAM))
    state = optimizer.create_state({"mu": jnp.zeros(3)}, ADAM)
    first = None
    for i in range(300):
        state, metrics = step(state, batch, jax.random.key(i))
        first = metrics["loss"] if first is None else first
    assert first > 0.5
    assert metrics["loss"] < 1e-3 * first
    np.testing.assert_allclose(sampling_params(state)["mu"], point, atol=0.05)


def test_motion_latents_of_a_continuation_are_not_judged():
    batch = global_batch(4)
    has_motion = np.array([True, False, True, False])
    conditions = batch.conditions._replace(has_motion=jnp.asarray(has_motion))
    batch = batch._replace(conditions=conditions)
    loss = supervised.flow_loss(toy_network, NO_DROPS)

    def wrong_at_motion(params):
        net = toy_network(params)

        def velocity(*args):
            return net.velocity(*args).at[:, :MOTION].add(10.0)

        return Network(net.prefill, velocity)

    worse = supervised.flow_loss(wrong_at_motion, NO_DROPS)
    errors = [
        np.asarray(f(toy_params(), batch, jax.random.key(0))[1]["clip_loss"])
        for f in (loss, worse)
    ]
    np.testing.assert_array_equal(errors[0][has_motion], errors[1][has_motion])
    assert (errors[1] > errors[0] + 1)[~has_motion].all()


def test_dropped_conditions_are_the_ones_guidance_asks_for():
    c = make_batch(400).conditions
    drop = dataclasses.replace(
        NO_DROPS, drop_audio=0.5, drop_text=0.3, drop_reference=0.2
    )
    d = jax.tree.map(np.asarray, supervised.drop_conditions(c, drop, jax.random.key(0)))
    no_text = (d.text == c.null_text).all((1, 2))
    no_reference = ~d.reference_tokens.any((1, 2, 3))
    np.testing.assert_array_equal(no_reference, (d.reference == 0).all((1, 2, 3, 4)))
    np.testing.assert_array_equal(d.has_reference_audio, d.has_audio & ~no_reference)
    shares = [1 - d.has_audio.mean(), no_text.mean(), no_reference.mean()]
    np.testing.assert_allclose(shares, (0.5, 0.3, 0.2), atol=0.07)
    np.testing.assert_array_equal(d.motion, c.motion)
    again = supervised.drop_conditions(c, NO_DROPS, jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, again, c)


def test_timesteps_are_those_of_shifted_uniform_noise_levels():
    seen = {}

    def network(params):
        def velocity(x, timestep, conditions, cache):
            seen["sigma"] = timestep / 1000
            seen["x"] = x
            return x

        return Network(lambda conditions: None, velocity)

    batch = global_batch(2000)
    supervised.flow_loss(network, NO_DROPS)({}, batch, jax.random.key(0))
    sigma = np.asarray(seen["sigma"])
    u = sigma / (3 - 2 * sigma)  # the shift undone
    assert np.abs(np.sort(u) - np.linspace(0, 1, 2000)).max() < 0.04
    # x is closer to the latents the smaller sigma is
    clean = np.abs(seen["x"] - batch.latents).mean((1, 2, 3, 4))
    assert np.corrcoef(clean, sigma)[0, 1] > 0.95


def test_optimizer_decays_kernels_only_and_warms_up():
    config = dataclasses.replace(ADAM, weight_decay=0.1, warmup_steps=3)
    params = {"layers": {"kernel": jnp.ones((2, 3, 3)), "bias": jnp.ones((2, 3))}}
    state = optimizer.create_state(params, config)
    zeros = jax.tree.map(jnp.zeros_like, params)
    rates = []
    for _ in range(5):
        state, metrics = optimizer.apply_update(state, jnp.float32(0), zeros, config)
        state = state._replace(step=state.step + 1)
        rates.append(float(metrics["learning_rate"]))
    np.testing.assert_allclose(rates, 0.05 * np.array([0.25, 0.5, 0.75, 1, 1]), 1e-6)
    expected = np.prod(1 - 0.1 * np.array(rates))
    np.testing.assert_allclose(state.params["layers"]["kernel"], expected, rtol=1e-5)
    np.testing.assert_array_equal(state.params["layers"]["bias"], 1.0)


def test_average_follows_its_recursion_and_can_be_off():
    config = dataclasses.replace(ADAM, ema_decay=0.5)
    state = optimizer.create_state(toy_params(), config)
    average = np.asarray(state.ema["bias"])
    for _ in range(3):
        grads = jax.tree.map(jnp.ones_like, state.params)
        state, _ = optimizer.apply_update(state, jnp.float32(0), grads, config)
        average = 0.5 * average + 0.5 * np.asarray(state.params["bias"])
    np.testing.assert_allclose(state.ema["bias"], average, rtol=1e-6)
    off = optimizer.create_state(toy_params(), dataclasses.replace(ADAM, ema_decay=0.0))
    assert off.ema is None and sampling_params(off) is off.params


@pytest.mark.parametrize("bad", ["loss", "gradient"])
def test_non_finite_update_changes_nothing_but_the_step(bad):
    loss = jnp.float32(jnp.nan if bad == "loss" else 1.0)
    state = create_toy()
    grads = jax.tree.map(jnp.ones_like, state.params)
    if bad == "gradient":
        grads["bias"] = grads["bias"].at[0].set(jnp.inf)
    kept, metrics = optimizer.apply_update(state, loss, grads, ADAM)
    jax.tree.map(np.testing.assert_array_equal, kept, state)
    assert metrics["skipped"] == 1


def test_a_poisoned_clip_is_named_and_the_run_goes_on(tmp_path, capsys):
    def poisoned(rows, seed):
        batch = make_batch(rows, seed)
        if seed == 7:
            batch.latents[:] = np.nan
        return batch

    state = run_toy(tmp_path, 3, batches=toy_batches(8, poisoned))
    out = capsys.readouterr().out
    assert "not finite, update skipped; clips 700\n" in out
    assert int(state.step) == 3
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state.params))


def test_a_run_that_only_diverges_is_stopped(tmp_path):
    def step(state, batch, key):
        state, metrics = supervised.make_step(
            lambda p, b, k: (jnp.float32(jnp.nan) * p["bias"].sum(), {}), ADAM
        )(state, batch, key)
        return state, metrics

    with pytest.raises(InputError, match=r"3 updates in a row .*learning_rate"):
        run_toy(tmp_path, 50, step, max_skipped=3)


def test_run_reports_lines_pictures_video_and_sound(tmp_path, capsys):
    def on_sample(params, step):
        assert params["bias"].shape == (CHANNELS,)
        frames = np.zeros((6, 16, 24, 3), np.uint8)
        frames[:, :, :12] = np.arange(0, 240, 40, dtype=np.uint8)[:, None, None, None]
        wave = np.sin(np.arange(1600) / 10).astype(np.float32)
        return {
            "still": report.Image(frames[0]),
            "clip": report.Video(frames, 25.0),
            "clip/sound": report.Sound(wave, 16000),
        }

    run_toy(tmp_path, 4, on_sample=on_sample, log_every=2, sample_every=2)
    lines = [
        json.loads(x) for x in (tmp_path / "metrics.jsonl").read_text().split("\n")[:-1]
    ]
    assert [x["step"] for x in lines] == [2, 4]
    assert {"stage", "loss", "grad_norm", "learning_rate", "seconds"} <= lines[0].keys()
    assert lines[0]["stage"] == "same_scene" and lines[0]["loss"] > 0
    out = capsys.readouterr().out
    assert "step 4/4  loss" in out and "steps/s" in out and "left" in out
    assert "bias" in (tmp_path / "parameters.txt").read_text()

    board = EventAccumulator(str(tmp_path / "tensorboard"), {"images": 0, "audio": 0})
    board.Reload()
    logged = [e.value for e in board.Scalars("loss")]
    np.testing.assert_allclose(logged, [x["loss"] for x in lines], rtol=1e-6)
    moving = board.Images("clip")[0]
    assert moving.encoded_image_string[:6] == b"GIF89a"
    assert (moving.width, moving.height) == (24, 16)
    assert [e.step for e in board.Images("still")] == [2, 4]
    sound = board.Audio("clip/sound")[0]
    assert sound.sample_rate == 16000 and sound.encoded_audio_string[:4] == b"RIFF"


def test_a_misspelt_field_ends_in_one_line_and_exit_code_2(tmp_path):
    command = [sys.executable, "-m", "launch.train", "--workdir", str(tmp_path / "w")]
    command += ["--config", "configs/face.py:tiny", "--config.optimizer.lr=1"]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: ") and ended.stderr.count("\n") == 1
    assert "lr" in ended.stderr and not (tmp_path / "w").exists()
