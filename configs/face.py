"""The mini face network: same person or not, on prepared clips (ours).

python -m launch.train --config configs/face.py:mini --workdir W/face \\
        --config.data.path=DATASET
"""

from ml_collections import ConfigDict

from configs import base, models


def get_config(size: str = "mini") -> ConfigDict:
    """Face-network training at one of the sizes of configs/models.py."""
    c = base.get_config()
    c.stage = "face"
    c = models.apply(c, size)
    c.data.batch_size = 8
    return c
