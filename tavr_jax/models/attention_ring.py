"""Ring attention: keys and values travel once around the devices of one sample.

Each device reads the part that is with it, sends it on, and joins what it read with
what it had (attention_chunked.py (7)). The backward pass sends the parts around again,
their gradients with them; between the two a device keeps nothing but its own tokens.
Liu et al. 2023, arXiv 2310.01889. Called inside of shard_map.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from tavr_jax.models import attention_chunked as chunked
from tavr_jax.models.attention_local import Nearby


class Ring(NamedTuple):
    """The devices that hold the parts of a sample."""

    axis: tuple[str, ...]  # of the mesh
    devices: int

    def on(self, part):
        """Every leaf from the neighbour before."""
        neighbours = [(i, (i + 1) % self.devices) for i in range(self.devices)]
        return jax.lax.ppermute(part, self.axis, neighbours)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def attend(
    q: Float[Array, "B n K d"],
    k: Float[Array, "B m K d"],
    v: Float[Array, "B m K d"],
    valid: Bool[Array, "B m"],
    ring: Ring,
    near: Nearby | None,
    keep: str,
) -> Float[Array, "B n K d"]:
    """Queries of this device read the valid keys of all.

    `near`: of the tokens of one run, where they only read those around them. `keep`
    names what the backward pass needs.
    """
    return _forward(q, k, v, valid, ring, near, keep)[0]


def _forward(q, k, v, valid, ring: Ring, near: Nearby | None, keep: str):
    def step(carried, _):
        read, part = carried
        part = ring.on(part)
        return (chunked.joined(read, _read(q, *part, near)), part), None

    here = k, v, valid
    first = _read(q, *here, near), here
    (read, _), _ = jax.lax.scan(step, first, length=ring.devices - 1)
    read = chunked.named(read, q.dtype, keep)
    return read.out, (q, k, v, valid, read)


def _backward(ring: Ring, near: Nearby | None, keep: str, kept, grad: Array):
    del keep
    q, k, v, valid, read = kept
    told = chunked.slopes(read, grad)

    def add(sums, part):
        dq, *theirs = sums
        new, *more = _gradients(q, *part, told, near)
        return (dq + new, *(a + b for a, b in zip(theirs, more, strict=True)))

    def step(carried, _):
        (dq, dk, dv), part = carried
        part, dk, dv = ring.on((part, dk, dv))
        return (add((dq, dk, dv), part), part), None

    here = k, v, valid
    first = _gradients(q, *here, told, near), here
    (sums, _), _ = jax.lax.scan(step, first, length=ring.devices - 1)
    dq, dk, dv = sums
    dk, dv = ring.on((dk, dv))
    return *chunked.like((q, k, v), (dq, dk, dv)), None


attend.defvjp(_forward, _backward)


def _read(q, k, v, valid, near: Nearby | None) -> chunked.Part:
    if near is None:
        return chunked.part(q, k, v, valid[:, None])
    heads = near.queries(q), near.keys(k), near.keys(v)
    read = chunked.part(*heads, near.seen(valid))
    return jax.tree.map(lambda x: near.back(x, len(q)), read)


def _gradients(q, k, v, valid, told: chunked.Slopes, near: Nearby | None):
    if near is None:
        return chunked.part_gradients(q, k, v, valid[:, None], told)
    told = chunked.Slopes(*map(near.queries, told))
    heads = near.queries(q), near.keys(k), near.keys(v)
    dq, *theirs = chunked.part_gradients(*heads, near.seen(valid), told)
    shape = jax.ShapeDtypeStruct(k.shape, jnp.float32)
    back = jax.linear_transpose(near.keys, shape)
    return near.back(dq, len(q)), *(back(x)[0] for x in theirs)
