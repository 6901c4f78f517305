"""Footage -> clips: cut into shots and windows, measured, kept if a speaker is seen.

    watch      frames one at a time, with shot cuts and faces        (decode + detect)
    pieces     consecutive frames of one shot, at bucket size, as long as a clip may be
    windows    the parts of a piece with one speaker in view
    clips      windows of 1 + 4k frames that pass every filter       (quality.py)

A new shot begins where the colour histogram jumps:

    d(a, b) = 1/2 sum |a - b|    of normalised 8 x 8 x 8 RGB histograms, 0..1

Everything here is a function of one video and the settings: no state, no global, so
that any runner may call it anywhere. Filters are ours.
"""

import dataclasses
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from jaxtyping import Float, UInt8
from ml_collections import ConfigDict
from numpy import ndarray

from data_pipelines import conditions, containers, media, people, video_files
from data_pipelines.prepare import identity, quality, scenes
from data_pipelines.prepare.follow import Follower
from data_pipelines.prepare.importers import Video, read_caption

ABSENT = 1.0  # seconds without a face that end a window; less is a turned head
HDR = (16, 18)  # transfer curves PQ and HLG: read as SDR they would look washed out
THUMBNAIL = 160  # pixels of the longer side, for the summary page
_HISTOGRAM_SIDE = 64


class Reject(NamedTuple):
    """Why a piece of footage is not in the dataset."""

    video_id: str
    reason: str  # a key of quality.REMEDIES
    detail: str  # in words
    first: int  # frame at 25 fps where the piece starts
    frames: int  # its length; 0 = the whole video
    numbers: dict[str, float]  # what was measured
    thumbnail: bytes = b""  # JPEG


class Watched(NamedTuple):
    """One frame of footage."""

    picture: containers.Picture
    cut: bool  # the first of its shot
    faces: Float[ndarray, "J 4"] | None  # None: not looked at


class Piece(NamedTuple):
    """Consecutive frames of one shot, before any filter."""

    first: int
    frames: UInt8[ndarray, "F Y X 3"]  # at bucket size
    found: list[Float[ndarray, "J 4"]]  # faces of every n-th, boxes of the source frame
    source_size: tuple[int, int]
    in_shot: int  # which piece of its shot this is


@dataclasses.dataclass(frozen=True)
class ClipSettings:
    """What the clips depend on besides the footage."""

    prepare: ConfigDict
    face_size: int
    sample_rate: int
    fps: int
    network: identity.FaceNetwork | None  # only its `crops` are asked for here


def scan(video: Video, settings: ClipSettings) -> Iterator[dict[str, Any] | Reject]:
    """The clips of a video, as records without people, and what was left out of it.

    InputError: the footage cannot be read to its end; what came before must be dropped.
    """
    facts = media.probe(video.path)
    if not facts.has_audio:
        yield Reject(video.video_id, "no sound", "no audio stream", 0, 0, {})
        return
    if (curve := _transfer(video.path)) in HDR:
        detail = f"transfer curve {curve}, {facts.width}x{facts.height}"
        yield Reject(video.video_id, "HDR", detail, 0, 0, {})
        return
    wave = media.read_audio(video.path, settings.sample_rate)
    about = {
        "video_id": video.video_id,
        "person": video.person or "",
        "scene": video.scene or "",
        "caption": video.caption or read_caption(video.path, settings.prepare.caption),
        "licence": video.licence,
        "split": video.split,
    }
    piece = None
    for piece in _pieces(video, settings):
        for start, stop in _windows(piece, settings):
            window = _part(piece, start, stop, settings.prepare.detect_every)
            result = _clip(window, wave, settings)
            if isinstance(result, Reject):
                yield result._replace(video_id=video.video_id)
            else:
                clip_id = f"{video.video_id}:{window.first:06d}"
                seconds = np.float32(window.first / settings.fps)
                yield {"clip_id": clip_id, **about, "start": seconds, **result}
    if piece is None:
        detail = f"{facts.seconds:.2f} s, the part begins at {video.start or 0:g} s"
        yield Reject(video.video_id, "too short", detail, 0, 0, {})


def watch(
    path: Path, settings: ClipSettings, first: int = 0, end: int | None = None
) -> Iterator[Watched]:
    """Frames `first`..`end` at 25 fps with cuts, and with faces every few frames.

    Faces are looked at where a shot begins, where it is cut for its length, and every
    `detect_every` frames after either.
    """
    prepare, before, since = settings.prepare, None, 0
    follower = Follower(prepare.search_every)
    colours = containers.COLOURS[prepare.released_colours]
    pictures = media.iterate_pictures(path, settings.fps, colours)
    for index, picture in enumerate(pictures):
        if end is not None and index >= end:
            return
        if index < first:
            continue
        histogram = _histogram(picture.sampled(_HISTOGRAM_SIDE))
        cut = before is None or _jump(before, histogram) > prepare.shot_cut
        before, since = histogram, 0 if cut else since + 1
        faces = None
        if since % prepare.clip_frames % prepare.detect_every == 0:
            faces = follower.look(picture.rgb(), index, cut)
        yield Watched(picture, cut, faces)


def _pieces(video: Video, settings: ClipSettings) -> Iterator[Piece]:
    """Shots, cut at the longest clip. Valid until the next one is asked for."""
    longest, fps = settings.prepare.clip_frames, settings.fps
    first = round((video.start or 0) * fps)
    end = None if video.end is None else round(video.end * fps)
    room, count, found, in_shot, start = None, 0, [], 0, first
    for index, seen in enumerate(watch(video.path, settings, first, end), first):
        if room is None:
            source = seen.picture.size
            size = conditions.bucket_of(*source, settings.prepare)
            room = np.empty((longest, *size, 3), np.uint8)
        if count and (seen.cut or count == longest):
            yield Piece(start, room[:count], found, source, in_shot)
            count, found, start = 0, [], index
            in_shot = 0 if seen.cut else in_shot + 1
        if seen.faces is not None:
            found.append(seen.faces)
        room[count] = media.cover_resize(seen.picture.rgb()[None], size)[0]
        count += 1
    if count:
        yield Piece(start, room[:count], found, source, in_shot)


def _windows(piece: Piece, settings: ClipSettings) -> list[tuple[int, int]]:
    """Where a piece is cut so that each part shows one speaker, or is refused whole."""
    prepare, count = settings.prepare, len(piece.frames)
    every = prepare.detect_every
    patience = max(1, round(ABSENT * settings.fps / every))
    seen = [people.link_faces([faces], 1, 1).faces for faces in piece.found]
    good = [0 < faces <= prepare.max_faces for faces in seen]
    crowd = [faces > prepare.max_faces for faces in seen]
    edges, start, last = [], None, None
    for sample, ok in enumerate(good):
        if ok:
            start, last = sample if start is None else start, sample
        elif start is not None and (crowd[sample] or sample - last > patience):
            edges.append((start * every, (last + 1) * every))
            start = None
    if start is not None:
        edges.append((start * every, count))
    before = edges[0][0] // every if edges else 0
    if 0 < before <= patience and not any(crowd[:before]):
        edges[0] = (0, edges[0][1])
    whole = [(0, count)]
    edges = [(a, min(b, count)) for a, b in edges]
    if not any(b - a >= prepare.min_frames for a, b in edges):
        return whole
    # What lies between belongs to nobody, and is listed as such.
    marks = sorted({0, count, *(mark for edge in edges for mark in edge)})
    return list(itertools.pairwise(marks))


def _part(piece: Piece, start: int, stop: int, every: int) -> Piece:
    return piece._replace(
        first=piece.first + start,
        frames=piece.frames[start:stop],
        found=piece.found[start // every : -(-stop // every)],
        in_shot=piece.in_shot + (start > 0),
    )


def _clip(piece: Piece, wave: ndarray, settings: ClipSettings) -> dict | Reject:
    """The record of a piece without its names, or the first reason against it."""
    prepare, fps, rate = settings.prepare, settings.fps, settings.sample_rate
    count = 1 + (len(piece.frames) - 1) // 4 * 4
    frames = piece.frames[:count]
    start, stop = (round(e / fps * rate) for e in (piece.first, piece.first + count))
    sound = wave[start:stop]
    track = people.link_faces(piece.found, prepare.detect_every, len(piece.frames))
    size = frames.shape[1:3]
    boxes, visible = _to_bucket(track.boxes[:count], piece.source_size, size)
    found = quality.measure(frames, boxes, track, visible, sound, (fps, rate))
    refused = quality.refusal(found, prepare)
    if count < prepare.min_frames:
        reason = "leftover" if piece.in_shot else "too short"
        refused = reason, f"{count} frames of {prepare.min_frames}"
    picture = _thumbnail(frames[count // 2], boxes[count // 2])
    if refused:
        return Reject("", *refused, piece.first, len(piece.frames), found, picture)
    faces = people.crop_faces(frames, boxes, settings.face_size, prepare.identity_faces)
    looked = faces[:0]
    if settings.network is not None:
        looked = settings.network.crops(frames, boxes, prepare.identity_faces)
    return {
        "orientation": "landscape" if size == tuple(prepare.landscape) else "portrait",
        "num_frames": count,
        "quality": json.dumps(found),
        "scene_signature": scenes.of_clip(frames, boxes),
        "video": np.frombuffer(
            video_files.encode_mp4(frames, fps, prepare.crf), np.uint8
        ),
        "wave": _whole(sound, stop - start),
        "face_boxes": boxes,
        "person_box": conditions.person_box_from_face(boxes[0]),
        "faces": faces,
        "identity_faces": looked,
        "thumbnail": np.frombuffer(picture, np.uint8),
    }


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
    counts = cv2.calcHist([frame], [0, 1, 2], None, [8] * 3, [0, 256] * 3)
    return counts / (frame.size // 3)


def _jump(before: ndarray, after: ndarray) -> float:
    return float(np.abs(before - after).sum()) / 2


def _whole(sound: Float[ndarray, " n"], length: int) -> ndarray:
    """int16 samples, silence where the sound ends before the picture."""
    samples = np.clip(np.rint(sound * 32767), -32768, 32767).astype(np.int16)
    return np.pad(samples, (0, length - len(samples)))


def _transfer(path: Path) -> int:
    """The transfer curve that a file states (ITU-T H.273)."""
    with containers.opened(path) as container:
        return int(containers.video_stream(path, container).codec_context.color_trc)


def _thumbnail(frame: ndarray, box: ndarray) -> bytes:
    """A small JPEG of a frame with the face's box."""
    scale = THUMBNAIL / max(frame.shape[:2])
    small = cv2.resize(frame, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    rows, columns = small.shape[:2]
    if (box[2:] > box[:2]).all():
        edges = np.rint(box * [columns, rows, columns, rows]).astype(int).tolist()
        cv2.rectangle(small, edges[:2], edges[2:], (255, 210, 0), 1)
    done, data = cv2.imencode(".jpg", small[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 80])
    return data.tobytes() if done else b""
