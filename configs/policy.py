"""Stage 3: policy gradient on rewards of identity and more (our recipe; tavr_jax/rl).

    python -m launch.train --config configs/policy.py:mini --workdir W/policy \\
        --config.data.path=DATASET --config.init_from=W/cross_scene
    python -m launch.sweep --config configs/policy.py:mini --workdir W/etas \\
        --config.data.path=DATASET --config.init_from=W/cross_scene \\
        --grid policy.eta=0.3,0.5,0.7 --seeds 2 --format run

A batch is of rollout groups: batch_size samples, group_size rollouts of each. Rewards
of different samples differ by more than a few steps change, so read a mean over tens of
steps, and over seeds.

:mini, 2 CPU cores: 3.4 s a step of 2 x 4 rollouts; 100 of them after the shipped stage
2 moved nothing (rewarded identity of held-out people 0.735 at step 25, 0.734 at step
100, KL 2e-6; measured, one seed, not tuned). The shipped stage 3 learned by
policy_nft.py, at three times this rate.
:tavr_14b, 64 chips of TPU v5p: 260 s a step, 3 days; :tavr_1p3b there: 44 s a step,
12 hours (estimate: FLOPs at 40 % of the peak, without decoder and rewards); reward
unknown.
"""

from ml_collections import ConfigDict

from configs import base, models


def get_config(size: str = "tavr_14b") -> ConfigDict:
    """Stage 3 at one of the sizes of configs/models.py."""
    c = base.get_config()
    c.stage = "policy"
    c.data.pairs = "cross_scene"
    c = models.apply(c, size)
    c.data.batch_size = max(1, c.data.batch_size // c.policy.group_size)
    # So the policy to stay near is the same weights without the additions.
    c.optimizer.trainable = "lora"
    c.optimizer.learning_rate = 1e-4 if size.startswith("tavr") else 1e-3
    c.optimizer.warmup_steps = 10
    c.optimizer.ema_decay = 0.9  # a run is short, and a step has several updates
    c.train.steps = max(2, c.train.steps // 10)
    return c
