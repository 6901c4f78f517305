"""Stage 2: the reference shows the same person in another scene (our recipe).

    python -m launch.train --config configs/cross_scene.py:mini \\
        --workdir W/cross_scene --config.data.path=DATASET \\
        --config.init_from=W/same_scene

Needs people with two scenes each. Its loss starts and ends below that of
stage 1; what it learns, not to copy the scene, is seen in the samples.

:mini, 2 CPU cores beside other work: 300 steps in 5.3 min, loss 0.61 -> 0.42 (measured;
means of the first and last tenth). The shipped model had 2600, after 3000 of stage 1;
its held-out loss stayed at 0.40 from step 1200 to 2000 at a constant rate.
:tavr_14b and :tavr_1p3b: hardware and time of stage 1 (estimate), loss unknown.
"""

from ml_collections import ConfigDict

from configs import base, models


def get_config(size: str = "tavr_14b") -> ConfigDict:
    """Stage 2 at one of the sizes of configs/models.py."""
    c = base.get_config()
    c.stage = "cross_scene"
    c.data.pairs = "cross_scene"
    return models.apply(c, size)
