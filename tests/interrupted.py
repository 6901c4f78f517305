"""Prepares a dataset with a stand-in for the networks: a process for tests to kill.

python tests/interrupted.py SOURCE OUTPUT
"""

import hashlib
import os
import sys
from pathlib import Path
from unittest import mock

import numpy as np

from configs import same_scene
from data_pipelines import conditions, media
from data_pipelines.prepare import dataset, encode
from data_pipelines.prepare.pipeline import Runner


def get_config():
    """Tiny clips, two processes, small shards."""
    config = same_scene.get_config("tiny")
    config.prepare.workers, config.prepare.min_face = 2, 0.25
    config.prepare.records_per_shard = 2
    return config


def make_encoder(codec, name, readers, config):
    """Records of the right shapes, a function of the clip, without any network."""
    model = config.model

    def run(clip):
        frames = media.decode_mp4(clip["video"])
        count, (rows, columns) = len(frames), frames.shape[1:3]
        seed = int.from_bytes(hashlib.sha256(clip["video"]).digest()[:4], "big")
        random = np.random.default_rng(seed)
        latent = (rows // 8, columns // 8, config.codec.z_dim)
        person = conditions.still_mask(clip["person_box"], (rows, columns))
        sized = {
            "latents": (1 + (count - 1) // 4, *latent),
            "still": (1, *latent),
            "reference": (count // 4, *latent),
            "audio": (count, model.audio_dim),
            "reference_audio": (count + 3, model.videoref_audio_dim),
            "mel": (count, 4 * config.speech.mel_bins),
            "text": (config.text.length, config.text.dim),
        }
        made = {k: random.normal(size=v).astype(np.float16) for k, v in sized.items()}
        boxes, faces = clip["face_boxes"], clip["faces"]
        return made | {
            "clip_id": clip["clip_id"].decode(),
            "still_tokens": conditions.still_tokens(person),
            "reference_tokens": conditions.face_tokens(boxes, (rows, columns)),
            "face_boxes": boxes,
            "faces": faces,
            "codec": name,
        }

    return run


def prepare(source: Path, output: Path, runner=Runner(), **fields) -> bool:  # noqa: B008
    """`dataset.prepare` under `get_config`, with fields of its section changed."""
    config = get_config()
    config.prepare.update(fields)
    rows = np.zeros((config.text.length, config.text.dim), np.float16)
    with (
        mock.patch.object(dataset, "fingerprint", lambda codec: "none"),
        mock.patch.object(dataset.features, "check", lambda readers, config: None),
        mock.patch.object(encode, "make_encoder", make_encoder),
        mock.patch.object(encode, "null_text", lambda readers: rows),
    ):
        networks = dataset.Networks(None, None, None)
        return dataset.prepare(source, output, config, networks, runner)


if __name__ == "__main__":
    os.write(1, b"ready\n")
    prepare(Path(sys.argv[1]), Path(sys.argv[2]))
