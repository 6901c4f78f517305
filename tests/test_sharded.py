"""Many devices compute what one computes, on every layout the configs may ask for."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from test_policy import BRIGHT, LEARNS
from test_training import ADAM, NO_DROPS, make_batch, toy_network

from tavr_jax.errors import InputError
from tavr_jax.parallel import sharding
from tavr_jax.parallel.mesh import MeshConfig, make_mesh
from tavr_jax.training import loop, optimizer, policy, supervised

AXES = ("data", "fsdp", "context", "tensor")


def wide_params():
    """Kernels that can be split, a bias that cannot."""
    up = jax.random.normal(jax.random.key(1), (3, 16)) * 0.2
    return {"up": {"kernel": up}, "down": {"kernel": up.T}, "bias": jnp.zeros(3)}


def wide_network(params):
    kernel = params["up"]["kernel"] @ params["down"]["kernel"]
    return toy_network({"kernel": kernel, "bias": params["bias"]})


def stages():
    yield supervised.make_step(supervised.flow_loss(wide_network, NO_DROPS), ADAM)
    config = dataclasses.replace(LEARNS, group_size=4, steps=3)
    # the reference policy travels as an argument, split like the parameters
    yield policy.make_step(wide_network, BRIGHT, wide_params(), config, ADAM)


def after_two_steps(step, shape, rows, group):
    mesh = make_mesh(MeshConfig(*shape), jax.devices()[: int(np.prod(shape))])
    create = lambda: optimizer.create_state(wide_params(), ADAM)  # noqa: E731
    abstract = sharding.abstract(mesh, jax.eval_shape(create))
    shardings = jax.tree.map(lambda x: x.sharding, abstract)
    step = jax.device_put(
        jax.tree_util.Partial(step),
        sharding.parameters(mesh, jax.tree_util.Partial(step)),
    )
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
    step = list(stages())[stage]
    one = after_two_steps(step, (1, 1, 1, 1), rows, group)
    many = after_two_steps(step, shape, rows, group)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), many, one
    )


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


def test_hosts_load_every_row_once_and_none_twice():
    for shape in [(8, 1, 1, 1), (2, 2, 2, 1), (1, 1, 8, 1)]:
        split = sharding.batch(make_mesh(MeshConfig(*shape)), 8)
        assert sharding.host_share(split, 8) == (0, 1)  # one process sees all devices
        placed = sharding.place(split, 8, {"row": np.arange(8)})
        np.testing.assert_array_equal(placed["row"], np.arange(8))


def test_intermediates_are_pinned_inside_a_mesh_and_free_outside():
    x = jnp.ones((8, 4))
    assert sharding.constrain(x, "B") is x
    mesh = make_mesh(MeshConfig(8, 1, 1, 1))
    with jax.set_mesh(mesh):
        pinned = jax.jit(lambda x: sharding.constrain(x + 1, "B"))(x)
    assert len(pinned.addressable_shards) == 8
    assert pinned.addressable_shards[0].data.shape == (1, 4)


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
