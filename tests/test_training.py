"""The loop on a toy network, and the toys that other tests use."""

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

from configs import base, same_scene
from tavr_jax.diffusion.guidance import Network
from tavr_jax.errors import InputError
from tavr_jax.parallel import sharding
from tavr_jax.parallel.mesh import MeshConfig, make_mesh
from tavr_jax.training import loop, optimizer, report, supervised
from tavr_jax.training.checkpoint import Checkpoints
from tavr_jax.training.optimizer import OptimizerConfig
from tavr_jax.training.supervised import FlowConfig
from tavr_jax.types import Batch, Conditions

NO_DROPS = dataclasses.replace(
    FlowConfig(**base.flow()),
    shift=3.0,
    motion_noise=0.0,
    drop_audio=0.0,
    drop_text=0.0,
    drop_reference=0.0,
)
ADAM = dataclasses.replace(
    OptimizerConfig(**base.optimizer()),
    learning_rate=0.05,
    warmup_steps=2,
    weight_decay=0.0,
    ema_decay=0.9,
)
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
        cache = jnp.repeat(cache, len(x) // len(cache), axis=0)  # of groups
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


def claimed(workdir, config):
    """Checkpoints of a run that nothing was wrong with."""
    checkpoints = Checkpoints(workdir, config, "toys")
    checkpoints.claim()
    return checkpoints


def run_toy(workdir, steps, toy=None, batches=None, given=None, **train):
    """The real loop around a toy: (step, its state, devices). `given`: what the loop is
    given beside it."""
    config = tiny_config(**{"steps": steps, "checkpoint_every": 100, **train})
    mesh, abstract, create, update = compiled_toy(*(toy or TOY))
    absent = dict.fromkeys(("on_sample", "on_evaluate", "watch"))
    split = sharding.batch(mesh, 8)
    return loop.run(
        loop.LoopConfig(**config.train),
        create=create,
        abstract=abstract,
        batches=toy_batches(8) if batches is None else batches,
        place=lambda local: sharding.place(split, 8, local),
        checkpoints=claimed(workdir, config),
        report=report.Report(workdir, config.stage, steps, None),
        **absent | {"update": update} | (given or {}),
    )


@functools.cache  # compiling a toy takes longer than running it
def compiled_toy(step, create, devices):
    mesh = make_mesh(MeshConfig(1, -1, 1, 1), jax.devices()[:devices])
    abstract = sharding.abstract(mesh, jax.eval_shape(create))
    shardings = jax.tree.map(lambda x: x.sharding, abstract)
    create = jax.jit(create, out_shardings=shardings)
    return mesh, abstract, create, loop.compiled(step, 42, mesh, shardings)


def toy_step(state, batch, key):
    loss = supervised.flow_loss(toy_network, NO_DROPS)
    draw = supervised.flow_draw(NO_DROPS)
    return supervised.make_step(draw, loss, ADAM)(state, batch, key)


def create_toy():
    return optimizer.create_state(toy_params(), ADAM)


TOY = (toy_step, create_toy, 2)


def wide_params():
    """Kernels that can be split, a bias that cannot."""
    up = jax.random.normal(jax.random.key(1), (3, 16)) * 0.2
    return {"up": {"kernel": up}, "down": {"kernel": up.T}, "bias": jnp.zeros(3)}


def wide_network(params):
    kernel = params["up"]["kernel"] @ params["down"]["kernel"]
    return toy_network({"kernel": kernel, "bias": params["bias"]})


def wide_step(state, batch, key):
    loss = supervised.flow_loss(wide_network, NO_DROPS)
    draw = supervised.flow_draw(NO_DROPS)
    return supervised.make_step(draw, loss, ADAM)(state, batch, key)


def create_wide():
    return optimizer.create_state(wide_params(), ADAM)


def poisoned(rows, seed):
    batch = make_batch(rows, seed)
    if seed == 7:
        batch.latents[:] = np.nan
    return batch


def test_a_poisoned_clip_is_named_and_the_run_goes_on(tmp_path, capsys):
    state = run_toy(tmp_path, 3, batches=toy_batches(8, poisoned))
    out = capsys.readouterr().out
    assert "not finite, update skipped; clips 700\n" in out
    assert int(state.step) == 3
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state.params))


def test_a_run_that_only_diverges_is_stopped(tmp_path):
    def step(state, batch, key):
        state, metrics = supervised.make_step(
            lambda batch, key: batch,
            lambda params, batch: (jnp.float32(jnp.nan) * params["bias"].sum(), {}),
            ADAM,
        )(state, batch, key)
        return state, metrics

    toy = (step, create_toy, 2)
    with pytest.raises(InputError, match=r"3 updates in a row .*learning_rate"):
        run_toy(tmp_path / "straight", 50, toy, max_skipped=3)
    # wherever it was interrupted
    assert int(run_toy(tmp_path / "broken", 2, toy, max_skipped=3).step) == 2
    with pytest.raises(InputError, match=r"3 updates in a row"):
        run_toy(tmp_path / "broken", 4, toy, max_skipped=3)


def test_held_out_pairs_are_scored_in_time_with_averaged_weights(tmp_path, capsys):
    seen = {}

    def on_evaluate(params, step):
        seen[step] = jax.device_get(params)
        return {"loss": 10.0 + step}

    given = {"on_evaluate": on_evaluate}
    state = run_toy(tmp_path, 5, given=given, log_every=5, evaluate_every=2)
    assert list(seen) == [2, 4, 5]
    jax.tree.map(np.testing.assert_array_equal, seen[5], jax.device_get(state.ema))
    lines = [json.loads(x) for x in (tmp_path / "metrics.jsonl").open()]
    scores = {x["step"]: x["held_out/loss"] for x in lines if "held_out/loss" in x}
    assert scores == {2: 12.0, 4: 14.0, 5: 15.0}
    assert "step 4/5  held out  loss 14\n" in capsys.readouterr().out
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert [e.value for e in board.Scalars("held_out/loss")] == [12.0, 14.0, 15.0]


class Limit:
    """A watch: stops after so many steps, wherever they were run."""

    def __init__(self, limit):
        self.limit, self.losses = limit, []

    def see(self, step, metrics):
        assert isinstance(metrics["loss"], float) and "clip" not in metrics
        self.losses.append(metrics["loss"])
        return f"{self.limit} losses" if len(self.losses) == self.limit else None

    def get_state(self):
        return {"losses": self.losses}

    def set_state(self, state):
        self.losses = state["losses"]


def test_a_watch_stops_the_run_at_the_same_step_wherever_it_was_interrupted(tmp_path):
    straight, broken = Limit(4), Limit(4)
    run_toy(tmp_path / "straight", 9, given={"watch": straight}, log_every=3)
    run_toy(tmp_path / "broken", 3, given={"watch": Limit(4)})
    state = run_toy(tmp_path / "broken", 9, given={"watch": broken})
    assert int(state.step) == 4
    assert broken.losses == straight.losses and len(broken.losses) == 4
    assert (tmp_path / "straight/checkpoints/4").is_dir()


def test_what_a_watch_stopped_goes_on_only_without_it(tmp_path, capsys):
    run_toy(tmp_path, 9, given={"watch": Limit(4)})
    assert "stopped and saved at step 4 by its guard" in capsys.readouterr().out
    before = (tmp_path / "metrics.jsonl").read_text()
    state = run_toy(tmp_path, 9, given={"watch": Limit(4)})
    said = capsys.readouterr().out
    assert int(state.step) == 4
    assert "by its guard, and the same command goes no further: 4 losses\n" in said
    assert (tmp_path / "metrics.jsonl").read_text() == before
    assert int(run_toy(tmp_path, 6).step) == 6
    assert "goes on without the guard that stopped it (4 losses)" in (
        capsys.readouterr().out
    )
    assert int(run_toy(tmp_path, 7, given={"watch": Limit(4)}).step) == 7


def test_a_watch_is_not_shown_what_was_skipped(tmp_path):
    watch = Limit(99)
    run_toy(tmp_path, 3, batches=toy_batches(8, poisoned), given={"watch": watch})
    assert 0 < len(watch.losses) < 3 and np.isfinite(watch.losses).all()


@pytest.mark.parametrize(
    ("field", "value"), [("log_every", 0), ("keep", 0), ("evaluate_every", -1)]
)
def test_intervals_that_mean_nothing_are_named(field, value):
    train = dict(tiny_config().train) | {field: value}
    with pytest.raises(InputError, match=rf"train\.{field}: {value}: give at least"):
        loop.LoopConfig(**train)


def test_a_misspelt_field_ends_in_one_line_and_exit_code_2(tmp_path):
    command = [sys.executable, "-m", "launch.train", "--workdir", str(tmp_path / "w")]
    command += ["--config", "configs/face.py:tiny", "--config.optimizer.lr=1"]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: ") and ended.stderr.count("\n") == 1
    assert "lr" in ended.stderr and not (tmp_path / "w").exists()
