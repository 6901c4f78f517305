"""What a training run carries from step to step, and the contracts of its parts."""

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxtyping import Array, Int

from tavr_jax.types import Metrics, PyTree


class TrainState(NamedTuple):
    """Everything that a step changes. `step` is the only counter of a run."""

    step: Int[Array, ""]  # steps taken
    params: PyTree
    opt_state: PyTree
    ema: PyTree  # average of the parameters; None where optimizer.ema_decay is 0


# (params, batch, key) -> (loss, metrics). Metrics are averaged between two log lines;
# an entry "clip_loss" of shape (B,) is never logged: it names the clips behind a loss
# that is not finite.
Loss = Callable[[PyTree, Any, Array], tuple[Array, Metrics]]

# (state, batch, key) -> (state, metrics), pure. Weights that are not trained travel as
# arguments of a jax.tree_util.Partial, not as constants of the compiled program.
Step = Callable[[TrainState, Any, Array], tuple[TrainState, Metrics]]


def sampling_params(state: TrainState) -> PyTree:
    """The parameters to sample with and to export: the average, where there is one."""
    return state.params if state.ema is None else state.ema
