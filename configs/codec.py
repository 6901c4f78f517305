"""The mini video autoencoder, trained on prepared clips (ours).

    python -m launch.render_people --output PEOPLE --people 100 --scenes 2 \\
        --seconds 1.6 --first_person 300
    python -m launch.prepare_data --source PEOPLE --output DATASET \\
        --config configs/codec.py:mini --config.prepare.encode=false
    python -m launch.train --config configs/codec.py:mini --workdir W/first \\
        --config.data.path=DATASET
    python -m launch.train --config configs/codec.py:mini --workdir W/second \\
        --config.data.path=DATASET --config.init_from=W/first \\
        --config.train.steps=1000
    python -m launch.train --config configs/codec.py:mini --workdir W/codec \\
        --config.data.path=DATASET --config.init_from=W/second \\
        --config.data.frames=33 --config.data.batch_size=3 \\
        --config.train.steps=450 --config.optimizer.learning_rate=0.001

Ends with W/codec/codec.safetensors; these are the commands of the shipped one, which
is stored in float16. The last run is on whole chunks: after 9-frame clips alone, frames
beyond the ninth are 2 dB worse (31.2 dB, measured).

:mini, one core of 2: 15 min, 7 + 5 + 3 (measured beside other work). On 12 people that
no choice was made on (from 1100, 37 frames each): 31.5 dB, 27.6 dB in the face box, the
worst clip 29.1 dB; fresh, the cosine transform alone, 30.9 and 27.2 dB (measured). On
the 12 (from 1000) that chose 24 channels and the last run: 32.1 and 28.4 dB; with 16
channels they gave 30.1 and 26.8 dB after 400 steps, and eyes could not be told.
The official codec is not trained here: its weights are Wan's.
"""

from ml_collections import ConfigDict

from configs import base, models


def get_config(size: str = "mini") -> ConfigDict:
    """Codec training at one of the sizes of configs/models.py."""
    c = base.get_config()
    c.stage = "codec"
    c = models.apply(c, size)
    if size == "mini":  # statistics of the fresh codec: where training starts from
        c.codec.latents_mean = (-0.37, 0.29, 0.01, 0.12, 0.30, *(0.0,) * 19)
        c.codec.latents_std = (
            1.03, 0.95, 1.03, 1.03, 1.09, 1.03, 0.88, 1.00, 0.77, 0.72, 0.84, 0.84,
            0.82, 0.91, 0.86, 0.82, 0.77, 0.73, 0.80, 0.76, 0.78, 0.59, 0.54, 0.55,
        )  # fmt: skip
    c.codec.edge_weight = 0.5
    c.optimizer.weight_decay = 0.0
    c.optimizer.learning_rate = 2e-3
    c.optimizer.schedule, c.optimizer.final_rate = "cosine", 0.02
    c.optimizer.ema_decay = 0.99
    c.data.batch_size, c.data.frames = 8, 9
    c.train.steps = 800 if size == "mini" else c.train.steps
    return c
