"""A fingerprint of parameters that does not depend on where they are.

    (1) s_k(x) = sum over i of mix(bits(x_i) xor mix(i + c_k))  mod 2^32,  k = 1, 2
    (2) fingerprint = sha256 of names, dtypes, shapes and (1), 12 hex digits

i counts elements in row-major order; mix is the finaliser of MurmurHash3, a bijection.
Sums of integers do not mind their order, so any split over any devices and processes
gives the same (1), computed where the values are: no value leaves its device, and 38 GB
cost one reading of memory. It tells mistakes apart, not forgeries.
"""

import hashlib
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array

from tavr_jax.types import PyTree

_SEEDS = (0x9E3779B9, 0x7F4A7C15)


def fingerprint(tree: PyTree) -> str:
    """(2). Leaves are arrays of at most 32 bits an element."""
    leaves = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree.leaves_with_path(tree)
    }
    digest = hashlib.sha256()
    for name, leaf in sorted(leaves.items()):
        # One after another: many programs under way, each with a sum over all devices,
        # may wait for each other for ever on a CPU of few cores.
        told = [int(value) for value in _sums(leaf)]
        digest.update(f"{name} {leaf.dtype} {leaf.shape} {told}\n".encode())
    return digest.hexdigest()[:12]


@jax.jit
def _sums(x: Array) -> tuple[Array, ...]:
    """(1)."""
    bits = jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{8 * x.dtype.itemsize}"))
    place = jnp.zeros(x.shape, jnp.uint32)
    for axis in range(x.ndim):
        stride = jnp.uint32(math.prod(x.shape[axis + 1 :]) % 2**32)
        place += jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis) * stride
    bits = bits.astype(jnp.uint32)
    return tuple(
        _mix(bits ^ _mix(place + jnp.uint32(seed))).sum(dtype=jnp.uint32)
        for seed in _SEEDS
    )


def _mix(x: Array) -> Array:
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
