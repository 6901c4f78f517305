"""Stage 3 by DiffusionNFT instead of GRPO (our recipe; tavr_jax/rl/nft.py).

    python -m launch.train --config configs/policy_nft.py:mini --workdir W/nft \\
        --config.data.path=DATASET --config.init_from=W/cross_scene

Rollouts are the plain ODE, by the averaged weights; an update costs one network call a
member. kl_weight weighs velocities here, not densities. Numbers of the paper.
"""

from ml_collections import ConfigDict

from configs import policy


def get_config(size: str = "tavr_14b") -> ConfigDict:
    """Stage 3 at one of the sizes of configs/models.py."""
    c = policy.get_config(size)
    c.name = f"policy_nft:{size}"
    c.policy.algorithm = "nft"
    c.policy.kl_weight = 1e-4
    c.optimizer.ema_decay = 0.5
    c.optimizer.ema_ramp = 0.001
    return c
