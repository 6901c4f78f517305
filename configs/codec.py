"""The mini video autoencoder, trained on prepared clips (ours).

python -m launch.train --config configs/codec.py:mini --workdir W/codec
"""

from ml_collections import ConfigDict

from configs import base, models


def get_config(size: str = "mini") -> ConfigDict:
    """Codec training at one of the sizes of configs/models.py."""
    c = base.get_config()
    c.stage = "codec"
    c = models.apply(c, size)
    c.optimizer.weight_decay = 0.0
    return c
