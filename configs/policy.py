"""Stage 3: policy gradient on identity rewards (our recipe; see tavr_jax/rl).

    python -m launch.train --config configs/policy.py:mini --workdir W/policy \\
        --config.init_from=W/cross_scene
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
    c.optimizer.learning_rate *= 0.1
    c.train.steps = max(2, c.train.steps // 10)
    return c
