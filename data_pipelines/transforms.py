"""Records -> examples. Every choice is drawn from the generator that is passed in.

A chunk at latent offset o of a clip is latents [o, o + T), frames and audio rows
[4o, 4o + A), A = 4(T - 1) + 1. A reference window of r <= R latents at s is latents
[s, s + r), frames [4s, 4s + 4r), rows [4s, 4s + 4r) of the track that three copies of
row 0 precede.

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
from tavr_jax.errors import InputError
from tavr_jax.types import Batch, Conditions, Faces, Frames, Sync

Record = Mapping[str, Any]


class Lengths(NamedTuple):
    """Latents of a chunk (T), of a reference (R) and of motion (P)."""

    chunk: int
    reference: int  # the longest that is drawn: room for R
    motion: int
    shortest: int  # reference that is drawn


def lengths(config: ConfigDict) -> Lengths:
    """The lengths of a config. InputError: references of no length."""
    usual = config.model.num_videoref_latents
    shortest, longest = (drawn or usual for drawn in config.data.reference_latents)
    if not 1 <= shortest <= longest:
        raise InputError(
            f"data.reference_latents={tuple(config.data.reference_latents)}: give the "
            "shortest and the longest, from 1 on (0 = model.num_videoref_latents)"
        )
    return Lengths(
        config.model.num_video_latents,
        longest,
        config.chunks.motion_latents,
        shortest,
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
) -> range:
    """Reference latents of a clip: how many is drawn first, then where.

    With the offset of a chunk of the same clip in `avoid`: where they share no frame
    with the chunk if the clip is long enough, else anywhere.
    """
    longest = min(length.reference, reference_latents(row))
    count = int(generator.integers(length.shortest, longest + 1))
    starts = np.arange(reference_latents(row) - count + 1)
    if avoid is not None:
        before = starts + count <= avoid
        after = starts >= avoid + length.chunk
        apart = starts[before | after]
        starts = apart if len(apart) else starts
    start = int(generator.choice(starts))
    return range(start, start + count)


def pair_example(
    target: Record,
    reference: Record,
    null_text: Float[ndarray, "L E"],
    index: int,
    offset: int,
    window: range,
    length: Lengths,
) -> Batch:
    """One sample of the transformer, without the axis B, of two encoded records.

    A reference of fewer than R latents leaves the last of them zero and without a valid
    token: to the model they are absent, and their speech with them.
    """
    rows = slice(4 * offset, 4 * (offset + length.chunk - 1) + 1)
    latents = target["latents"]
    chunk = _float(latents[offset : offset + length.chunk])
    shown = slice(window.start, window.stop)
    spoken = slice(4 * window.start, 4 * window.stop)
    room = length.reference
    motion = chunk[: length.motion]
    background = np.asarray(target["still_tokens"])
    conditions = Conditions(
        still=_float(latents[:1] if offset else target["still"]),
        still_tokens=np.ones_like(background) if offset else background,
        motion=motion if offset else np.zeros_like(motion),
        has_motion=np.bool_(offset > 0),
        reference=_float(_filled(reference["reference"][shown], room)),
        reference_tokens=_filled(reference["reference_tokens"][shown], room),
        text=_float(target["text"]),
        null_text=_float(null_text),
        audio=_float(target["audio"][rows]),
        has_audio=np.bool_(True),
        reference_audio=_float(_filled(reference["reference_audio"][spoken], 4 * room)),
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


def _filled(values: ndarray, length: int) -> ndarray:
    """Zeros (false) after the rows that are there."""
    missing = length - len(values)
    if not missing:
        return values
    return np.pad(values, [(0, missing)] + [(0, 0)] * (values.ndim - 1))


def _start(generator: np.random.Generator, length: int, count: int) -> int:
    return int(generator.integers(0, length - count + 1))


def _float(values) -> ndarray:
    return np.asarray(values, np.float32)
