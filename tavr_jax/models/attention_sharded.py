"""Attention on a mesh: who holds which keys, and what is sent.

Samples are over (data, fsdp), heads over tensor, tokens over context; the tables are in
parallel/sharding.py. Keys that are few (text, audio) are whole on every device of
context, and nothing is sent. Where tokens read each other there are two ways:

    Ulysses  heads of a device divide by context: one all-to-all gives each device all
             tokens of 1 / context of its heads, another gives the tokens back. Any
             kernel runs between the two. Sent by each device: 4 / context of its part
             of q, k, v and the output together. Jacobs et al. 2023, arXiv 2309.14509
    ring     otherwise: keys and values travel once around (attention_ring.py). Plain
             XLA on every chip. Sent: (context - 1) times the device's keys and values.

Keys and values of the reference stay as the way wants them, `kept_axes`: by heads for
Ulysses, so that a cached reference is never sent again; by tokens for the ring, where
every key travels anyway. Outside of a mesh, or on one device, all of it is
`attention.attend`.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float

from tavr_jax.errors import InputError
from tavr_jax.models import attention_ring
from tavr_jax.models.attention import attend
from tavr_jax.models.attention_local import Nearby
from tavr_jax.parallel import sharding

# The name of what the backward pass of `attend_all` reads: model.remat can keep it.
KEPT = "attention"


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
    near: Nearby | None,
    kernel: str,
) -> tuple[Float[Array, "B n K d"], KeysValues]:
    """Tokens read the valid ones among themselves and, if given, those of `reference`.

    `near`: among themselves only those of latents nearby; then there is no reference.
    A `reference` of fewer samples serves groups, whose members are next to each other.
    Also returns `own` where another call wants it as its `reference`. n and m are
    multiples of context. InputError where the heads do not divide by tensor.
    """
    if reference is not None:
        reference = _for_members(reference, len(q))
    if _alone():
        return _attend(q, own, reference, near, kernel), own
    tokens = sharding.fitting(q.shape, "B", "N", "K", None)
    split = KeysValues(tokens, tokens, PartitionSpec(*tokens[:2]))
    if _by_heads(q.shape[2]):
        heads = PartitionSpec(tokens[0], None, sharding.spec("heads")[0], None)
        local = functools.partial(_ulysses, near=near, kernel=kernel)
        kept = KeysValues(heads, heads, PartitionSpec(tokens[0], None))
        # All tokens' flags everywhere: they are bits.
        split = split._replace(valid=kept.valid)
    else:
        local, kept = functools.partial(_ring, near=near), split
    call = _spread(local, (tokens, split, reference and kept), (tokens, kept))
    return call(q, own, reference)


def kept_axes(heads: int) -> KeysValues:
    """Logical axes (parallel/sharding.py) of the reference that `attend_all` reads, on
    the mesh around us. InputError where the heads do not divide by tensor."""
    if _alone() or _by_heads(heads):
        return KeysValues(*(("B", None, "heads", None),) * 2, ("B", None))
    return KeysValues(*(("B", "N", "K", None),) * 2, ("B", "N"))


def _by_heads(heads: int) -> bool:
    """Whether Ulysses is possible."""
    if heads % sharding.shares("K"):
        raise InputError(
            f"parallel.tensor: {sharding.shares('K')} does not divide "
            f"model.num_heads {heads}"
        )
    return heads % sharding.shares("heads") == 0


def _for_members(reference: KeysValues, samples: int) -> KeysValues:
    group, rest = divmod(samples, len(reference.valid))
    if rest:
        raise ValueError(f"{samples} members of {len(reference.valid)} references")
    if group == 1:
        return reference
    heads = kept_axes(reference.keys.shape[2])
    return KeysValues(
        *(
            sharding.constrain(jnp.repeat(x, group, axis=0), *axes)
            for x, axes in zip(reference, heads, strict=True)
        )
    )


def _attend(
    q: Array,
    own: KeysValues,
    reference: KeysValues | None,
    near: Nearby | None,
    kernel: str,
) -> Array:
    """All tokens of the heads are here."""
    k, v, valid = own if reference is None else _joined(own, reference)
    if near is None:
        return attend(q, k, v, valid[:, None], kernel, KEPT)
    heads = near.queries(q), near.keys(k), near.keys(v)
    return near.back(attend(*heads, near.seen(valid), kernel, KEPT), len(q))


def _ulysses(q, own: KeysValues, reference: KeysValues | None, near, kernel: str):
    def by_heads(x: Array) -> Array:
        return jax.lax.all_to_all(x, _context(), 2, 1, tiled=True)

    own = KeysValues(by_heads(own.keys), by_heads(own.values), own.valid)
    out = _attend(by_heads(q), own, reference, near, kernel)
    return jax.lax.all_to_all(out, _context(), 1, 2, tiled=True), own


def _ring(q, own: KeysValues, reference: KeysValues | None, near: Nearby | None):
    ring = attention_ring.Ring(_context(), sharding.shares("N"))
    here = own if reference is None else _joined(own, reference)
    near = near and near.of_a_run()
    return attention_ring.attend(q, *here, ring, near, KEPT), own


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
