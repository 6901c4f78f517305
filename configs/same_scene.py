"""Stage 1: learn to speak from same-scene windows of one clip (our recipe).

    python -m launch.train --config configs/same_scene.py:mini --workdir W/same_scene

Reference, still, speech and target all come from the same clip, in windows that do
not overlap where the clip is long enough.
"""

from ml_collections import ConfigDict

from configs import base, models


def get_config(size: str = "tavr_14b") -> ConfigDict:
    """Stage 1 at one of the sizes of configs/models.py."""
    c = base.get_config()
    c.stage = "same_scene"
    c.data.pairs = "same_scene"
    return models.apply(c, size)
