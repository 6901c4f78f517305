"""Boxes and grids: what the network may see of a still and of a reference.

Boxes are (left, top, right, bottom) in 0..1 of the frame. The latent grid has cells of
8 x 8 pixels, the token grid of 16 x 16, a reference latent covers 4 frames.

    (1) bucket      landscape if height <= width else portrait         [TAVR_SPEC 7-1]
    (2) person map  rectangle snapped to the frame's edge within 5 %,
                    then outward to the latent grid                    [TAVR_SPEC 7.1]
    (3) still token valid if any of its 2 x 2 latents is background    [TAVR_SPEC 10.1]
    (4) face token  valid if any pixel of 4 frames x 16 x 16 is face   [TAVR_SPEC 8]
    (5) window      start = stride//2 - size//2, stride = (t-size)//chunks > size
                                                                       [TAVR_SPEC 9-6]
Where the release asks a person detector (YOLO, AGPL) and a pose network, we grow one
detected face box. Ours, in units of the face box:

    (6) person      two boxes: the head, 1.9 widths across, from 0.6 heights above it to
                    the frame's bottom; the shoulders, 3 widths across, from the chin
                    to the frame's bottom. One box for both, as a detector gives it,
                    would hide the whole scene of a close-up.
    (7) face region 0.15 heights more on top, then 5 % of the short side all around
                    (the release: half the brow-to-chin height over the brows, then 24
                    of 480 pixels; the detected box starts at the forehead already)
"""

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from ml_collections import ConfigDict
from numpy import ndarray

CELL = 8  # pixels of a latent cell
TOKEN = 2  # latents of a token, each way
SPAN = 4  # frames of a reference latent
SNAP = 0.05  # (2) nearer than this share of the frame to its edge means at the edge
HEAD_WIDTH, HEAD_ABOVE, SHOULDER_WIDTH = 1.9, 0.6, 3.0  # (6)
FACE_ABOVE, FACE_MARGIN = 0.15, 0.05  # (7)
_TIE = 1e-3  # pixels: float32 boxes reach whole pixels only up to rounding


def bucket_of(height: int, width: int, prepare: ConfigDict) -> tuple[int, int]:
    """Frame size (Y, X) that footage of this size is brought to. Equation (1)."""
    return tuple(prepare.landscape if height <= width else prepare.portrait)


def person_box_from_face(box: Float[ndarray, "4"]) -> Float[ndarray, "2 4"]:
    """Head and shoulders of the person around a face box. Equation (6)."""
    left, top, right, bottom = (float(edge) for edge in box)
    centre, width = (left + right) / 2, right - left
    above = top - HEAD_ABOVE * (bottom - top)
    head, shoulders = width * HEAD_WIDTH / 2, width * SHOULDER_WIDTH / 2
    boxes = [
        (centre - head, above, centre + head, 1.0),
        (centre - shoulders, bottom, centre + shoulders, 1.0),
    ]
    return np.clip(np.array(boxes, np.float32), 0.0, 1.0)


def still_mask(
    boxes: Float[ndarray, "4"] | Float[ndarray, "n 4"], size: tuple[int, int]
) -> Bool[ndarray, "H W"]:
    """Latent cells that a person touches, true = person. Equation (2).

    The person is one box or several together. `size` is the frame's (Y, X), multiples
    of 8. An empty box marks nothing. Boxes are brought to whole pixels outward first.
    """
    rows, columns = size
    edges = np.reshape(boxes, (-1, 4)).astype(np.float64)
    edges = edges * [columns, rows, columns, rows]
    low, high = np.floor(edges[:, :2] + _TIE), np.ceil(edges[:, 2:] - _TIE)
    return person_map(np.concatenate([low, high], axis=1).astype(int), size)


def person_map(
    boxes: Int[ndarray, "4"] | Int[ndarray, "n 4"], size: tuple[int, int]
) -> Bool[ndarray, "H W"]:
    """Latent cells that a person touches, from boxes in pixels. Equation (2).

    Boxes are left, top, right, bottom with exclusive ends, as `letterbox.choose` gives
    them; one without area (-1 = nobody) marks nothing.
    """
    rows, columns = size
    pixels = np.zeros((rows, columns), bool)
    for left, top, right, bottom in np.reshape(boxes, (-1, 4)).tolist():
        first_column, last_column = _snapped(left, right, columns)
        first_row, last_row = _snapped(top, bottom, rows)
        pixels[first_row:last_row, first_column:last_column] = True
    return _any_pool(pixels, (CELL, CELL))


def still_tokens(person: Bool[ndarray, "H W"]) -> Bool[ndarray, "h w"]:
    """Tokens of the still that show background. Equation (3)."""
    return _any_pool(~person, (TOKEN, TOKEN))


def grey_person(
    still: UInt8[ndarray, "Y X 3"], person: Bool[ndarray, "H W"]
) -> Float[ndarray, "Y X 3"]:
    """The still in [-1, 1] with the person's cells at 0, mid grey. [TAVR_SPEC 7-5]"""
    cells = person.repeat(CELL, axis=0).repeat(CELL, axis=1)
    pixels = still.astype(np.float32) / np.float32(127.5) - np.float32(1)
    return pixels * ~cells[..., None]


def face_region(
    boxes: Float[ndarray, "F 4"], size: tuple[int, int]
) -> Float[ndarray, "F 4"]:
    """Detected face boxes grown to what a reference shows of a face. Equation (7).

    Boxes without area (no face in that frame) stay empty.
    """
    rows, columns = size
    left, top, right, bottom = np.asarray(boxes, np.float64).T
    margin = FACE_MARGIN * min(rows, columns)
    grown = np.stack(
        [
            left - margin / columns,
            top - FACE_ABOVE * (bottom - top) - margin / rows,
            right + margin / columns,
            bottom + margin / rows,
        ],
        axis=1,
    )
    empty = (right <= left) | (bottom <= top)
    grown[empty] = 0.0
    return np.clip(grown, 0.0, 1.0).astype(np.float32)


def face_tokens(
    boxes: Float[ndarray, "F 4"], size: tuple[int, int]
) -> Bool[ndarray, "R h w"]:
    """Reference tokens that show the face, from detected face boxes.

    R = F // 4 (trailing frames have no latent). Equations (7), then (4).
    """
    return box_tokens(face_region(boxes, size), size)


def box_tokens(
    boxes: Float[ndarray, "F 4"], size: tuple[int, int]
) -> Bool[ndarray, "R h w"]:
    """Tokens that boxes touch as they are, edges rounded to pixels. Equation (4)."""
    return region_tokens(to_pixels(boxes, size), size)


def to_pixels(
    boxes: Float[ndarray, "F 4"], size: tuple[int, int]
) -> Int[ndarray, "F 4"]:
    """Boxes in 0..1 of the frame as whole pixels, half to even."""
    rows, columns = size
    return np.rint(np.asarray(boxes) * [columns, rows, columns, rows]).astype(int)


def region_tokens(
    boxes: Int[ndarray, "F 4"], size: tuple[int, int]
) -> Bool[ndarray, "R h w"]:
    """Tokens that boxes in pixels touch, -1 = nothing. Equation (4)."""
    pixels = np.zeros((len(boxes), *size), bool)
    for frame, box in zip(pixels, boxes, strict=True):
        left, top, right, bottom = np.maximum(box, 0)
        frame[top:bottom, left:right] = True
    return pixel_tokens(pixels)


def pixel_tokens(pixels: Bool[ndarray, "F Y X"]) -> Bool[ndarray, "R h w"]:
    """Tokens that a mask of pixels touches, R = F // 4. Equation (4)."""
    whole = pixels[: len(pixels) // SPAN * SPAN]
    return _any_pool(whole, (SPAN, CELL * TOKEN, CELL * TOKEN))


def reference_window(latents: int, chunks: int, size: int) -> tuple[int, int]:
    """Which reference latents [start, end) serve all chunks. Equation (5).

    `latents` are available, `chunks` are generated, `size` (R) are wanted.
    """
    if chunks <= 1 or latents <= size:
        return 0, min(latents, size)
    stride = (latents - size) // chunks
    start = stride // 2 - size // 2 if stride > size else 0
    return start, start + size


def _snapped(first: int, last: int, length: int) -> tuple[int, int]:
    """An edge pair along one axis, snapped as in (2)."""
    first, last = max(first, 0), min(last, length - 1)
    near = int(SNAP * length)
    if last <= first:
        return 0, 0
    return (0 if first < near else first), (length if last > length - near else last)


def _any_pool(cells: Bool[ndarray, "..."], window: tuple[int, ...]) -> ndarray:
    """True where any cell of a window is true; `window` divides the shape."""
    split: list[int] = []
    for length, step in zip(cells.shape, window, strict=True):
        split += [length // step, step]
    axes = tuple(range(1, len(split), 2))
    return cells.reshape(split).any(axis=axes)
