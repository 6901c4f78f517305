"""What the model benches share: a case, and the cases that only run forward.

    block     one block of the main stream, the reference's keys and values given
    prefill   the reference stream: keys and values of every layer
    step      one velocity with a cached reference: a denoising step without guidance
    guidance  the same with all three branches of guidance (scales of the config's
              sampler; 2 where that is 1), their references prefilled before

FLOPs are those of models/flops.py: matrix products only.
"""

import dataclasses
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from launch import bench_problem
from launch.bench_problem import Problem
from tavr_jax.diffusion import guidance as guiding
from tavr_jax.diffusion.guidance import Network, Scales
from tavr_jax.models import flops
from tavr_jax.types import PyTree

Pairs = list[tuple[np.ndarray, np.ndarray]]  # ours, theirs


class Program:
    """A jitted function and what it is called with, until its result is there."""

    def __init__(
        self,
        function: Callable[..., PyTree],
        *arguments: PyTree,
        following: Callable[[PyTree], tuple] | None = None,
    ):
        """`following`: the next call's arguments from a result, where a call uses its
        own up."""
        self.function, self.arguments = function, arguments
        self.following = following

    def __call__(self) -> PyTree:
        """One call."""
        result = jax.block_until_ready(self.function(*self.arguments))
        if self.following:
            self.arguments = self.following(result)
        return result


class Case(NamedTuple):
    """Two ways to the same numbers."""

    name: str
    flops: float  # of one call
    ours: Callable[[], PyTree]
    theirs: Callable[[], Any] | None  # None: no PyTorch here
    pairs: Callable[[PyTree, Any], Pairs]  # of the results of both


def block(p: Problem, torch: ModuleType | None) -> Case:
    """See the module. `torch`: launch.bench_torch_problem, where there is PyTorch."""
    params = bench_problem.stored(p)
    keys, values, valid = _prefilled(p)(params, p.conditions)
    model, layouts = p.network(params), []

    @jax.jit
    def embed(*inputs):
        x, context = model.embed_main(*inputs)
        layouts.append(context.layout)  # sizes, which do not pass through jit
        return x, context._replace(layout=None)

    x, context = embed(p.latents, p.timestep, p.conditions)
    graph, layers = nnx.split(model.blocks)

    @jax.jit
    def run(layer, x, context, *reference):
        context = context._replace(layout=layouts[0])
        return nnx.merge(graph, layer).main(x, context, *reference).x

    layer = jax.tree.map(lambda w: w[0], layers)
    ours = Program(run, layer, x, context, keys[0], values[0], valid)
    one = flops.main(dataclasses.replace(p.model, num_layers=1), p.sizes)
    work = p.samples * (one.total - one.embeddings - one.head)
    theirs = torch and torch.block(p, params)
    return Case(f"block {p.told()}", work, ours, theirs, _whole(torch))


def prefill(p: Problem, torch: ModuleType | None) -> Case:
    """See the module."""
    params = bench_problem.stored(p)

    def pairs(ours, theirs) -> Pairs:
        # theirs has heads before tokens, in a list of layers
        theirs = [[torch.array(y).swapaxes(1, 2) for y in pair] for pair in theirs]
        theirs = map(np.stack, zip(*theirs, strict=True))
        return [(np.float32(a), b) for a, b in zip(ours[:2], theirs, strict=True)]

    work = p.samples * flops.prefill(p.model, p.sizes).total
    ours = Program(_prefilled(p), params, p.conditions)
    theirs = torch and torch.prefill(p, params)
    return Case(f"prefill {p.told()}", work, ours, theirs, pairs)


def step(p: Problem, torch: ModuleType | None) -> Case:
    """See the module."""
    return _guided("step", p, torch, Scales(1.0, 1.0))


def guidance(p: Problem, torch: ModuleType | None) -> Case:
    """See the module."""
    c = p.config.sampler
    scales = [s if s != 1 else 2.0 for s in (c.text_scale, c.audio_scale)]
    return _guided("guidance", p, torch, Scales(*scales))


def _guided(name: str, p: Problem, torch: ModuleType | None, scales: Scales) -> Case:
    params, text = bench_problem.stored(p), p.conditions.null_text

    def network(params: PyTree) -> Network:
        model = p.network(params)
        return Network(model.prefill, model)

    @jax.jit
    def prefilled(params, conditions):
        return guiding.prefill_one_by_one(network(params), conditions, scales)

    @jax.jit
    def run(params, latents, t, conditions, text, caches):
        told = (conditions, text, scales, caches)
        return guiding.one_by_one(network(params), *told)(latents, t)

    branches = 1 + sum(scale != 1 for scale in scales)
    work = p.samples * branches * flops.main(p.model, p.sizes).total
    caches = prefilled(params, p.conditions)
    ours = Program(run, params, p.latents, p.timestep, p.conditions, text, caches)
    theirs = torch and torch.guided(p, params, scales)
    return Case(f"{name} {p.told()}", work, ours, theirs, _whole(torch))


def _prefilled(p: Problem) -> Callable:
    return jax.jit(lambda params, conditions: p.network(params).prefill(conditions))


def _whole(torch: ModuleType | None) -> Callable[[PyTree, Any], Pairs]:
    """Both results are one array."""
    return lambda ours, theirs: [(np.float32(ours), torch.array(theirs))]
