"""Many devices compute what one computes, on every layout the configs may ask for."""

import dataclasses
import math
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_dataset
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from test_context import gathered
from test_policy import BRIGHT, LEARNS
from test_training import ADAM, NO_DROPS, make_batch, wide_network, wide_params

from configs import policy as policy_stage
from configs import same_scene
from data_pipelines import loader
from launch import plan_program, pod_fit, stages
from launch.pod_topology import parse
from launch.start import begin
from tavr_jax.errors import InputError
from tavr_jax.models import attention_sharded
from tavr_jax.parallel import sharding
from tavr_jax.parallel.mesh import MeshConfig, make_mesh
from tavr_jax.training import loop, optimizer, policy, supervised

AXES = ("data", "fsdp", "context", "tensor")


def toys():
    loss = supervised.flow_loss(wide_network, NO_DROPS)
    yield supervised.make_step(supervised.flow_draw(NO_DROPS), loss, ADAM)
    config = dataclasses.replace(LEARNS, group_size=4, steps=3)
    # the reference policy travels as an argument, split like the parameters
    yield policy.make_step(wide_network, BRIGHT, wide_params(), config, NO_DROPS, ADAM)


def after_two_steps(step, shape, rows, group):
    mesh = make_mesh(MeshConfig(*shape), jax.devices()[: int(np.prod(shape))])
    create = lambda: optimizer.create_state(wide_params(), ADAM)  # noqa: E731
    abstract = sharding.abstract(mesh, jax.eval_shape(create))
    shardings = jax.tree.map(lambda x: x.sharding, abstract)
    step = jax.device_put(step, sharding.parameters(mesh, step))
    update = loop.compiled(step, 0, mesh, shardings)
    state = jax.jit(create, out_shardings=shardings)()
    split = sharding.batch(mesh, rows, group)
    for seed in range(2):
        local = make_batch(rows, seed=seed)
        state, metrics = update(state, sharding.place(split, rows, local))
    assert jax.tree.map(lambda x: x.sharding, state) == shardings
    return jax.device_get((state.params, state.ema, metrics["loss"]))


@pytest.mark.parametrize(
    ("stage", "rows", "group", "shape"),
    [
        (0, 8, 1, (2, 2, 2, 1)),
        # two samples of four rollouts on eight devices: only the rollouts divide
        (1, 2, 4, (1, 8, 1, 1)),
    ],
)
def test_eight_devices_are_one_device(stage, rows, group, shape):
    step = list(toys())[stage]
    one = after_two_steps(step, (1, 1, 1, 1), rows, group)
    many = after_two_steps(step, shape, rows, group)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), many, one
    )


def first_steps(config, folder, shape, count=1) -> list[dict[str, float]]:
    """Metrics of a stage's real steps on the first devices. Weights are drawn: those
    that begin as zero would hide the rest."""
    mesh = make_mesh(MeshConfig(*shape), jax.devices()[: int(np.prod(shape))])
    rates = optimizer.OptimizerConfig(**config.optimizer)
    start = begin(config, mesh, folder, False)
    frozen, trained = shaken(start.frozen, 0), shaken(start.params(), 1)
    start = start._replace(frozen=frozen, params=lambda: trained)
    config.init_from = "the above"  # asked for by stage 3, and not read any more
    step = stages.STEPS[config.stage](stages.Run(config, start, folder, False), rates)
    step = jax.device_put(step, sharding.parameters(mesh, step))
    create = partial(optimizer.create_state, config=rates)
    abstract = sharding.abstract(mesh, jax.eval_shape(create, start.abstract))
    shardings = jax.tree.map(lambda x: x.sharding, abstract)
    state = jax.jit(create, out_shardings=shardings)(start.params())
    rows, found = config.data.batch_size, []
    split = sharding.batch(mesh, rows, stages.members(config))
    batches = loader.make_loader(config, rows=np.arange(rows))
    update = loop.compiled(step, config.seed, mesh, shardings)
    for _ in range(count):
        state, metrics = update(state, sharding.place(split, rows, next(batches)))
        found.append({name: float(x) for name, x in metrics.items() if not x.ndim})
    return found


def shaken(tree, seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: jax.device_put(
            x + 0.1 * rng.standard_normal(x.shape, "f"), x.sharding
        ),
        tree,
    )


@pytest.fixture
def compiled_faster():
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.mark.usefixtures("compiled_faster")
@pytest.mark.slow
def test_a_sample_over_four_devices_trains_as_on_one(tmp_path, monkeypatch):
    """Stage 1: pytest -m slow tests/test_sharded.py"""
    spread, given = attention_sharded._spread, []
    spy = lambda *args: given.append(args) or spread(*args)  # noqa: E731
    monkeypatch.setattr(attention_sharded, "_spread", spy)
    data, found = tiny_dataset.write(tmp_path / "data"), {}
    for devices in (1, 4):
        config = same_scene.get_config("tiny")
        config.data.path, config.data.batch_size = str(data), 2
        shape = (1, 1, devices, 1)
        (found[devices],) = first_steps(config, tmp_path / str(devices), shape)
        assert bool(given) == (devices == 4), "attention was split over the tokens"
    assert found[1]["grad_norm"] > 0
    assert found[4] == pytest.approx(found[1], rel=1e-4)


@pytest.mark.usefixtures("compiled_faster")
@pytest.mark.slow
def test_groups_over_four_devices_learn_as_on_one(tmp_path):
    """Stage 3, two steps, a sample over two devices: pytest -m slow, as above."""
    data, found = tiny_dataset.write(tmp_path / "data"), {}
    for shape in ((1, 1, 1, 1), (1, 2, 2, 1)):
        config = policy_stage.get_config("tiny")
        config.data.path, config.data.batch_size = str(data), 1
        folder = tmp_path / str(sum(shape))
        found[shape] = first_steps(config, folder, shape, count=2)
    one, many = found.values()
    assert one[0]["loss"] != one[1]["loss"] and one[0]["grad_norm"] > 0
    for ours, theirs in zip(many, one, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-5)


@pytest.mark.usefixtures("compiled_faster")
@pytest.mark.parametrize(
    "shape", [(1, 8, 1, 1), pytest.param((1, 2, 4, 1), marks=pytest.mark.slow)]
)
def test_a_device_scores_its_members_alone(shape):
    """No device holds the decoded frames of all; over columns too: pytest -m slow."""
    config = policy_stage.get_config("tiny")
    config.data.batch_size, config.policy.group_size = 2, 4
    mesh = make_mesh(MeshConfig(*shape), jax.devices())
    reward = sharding.abstract(mesh, stages.abstract_reward(config))
    batch = plan_program.batch(config, 2, sharding.batch(mesh, 2, 4))
    made = jax.ShapeDtypeStruct(
        (8, *batch.latents.shape[1:]), jnp.float32, sharding=sharding.batch(mesh, 8)
    )
    key = jax.eval_shape(lambda: jax.random.key(0))
    with jax.set_mesh(mesh):
        program = jax.jit(lambda *told: told[0](*told[1:]))
        text = program.lower(reward, made, batch, key).compile().as_text()
    frames = 4 * config.policy.reward_latents - 3
    everything = 8 * frames * math.prod(8 * n for n in made.shape[2:4]) * 3
    held = [
        math.prod(map(int, dims.split(",")))
        for dims in re.findall(r"= \w+\[([\d,]+)\]", text)
    ]
    assert max(held) < everything, (max(held), everything)


@pytest.mark.slow
@pytest.mark.usefixtures("compiled_faster")
def test_a_step_of_stage_3_gathers_parameters_alone():
    """Rollouts, rewards and updates: pytest -m slow tests/test_sharded.py"""
    config = policy_stage.get_config("tiny")
    config.data.batch_size, config.policy.group_size = 2, 4
    mesh = make_mesh(MeshConfig(1, 2, 4, 1), jax.devices())
    step = plan_program.train(config, mesh)
    learned = {n: x for n, x in step.inputs.items() if n != "batch"}
    whole = [x.shape for x in jax.tree.leaves(learned) if x.ndim]
    allowed = {math.prod(s) for s in whole} | {math.prod(s[1:]) for s in whole}
    gathers = gathered(step.lowered().compile().as_text())
    few = 8  # numbers: what tells clips and rows apart
    assert gathers and not [line for n, line in gathers if n not in allowed and n > few]


def test_parameters_are_split_once_along_their_largest_axis():
    mesh = make_mesh(MeshConfig(2, 2, 2, 1))
    tree = {
        "wide": jnp.zeros((3, 64, 8)),
        "even": jnp.zeros((6, 7)),
        "odd": jnp.zeros(3),
    }
    specs = {n: s.spec for n, s in sharding.parameters(mesh, tree).items()}
    assert specs["wide"] == P(None, ("fsdp", "context"), None)
    assert specs["even"] == P(("fsdp",), None)  # 6 = 2 x 3: half a split
    assert specs["odd"] == P()
    held = jax.device_put(tree, sharding.parameters(mesh, tree))
    assert held["wide"].addressable_shards[0].data.size * 4 == tree["wide"].size


def test_no_mesh_axis_is_used_twice_in_one_array():
    assert sharding.spec("B", "N", None) == P(("data", "fsdp"), ("context",), None)
    with pytest.raises(ValueError, match="used twice"):
        sharding.spec("B", "parameter")


@pytest.mark.parametrize(
    ("name", "slices", "shape", "rows", "group", "first"),
    [
        # host 0 has the square of chips at the corner, far apart along a ring of 64
        ("v5p:4x4x4", 1, (1, 64, 1, 1), 64, 1, [0, 4, 16, 20]),
        ("v5p:4x4x4", 2, (2, 64, 1, 1), 256, 1, [0, 1, 8, 9, 32, 33, 40, 41]),
        ("v5p:4x4x4", 1, (2, 4, 4, 2), 16, 1, None),
        ("v6e:8x16", 1, (1, 32, 4, 1), 64, 1, None),
        ("tpu7x:2x2x4", 1, (2, 4, 2, 2), 8, 1, None),
        ("gpu:4x8", 1, (2, 8, 2, 1), 32, 1, list(range(8))),
        ("v6e:4x4", 1, (1, 16, 1, 1), 2, 8, [0, 1]),  # every device has all samples
    ],
)
def test_the_rows_of_all_hosts_are_the_batch(name, slices, shape, rows, group, first):
    mesh = pod_fit.planned(MeshConfig(*shape), parse(name), slices)
    split = sharding.batch(mesh, rows, group)
    hosts = {device.process_index for device in mesh.devices.flat}
    loaded = {host: sharding.host_rows(split, rows, host) for host in hosts}
    assert first is None or loaded[0].tolist() == first
    batch = np.arange(rows)
    np.testing.assert_array_equal(np.unique(np.concatenate([*loaded.values()])), batch)
    for device, (span, *_) in split.devices_indices_map((rows,)).items():
        ours = loaded[device.process_index]
        assert set(batch[span]) <= set(ours) and (np.diff(ours) > 0).all()
    held = split.shard_shape((rows,))[0] * len(mesh.devices.flat) // len(hosts)
    assert all(len(ours) <= held for ours in loaded.values())


def test_what_a_host_loads_is_its_part_of_the_batch():
    for shape in [(8, 1, 1, 1), (2, 2, 2, 1), (1, 1, 8, 1)]:
        split = sharding.batch(make_mesh(MeshConfig(*shape)), 8)
        ours = sharding.host_rows(split, 8)
        placed = sharding.place(split, 8, {"row": ours})
        np.testing.assert_array_equal(placed["row"], np.arange(8))


@pytest.mark.parametrize("name", ["v5p:4x4x4", "v6e:4x8", "tpu7x:2x2x4"])
def test_slices_split_data_and_nothing_else(name):
    mesh = pod_fit.planned(MeshConfig(4, -1, 2, 2), parse(name), 2)
    assert mesh.shape["data"] == 4 and len({*mesh.devices.flat}) == mesh.size
    for number, block in enumerate(mesh.devices):
        assert {device.slice_index for device in block.flat} == {number // 2}
    with pytest.raises(InputError, match=r"parallel\.data: 3: 2 slices .*data=2$"):
        pod_fit.planned(MeshConfig(3, -1, 1, 1), parse("v5p:4x4x12"), 2)


def test_axes_that_jax_cannot_lay_out_are_one_line():
    with pytest.raises(InputError, match=r"^parallel: data=3, fsdp=10, .*[^\n]*$"):
        pod_fit.planned(MeshConfig(3, -1, 8, 4), parse("v5p:4x12x20"), 1)


def test_intermediates_are_pinned_inside_a_mesh_and_free_outside():
    x = jnp.ones((8, 4))
    assert sharding.constrain(x, "B") is x
    mesh = make_mesh(MeshConfig(8, 1, 1, 1))
    with jax.set_mesh(mesh):
        pinned = jax.jit(lambda x: sharding.constrain(x + 1, "B"))(x)
    assert len(pinned.addressable_shards) == 8
    assert pinned.addressable_shards[0].data.shape == (1, 4)


@pytest.mark.parametrize(
    ("rows", "places", "held"),
    [(8, ("data", "fsdp"), 1), (6, ("data",), 3), (3, None, 3)],
)
def test_rows_that_do_not_divide_are_not_padded(rows, places, held):
    mesh, seen = make_mesh(MeshConfig(2, 4, 1, 1)), []

    @jax.jit
    def pinned(x):
        x = sharding.constrain(x + 1, "B")
        jax.debug.inspect_array_sharding(x, callback=seen.append)
        return x.sum()

    with jax.set_mesh(mesh):
        pinned(jnp.ones((rows, 4)))
    assert seen[0].is_equivalent_to(NamedSharding(mesh, P(places)), 2), seen
    assert seen[0].shard_shape((rows, 4)) == (held, 4)


@pytest.mark.parametrize("sizes", [(3, 1, 1, 1), (-1, -1, 1, 1), (0, 8, 1, 1)])
def test_impossible_meshes_are_refused(sizes):
    with pytest.raises(InputError, match=f"parallel: data={sizes[0]}"):
        make_mesh(MeshConfig(*sizes))


def test_one_axis_takes_the_devices_that_remain():
    mesh = make_mesh(MeshConfig(2, -1, 2, 1))
    assert dict(mesh.shape) == dict(zip(AXES, (2, 2, 2, 1), strict=True))


def test_batches_that_do_not_divide_are_refused():
    mesh = make_mesh(MeshConfig(8, 1, 1, 1))
    with pytest.raises(InputError, match=r"data\.batch_size: 6 is not divisible"):
        sharding.batch(mesh, 6)
    with pytest.raises(InputError, match=r"policy\.group_size 3"):
        sharding.batch(mesh, 2, 3)
    assert sharding.batch(mesh, 2, 4).spec == P()
