"""Stage 1: learn to speak from same-scene windows of one clip (our recipe).

    python -m launch.train --config configs/same_scene.py:mini \\
        --workdir W/same_scene --config.data.path=DATASET

Reference, still, speech and target all come from the same clip, in windows that do not
overlap where the clip is long enough.

:mini, 2 CPU cores beside other work: 300 steps in 7 min, loss 0.96 -> 0.46 (measured;
means of the first and last tenth). Too few for a face; launch/reproduce_mini.sh is the
way to one: 3000 steps, most of them of 9-frame chunks.
:tavr_14b, 64 chips of TPU v5p (parameters, averages and moments: 302 GB): 37 s a step,
4.3 days (estimate: FLOPs at 40 % of the peak). --config.init_from=HeyGenAI/TAVR or
Wan-AI/Wan2.1-T2V-14B; loss unknown.
:tavr_1p3b, 8 GPUs of 80 GB with --config.optimizer.accumulate=8: 23 s a step, 2.7 days
(estimate, the same way).
"""

from ml_collections import ConfigDict

from configs import base, models


def get_config(size: str = "tavr_14b") -> ConfigDict:
    """Stage 1 at one of the sizes of configs/models.py."""
    c = base.get_config()
    c.stage = "same_scene"
    c.data.pairs = "same_scene"
    return models.apply(c, size)
