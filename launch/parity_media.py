"""Replays of what is made of pictures and videos before the networks see them."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx
from numpy import ndarray

from configs.base import get_config
from data_pipelines import (
    conditions,
    containers,
    letterbox,
    media,
    pose,
    reference,
    reference_sound,
    speech_rows,
    still,
)
from launch.parity_oracle import EXACT, MOTION, TAIL, Check, Oracle, to_theirs
from tavr_jax.diffusion import chunks
from tavr_jax.encoders.vae import Codec, CodecConfig, encode_reference
from tavr_jax.encoders.wav2vec2 import Wav2Vec2, Wav2Vec2Config
from tavr_jax.encoders.wav2vec2_wave import Listener
from tavr_jax.encoders.weights_vae import load_vae
from tavr_jax.encoders.weights_wav2vec2 import load_wav2vec2

Candidates = dict[str, tuple[Callable[[], ndarray], float]]

ROUNDED = 1e-6  # float32 sums in another order
FLIPS = 2e-4  # bfloat16 steps that fall the other way
# Soft: they depend on the ffmpeg build (the oracle's README).
DIFFERING = 0.05  # share of decoded bytes that are not the same
LATENTS, SOUND = 5e-2, 1e-1
POSE_FRAMES = 2e-2  # about two levels
SUBSAMPLED_BOARD, SUBSAMPLED_INPUT = 6, 8  # of letterbox_sub, dwcrop_net_sub
POSE_BOX = (5, 8, 52, 44)  # of dwcrop_frame; its README says it, no array does
ROLL = 5  # pixels between the frames made of a still
MULTI_FRAME, UNION_FRAME = (480, 896), (720, 1280)  # of multi_raw and union_kp
RELEASED_SLOTS = 5  # reference latents in the table of windows
COUNTS = (30, math.inf, 500)  # frames asked for in frames_count
TOKEN = 16  # pixels
NONE = (-1, -1, -1, -1)


def replay_masks(oracle: Oracle) -> list[Check]:
    """Person boxes, face regions, the pose network's input and answer."""
    candidates: Candidates = {
        "grid_tokens": (lambda: conditions.pixel_tokens(oracle["grid_pixels"]), EXACT),
        "person_cases": (lambda: _rows(oracle, "person_cases", _person_row), EXACT),
        "multi_out": (lambda: _multi(oracle), EXACT),
        "letterbox_sub": (lambda: _board(oracle), ROUNDED),
        "letterbox_geo": (lambda: _geometry(oracle), EXACT),
        "dwcrop_cases": (lambda: _rows(oracle, "dwcrop_cases", _pose_row), EXACT),
        "dwcrop_geo": (lambda: np.array(pose.window(POSE_BOX)), EXACT),
        "dwcrop_window": (lambda: _pose_window(oracle), EXACT),
        "dwcrop_net_sub": (lambda: _pose_input(oracle), 2 * ROUNDED),
        "simcc_points": (lambda: _points(oracle), ROUNDED),
    }
    for name in oracle.names:
        if name.startswith("face_") and name.endswith("_kp"):
            candidates |= _face(oracle, name.removesuffix("_kp"))
        if name.startswith(("person_fg_", "person_bg_tokens_")):
            number = int(name.rsplit("_", 1)[1])
            tokens = name.startswith("person_bg")
            make = functools.partial(_person, oracle, number, tokens)
            candidates[name] = (make, EXACT)
    _given(oracle, "grid_pixels multi_raw letterbox_in dwcrop_frame")
    _given(oracle, "simcc_x simcc_y simcc_window")
    return oracle.checks(candidates)


def replay_reference(oracle: Oracle) -> list[Check]:
    """Integer rules, stills, frames, colours, bytes."""
    tables = {
        "window": _window_row,
        "cover": _cover_row,
        "count": _count_row,
        "crop": _crop_row,
    }
    candidates: Candidates = {
        name: (functools.partial(_rows, oracle, name, answer), EXACT)
        for name, answer in tables.items()
    }
    candidates |= {
        "bucket_out": (lambda: _buckets(oracle), EXACT),
        "union_box": (lambda: _unions(oracle), EXACT),
        "uyvy_rgb": (lambda: containers.uyvy_to_rgb(oracle["uyvy_in"]), EXACT),
        "uint8_out": (lambda: _bytes(oracle["uint8_in"]), EXACT),
        "ceiling_out": (lambda: _limits(oracle["ceiling_in"]), EXACT),
    }
    for name in oracle.names:
        if name.startswith("still_") and name.endswith("_in"):
            candidates |= _still(
                oracle, name.removeprefix("still_").removesuffix("_in")
            )
    _given(oracle, "bucket_in union_kp uyvy_in uint8_in ceiling_in")
    return oracle.checks(candidates)


def replay_media(oracle: Oracle) -> list[Check]:
    """clip.mp4 through the whole reference road, with the detector's answers given."""
    path = oracle.folder / "clip.mp4"
    bucket = tuple(int(side) for side in oracle["bucket"])
    num_frames = int(oracle["num_frames"])
    slots = oracle.config["transformer"]["num_videoref_latents"]
    length = oracle.config["transformer"]["num_video_latents"]
    seconds = media.probe(path).seconds
    count = reference.frame_count(num_frames, seconds)
    spans = chunks.plan(num_frames, length, MOTION, TAIL).spans
    window = conditions.reference_window(count // conditions.SPAN, len(spans), slots)
    first, last = (conditions.SPAN * end for end in window)
    size = next(_decoded(path)).shape[:2]
    face = reference.union(pose.extents(oracle["crop_kp"], size))
    cut = reference.smart_crop(size, bucket, face)
    faces = oracle["kp"][first:last, pose.FACE]
    pixels = functools.cache(lambda: _pixels(path, last, cut, bucket))
    few, shown = (len(oracle.expected(n)) for n in ("frames_first", "pose_frames"))
    oracle.inputs.add("null_audio")
    return oracle.checks(
        {
            "frames_first": (
                lambda: np.stack([*islice(_decoded(path), few)]),
                DIFFERING,
            ),
            "frames_count": (lambda: _delivered(path, seconds), EXACT),
            "pose_frames": (lambda: _planes(pixels()[:shown]), POSE_FRAMES),
            "window": (lambda: np.array(window), EXACT),
            "ref_latents": (
                lambda: _latents(oracle, reference.for_codec(pixels()), window),
                LATENTS,
            ),
            "ref_face_tokens": (
                lambda: conditions.region_tokens(
                    pose.face_boxes(faces, bucket), bucket
                ),
                EXACT,
            ),
            "ref_audio": (lambda: _sound(oracle, path, count, window), SOUND),
        }
    )


def _given(oracle: Oracle, names: str) -> None:
    """Arrays that are read only when a check is computed."""
    oracle.inputs |= set(names.split()) & set(oracle.names)


# Tables: the first columns are given, the last ones are answers


def _rows(oracle: Oracle, name: str, answer: Callable) -> ndarray:
    """The table with its answers computed from its given columns."""
    table = oracle.expected(name).copy()
    for row in table:
        found = answer(row.tolist())
        row[len(row) - len(found) :] = found
    return table


def _window_row(row: list) -> tuple:
    return conditions.reference_window(row[0], row[1], RELEASED_SLOTS)


def _cover_row(row: list) -> tuple:
    return still.cover((row[0], row[1]), (row[2], row[3]))


def _count_row(row: list) -> tuple:
    return (reference.frame_count(int(row[0]), row[1]),)


def _crop_row(row: list) -> tuple:
    rows, columns, high, wide = (int(side) for side in row[:4])
    found = reference.smart_crop((rows, columns), (high, wide), np.array(row[4:8]))
    return NONE if found is None else found


def _person_row(row: list) -> tuple:
    size = (int(row[0]), int(row[1]))
    box = letterbox.to_frame(np.float32(row[2:6]), letterbox.fit(size))
    cells = np.argwhere(conditions.person_map(np.array(box), size))
    if not len(cells):
        return (*box, 0, 0, 0, 0)
    (top, left), (bottom, right) = cells.min(axis=0), cells.max(axis=0) + 1
    return (*box, top, bottom, left, right)


def _pose_row(row: list) -> tuple:
    seen = pose.window(tuple(row[2:6]))
    patch = pose.cut(np.zeros((row[0], row[1], 3), np.float32), seen)
    return (*seen, *patch.shape[:2])


# Masks


def _person(oracle: Oracle, number: int, tokens: bool) -> ndarray:
    row = oracle.expected("person_cases")[number]
    size = (int(row[0]), int(row[1]))
    box = letterbox.to_frame(row[2:6].astype(np.float32), letterbox.fit(size))
    cells = conditions.person_map(np.array(box), size)
    return conditions.still_tokens(cells) if tokens else cells.astype(np.uint8)


def _face(oracle: Oracle, case: str) -> Candidates:
    points = oracle[f"{case}_kp"][:, pose.FACE]
    rows, columns = oracle.expected(f"{case}_tokens").shape[1:]
    size = (rows * TOKEN, columns * TOKEN)
    return {
        f"{case}_boxes": (
            lambda: pose.face_boxes(points, size)[:, [1, 3, 0, 2]],
            EXACT,
        ),
        f"{case}_tokens": (lambda: _tokens(points, size), EXACT),
    }


def _tokens(points: ndarray, size: tuple[int, int]) -> ndarray:
    return conditions.region_tokens(pose.face_boxes(points, size), size)


def _multi(oracle: Oracle) -> ndarray:
    chosen = []
    for clip in oracle["multi_raw"]:
        raw = [boxes[~np.isnan(boxes).any(axis=1)] for boxes in clip]
        chosen.append(letterbox.choose(raw, MULTI_FRAME))
    return np.stack(chosen)


def _board(oracle: Oracle) -> ndarray:
    frame = (np.moveaxis(oracle["letterbox_in"][0], 0, -1) + 1) / 2
    board = letterbox.letterbox(frame)[::SUBSAMPLED_BOARD, ::SUBSAMPLED_BOARD]
    return np.moveaxis(board, -1, 0)


def _geometry(oracle: Oracle) -> ndarray:
    place = letterbox.fit(oracle["letterbox_in"].shape[-2:])
    scale = [whole / part for whole, part in zip(place.size, place.inner, strict=True)]
    return np.array([*scale, *place.pad], np.float64)


def _pose_window(oracle: Oracle) -> ndarray:
    frame = np.moveaxis(oracle["dwcrop_frame"], 0, -1)
    return np.moveaxis(pose.cut(frame, pose.window(POSE_BOX)), -1, 0)


def _pose_input(oracle: Oracle) -> ndarray:
    frame = np.moveaxis(oracle["dwcrop_frame"], 0, -1)
    picture = pose.network_input(frame, pose.window(POSE_BOX))
    return np.moveaxis(picture[::SUBSAMPLED_INPUT, ::SUBSAMPLED_INPUT], -1, 0)


def _points(oracle: Oracle) -> ndarray:
    seen = tuple(int(edge) for edge in oracle["simcc_window"])
    return pose.decode(oracle["simcc_x"], oracle["simcc_y"], seen)


# Pictures


def _still(oracle: Oracle, case: str) -> Candidates:
    source = oracle[f"still_{case}_in"]
    bucket = oracle.expected(f"still_{case}_out").shape[:2]

    def seen() -> ndarray:
        moved = [np.roll(source, ROLL * i, axis=1) for i in range(frames)]
        return np.stack([reference.fit(frame, bucket) for frame in moved])

    frames = len(oracle.expected(f"frames_{case}_out"))
    unsigned = functools.cache(lambda: reference.unsigned(seen()))
    return {
        f"still_{case}_out": (lambda: still.fit(source, bucket), EXACT),
        f"frames_{case}_out": (lambda: _planes(seen()), FLIPS),
        f"frames_{case}_unsigned": (lambda: _planes(unsigned()), FLIPS),
        f"frames_{case}_vae": (
            lambda: _planes(reference.for_codec(unsigned())),
            FLIPS,
        ),
    }


def _buckets(oracle: Oracle) -> ndarray:
    prepare = get_config().prepare
    sizes = oracle["bucket_in"].tolist()
    return np.array([conditions.bucket_of(*size, prepare) for size in sizes])


def _unions(oracle: Oracle) -> ndarray:
    boxes = []
    for points in oracle["union_kp"]:
        face = reference.union(pose.extents(points, UNION_FRAME))
        boxes.append(NONE if face is None else face)
    return np.array(boxes, np.float64)


def _bytes(chunk: ndarray) -> ndarray:
    """TAVR_SPEC 13 in float32, as the released code is run here."""
    signed = np.clip(np.moveaxis(chunk, 0, -1), -1, 1)
    half, scale = np.float32(0.5), np.float32(255)
    return ((signed + np.float32(1)) * half * scale).astype(np.uint8)


def _limits(seconds: ndarray) -> ndarray:
    limits = [speech_rows.frame_limit(s, exact_release=True) for s in seconds.tolist()]
    return np.array(limits)


def _planes(pixels: ndarray) -> ndarray:
    """(F, Y, X, 3) of bfloat16 to (F, 3, Y, X) of float32."""
    return np.moveaxis(pixels.astype(np.float32), -1, 1)


# The clip


def _decoded(path: Path) -> Iterator[ndarray]:
    return media.iterate_frames(path, reference.FPS, containers.as_released)


def _pixels(
    path: Path, count: int, crop: reference.Crop | None, bucket: tuple[int, int]
) -> ndarray:
    pictures = reference.shown(str(path), count, crop, containers.as_released)
    fitted = [reference.fit(picture, bucket) for picture in pictures]
    return reference.unsigned(np.stack(fitted))


def _delivered(path: Path, seconds: float) -> ndarray:
    there = sum(1 for _ in _decoded(path))
    asked = [reference.readable(count, seconds) for count in COUNTS]
    return np.minimum(asked, there)


def _latents(oracle: Oracle, pixels: ndarray, window: tuple[int, int]) -> ndarray:
    codec = _codec(oracle)
    video = pixels.astype(np.float32)[None]
    latents = nnx.jit(encode_reference)(codec, video)
    return to_theirs(latents[:, window[0] : window[1]])


def _codec(oracle: Oracle) -> Codec:
    settings = get_config().codec.to_dict() | oracle.config["vae"]
    names = [field.name for field in dataclasses.fields(CodecConfig)]
    config = CodecConfig(**{name: _fixed(settings[name]) for name in names})
    codec = nnx.eval_shape(lambda: Codec(config, rngs=nnx.Rngs(0)))
    return load_vae(oracle.folder / "vae.safetensors", codec)


def _sound(oracle: Oracle, path: Path, count: int, window: tuple[int, int]) -> ndarray:
    sizes = oracle.config["wav2vec"]
    names = [field.name for field in dataclasses.fields(Wav2Vec2Config)]
    config = Wav2Vec2Config(**{name: _fixed(sizes[name]) for name in names})
    network = nnx.eval_shape(lambda: Wav2Vec2(config, rngs=nnx.Rngs(0)))
    network = load_wav2vec2(oracle.folder / "wav2vec.safetensors", network)
    seconds = speech_rows.reference_samples(count) / speech_rows.RATE
    wave = reference_sound.read_as_released(path, seconds, speech_rows.RATE)
    rows = speech_rows.reference_rows(
        wave, count, Listener(network), exact_release=True
    )
    track = speech_rows.reference_track(rows, count, oracle["null_audio"])
    return speech_rows.reference_window(track, *window)[None]


def _fixed(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
