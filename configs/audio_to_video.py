"""Before stage 1: video from a caption and speech.

    python -m launch.train --config configs/audio_to_video.py:mini \\
        --workdir W/audio_to_video --config.data.path=DATASET \\
        --config.init_from=W/text_to_video

The step of stage 1 with reference and still dropped from every sample, the second part
of a curriculum that is Avatar V's idea and our recipe (configs/text_to_video.py). Next:
configs/same_scene.py with --config.init_from=W/audio_to_video.

:mini, 2 CPU cores: 300 steps in about 3 min, as stage 1 (estimate; runs of a few steps
were made). :tavr_14b and :tavr_1p3b: hardware and time of stage 1 (estimate), unknown
loss.
"""

from ml_collections import ConfigDict

from configs import base, models


def get_config(size: str = "tavr_14b") -> ConfigDict:
    """Audio-to-video at one of the sizes of configs/models.py."""
    c = base.get_config()
    c.stage = "audio_to_video"
    c.data.pairs = "same_scene"
    c.data.continuation = 0.0
    c.flow.drop_reference = c.flow.drop_still = 1.0
    return models.apply(c, size)
