"""What is true of a benchmark's pair, and what the page shows of it.

The real video is the target's span, brought to the bucket as training footage is;
faces are searched in the source: those of small buckets are too small to be found.
"""

import functools
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Float, UInt8
from ml_collections import ConfigDict
from numpy import ndarray

from data_pipelines import benchmark_media, conditions, media, people, still
from data_pipelines.benchmark_media import Cut
from launch.benchmark_inputs import RATE, Pair
from launch.held_out import mouth_opening, persons
from launch.score_rows import write_video
from tavr_jax.encoders.speech import SpeechConfig, log_mel
from tavr_jax.errors import InputError
from tavr_jax.evaluation.score_video import Truth


def openings(folder: Path, pairs: Sequence[Pair]) -> dict[str, Float[ndarray, " F"]]:
    """The true opening of the mouth in every frame of the pairs' targets, by their key.

    FOLDER/<video id>.npz is of the video as it was published, 25 frames a second, and
    is cut by the clock that cuts the video. Read before the long work, for that an
    InputError, of one that is missing or too short, comes before it.
    """
    found = {}
    for pair in pairs:
        cut, name = pair.target, pair.sample.target.video_id
        first = int(cut.begins * benchmark_media.FPS + media.EARLY)
        slack = benchmark_media.SLACK
        found[pair.sample.key] = mouth_opening(folder, name, first, cut.frames, slack)
    return found


def read(
    pair: Pair,
    wave: ndarray,
    count: int,
    first: int,
    config: ConfigDict,
    opening: Float[ndarray, " n"] | None = None,
) -> Truth:
    """`count` frames of the target, and the reference from frame `first` on.

    `wave` is the target's speech, `opening` its true mouth, where that is known.
    InputError: footage that cannot be read, or in which nobody is found.
    """
    target, boxes = _fitted(pair.target, count, *_how(pair.target, config))
    whole = pair.reference.frames
    shown, shown_boxes = _fitted(pair.reference, whole, *_how(pair.reference, config))
    first = min(first, len(shown) - 1)
    size, kept = config.face.size, config.prepare.identity_faces
    speech, told = SpeechConfig(**config.speech), None
    if (sound := benchmark_media.sound(pair.reference, RATE)) is not None:
        told = log_mel(sound, len(shown), speech)[first:].astype(np.float32)
    return Truth(
        frames=target,
        boxes=boxes,
        persons=persons(boxes),
        reference=shown[first:],
        reference_boxes=shown_boxes[first:],
        reference_faces=people.crop_faces(shown, shown_boxes, size, kept),
        mel=log_mel(wave, count, speech).astype(np.float32),
        opening=None if opening is None else opening[:count],
        fps=float(benchmark_media.FPS),
        reference_mel=told,
    )


def _how(cut: Cut, config: ConfigDict) -> tuple[tuple[int, int], int]:
    """The bucket, and the frames between two that faces are searched in."""
    bucket = conditions.bucket_of(*cut.size, config.prepare)
    return bucket, config.prepare.detect_every


@functools.lru_cache(maxsize=2)  # a pair's target is often the next one's reference
def _fitted(
    cut: Cut, count: int, bucket: tuple[int, int], every: int
) -> tuple[UInt8[ndarray, "F Y X 3"], Float[ndarray, "F 4"]]:
    """Frames at bucket size, and the face's box in each. InputError: as `read`."""
    frames = np.empty((count, *bucket, 3), np.uint8)
    found = []
    for index, frame in zip(range(count), benchmark_media.frames(cut), strict=False):
        frames[index] = media.cover_resize(frame[None], bucket)[0]
        if index % every == 0:
            seen = np.ascontiguousarray(still.view(frame, bucket))
            found.append(people.find_faces(seen))
    track = people.link_faces(found, every, count)
    if not track.coverage:
        raise InputError(
            f"{cut.path}: no face from {cut.start:.2f} s on, where the benchmark has "
            "one; check that it is the video that is listed"
        )
    return frames, track.boxes


def write_shown(
    folder: Path, pair: Pair, truth: Truth, wave: ndarray, config: ConfigDict
) -> None:
    """What the page shows of the inputs, at the size the model sees."""
    sound = benchmark_media.sound(pair.reference, RATE)
    sound = np.zeros(RATE, np.float32) if sound is None else sound
    tags = {"role": "Reference"}
    write_video(folder / "reference.mp4", truth.reference, sound, config, tags)
    frame = truth.frames[0]
    person = conditions.person_box_from_face(truth.boxes[0])
    masked = conditions.grey_person(
        frame, conditions.still_mask(person, frame.shape[:2])
    )
    pixels = np.rint((masked + 1) * 127.5).astype(np.uint8)
    data = cv2.imencode(".png", pixels[..., ::-1])[1]
    (folder / "target.png").write_bytes(data.tobytes())
