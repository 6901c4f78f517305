"""The reference video: how much of it, which part of the picture, where its face is.

    (1) rate    frames are taken at 25 fps from any file (`media.iterate_frames`)
    (2) crop    [TAVR_SPEC 9.1] every 5th of the first 500 frames; the face's extent in
                each (`pose.extents`); at least half of them usable; their union u
                r = Xb / Yb of the bucket; w = max(uw, uh r), h = w / r
                f = 0.3 / min(w / X, h / Y) > 1 -> w f, h f
                w > X -> (X, X / r);  h > Y -> (Y r, Y);  then even sizes
                w h > 0.95 X Y -> no crop, else about u's centre, inside, even
    (3) count   min(max(num_frames + 200, 100), int(seconds 25)); of a crop at most 500;
                read: floor(min(seconds, count / 25) 25 + 1/2)     [TAVR_SPEC 9-3]
    (4) window  of count // 4 latents (`conditions.reference_window`) [TAVR_SPEC 9-6]
    (5) pixels  u8 / 255 -> cover size (`still.cover`), bilinear, half-pixel, no
                antialias -> centre; then in bfloat16, every step rounded:
                b = (p - 1/2) / (1/2);  u = (b + 1) / 2;  v = clip(2 u - 1, -1, 1)
                u goes to the detectors, v to the codec            [TAVR_SPEC 9-4]
    (6) faces   regions of the window's frames (`face_search`)     [TAVR_SPEC 8]

Differences from the release, which writes intermediate files: it converts other rates
with ffmpeg's fps filter and libx264 crf 17, and encodes the crop with crf 17; we take
frames by the clock and crop in memory, so nothing is coded twice. Files of 25 fps that
need no crop give the same pixels. Frames after the window are not read: the codec is
causal, they cannot change it.
"""

from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

import ml_dtypes
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from numpy import ndarray

from data_pipelines import conditions, containers, face_search, media
from data_pipelines.bilinear import resize
from data_pipelines.containers import Colours
from data_pipelines.detectors import Detectors
from data_pipelines.still import cover, view
from tavr_jax.errors import InputError

FPS = 25
EXTRA, LEAST = 200, 100  # (3), frames
SAMPLED, EVERY = 500, 5  # (2), frames
USABLE = 0.5  # (2), share of the samples
SMALLEST, LARGEST = 0.3, 0.95  # (2), shares of the frame's side and area

Crop = tuple[int, int, int, int]  # left, top, width, height in source pixels


class Clip(NamedTuple):
    """What a reference video contributes."""

    frames: Float[ndarray, "F Y X 3"]  # bfloat16 in [-1, 1], up to the window's end
    tokens: Bool[ndarray, "R h w"]  # that show the face, of the window
    faces: Int[ndarray, "n 4"]  # its regions in the window's frames, -1 = none
    window: tuple[int, int]  # latents [start, end) of `latents`
    latents: int  # available: count // 4
    count: int  # frames, equation (3)
    crop: Crop | None
    coverage: float  # share of the window's frames with a face
    seconds: float  # of it, the crop's if there is one; its sound ends there too
    sound_tracks: int  # the release hears the reference if it has exactly one


def frame_count(num_frames: int, seconds: float) -> int:
    """Reference frames for a video of `num_frames`. Equation (3)."""
    return min(max(num_frames + EXTRA, LEAST), int(seconds * FPS))


def readable(count: int, seconds: float) -> int:
    """Frames that asking for `count` delivers. Equation (3)."""
    return int(np.floor(min(seconds, count / FPS) * FPS + 0.5))


def union(boxes: Float[ndarray, "F 4"]) -> Float[ndarray, "4"] | None:
    """Around all usable boxes; None where fewer than half are (NaN = unusable)."""
    usable = boxes[~np.isnan(boxes[:, 0])]
    if len(usable) < USABLE * len(boxes) or not len(usable):
        return None
    return np.concatenate([usable[:, :2].min(axis=0), usable[:, 2:].max(axis=0)])


def smart_crop(
    size: tuple[int, int], bucket: tuple[int, int], face: Float[ndarray, "4"]
) -> Crop | None:
    """The part of a frame of `size` = (Y, X) around a face's extent. Equation (2)."""
    rows, columns = size
    ratio = bucket[1] / bucket[0]
    left, top, right, bottom = (float(edge) for edge in face)
    width = max(right - left, (bottom - top) * ratio)
    height = width / ratio
    factor = SMALLEST / max(min(width / columns, height / rows), 1e-9)
    if factor > 1:
        width, height = width * factor, height * factor
    if width > columns:
        width, height = float(columns), columns / ratio
    if height > rows:
        width, height = rows * ratio, float(rows)
    if ratio > 1:
        high = 2 * (int(height) // 2)
        wide = 2 * (int(high * ratio) // 2)
    else:
        wide = 2 * (int(width) // 2)
        high = 2 * (int(wide / ratio) // 2)
    if wide * high > LARGEST * columns * rows:
        return None
    x = min(max((left + right) / 2 - wide / 2, 0), columns - wide)
    y = min(max((top + bottom) / 2 - high / 2, 0), rows - high)
    return 2 * (int(x) // 2), 2 * (int(y) // 2), wide, high


def fit(
    frame: UInt8[ndarray, "Y X 3"], bucket: tuple[int, int]
) -> Float[ndarray, "Yb Xb 3"]:
    """A frame at bucket size: b of equation (5), bfloat16 in [-1, 1]."""
    rows, columns = cover(frame.shape[:2], bucket)
    pixels = resize(frame.astype(np.float32) / np.float32(255), (rows, columns))
    top, left = (rows - bucket[0]) // 2, (columns - bucket[1]) // 2
    half = ml_dtypes.bfloat16(0.5)
    seen = pixels[top : top + bucket[0], left : left + bucket[1]]
    return (seen.astype(ml_dtypes.bfloat16) - half) / half


def unsigned(pixels: Float[ndarray, "..."]) -> Float[ndarray, "..."]:
    """u of equation (5): b in [0, 1], bfloat16."""
    return (pixels + ml_dtypes.bfloat16(1)) / ml_dtypes.bfloat16(2)


def for_codec(seen: Float[ndarray, "..."]) -> Float[ndarray, "..."]:
    """v of equation (5) from u, bfloat16 in [-1, 1]."""
    one, two = ml_dtypes.bfloat16(1), ml_dtypes.bfloat16(2)
    return np.clip(two * seen - one, -one, one).astype(ml_dtypes.bfloat16)


def read(
    path: str,
    bucket: tuple[int, int],
    detectors: Detectors,
    *,
    num_frames: int,
    chunks: int,
    latents: int,
    crop: bool = True,
    colours: Colours = containers.as_released,
) -> Clip:
    """The part of a reference video that `latents` reference latents come from.

    `num_frames` and `chunks` are those of the video to be made, before its tail is cut.
    `crop` = False leaves the picture whole. Two passes over the file: one for the crop,
    one for the frames, of which only those up to the window's end are kept.
    InputError: not a video, too short, no face.
    """
    found = media.probe(path)
    seconds = _seconds(found)
    cut = find_crop(path, bucket, detectors, colours) if crop else None
    if cut is not None:
        seconds = min(seconds, SAMPLED / FPS)
    count = readable(frame_count(num_frames, seconds), seconds)
    needed = conditions.SPAN * latents
    if count < needed:
        raise InputError(
            f"--reference {path}: {count} frames at {FPS} fps, {needed} are needed; "
            f"give at least {needed / FPS:.2f} s of the person"
        )
    start, end = conditions.reference_window(count // conditions.SPAN, chunks, latents)
    first = conditions.SPAN * start
    pictures = shown(path, conditions.SPAN * end, cut, colours)
    frames, faces, coverage = _fitted(
        pictures, conditions.SPAN * end, first, bucket, detectors
    )
    if not coverage:
        raise InputError(
            f"--reference {path}: no face found from {first / FPS:.2f} to "
            f"{len(frames) / FPS:.2f} s; give a video that shows the person's face, a "
            "tenth of the picture's height or more"
        )
    for frame in frames:
        frame[...] = for_codec(frame)
    return Clip(
        frames=frames,
        tokens=conditions.region_tokens(faces, bucket),
        faces=faces,
        window=(start, end),
        latents=count // conditions.SPAN,
        count=count,
        crop=cut,
        coverage=coverage,
        seconds=seconds,
        sound_tracks=found.sound_tracks,
    )


def _fitted(
    pictures: Iterator[UInt8[ndarray, "Y X 3"]],
    count: int,
    first: int,
    bucket: tuple[int, int],
    detectors: Detectors,
) -> tuple[Float[ndarray, "F Yb Xb 3"], Int[ndarray, "n 4"], float]:
    """u of (5) of `count` pictures; face regions of those from `first` on, and in what
    share of these a face was found.
    """
    frames, found = np.empty((count, *bucket, 3), ml_dtypes.bfloat16), []
    for index, picture in enumerate(pictures):
        frames[index] = unsigned(fit(picture, bucket))
        if detectors.points is None and index >= first:
            # Faces of small buckets are too small to be found: searched in the source.
            found.append(detectors.faces(np.ascontiguousarray(view(picture, bucket))))
    if detectors.points is None:
        share = float(np.mean([len(faces) > 0 for faces in found]))
        return frames, face_search.box_regions(found, bucket), share
    regions = face_search.point_regions(frames, first, detectors)
    return frames, regions, float((regions[:, 2] > regions[:, 0]).mean())


def find_crop(
    path: str, bucket: tuple[int, int], detectors: Detectors, colours: Colours
) -> Crop | None:
    """The crop of a file, None = the whole picture. Equation (2).

    InputError: a face in fewer than half of the sampled frames.
    """
    size = (0, 0)

    def samples():
        nonlocal size
        pictures = media.iterate_pictures(path, FPS, colours)
        for picture in islice(pictures, 0, SAMPLED, EVERY):
            frame = picture.rgb()
            size = frame.shape[:2]
            yield frame

    boxes = face_search.extents(samples(), detectors)
    face = union(boxes)
    if face is None:
        usable = int((~np.isnan(boxes[:, 0])).sum())
        raise InputError(
            f"--reference {path}: a face in {usable} of {len(boxes)} sampled frames, "
            "half are needed; give a video that shows the person's face throughout"
        )
    return smart_crop(size, bucket, face)


def shown(
    path: str, count: int, crop: Crop | None, colours: Colours
) -> Iterator[UInt8[ndarray, "Y X 3"]]:
    """The first `count` frames, cropped, at the source's resolution.

    InputError: not a video, fewer frames.
    """
    done = 0
    for frame in islice(media.iterate_frames(path, FPS, colours), count):
        done += 1
        if crop is None:
            yield frame
        else:
            left, top, width, height = crop
            yield frame[top : top + height, left : left + width]
    if done < count:
        raise InputError(
            f"--reference {path}: ends after {done} frames at {FPS} fps, {count} were "
            "announced; re-encode the file"
        )


def _seconds(found: media.Probe) -> float:
    """Length of the picture at 25 fps, to the microsecond as files say it."""
    if found.fps == FPS:
        return round(found.seconds, 6)
    return max(1, round(found.seconds * FPS)) / FPS
