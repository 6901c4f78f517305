"""Flow matching, in the convention of Wan and TAVR: sigma 1 is noise, 0 is data.

    (1) x_sigma = (1 - sigma) x_0 + sigma noise
    (2) v = noise - x_0                      what the network predicts
    (3) x_0 = x_sigma - sigma v
    (4) noise = x_sigma + (1 - sigma) v
    (5) shifted(u, s) = s u / (1 + (s - 1) u)      spends more steps near noise

Source: Lipman et al. 2023 (arXiv 2210.02747); (5): Esser et al. 2024 (2403.03206).
"""

from jaxtyping import Array, Float


def noised(
    latents: Float[Array, "B T H W C"],
    noise: Float[Array, "B T H W C"],
    sigma: Float[Array, " B"],
) -> Float[Array, "B T H W C"]:
    """(1), one noise level a sample."""
    level = sigma[:, None, None, None, None]
    return (1 - level) * latents + level * noise


def velocity_target(
    latents: Float[Array, "B T H W C"], noise: Float[Array, "B T H W C"]
) -> Float[Array, "B T H W C"]:
    """(2)."""
    return noise - latents


def denoised(x: Array, velocity: Array, sigma) -> Array:
    """(3)."""
    return x - sigma * velocity


def implied_noise(x: Array, velocity: Array, sigma) -> Array:
    """(4)."""
    return x + (1 - sigma) * velocity


def shifted(u, shift: float):
    """(5), for arrays or numbers."""
    return shift * u / (1 + (shift - 1) * u)
