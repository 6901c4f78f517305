"""The mini lip-sync network: which speech goes with these lips (ours).

    python -m launch.train --config configs/lipsync.py:mini --workdir W/lipsync \\
        --config.data.path=DATASET --config.train.steps=1000

Ends with W/lipsync/lipsync.safetensors; this is the command of the shipped network, on
the dataset of configs/face.py.

:mini, 2 CPU cores: 1000 steps in 5 min, loss 4.35 -> 3.7, the right window among 72 in
4 % (chance 1.4 %; measured). That is weak: it finds no offset even in real video.
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
