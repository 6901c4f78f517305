"""FLOPs of the codec against what is traced, and the bench that divides by them."""

import json
import math
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax.extend import core

from configs.base import get_config
from configs.models import apply
from tavr_jax.encoders import vae_flops
from tavr_jax.encoders.vae import Codec, CodecConfig


def traced(jaxpr) -> int:
    """2 x products of every convolution and matmul."""
    total = 0
    for eqn in jaxpr.eqns:
        outputs = math.prod(eqn.outvars[0].aval.shape) if eqn.outvars else 0
        if eqn.primitive.name == "conv_general_dilated":
            total += 2 * outputs * math.prod(eqn.invars[1].aval.shape[:-1])
        elif eqn.primitive.name == "dot_general":
            (inner, _), _ = eqn.params["dimension_numbers"]
            shape = eqn.invars[0].aval.shape
            total += 2 * outputs * math.prod(shape[axis] for axis in inner)
        times = eqn.params.get("length", 1)
        for inside in core.jaxprs_in_params(eqn.params):
            total += times * traced(inside)
    return total


@pytest.mark.parametrize("frames", [1, 5, 9, 13])
def test_flops_are_those_that_are_traced(frames):
    config = apply(get_config(), "tiny").codec
    codec = nnx.eval_shape(lambda: Codec(CodecConfig(**config), rngs=nnx.Rngs(0)))
    graph, params = nnx.split(codec)
    video = jax.ShapeDtypeStruct((1, frames, 16, 32, 3), jnp.float32)
    latents = jax.ShapeDtypeStruct((1, 1 + frames // 4, 2, 4, 16), jnp.float32)
    for name, x in (("encode", video), ("decode", latents)):
        made = jax.make_jaxpr(lambda p, x, n=name: getattr(nnx.merge(graph, p), n)(x))
        found = traced(made(params, x).jaxpr)
        assert getattr(vae_flops, name)(codec, frames, 16, 32) == found


def test_the_bench_measures_both_directions(tmp_path):
    out = tmp_path / "new.json"
    sizes = {"frames": 5, "size": 16, "base_dim": 4, "rounds": 2, "peak_size": 32}
    command = [sys.executable, "-m", "launch.bench", "vae", f"--json={out}", "--step=1"]
    command += [f"--{name}={value}" for name, value in sizes.items()]
    subprocess.run(command, check=True)
    rows = json.loads(out.read_text())["rows"]
    assert [row["name"].split()[1] for row in rows] == ["encode", "decode"]
    for row in rows:
        assert len(row["cost"]) == 2 and row["flops"] > 1e6 and row["peak"]
    command[-5:] = ["--frames=6"]
    wrong = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    assert wrong.returncode == 2 and "--frames: 6: give 1 + 4k" in wrong.stderr
