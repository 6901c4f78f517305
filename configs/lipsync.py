"""The mini lip-sync network: which speech goes with these lips (ours).

python -m launch.train --config configs/lipsync.py:mini --workdir W/lipsync \\
        --config.data.path=DATASET
"""

from ml_collections import ConfigDict

from configs import base, models


def get_config(size: str = "mini") -> ConfigDict:
    """Lip-sync training at one of the sizes of configs/models.py."""
    c = base.get_config()
    c.stage = "lipsync"
    c = models.apply(c, size)
    c.data.batch_size = 8
    return c
