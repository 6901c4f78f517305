"""Attention on a mesh: who holds which keys, and what is sent.

Samples are over (data, fsdp), heads over tensor, tokens over context; the tables are in
parallel/sharding.py. Keys that are few (text, audio) are whole on every device of
context, and nothing is sent. Where tokens read each other there are two ways:

    Ulysses  heads of a device divide by context: one all-to-all gives each device all
             tokens of 1 / context of its heads, another gives the tokens back. Any
             kernel runs between the two. Sent by each device: 4 / context of its part
             of q, k, v and the output together. Jacobs et al. 2023, arXiv 2309.14509
    ring     otherwise: keys and values travel once around, a part at a time, and the
             softmax goes on over them (attention_chunked.py (1) to (3)). Plain XLA on
             every chip. Sent: (context - 1) times the device's keys and values.
             Liu et al. 2023, arXiv 2310.01889

Keys and values of the reference stay as the way wants them: by heads for Ulysses, so
that a cached reference is never sent again; by tokens for the ring, where every key
travels anyway. Outside of a mesh, or on one device, all of it is `attention.attend`.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float

from tavr_jax.errors import InputError
from tavr_jax.models import attention_chunked
from tavr_jax.models.attention import attend
from tavr_jax.parallel import sharding


class KeysValues(NamedTuple):
    """What tokens show to others."""

    keys: Float[Array, "B m K d"]
    values: Float[Array, "B m K d"]
    valid: Bool[Array, "B m"]


def read(
    q: Float[Array, "B n K d"],
    k: Float[Array, "B m K d"],
    v: Float[Array, "B m K d"],
    mask: Bool[Array, "B q m"] | None,
    kernel: str,
) -> Float[Array, "B n K d"]:
    """`attend` to few keys: each device's queries read all of them."""
    if _alone():
        return attend(q, k, v, mask, kernel)
    tokens = sharding.fitting(q.shape, "B", "N", "K", None)
    rows = PartitionSpec(tokens[0], None, tokens[2], None)
    seen = None
    if mask is not None:
        seen = PartitionSpec(tokens[0], tokens[1] if mask.shape[1] > 1 else None, None)
    local = functools.partial(attend, kernel=kernel)
    return _spread(local, (tokens, rows, rows, seen), tokens)(q, k, v, mask)


def attend_all(
    q: Float[Array, "B n K d"],
    own: KeysValues,
    reference: KeysValues | None,
    kernel: str,
) -> tuple[Float[Array, "B n K d"], KeysValues]:
    """Tokens read the valid ones among themselves and, if given, those of `reference`.

    Also returns `own` where another call wants it as its `reference`. n and m are
    multiples of context. InputError where the heads do not divide by tensor.
    """
    if _alone():
        k, v, valid = own if reference is None else _joined(own, reference)
        return attend(q, k, v, valid[:, None], kernel), own
    if q.shape[2] % sharding.shares("K"):
        raise InputError(
            f"parallel.tensor: {sharding.shares('K')} does not divide "
            f"model.num_heads {q.shape[2]}"
        )
    tokens = sharding.fitting(q.shape, "B", "N", "K", None)
    split = KeysValues(tokens, tokens, PartitionSpec(*tokens[:2]))
    if q.shape[2] % sharding.shares("heads"):
        local, kept = _ring, split
    else:
        heads = PartitionSpec(tokens[0], None, sharding.spec("heads")[0], None)
        local = functools.partial(_ulysses, kernel=kernel)
        kept = KeysValues(heads, heads, PartitionSpec(tokens[0], None))
        # All tokens' flags everywhere: they are bits.
        split = split._replace(valid=kept.valid)
    call = _spread(local, (tokens, split, reference and kept), (tokens, kept))
    return call(q, own, reference)


def _ulysses(q, own: KeysValues, reference: KeysValues | None, kernel: str):
    def by_heads(x: Array) -> Array:
        return jax.lax.all_to_all(x, _context(), 2, 1, tiled=True)

    own = KeysValues(by_heads(own.keys), by_heads(own.values), own.valid)
    k, v, valid = own if reference is None else _joined(own, reference)
    out = attend(by_heads(q), k, v, valid[:, None], kernel)
    return jax.lax.all_to_all(out, _context(), 1, 2, tiled=True), own


def _ring(q, own: KeysValues, reference: KeysValues | None):
    devices = sharding.shares("N")
    neighbours = [(i, (i + 1) % devices) for i in range(devices)]
    here = own if reference is None else _joined(own, reference)

    def extend(read: attention_chunked.Partial, part: KeysValues):
        keys, values, valid = part
        return attention_chunked.extend(read, q, keys, values, valid[:, None])

    def step(carried, _):
        read, part = carried
        part = jax.lax.ppermute(part, _context(), neighbours)
        return (extend(read, part), part), None

    first = extend(attention_chunked.start(q), here)
    # The backward pass computes the scores of a step again.
    again = jax.checkpoint(step, prevent_cse=False)
    (read, _), _ = jax.lax.scan(again, (first, here), length=devices - 1)
    return attention_chunked.finish(read, q.dtype), own


def _joined(own: KeysValues, reference: KeysValues) -> KeysValues:
    return KeysValues(
        *(jnp.concatenate(pair, axis=1) for pair in zip(own, reference, strict=True))
    )


def _context() -> tuple[str, ...]:
    return sharding.RULES["N"]


def _alone() -> bool:
    mesh = jax.sharding.get_abstract_mesh()
    return mesh.empty or mesh.size == 1


def _spread(local, in_specs, out_specs):
    # Pallas kernels do not tell which axes their results vary over.
    return jax.shard_map(local, in_specs=in_specs, out_specs=out_specs, check_vma=False)
