"""The mini lip-sync network: which speech goes with these lips (ours).

python -m launch.train --config configs/lipsync.py:mini --workdir W/lipsync
"""

from ml_collections import ConfigDict

from configs import base, models


def get_config(size: str = "mini") -> ConfigDict:
    """Lip-sync training at one of the sizes of configs/models.py."""
    c = base.get_config()
    c.stage = "lipsync"
    return models.apply(c, size)
