"""Stage 3 by DiffusionNFT instead of GRPO (our recipe; tavr_jax/rl/nft.py).

    python -m launch.train --config configs/policy_nft.py:mini --workdir W/nft \\
        --config.data.path=DATASET --config.init_from=W/cross_scene

Rollouts are the plain ODE, by the averaged weights; an update costs one network call a
member. kl_weight weighs velocities here, not densities. Numbers of the paper.

:mini, 2 CPU cores: 4.3 s a step of 2 x 4 rollouts, with its evaluations. The shipped
stage 3, 80 steps at rate 3e-3: rewarded identity of held-out people 0.735 at step 20,
0.760 at step 80, by the other network 0.80 and 0.81; after 180 steps 0.769 and 0.83,
but colours grew from chunk to chunk (measured, one seed).
:tavr_14b, 64 chips of TPU v5p: 300 s a step, 3.4 days; :tavr_1p3b there: 50 s a step,
14 hours (estimate: FLOPs at 40 % of the peak, without decoder and rewards).
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
