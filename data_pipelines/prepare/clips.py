"""Footage -> clips: read, cut into shots, cut into clips, keep what shows a speaker.

Frames stream through one at a time: each is brought to the bucket size, every n-th is
searched for faces at a size of its own, and a jump of the colour histogram

    d(a, b) = 1/2 sum |a - b|    of normalised 8 x 8 x 8 RGB histograms, 0..1

starts a new shot. Clips hold 1 + 4k frames, so that they are whole latents. All
filters are ours; each rejects with a reason, its numbers, and the field to change.
"""

import dataclasses
import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from jaxtyping import Float, UInt8
from ml_collections import ConfigDict
from numpy import ndarray

from data_pipelines import conditions, media, people
from data_pipelines.prepare.pairs import Video, read_caption
from tavr_jax.errors import InputError

# reason -> what to change
REMEDIES = {
    "unreadable": "re-encode or replace the file",
    "no sound": "give footage with its sound track",
    "too short": "lower prepare.min_frames",
    "no face": "give footage of a talking person, or lower prepare.min_coverage",
    "face too small": "lower prepare.min_face",
    "face cut off": "give footage with the face nearer to the middle",
    "several people": "raise prepare.max_faces",
    "too quiet": "lower prepare.min_loudness",
    "leftover": "nothing: the end of a shot whose other clips were kept",
}
MIN_VISIBLE = 0.75  # share of the face box that must survive the crop to the bucket
_HISTOGRAM_SIZE = (64, 64)


class Reject(NamedTuple):
    """Why a piece of footage is not in the dataset."""

    video_id: str
    reason: str  # a key of REMEDIES
    detail: str  # the numbers
    first: int  # frame at 25 fps where the piece starts
    frames: int  # its length; 0 = the whole video


class Piece(NamedTuple):
    """Consecutive frames of one shot, before any filter."""

    first: int
    frames: UInt8[ndarray, "F Y X 3"]  # at bucket size
    found: list[Float[ndarray, "J 4"]]  # faces of every n-th, boxes of the source frame
    source_size: tuple[int, int]
    in_shot: int  # which piece of its shot this is


@dataclasses.dataclass(frozen=True)
class ClipSettings:
    """What the clips depend on besides the footage; its fields decide a rebuild."""

    prepare: ConfigDict
    face_size: int
    sample_rate: int
    fps: int


def prepare_video(video: Video, settings: ClipSettings, folder: Path) -> list[Reject]:
    """Write the clips of one video into `folder`, one .npz each; return the rejects.

    A marker file tells that the video is done: a second call reads it and returns.
    """
    name = _name(video)
    marker = folder / f"{name}.rejects.npz"
    if marker.exists():
        return _load_rejects(marker)
    rejects = []
    try:
        for number, result in enumerate(_clips(video, settings)):
            if isinstance(result, Reject):
                rejects.append(result)
            else:
                save_record(folder / f"{name}.{number:06d}.clip.npz", result)
    except InputError as error:
        for path in folder.glob(f"{name}.*.clip.npz"):
            path.unlink()
        rejects = [Reject(video.video_id, "unreadable", str(error), 0, 0)]
    columns = zip(*rejects, strict=True) if rejects else [()] * len(Reject._fields)
    table = dict(zip(Reject._fields, map(list, columns), strict=True))
    save_record(marker, table)
    return rejects


def clip_paths(video: Video, folder: Path) -> list[Path]:
    """The clips that `prepare_video` wrote of a video, in order."""
    return sorted(folder.glob(f"{_name(video)}.*.clip.npz"))


def save_record(path: Path, record: Mapping[str, Any]) -> None:
    """A record as a whole .npz, or nothing."""
    temporary = path.with_name(f".{path.name}")
    with temporary.open("wb") as file:
        np.savez(file, **record)
    os.replace(temporary, path)


def load_record(path: Path) -> dict[str, Any]:
    """A record of `save_record`; texts and numbers as Python has them."""
    with np.load(path, allow_pickle=False) as stored:
        values = {name: stored[name] for name in stored.files}
    return {
        name: value if value.ndim else value.item() for name, value in values.items()
    }


def _name(video: Video) -> str:
    return hashlib.sha256(video.video_id.encode()).hexdigest()[:20]


def _clips(video: Video, settings: ClipSettings) -> Iterator[dict | Reject]:
    caption = read_caption(video.path, settings.prepare.caption)
    if not media.probe(video.path).has_audio:
        yield Reject(video.video_id, "no sound", "no audio stream", 0, 0)
        return
    wave = media.read_audio(video.path, settings.sample_rate)
    identity = {
        "video_id": video.video_id,
        "person": video.person,
        "scene": video.scene,
        "caption": caption,
    }
    for piece in _pieces(video.path, settings):
        result = _clip(piece, wave, settings)
        if isinstance(result, Reject):
            yield result._replace(video_id=video.video_id)
        else:
            clip_id = f"{video.video_id}:{piece.first:06d}"
            yield {"clip_id": clip_id, **identity, **result}


def _pieces(path: Path, settings: ClipSettings) -> Iterator[Piece]:
    """Cut footage at shot changes and at the longest clip."""
    prepare = settings.prepare
    frames, found, first, in_shot, before = [], [], 0, 0, None
    size = source_size = None
    for index, frame in enumerate(media.iterate_frames(path, settings.fps)):
        if size is None:
            source_size = frame.shape[:2]
            size = conditions.bucket_of(*source_size, prepare)
        histogram = _histogram(frame)
        cut = before is not None and _jump(before, histogram) > prepare.shot_cut
        before = histogram
        if frames and (cut or len(frames) == prepare.clip_frames):
            yield Piece(first, np.stack(frames), found, source_size, in_shot)
            frames, found, first = [], [], index
            in_shot = 0 if cut else in_shot + 1
        if len(frames) % prepare.detect_every == 0:
            found.append(people.find_faces(frame))
        frames.append(media.cover_resize(frame[None], size)[0])
    yield Piece(first, np.stack(frames), found, source_size, in_shot)


def _clip(piece: Piece, wave: ndarray, settings: ClipSettings) -> dict | Reject:
    """The record of a piece without its names, or the first reason against it."""
    prepare, fps = settings.prepare, settings.fps
    count = 1 + (len(piece.frames) - 1) // 4 * 4

    def reject(reason: str, detail: str) -> Reject:
        return Reject("", reason, detail, piece.first, len(piece.frames))

    if count < prepare.min_frames:
        reason = "leftover" if piece.in_shot else "too short"
        return reject(reason, f"{count} frames of {prepare.min_frames}")
    edges = piece.first, piece.first + count
    start, stop = (round(edge / fps * settings.sample_rate) for edge in edges)
    sound = wave[start:stop]
    loudness = 20 * np.log10(max(float(np.sqrt(np.mean(np.square(sound)))), 1e-10))
    if loudness < prepare.min_loudness:
        return reject("too quiet", f"{loudness:.1f} dBFS of {prepare.min_loudness}")
    track = people.link_faces(piece.found, prepare.detect_every, len(piece.frames))
    size = piece.frames.shape[1:3]
    boxes, visible = _to_bucket(track.boxes[:count], piece.source_size, size)
    if refusal := _face_refusal(track, boxes, visible, prepare):
        return reject(*refusal)
    return {
        "orientation": "landscape" if size == tuple(prepare.landscape) else "portrait",
        "num_frames": count,
        "video": np.frombuffer(
            media.encode_mp4(piece.frames[:count], fps, prepare.crf), np.uint8
        ),
        "wave": _whole(sound, stop - start),
        "face_boxes": boxes,
        "person_box": conditions.person_box_from_face(boxes[0]),
        "faces": people.crop_faces(
            piece.frames[:count], boxes, settings.face_size, prepare.identity_faces
        ),
    }


def _face_refusal(
    track: people.FaceTrack, boxes: ndarray, visible: float, prepare: ConfigDict
) -> tuple[str, str] | None:
    if track.coverage < max(prepare.min_coverage, 1e-9):
        seen = f"in {track.coverage:.0%} of {prepare.min_coverage:.0%} of the samples"
        return "no face", seen
    if track.faces > prepare.max_faces:
        return "several people", f"{track.faces} at once, of {prepare.max_faces}"
    if visible < MIN_VISIBLE:
        return "face cut off", f"{visible:.0%} inside the bucket, of {MIN_VISIBLE:.0%}"
    height = float(np.median(boxes[:, 3] - boxes[:, 1]))
    if height < prepare.min_face:
        detail = f"{height:.3f} of the frame's height, of {prepare.min_face}"
        return "face too small", detail
    return None


def _to_bucket(
    boxes: ndarray, source: tuple[int, int], bucket: tuple[int, int]
) -> tuple[ndarray, float]:
    """Boxes of the source frame as boxes of the covering, centre-cropped one.

    Returns them clipped to the frame, and the smallest share of a box still visible.
    """
    scale = max(bucket[0] / source[0], bucket[1] / source[1])
    rows, columns = (
        side * scale / target for side, target in zip(source, bucket, strict=True)
    )
    grow = np.array([columns, rows, columns, rows])
    moved = (boxes - 0.5) * grow + 0.5
    inside = np.clip(moved, 0, 1)
    area, kept = (
        np.maximum((b[:, 2:] - b[:, :2]).prod(axis=1), 1e-9) for b in (moved, inside)
    )
    return inside.astype(np.float32), float((kept / area).min())


def _histogram(frame: ndarray) -> ndarray:
    small = cv2.resize(frame, _HISTOGRAM_SIZE, interpolation=cv2.INTER_AREA)
    bins = (small >> 5).astype(np.int32)
    codes = bins[..., 0] * 64 + bins[..., 1] * 8 + bins[..., 2]
    return np.bincount(codes.ravel(), minlength=512) / codes.size


def _jump(before: ndarray, after: ndarray) -> float:
    return float(np.abs(before - after).sum()) / 2


def _whole(sound: Float[ndarray, " n"], length: int) -> ndarray:
    """int16 samples, silence where the sound ends before the picture."""
    samples = np.clip(np.rint(sound * 32767), -32768, 32767).astype(np.int16)
    return np.pad(samples, (0, length - len(samples)))


def _load_rejects(path: Path) -> list[Reject]:
    with np.load(path, allow_pickle=False) as table:
        columns = [table[name].tolist() for name in Reject._fields]
    return [Reject(*row) for row in zip(*columns, strict=True)]
