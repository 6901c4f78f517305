"""The mini video autoencoder, trained on prepared clips (ours).

    python -m launch.prepare_data --source PEOPLE --output DATASET --codec random
    python -m launch.train --config configs/codec.py:mini --workdir W/codec \\
        --config.data.path=DATASET

About 0.7 s a step on 2 CPU cores; ends with W/codec/codec.safetensors.
"""

from ml_collections import ConfigDict

from configs import base, models


def get_config(size: str = "mini") -> ConfigDict:
    """Codec training at one of the sizes of configs/models.py."""
    c = base.get_config()
    c.stage = "codec"
    c = models.apply(c, size)
    c.optimizer.weight_decay = 0.0
    c.optimizer.learning_rate = 3e-3
    c.optimizer.ema_decay = 0.99
    c.data.batch_size, c.data.frames = 4, 5
    c.train.steps = 2000 if size == "mini" else c.train.steps
    return c
