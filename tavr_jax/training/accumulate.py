"""The gradient of a batch in parts, one after another: their memory is that of one.

    (1) loss, gradient = means over the parts of each part's
    (2) of k parts, part i has the samples i, k + i, 2k + i, ...

(1) is exact because a loss is a mean over samples and parts are of one size. (2) takes
samples that lie apart because a batch is split over devices in runs of neighbours: so
each device keeps its share of every part, where k runs of neighbours would lie on a few
devices each, and have to be sent to the others.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array

from tavr_jax.errors import InputError
from tavr_jax.parallel import sharding
from tavr_jax.training.state import Loss
from tavr_jax.types import Metrics, PyTree

# (params, example) -> ((loss, metrics), gradient), as jax.value_and_grad has it
Gradient = Callable[[PyTree, PyTree], tuple[tuple[Array, Metrics], PyTree]]


def value_and_grad(loss: Loss, parts: int) -> Gradient:
    """(1), (2). Every leaf of the example has the B samples in front.

    Scalar metrics are averaged; others have the B samples in front, in their order.
    InputError where the batch does not divide into `parts`.
    """
    gradient = jax.value_and_grad(loss, has_aux=True)
    if parts == 1:
        return gradient

    def accumulated(params: PyTree, example: PyTree):
        def one(total, part):
            value, grads = gradient(params, part)
            return jax.tree.map(jnp.add, total, grads), value

        zeros = jax.tree.map(jnp.zeros_like, params)
        total, values = jax.lax.scan(one, zeros, cut(example, parts))
        return jax.tree.map(_joined, values), jax.tree.map(lambda g: g / parts, total)

    return accumulated


def cut(example: PyTree, parts: int) -> PyTree:
    """(2): leaves "B ..." become "parts B/parts ..."; errors as in `value_and_grad`."""
    rows = {leaf.shape[0] for leaf in jax.tree.leaves(example)}
    if len(rows) != 1:
        raise ValueError(f"leaves of {sorted(rows)} samples in one example")
    shares = sharding.shares("B")
    split = is_split(rows.pop(), parts, shares)

    def apart(leaf: Array) -> Array:
        taken = leaf.reshape(-1, parts, *leaf.shape[1:]).swapaxes(0, 1)
        return sharding.constrain(taken, None, "B") if split else taken

    return jax.tree.map(apart, example)


def _joined(values: Array) -> Array:
    """Means of "parts", and "parts B/parts ..." back in the order of the batch."""
    if values.ndim == 1:
        return values.mean()
    return values.swapaxes(0, 1).reshape(-1, *values.shape[2:])


def is_split(rows: int, parts: int, shares: int) -> bool:
    """Whether each of `shares` devices has samples of its own; all of them have all
    samples where only the members of policy groups divide. InputError: see above."""
    asked = f"optimizer.accumulate: {parts}"
    if rows % parts:
        raise InputError(
            f"{asked} parts do not divide data.batch_size {rows}; change one of them"
        )
    if rows % shares == 0 and rows // parts % shares:
        raise InputError(
            f"{asked} parts of data.batch_size {rows} are {rows // parts} samples, not "
            f"divisible by parallel.data x parallel.fsdp = {shares}; change one of them"
        )
    return rows % shares == 0
