"""Attention by JAX's Pallas kernel for TPUs ("splash"), interpreted on CPUs.

The kernel takes one example as "K n d", does not scale, and wants lengths that are
multiples of its blocks. Queries are scaled before, both lengths are padded, and a key
that is masked or padding belongs to another segment than every query.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel as splash,
)
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_mask as masks,
)
from jaxtyping import Array, Bool, Float

from tavr_jax.errors import InputError
from tavr_jax.parallel.mesh import device_kind, platform

LANES = 128  # every block is a multiple of it


class Blocks(NamedTuple):
    """The largest blocks of a chip: of queries, of keys, of keys multiplied at once."""

    q: int
    kv: int
    compute: int


# By jax.Device.device_kind. Near the largest whose three passes, with heads of 128
# channels, libtpu 0.0.42 compiles into the VMEM it gives a kernel by default; found
# ahead of time, not timed on chips.
BLOCKS = {
    "TPU v5 lite": Blocks(1024, 2048, 1024),
    "TPU v5": Blocks(1024, 2048, 1024),
    "TPU v5p": Blocks(1024, 2048, 1024),
    "TPU v6 lite": Blocks(2048, 2048, 1024),
    "TPU7x": Blocks(2048, 2048, 1024),
    "cpu": Blocks(128, 256, 128),  # interpreted: many small blocks for tests
}


def attend(
    q: Float[Array, "B n K d"],
    k: Float[Array, "B m K d"],
    v: Float[Array, "B m K d"],
    kept: Bool[Array, "B m"] | None,
    keep: str | None,
) -> Float[Array, "B n K d"]:
    """`attention.attend` for masks that are the same for all queries.

    InputError for a chip that BLOCKS does not know.
    """
    batch, n, heads, d = q.shape
    m = k.shape[1]
    size = fit(n, m, _most())
    rows, columns = n + -n % size.q, m + -m % size.kv
    kernel = splash.make_splash_mha(
        masks.MultiHeadMask([masks.FullMask((rows, columns))] * heads),
        block_sizes=_all_passes(size),
        head_shards=1,
        q_seq_shards=1,
        residual_checkpoint_name=keep,
        interpret=platform() != "tpu",
    )
    segments = None
    if kept is not None or columns > m:
        kept = jnp.ones((batch, m), bool) if kept is None else kept
        kept = jnp.pad(kept, ((0, 0), (0, columns - m))).astype(jnp.int32)
        segments = splash.SegmentIds(q=jnp.ones((batch, rows), jnp.int32), kv=kept)
    q = (q.astype(jnp.float32) / math.sqrt(d)).astype(q.dtype)
    attended = jax.vmap(kernel)
    if q.dtype.itemsize == 2:
        attended = _in_one_pass(attended)
    out = attended(
        _laid_out(q, rows), _laid_out(k, columns), _laid_out(v, columns), segments
    )
    return out[:, :, :n].swapaxes(1, 2)


def fit(n: int, m: int, most: Blocks) -> Blocks:
    """Equal blocks for n queries and m keys, none above `most`, with little padding."""
    q = _share(n, math.ceil(n / most.q))
    count = math.ceil(m / most.kv)
    pieces = math.ceil(m / count / most.compute)
    compute = _share(m, count * pieces)
    return Blocks(q, pieces * compute, compute)


def _in_one_pass(attended: Callable[..., Array]) -> Callable[..., Array]:
    """`attended` with JAX's default precision of products, forwards and backwards,
    whatever jax_default_matmul_precision is: Mosaic refuses more for 16-bit numbers.

    A kernel's gradient is traced where somebody asks for it, outside of any context
    around the call: hence a gradient rule of its own.
    """
    default = functools.partial(jax.default_matmul_precision, "default")

    @jax.custom_vjp
    def call(*operands):
        with default():
            return attended(*operands)

    def forwards(*operands):
        with default():
            return jax.vjp(attended, *operands)

    def backwards(pull, slopes):
        with default():
            return pull(slopes)

    call.defvjp(forwards, backwards)
    return call


def _most() -> Blocks:
    kind = device_kind()
    if kind not in BLOCKS:
        raise InputError(
            f"model.attention: splash has no block sizes for {kind!r} in "
            "models/attention_splash.py; set it to chunked, or add a row"
        )
    return BLOCKS[kind]


def _share(size: int, parts: int) -> int:
    return LANES * math.ceil(size / parts / LANES)


def _all_passes(size: Blocks) -> splash.BlockSizes:
    # The pass of the queries' gradient has all scores of a block at once: small blocks.
    return splash.BlockSizes(
        block_q=size.q,
        block_kv=size.kv,
        block_kv_compute=size.compute,
        block_q_dkv=size.q,
        block_kv_dkv=size.kv,
        block_kv_dkv_compute=size.compute,
        block_q_dq=size.q,
        block_kv_dq=size.compute,
    )


def _laid_out(x: Float[Array, "B n K d"], length: int) -> Float[Array, "B K length d"]:
    return jnp.pad(x.swapaxes(1, 2), ((0, 0), (0, 0), (0, length - x.shape[1]), (0, 0)))
