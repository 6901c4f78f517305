"""Where one person's face is in consecutive frames.

    (1) extents   the room around the face in samples of footage, for the crop
                  [TAVR_SPEC 9.1]: `pose.extents` of points
    (2) regions   what a reference shows of the face [TAVR_SPEC 8]: `pose.face_boxes`

Points need a person to look at: in each batch of frames, the one `letterbox.choose`
takes of the person detector's. Without a person detector it is the body under the
largest face (ours). Frames without a person have points of score 0.

Without a point detector both are made from detected face boxes (ours): (1) the box with
its width and height more on each side, as if it were that of the points, (2)
`conditions.face_region`; the face that overlaps the last one most is followed, and (2)
is interpolated where it is not found.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Float, Int, Shaped, UInt8
from numpy import ndarray

from data_pipelines import conditions, letterbox, people, pose
from data_pipelines.detectors import Detectors

SAMPLE_BATCH, BATCH = 16, 32  # frames that share an anchor person [TAVR_SPEC 8]
FACE_POINTS = 68


def extents(
    samples: Iterable[UInt8[ndarray, "Y X 3"]], detectors: Detectors
) -> Float[ndarray, "F 4"]:
    """Left, top, right, bottom in pixels, NaN where no face is usable. (1).

    Takes one batch of samples into memory at a time.
    """
    if detectors.points is None:
        return _box_extents(samples, detectors)
    found: list[ndarray] = []
    batch: list[ndarray] = []
    for sample in samples:
        batch.append(sample)
        if len(batch) == SAMPLE_BATCH:
            found.append(_point_extents(batch, detectors))
            batch = []
    if batch:
        found.append(_point_extents(batch, detectors))
    return np.concatenate(found) if found else np.zeros((0, 4))


def point_regions(
    frames: Sequence[Float[ndarray, "Y X 3"]], start: int, detectors: Detectors
) -> Int[ndarray, "n 4"]:
    """Left, top, right, bottom in pixels of frames `start`.., -1 = none. (2).

    `frames` are in [0, 1] and begin with the video: batches are counted from there.
    """
    points = points_of(frames, start, BATCH, detectors)
    return pose.face_boxes(points, frames[0].shape[:2])


def box_regions(
    found: Sequence[Float[ndarray, "J 4"]], size: tuple[int, int]
) -> Int[ndarray, "n 4"]:
    """The same from all faces of consecutive frames, without points. (2)."""
    track = people.link_faces(found, 1, len(found))
    boxes = conditions.to_pixels(conditions.face_region(track.boxes, size), size)
    boxes[(boxes[:, 2:] <= boxes[:, :2]).any(axis=1)] = -1
    return boxes


def points_of(
    frames: Sequence[Shaped[ndarray, "Y X 3"]],
    start: int,
    batch: int,
    detectors: Detectors,
) -> Float[ndarray, "n 68 3"]:
    """x, y, score of the face's points in frames `start`.. of `frames`.

    Frames are uint8, or floats in [0, 1].
    """
    size = frames[0].shape[:2]
    points = np.zeros((len(frames) - start, FACE_POINTS, 3), np.float32)
    anchor = None
    for index in range(start, len(frames)):
        first = index - index % batch
        picture = _unit(frames[index])
        if detectors.persons is None:
            person = _body(picture, detectors)
        else:
            if anchor is None or index == first:
                anchor = detectors.persons(letterbox.letterbox(_unit(frames[first])))
            if index == first:
                person = letterbox.choose([anchor], size)[0]
            else:
                raw = detectors.persons(letterbox.letterbox(picture))
                person = letterbox.choose([raw], size, anchor)[0]
        left, top, right, bottom = (int(edge) for edge in person)
        if left < right and top < bottom:
            points[index - start] = detectors.points(
                picture, (left, top, right, bottom)
            )
    return points


def _point_extents(batch: list[ndarray], detectors: Detectors) -> ndarray:
    points = points_of(batch, 0, SAMPLE_BATCH, detectors)
    return pose.extents(points, batch[0].shape[:2])


def _box_extents(samples: Iterable[ndarray], detectors: Detectors) -> ndarray:
    found, size = [], (0, 0)
    for sample in samples:
        found.append(detectors.faces(sample))
        size = sample.shape[:2]
    track = people.link_faces(found, 1, len(found))
    rows, columns = size
    boxes = np.full((len(found), 4), np.nan)
    for box, faces, seen in zip(boxes, found, track.boxes, strict=True):
        if len(faces):
            pixels = seen.astype(np.float64) * [columns, rows, columns, rows]
            box[:] = pose.enlarged(pixels, size)
    return boxes


def _body(frame: ndarray, detectors: Detectors) -> ndarray:
    """Around head and shoulders of the largest face, in pixels; -1 = nobody."""
    faces = detectors.faces(np.rint(frame * 255).astype(np.uint8))
    if not len(faces):
        return np.array(letterbox.NOBODY)
    area = (faces[:, 2:] - faces[:, :2]).prod(axis=1)
    boxes = conditions.person_box_from_face(faces[area.argmax()])
    around = np.concatenate([boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)])
    return conditions.to_pixels(around[None], frame.shape[:2])[0]


def _unit(frame: ndarray) -> ndarray:
    if frame.dtype == np.uint8:
        return frame.astype(np.float32) / np.float32(255)
    return frame.astype(np.float32)
