"""The mini video autoencoder, trained on prepared clips (ours).

    python -m launch.prepare_data --source PEOPLE --output DATASET --codec random
    python -m launch.train --config configs/codec.py:mini --workdir W/stills \\
        --config.data.path=DATASET --config.data.frames=1 \\
        --config.data.batch_size=20 --config.train.steps=625
    python -m launch.train --config configs/codec.py:mini --workdir W/codec \\
        --config.data.path=DATASET --config.init_from=W/stills \\
        --config.optimizer.learning_rate=0.002 --config.train.steps=400

From stills to clips: it learns twice as fast so. Ends with W/codec/codec.safetensors;
these are the commands of the shipped one. Dataset: configs/face.py.

:mini, 2 CPU cores: 13 min and 7 min, 23.4 dB on training clips, 21.5 dB on unseen
people (measured). The official codec is not trained here: its weights are Wan's.
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
