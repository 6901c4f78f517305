"""What a training run carries from step to step, and the contracts of its parts."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jaxtyping import Array, Int

from tavr_jax.types import Metrics, PyTree


class TrainState(NamedTuple):
    """Everything that a step changes. `step` is the only counter of a run."""

    step: Int[Array, ""]  # steps taken
    params: PyTree  # what is trained, and nothing else (optimizer.trainable)
    opt_state: PyTree
    ema: PyTree  # average of the parameters; None where optimizer.ema_decay is 0


# (batch, key) -> example: everything random of a step, drawn for the whole batch at
# once. Every leaf has the sample axis in front.
Draw = Callable[[Any, Array], PyTree]

# (params, example) -> (loss, metrics), deterministic. Loss and scalar metrics are means
# over samples, so those of the parts of a batch average to those of the whole. Entries
# "clip" and "clip_loss" of shape (B,) are never logged: they name the clips behind a
# loss that is not finite.
Loss = Callable[[PyTree, PyTree], tuple[Array, Metrics]]

# (state, batch, key) -> (state, metrics), pure. Weights that are not trained travel as
# arguments of a jax.tree_util.Partial, not as constants of the compiled program.
Step = Callable[[TrainState, Any, Array], tuple[TrainState, Metrics]]


def carried(function: Callable) -> jax.tree_util.Partial:
    """`function` as a pytree: a Partial as it is, a plain function without leaves.

    A Partial of a Partial would hide the weights inside: it has no leaves.
    """
    if isinstance(function, jax.tree_util.Partial):
        return function
    return jax.tree_util.Partial(function)


def sampling_params(state: TrainState) -> PyTree:
    """The parameters to sample with and to export: the average, where there is one."""
    return state.params if state.ema is None else state.ema
