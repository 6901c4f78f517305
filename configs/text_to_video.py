"""Before stage 1: video from a caption alone.

    python -m launch.train --config configs/text_to_video.py:mini \\
        --workdir W/text_to_video --config.data.path=DATASET

The step of stage 1 with speech, reference and still dropped from every sample. Avatar V
(arXiv 2606.13872) reports that its training starts with text-to-video, then
audio-to-video; the recipe here is ours. Next: configs/audio_to_video.py. Of use where
training starts from nothing; Wan 2.1 has done this part. Sees the beginnings of clips
only, since data.continuation = 0: later chunks are told what came before them.
"""

from ml_collections import ConfigDict

from configs import base, models


def get_config(size: str = "tavr_14b") -> ConfigDict:
    """Text-to-video at one of the sizes of configs/models.py."""
    c = base.get_config()
    c.stage = "text_to_video"
    c.data.pairs = "same_scene"
    c.data.continuation = 0.0
    c.flow.drop_audio = c.flow.drop_reference = c.flow.drop_still = 1.0
    return models.apply(c, size)
