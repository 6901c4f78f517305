"""A dataset of random records that configs at :tiny read, made in a second."""

import json
from pathlib import Path

import numpy as np

from configs import same_scene
from data_pipelines import records, video_files
from launch import build
from tavr_jax.encoders.weights import fingerprint

FRAMES, SIZE, CELLS, TOKENS = 33, (32, 32), (4, 4), (2, 2)
PEOPLE = {"train": 5, "test": 2}  # each in two scenes


def write(root: Path, seed: int = 0) -> Path:
    """Write it to `root`; another `seed`, other contents."""
    config, random = same_scene.get_config("tiny"), np.random.default_rng(seed)
    model, face = config.model, config.face.size
    text = (config.text.length, config.text.dim)
    widths = (16, model.audio_dim, model.videoref_audio_dim)
    clips = records.RecordWriter(root, "clips", records.clip_features(), "t", 5)
    features = records.encoded_features(*widths, text)
    encoded = records.RecordWriter(root, "encoded", features, "t", 5)
    codec, rows = fingerprint(build.codec(config)), []

    def normal(*shape):
        return random.normal(size=shape).astype(np.float16)

    for split, count in PEOPLE.items():
        for number in range(2 * count):
            person, scene = f"{split}_{number // 2}", f"s{number % 2}"
            row = records.Row(
                clip_id=f"{person}/{scene}.mp4:0",
                video_id=f"{person}/{scene}.mp4",
                person=person,
                scene=scene,
                split=split,
                record=number,
                frames=FRAMES,
                size=SIZE,
                orientation="landscape",
                still_tokens=3,
                face_tokens=(4,) * (FRAMES // 4),
            )
            pixels = random.integers(0, 256, (FRAMES, *SIZE, 3)).astype(np.uint8)
            shape = (config.prepare.identity_faces, face, face, 3)
            both = {
                "clip_id": row.clip_id,
                "face_boxes": np.tile(np.float32([0.2, 0.2, 0.8, 0.8]), (FRAMES, 1)),
                "faces": random.integers(0, 256, shape).astype(np.uint8),
            }
            clips.add(
                split,
                both
                | {
                    "video_id": row.video_id,
                    "person": person,
                    "scene": scene,
                    "caption": "",
                    "orientation": "landscape",
                    "num_frames": FRAMES,
                    "video": video_files.encode_mp4(pixels, 25, 20),
                    "wave": (1000 * normal(FRAMES * 640)).astype(np.int16),
                    "person_box": np.float32([[0, 0.1, 1, 1]]),
                },
            )
            encoded.add(
                split,
                both
                | {
                    "latents": normal(FRAMES // 4 + 1, *CELLS, 16),
                    "still": normal(1, *CELLS, 16),
                    "still_tokens": np.array([[True, True], [True, False]]),
                    "reference": normal(FRAMES // 4, *CELLS, 16),
                    "reference_tokens": np.ones((FRAMES // 4, *TOKENS), bool),
                    "audio": normal(FRAMES, model.audio_dim),
                    "reference_audio": normal(FRAMES + 3, model.videoref_audio_dim),
                    "mel": normal(FRAMES, model.audio_dim),
                    "text": normal(*text),
                    "codec": codec,
                },
            )
            rows.append(row)
    clips.close()
    encoded.close()
    records.write_index(root, rows)
    np.save(root / records.NULL_TEXT, np.zeros(text, np.float16))
    (root / records.SUMMARY).write_text(json.dumps({"version": records.VERSION}))
    return root
