"""The target still: at bucket size, and where its person is. [TAVR_SPEC 7]

    (1) cover  of (Y, X) for a bucket (Yb, Xb), rounded half to even:
               Y / X < Yb / Xb -> (Yb, X Yb / Y), else (Y Xb / X, Xb)
    (2) fit    for factor 2, then 1: Pillow's LANCZOS on uint8 to the cover size of
               factor x bucket, then its centre, from (cover - bucket) // 2; a still of
               bucket size takes the detour too
    (3) person the detector's box (`letterbox`), or what the user says, or, where there
               is no person detector, head and shoulders around the largest face (ours,
               `conditions.person_box_from_face`)

Then `conditions.grey_person` greys the person and `still_tokens` marks the rest.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, UInt8
from ml_collections import ConfigDict
from numpy import ndarray
from PIL import Image

from data_pipelines import conditions, letterbox, media
from data_pipelines.detectors import Detectors
from tavr_jax.errors import InputError

FACTORS = (2, 1)  # (2)
LONGEST = 20  # times as long as wide: more is no picture of a scene


class Target(NamedTuple):
    """The scene, at bucket size."""

    still: UInt8[ndarray, "Y X 3"]
    person: Bool[ndarray, "H W"]  # latent cells of the person
    size: tuple[int, int]  # (Y, X) of the source


def cover(size: tuple[int, int], bucket: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns that fill a bucket with the source's proportions. (1)."""
    (height, width), (rows, columns) = size, bucket
    if height / width < rows / columns:
        return rows, round(width * rows / height)
    return round(height * columns / width), columns


def fit(
    still: UInt8[ndarray, "Y X 3"], bucket: tuple[int, int]
) -> UInt8[ndarray, "Yb Xb 3"]:
    """The still at bucket size. Equation (2)."""
    image = Image.fromarray(still)
    for factor in FACTORS:
        goal = (factor * bucket[0], factor * bucket[1])
        rows, columns = cover((image.height, image.width), goal)
        image = image.resize((columns, rows), Image.Resampling.LANCZOS)
        top, left = (rows - goal[0]) // 2, (columns - goal[1]) // 2
        image = image.crop((left, top, left + goal[1], top + goal[0]))
    return np.asarray(image)


def view(
    picture: UInt8[ndarray, "Y X 3"], bucket: tuple[int, int]
) -> UInt8[ndarray, "rows columns 3"]:
    """The centre that a bucket shows of a picture, at the picture's own resolution."""
    size = picture.shape[:2]
    covered = cover(size, bucket)
    rows, columns = (
        min(have, max(1, round(have * want / whole)))
        for have, want, whole in zip(size, bucket, covered, strict=True)
    )
    top, left = (size[0] - rows) // 2, (size[1] - columns) // 2
    return picture[top : top + rows, left : left + columns]


def find_person(
    source: UInt8[ndarray, "Y X 3"],
    still: UInt8[ndarray, "Yb Xb 3"],
    detectors: Detectors,
) -> Bool[ndarray, "H W"] | None:
    """Latent cells of the person in a still, fitted from `source`. (3); None: nobody.

    The release hides the whole still where its detector finds nobody.
    """
    size = still.shape[:2]
    if detectors.persons is not None:
        board = letterbox.letterbox(still.astype(np.float32) / 255)
        raw = detectors.persons(board)
        found = letterbox.choose([raw], size)
        return conditions.person_map(found, size) if len(raw) else None
    face = _largest_face(source, size, detectors)
    if face is None:
        return None
    person = conditions.still_mask(conditions.person_box_from_face(face), size)
    return person if person.any() else None


def _largest_face(
    source: ndarray, bucket: tuple[int, int], detectors: Detectors
) -> Float[ndarray, "4"] | None:
    """In 0..1 of what the bucket shows; beyond it where only the source shows it.

    Searched in the source, since faces of small buckets are too small to be found.
    """
    seen = view(source, bucket)
    scale = np.array(source.shape[1::-1]) / seen.shape[1::-1]
    cut = (np.array(source.shape[1::-1]) - seen.shape[1::-1]) // 2 / seen.shape[1::-1]
    for picture, zoom, shift in ((seen, 1.0, 0.0), (source, scale, cut)):
        faces = detectors.faces(np.ascontiguousarray(picture))
        if len(faces):
            largest = faces[(faces[:, 2:] - faces[:, :2]).prod(axis=1).argmax()]
            corners = largest.reshape(2, 2) * zoom - shift
            return corners.reshape(4).astype(np.float32)
    return None


def read_target(
    path: str,
    prepare: ConfigDict,
    detectors: Detectors,
    box: Float[ndarray, "4"] | Float[ndarray, "n 4"] | None = None,
) -> Target:
    """A picture, or the first frame of a video, made ready for its bucket.

    `prepare` holds the buckets. `box` is where the person will be, in 0..1 of the
    fitted still; without it the person is searched.
    InputError: no picture, far too long or high; nobody in it and no box.
    """
    source = read_picture(path)
    size = source.shape[:2]
    if max(size) > LONGEST * min(size):
        raise InputError(
            f"--target {path}: {size[1]}x{size[0]} pixels; give a still less than "
            f"{LONGEST} times longer than wide"
        )
    bucket = conditions.bucket_of(*size, prepare)
    still = fit(source, bucket)
    if box is None:
        person = find_person(source, still, detectors)
    else:
        person = conditions.still_mask(box, bucket)
    if person is None:
        raise InputError(
            f"--target {path}: no person found in the still; give a still with the "
            "person in it, or say where the person will be: "
            "--person_box left,top,right,bottom in 0..1"
        )
    return Target(still, person, size)


def read_picture(path: str) -> UInt8[ndarray, "Y X 3"]:
    """An RGB still, or the first frame of a video. InputError: neither."""
    try:
        return media.read_image(path)
    except InputError:
        if not Path(path).is_file():
            raise
    try:
        return next(media.iterate_frames(path, 1.0))
    except InputError as error:
        raise InputError(
            f"--target {path}: neither a picture nor a video; give a png or jpeg"
        ) from error
