"""Stage 2: the reference shows the same person in another scene (our recipe).

    python -m launch.train --config configs/cross_scene.py:mini \\
        --workdir W/cross_scene --config.init_from=W/same_scene
"""

from ml_collections import ConfigDict

from configs import base, models


def get_config(size: str = "tavr_14b") -> ConfigDict:
    """Stage 2 at one of the sizes of configs/models.py."""
    c = base.get_config()
    c.stage = "cross_scene"
    c.data.pairs = "cross_scene"
    return models.apply(c, size)
