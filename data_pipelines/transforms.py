"""Records -> examples. Every choice is drawn from the generator that is passed in.

A chunk at latent offset o of a clip is latents [o, o + T), frames and audio rows
[4o, 4o + A), A = 4(T - 1) + 1. A reference window at s is latents [s, s + R), frames
[4s, 4s + 4R), rows [4s, 4s + 4R) of the track that three copies of row 0 precede.

    first chunk    o = 0; the still is frame 0 with the person greyed, its tokens are
                   the background; no motion latents
    continuation   o >= 1; the still is the clip's first latent, all of its tokens;
                   motion latents are the chunk's own first P          [TAVR_SPEC 12.5]

Which chunk and which window train on what is ours.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from ml_collections import ConfigDict
from numpy import ndarray

from data_pipelines import media, people
from data_pipelines.records import Row
from tavr_jax.types import Batch, Conditions, Faces, Frames, Sync

Record = Mapping[str, Any]


class Lengths(NamedTuple):
    """Latents of a chunk (T), of a reference (R) and of motion (P)."""

    chunk: int
    reference: int
    motion: int


def lengths(config: ConfigDict) -> Lengths:
    """The lengths of a config."""
    model = config.model
    return Lengths(
        model.num_video_latents,
        model.num_videoref_latents,
        config.chunks.motion_latents,
    )


def video_latents(row: Row) -> int:
    """Latents of a clip's own track."""
    return (row.frames - 1) // 4 + 1


def reference_latents(row: Row) -> int:
    """Latents of a clip's track as a reference."""
    return row.frames // 4


def draw_offset(
    generator: np.random.Generator, row: Row, share: float, length: Lengths
) -> int:
    """Latent offset of a chunk: 0, or with probability `share` any later one."""
    last = video_latents(row) - length.chunk
    if last < 1 or generator.random() >= share:
        return 0
    return int(generator.integers(1, last + 1))


def draw_window(
    generator: np.random.Generator, row: Row, avoid: int | None, length: Lengths
) -> int:
    """Start of a reference window of a clip.

    With the offset of a chunk of the same clip in `avoid`: one that shares no frame
    with the chunk where the clip is long enough, else any.
    """
    starts = np.arange(reference_latents(row) - length.reference + 1)
    if avoid is not None:
        before = starts + length.reference <= avoid
        after = starts >= avoid + length.chunk
        apart = starts[before | after]
        starts = apart if len(apart) else starts
    return int(generator.choice(starts))


def pair_example(
    target: Record,
    reference: Record,
    null_text: Float[ndarray, "L E"],
    index: int,
    offset: int,
    window: int,
    length: Lengths,
) -> Batch:
    """One sample of the transformer, without the axis B, of two encoded records."""
    rows = slice(4 * offset, 4 * (offset + length.chunk - 1) + 1)
    latents = _float(target["latents"])
    chunk = latents[offset : offset + length.chunk]
    shown = slice(window, window + length.reference)
    spoken = slice(4 * window, 4 * (window + length.reference))
    motion = chunk[: length.motion]
    background = np.asarray(target["still_tokens"])
    conditions = Conditions(
        still=latents[:1] if offset else _float(target["still"]),
        still_tokens=np.ones_like(background) if offset else background,
        motion=motion if offset else np.zeros_like(motion),
        has_motion=np.bool_(offset > 0),
        reference=_float(reference["reference"][shown]),
        reference_tokens=reference["reference_tokens"][shown],
        text=_float(target["text"]),
        null_text=_float(null_text),
        audio=_float(target["audio"][rows]),
        has_audio=np.bool_(True),
        reference_audio=_float(reference["reference_audio"][spoken]),
        has_reference_audio=np.bool_(True),
    )
    return Batch(
        latents=chunk,
        conditions=conditions,
        faces=reference["faces"],
        face_box=target["face_boxes"][rows],
        mel=_float(target["mel"][rows]),
        clip=np.int32(index),
    )


def frames_example(generator: np.random.Generator, clip: Record, count: int) -> Frames:
    """`count` consecutive frames of a clip."""
    frames = media.decode_mp4(clip["video"])
    start = _start(generator, len(frames), count)
    return Frames(frames[start : start + count])


def faces_example(
    generator: np.random.Generator, clips: Sequence[Record], person: int
) -> Faces:
    """J crops of one person, drawn from all crops of one or several clips."""
    crops = np.concatenate([clip["faces"] for clip in clips])
    chosen = generator.permutation(len(crops))[: len(clips[0]["faces"])]
    return Faces(crops[chosen], np.int32(person))


def sync_example(
    generator: np.random.Generator, clip: Record, mel: ndarray, count: int, size: int
) -> Sync:
    """Face crops of `count` consecutive frames and the speech rows under them."""
    frames = media.decode_mp4(clip["video"])
    start = _start(generator, len(frames), count)
    window = slice(start, start + count)
    faces = people.crop_faces(frames[window], clip["face_boxes"][window], size, count)
    return Sync(faces, _float(mel[window]))


def _start(generator: np.random.Generator, length: int, count: int) -> int:
    return int(generator.integers(0, length - count + 1))


def _float(values) -> ndarray:
    return np.asarray(values, np.float32)
