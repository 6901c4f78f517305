"""Whole-body keypoints: what the pose network sees, what its answer says of a face.

The network's input, for a person box (left, top, right, bottom) [TAVR_SPEC 8]:

    (1) window = the box about its centre, 1.25 times as large, its shorter side
        extended to width : height = 3 : 4; left, top, width, height rounded to even
    (2) input = the window, zero outside the frame, bilinear (half-pixel, no antialias)
        to 384 x 288, (RGB - mean) / std on the scale 0..255

Its answer, SimCC logits along x (576) and y (768) of each of 133 joints:

    (3) point = argmax / 2; score = the smaller maximum; (-1, -1) where score <= 0;
        then x / 288 width + left, y / 384 height + top

A face is joints 23..90 (68 points):

    (4) region   min and max of points with score > 0.3, at least 2 of them;
                 top = round(ylo - (yhi - ylo) / 2) - 24, bottom = round(yhi) + 24,
                 left = round(xlo) - 24, right = round(xhi) + 24, clipped to the frame
    (5) extent   [TAVR_SPEC 9.1] points 17..26 moved by 1.2 (p27 - p33) if points 17..27
                 and 33 all have score >= 0.3 (brows to forehead); min and max of points
                 with score > 0.3, at least 10; its width and height more on each side;
                 clipped to the frame

Scores are compared in float32, rounding is half to even.
"""

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from data_pipelines.bilinear import resize

JOINTS = 133
FACE = slice(23, 91)
INPUT = (384, 288)  # rows, columns of (2)
SIMCC = (2 * INPUT[1], 2 * INPUT[0])  # logits along x and y
ENLARGE = 1.25  # (1)
MEAN = np.float32([123.675, 116.28, 103.53])  # (2)
STD = np.float32([58.395, 57.12, 57.375])
VISIBLE = np.float32(0.3)
REGION_POINTS, MARGIN = 2, 24  # (4), pixels
EXTENT_POINTS = 10  # (5)
BROWS, BRIDGE, NOSE, LIFT = slice(17, 27), 27, 33, 1.2  # (5)

NOTHING = (-1, -1, -1, -1)


def window(box: Int[ndarray, "4"] | tuple) -> tuple[int, int, int, int]:
    """Left, top, width, height of what the network sees; may leave the frame. (1)."""
    left, top, right, bottom = (float(edge) for edge in box)
    width, height = ENLARGE * (right - left), ENLARGE * (bottom - top)
    aspect = INPUT[1] / INPUT[0]
    width, height = max(width, height * aspect), max(height, width / aspect)
    centre_x, centre_y = (left + right) / 2, (top + bottom) / 2
    return (
        round(centre_x - width / 2),
        round(centre_y - height / 2),
        round(width),
        round(height),
    )


def cut(
    frame: Float[ndarray, "Y X 3"], seen: tuple[int, int, int, int]
) -> Float[ndarray, "rows columns 3"]:
    """The window of a frame, zero where it leaves it."""
    left, top, width, height = seen
    rows, columns = frame.shape[:2]
    patch = np.zeros((height, width, 3), np.float32)
    low_y, high_y = max(top, 0), min(top + height, rows)
    low_x, high_x = max(left, 0), min(left + width, columns)
    if low_y < high_y and low_x < high_x:
        patch[low_y - top : high_y - top, low_x - left : high_x - left] = frame[
            low_y:high_y, low_x:high_x
        ]
    return patch


def network_input(
    frame: Float[ndarray, "Y X 3"], seen: tuple[int, int, int, int]
) -> Float[ndarray, "384 288 3"]:
    """The normalised window of a frame with values 0..255. Equation (2)."""
    return (resize(cut(frame, seen), INPUT) - MEAN) / STD


def decode(
    along_x: Float[ndarray, "n 576"],
    along_y: Float[ndarray, "n 768"],
    seen: tuple[int, int, int, int],
) -> Float[ndarray, "n 3"]:
    """Logits -> x, y in the frame and score of each joint. Equation (3)."""
    left, top, width, height = seen
    score = np.minimum(along_x.max(axis=1), along_y.max(axis=1))
    point = np.stack([along_x.argmax(axis=1), along_y.argmax(axis=1)], axis=1) / 2
    point[score <= 0] = -1
    scale = np.array([width / INPUT[1], height / INPUT[0]])
    placed = point * scale + np.array([left, top])
    return np.concatenate([placed, score[:, None]], axis=1).astype(np.float32)


def face_boxes(
    points: Float[ndarray, "F 68 3"], size: tuple[int, int]
) -> Int[ndarray, "F 4"]:
    """Left, top, right, bottom of each frame's face region, -1 = none. Equation (4).

    `size` is the frame's (Y, X); ends are exclusive.
    """
    rows, columns = size
    boxes = []
    for face in points:
        seen = face[face[:, 2] > VISIBLE, :2]
        if len(seen) < REGION_POINTS:
            boxes.append(NOTHING)
            continue
        (left, top), (right, bottom) = seen.min(axis=0), seen.max(axis=0)
        forehead = np.float32(0.5) * (bottom - top)
        edges = (left, top - forehead, right, bottom)
        low_x, low_y, high_x, high_y = (int(np.rint(edge)) for edge in edges)
        low_x, high_x = np.clip([low_x - MARGIN, high_x + MARGIN], 0, columns)
        low_y, high_y = np.clip([low_y - MARGIN, high_y + MARGIN], 0, rows)
        empty = low_x >= high_x or low_y >= high_y
        boxes.append(NOTHING if empty else (low_x, low_y, high_x, high_y))
    return np.array(boxes, np.int64).reshape(-1, 4)


def extents(
    points: Float[ndarray, "F 68 3"], size: tuple[int, int]
) -> Float[ndarray, "F 4"]:
    """The room around each frame's face, NaN where it is unusable. Equation (5)."""
    boxes = np.full((len(points), 4), np.nan)
    for box, face in zip(boxes, points, strict=True):
        moved, score = face[:, :2].copy(), face[:, 2]
        if (score[BROWS] >= VISIBLE).all() and (score[[BRIDGE, NOSE]] >= VISIBLE).all():
            moved[BROWS] += np.float32(LIFT) * (face[BRIDGE, :2] - face[NOSE, :2])
        seen = moved[score > VISIBLE]
        if len(seen) >= EXTENT_POINTS:
            corners = np.concatenate([seen.min(axis=0), seen.max(axis=0)])
            box[:] = enlarged(corners.astype(np.float64), size)
    return boxes


def enlarged(box: Float[ndarray, "4"], size: tuple[int, int]) -> Float[ndarray, "4"]:
    """A box with its width and height more on each side, clipped to the frame."""
    rows, columns = size
    width, height = box[2] - box[0], box[3] - box[1]
    grown = box + np.array([-width, -height, width, height])
    return np.clip(grown, 0, [columns, rows, columns, rows])
