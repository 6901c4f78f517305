"""Faces of every n-th frame: searched for now and then, followed in between (ours).

follow   find the picture of a face again by normalised correlation around its box:
         0.3 ms. At every look.
refresh  search the surroundings of a face only: 8 ms. Every `search_every` frames,
         and where a face was not found again.
search   search the whole frame, newcomers too (`people.find_faces`): 30 ms. Every
         `NEWCOMERS` refreshes, in every new shot, and where a face was lost.
"""

import cv2
import numpy as np
from jaxtyping import Float, UInt8
from numpy import ndarray

from data_pipelines import people

ALIKE = 0.7  # correlation that is the same face; after a blink or a word it is 0.9
AROUND = 0.4  # of the box's sides, followed to on each side of it
WIDER = 0.6  # of the box's longer side, searched on each side of it
SIDE = 40  # pixels of the longer side of the picture that is followed
NEAR = 96  # pixels of the surroundings that are searched: the face has about 44
NEWCOMERS = 3


class Follower:
    """Looks at the frames of one video in order; holds the faces last seen."""

    def __init__(self, search_every: int):
        self._every = search_every
        self._boxes = np.zeros((0, 4), np.float32)
        self._pictures: list[ndarray] = []
        self._refreshed = self._searched = 0

    def look(
        self, frame: UInt8[ndarray, "Y X 3"], index: int, new_shot: bool
    ) -> Float[ndarray, "J 4"]:
        """Boxes of all faces in frame `index`."""
        grey = _grey(frame)
        if new_shot or index - self._searched >= self._every * NEWCOMERS:
            return self._search(frame, grey, index)
        due = index - self._refreshed >= self._every
        if not len(self._boxes):  # nobody: wait for newcomers, but not long
            return self._search(frame, grey, index) if due else self._boxes
        if not due:
            moved = [self._again(grey, i) for i in range(len(self._boxes))]
            if all(box is not None for box in moved):
                return np.clip(np.stack(moved), 0, 1).astype(np.float32)
        near = [_near(frame, box) for box in self._boxes]
        if all(box is not None for box in near):
            return self._remember(np.stack(near), grey, index)
        return self._search(frame, grey, index)

    def _search(self, frame: ndarray, grey: ndarray, index: int) -> ndarray:
        self._searched = index
        return self._remember(people.find_faces(frame), grey, index)

    def _remember(self, boxes: ndarray, grey: ndarray, index: int) -> ndarray:
        self._refreshed, self._boxes, self._pictures = index, boxes, []
        for box in boxes:
            left, top, right, bottom = _pixels(box, grey.shape)
            self._pictures.append(grey[top:bottom, left:right].copy())
        return boxes

    def _again(self, grey: ndarray, number: int) -> ndarray | None:
        box, picture = self._boxes[number], self._pictures[number]
        rows, columns = picture.shape
        if min(rows, columns) < 4:
            return None
        width, height = box[2] - box[0], box[3] - box[1]
        grow = AROUND * np.array([-width, -height, width, height])
        x0, y0, x1, y1 = _pixels(box + grow, grey.shape)
        scale = min(1.0, SIDE / max(rows, columns))
        small = cv2.resize(picture, None, fx=scale, fy=scale)
        place = cv2.resize(grey[y0:y1, x0:x1], None, fx=scale, fy=scale)
        if place.shape[0] < small.shape[0] or place.shape[1] < small.shape[1]:
            return None
        alike = cv2.matchTemplate(place, small, cv2.TM_CCOEFF_NORMED)
        _, best, _, (x, y) = cv2.minMaxLoc(alike)
        if not best >= ALIKE:  # a flat picture gives no number
            return None
        left, top, _, _ = _pixels(box, grey.shape)
        shift = np.array([x0 + x / scale - left, y0 + y / scale - top] * 2)
        return box + shift / ([grey.shape[1], grey.shape[0]] * 2)


def _grey(frame: ndarray) -> ndarray:
    """The frame in grey, small and quickly made: to follow in, not to search."""
    step = max(1, max(frame.shape[:2]) // people.DETECT_SIDE)
    return cv2.cvtColor(np.ascontiguousarray(frame[::step, ::step]), cv2.COLOR_RGB2GRAY)


def _near(frame: ndarray, box: ndarray) -> ndarray | None:
    """The face around where one was; None if there is not exactly one."""
    rows, columns = frame.shape[:2]
    size = np.array([columns, rows] * 2)
    sides = (box[2:] - box[:2]) * size[:2]
    grow = WIDER * sides.max() * np.array([-1, -1, 1, 1]) / size
    x0, y0, x1, y1 = _pixels(box + grow, (rows, columns))
    place = frame[y0:y1, x0:x1]
    scale = NEAR / max(place.shape[:2])
    if scale < 1:
        place = cv2.resize(
            place, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA
        )
    found = people.find_faces(np.ascontiguousarray(place))
    if len(found) != 1:
        return None
    inside = found[0] * ([x1 - x0, y1 - y0] * 2) + [x0, y0, x0, y0]
    return np.clip(inside / size, 0, 1).astype(np.float32)


def _pixels(box: ndarray, shape: tuple[int, int]) -> tuple[int, int, int, int]:
    rows, columns = shape
    edges = np.rint(np.clip(box, 0, 1) * [columns, rows, columns, rows]).astype(int)
    return tuple(edges.tolist())
