"""AdamW with linear warm-up, global-norm clipping and an average of the weights.

    (1) g' = g min(1, clip / |g|)
    (2) m, v = Adam moments of g';  u = m^ / (sqrt(v^) + eps) + decay w   (kernels only)
    (3) w' = w - rate(step) u,      rate(t) = rate min(1, (t + 1) / (warmup + 1))
    (4) e' = ema_decay e + (1 - ema_decay) w'

An update whose loss or gradient is not finite is skipped: weights, moments and average
stay, and the step still counts, so that data and keys move on.
"""

import dataclasses

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from tavr_jax.training.state import TrainState
from tavr_jax.types import Metrics, PyTree


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Section `optimizer`; meanings and values are in configs/base.py."""

    learning_rate: float
    warmup_steps: int
    weight_decay: float
    b1: float
    b2: float
    clip_norm: float
    ema_decay: float


def create_state(params: PyTree, config: OptimizerConfig) -> TrainState:
    """State at step 0. Pure: call it under jit with the shardings of the result."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=_transformation(config).init(params),
        ema=jax.tree.map(jnp.copy, params) if config.ema_decay else None,
    )


def apply_update(
    state: TrainState,
    loss: Float[Array, ""],
    grads: PyTree,
    config: OptimizerConfig,
) -> tuple[TrainState, Metrics]:
    """(1)-(4). Does not count the step: one step may make several updates."""
    norm = optax.tree.norm(grads)
    finite = jnp.isfinite(loss) & jnp.isfinite(norm)
    rate = learning_rate(config, state.step)
    updates, opt_state = _transformation(config).update(
        grads, state.opt_state, state.params
    )
    params = jax.tree.map(
        lambda w, u: w - (rate * u).astype(w.dtype), state.params, updates
    )
    ema = state.ema
    if ema is not None:
        ema = jax.tree.map(
            lambda e, w: e + (1.0 - config.ema_decay) * (w - e), ema, params
        )
    new = TrainState(state.step, params, opt_state, ema)
    kept = jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, state)
    skipped = 1.0 - finite.astype(jnp.float32)
    return kept, {"grad_norm": norm, "learning_rate": rate, "skipped": skipped}


def learning_rate(config: OptimizerConfig, step: Array) -> Array:
    """rate(step) of (3): the first step already moves."""
    warm = (step + 1) / (config.warmup_steps + 1)
    return config.learning_rate * jnp.minimum(1.0, warm)


def decayed(params: PyTree) -> PyTree:
    """True where weight decay acts: kernels.

    Chosen by name, because the vectors of stacked layers have two axes.
    """

    def is_kernel(path: tuple, _: Array) -> bool:
        names = jax.tree_util.keystr(path, simple=True, separator="/").split("/")
        return "kernel" in names[-2:]  # a variable's own leaf is called "value"

    return jax.tree_util.tree_map_with_path(is_kernel, params)


def _transformation(config: OptimizerConfig) -> optax.GradientTransformation:
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.scale_by_adam(config.b1, config.b2),
        optax.add_decayed_weights(config.weight_decay, mask=decayed),
    )
