"""What of a velocity is plain from the noisy latents alone, so that a small network
need not learn it (ours; not in the official model, and off at its sizes).

With latents x_0 in a channel of deviation s, noise e, x = (1 - sigma) x_0 + sigma e and
v = e - x_0,

    (1) D(sigma) = sigma^2 + (1 - sigma)^2 s^2              variance of x
    (2) v = a x + b F
    (3) a = (sigma - (1 - sigma) s^2) / D                   best linear guess of v
    (4) b = s / sqrt(D)                                     deviation of what remains

and the network's output F has unit variance at every sigma. At sigma 1, F = -x_0 / s:
the noise itself, most of what v consists of there, passes by a network whose width
could hardly carry it; at sigma 0, F = e. Source: Karras et al. 2022 (arXiv 2206.00364),
their (c_skip, c_out) derived for the velocity of flow matching.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float


def velocity(
    output: Float[Array, "B T H W C"],
    latents: Float[Array, "B T H W C"],
    timestep: Float[Array, " B"],
    deviation: tuple[float, ...],
) -> Float[Array, "B T H W C"]:
    """(2), of the network's output F at `timestep` = 1000 sigma; s of every channel."""
    s = jnp.asarray(deviation, jnp.float32)[None, None, None, None]
    sigma = (timestep / 1000).astype(jnp.float32)[:, None, None, None, None]
    variance = sigma**2 + ((1 - sigma) * s) ** 2  # (1)
    known = (sigma - (1 - sigma) * s**2) / variance  # (3)
    return known * latents + s / jnp.sqrt(variance) * output  # (4)
