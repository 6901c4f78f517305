"""A toy run through the real loop: a process for tests to kill.

python tests/killed.py WORKDIR STEPS
"""

import sys
from pathlib import Path

import jax

jax.config.update("jax_num_cpu_devices", 8)

import jax.numpy as jnp  # noqa: E402
from test_training import ADAM, NO_DROPS, run_toy, toy_network, toy_params  # noqa: E402

from tavr_jax.training import optimizer, supervised  # noqa: E402


def network(params):
    """With a weight so large that writing it takes as long as many steps."""
    bias = params["bias"] + 1e-6 * params["ballast"].sum()
    return toy_network({"kernel": params["kernel"], "bias": bias})


def step(state, batch, key):
    loss = supervised.flow_loss(network, NO_DROPS)
    draw = supervised.flow_draw(NO_DROPS)
    return supervised.make_step(draw, loss, ADAM)(state, batch, key)


def create():
    ballast = jnp.arange(1_000_000.0) / 1e6
    return optimizer.create_state(toy_params() | {"ballast": ballast}, ADAM)


if __name__ == "__main__":
    workdir, steps = Path(sys.argv[1]), int(sys.argv[2])
    run_toy(workdir, steps, (step, create, 2), checkpoint_every=1, log_every=1)
