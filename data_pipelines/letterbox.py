"""Persons in a frame, from the raw boxes of a person detector. [TAVR_SPEC 7.1]

The detector sees the frame on a board, scaled and padded with zeros:

    (1) board = 640 x 480 (rows x columns) where Y > X, else 480 x 640
    (2) s = min(board / size); inner = trunc(size s); pad = (board - inner) // 2
    (3) pixels in [0, 1], bilinear with half-pixel centres, no antialias

Which of several persons, in a batch of consecutive frames:

    (4) anchor = the largest box of the batch's first frame; without one every frame
        of the batch is taken whole
    (5) first frame: argmax area / (1 + 0.01 |centre - c|), c = the anchor's centre less
        the pads, while the centres still hold them (the release's quirk)
        later frames: the largest; no person, no box

Its box in the frame:

    (6) edges truncated; 20 % of the width, 10 % of the height more on each side;
        truncated; less the pads; times size / inner; truncated; clipped to the frame
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from data_pipelines.bilinear import resize

BOARD = (480, 640)  # (1), rows and columns of a frame that is not upright
GROW_WIDTH, GROW_HEIGHT = 0.2, 0.1  # (6)
DISTANCE = 0.01  # (5), per pixel
NOBODY = (-1, -1, -1, -1)


class Fit(NamedTuple):
    """Where a frame lies on its board, (1) and (2). Pairs are (rows, columns)."""

    size: tuple[int, int]
    board: tuple[int, int]
    inner: tuple[int, int]
    pad: tuple[int, int]


def fit(size: tuple[int, int]) -> Fit:
    """The place of a frame of `size` = (Y, X)."""
    board = BOARD[::-1] if size[0] > size[1] else BOARD
    scale = min(board[0] / size[0], board[1] / size[1])
    inner = (max(1, int(size[0] * scale)), max(1, int(size[1] * scale)))
    pad = ((board[0] - inner[0]) // 2, (board[1] - inner[1]) // 2)
    return Fit(tuple(size), board, inner, pad)


def letterbox(frame: Float[ndarray, "Y X 3"]) -> Float[ndarray, "rows columns 3"]:
    """A frame in [0, 1] on its board. Equation (3)."""
    place = fit(frame.shape[:2])
    board = np.zeros((*place.board, 3), np.float32)
    (top, left), (rows, columns) = place.pad, place.inner
    picture = resize(frame.astype(np.float32), (rows, columns))
    board[top : top + rows, left : left + columns] = picture
    return board


def choose(
    raw: Sequence[Float[ndarray, "J 4"]],
    size: tuple[int, int],
    first: Float[ndarray, "J 4"] | None = None,
) -> Int[ndarray, "F 4"]:
    """The person of each frame of a batch: left, top, right, bottom, -1 = nobody.

    `raw` are boxes on the board (left, top, right, bottom). They begin with the batch's
    first frame, unless `first` gives that frame's and they are later ones. (4) to (6).
    """
    place = fit(size)
    anchors = raw[0] if first is None else first
    if not len(anchors):
        whole = (0, 0, size[1], size[0])
        return np.array([whole] * len(raw), np.int64).reshape(-1, 4)
    anchor = anchors[_areas(anchors).argmax()]
    chosen = []
    for index, boxes in enumerate(raw):
        if not len(boxes):
            chosen.append(NOBODY)
            continue
        score = _areas(boxes)
        if index == 0 and first is None:
            centre = _centres(anchor[None]) - np.array(place.pad[::-1])
            away = np.linalg.norm(_centres(boxes) - centre, axis=1)
            score = score / (1 + DISTANCE * away)
        chosen.append(to_frame(boxes[score.argmax()], place))
    return np.array(chosen, np.int64).reshape(-1, 4)


def to_frame(box: Float[ndarray, "4"], place: Fit) -> tuple[int, int, int, int]:
    """One box on the board -> left, top, right, bottom in the frame. Equation (6)."""
    left, top, right, bottom = (int(edge) for edge in box)
    wider, higher = GROW_WIDTH * (right - left), GROW_HEIGHT * (bottom - top)
    grown = (left - wider, top - higher, right + wider, bottom + higher)
    edges = []
    for edge, axis in zip(grown, (1, 0, 1, 0), strict=True):
        inside = int(edge) - place.pad[axis]
        whole = int(inside * (place.size[axis] / place.inner[axis]))
        edges.append(min(max(whole, 0), place.size[axis]))
    return tuple(edges)


def _areas(boxes: ndarray) -> ndarray:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def _centres(boxes: ndarray) -> ndarray:
    return (boxes[:, :2] + boxes[:, 2:]) / 2
