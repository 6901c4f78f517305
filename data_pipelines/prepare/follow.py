"""Faces of every n-th frame: searched for now and then, followed in between (ours).

follow   correct the box of every face by MTCNN's last network (`refine`): 0.6 ms a
         face. At every look.
search   the whole frame, newcomers too (`people.find_faces`). Every `search_every` x
         `NEWCOMERS` frames, in every new shot, and where a face was lost.

A search begins with a small picture, which shows large faces only, and goes on to
larger ones until no face could be missing that counts beside those found:

    smallest face found at side s = SMALLEST / s <= RIVAL * the largest face    (1)

5 ms where the speaker fills the frame, 30 ms where the face is small.
"""

import itertools

import numpy as np
from jaxtyping import Float, UInt8
from numpy import ndarray

from data_pipelines import people
from data_pipelines.prepare.refine import refine

# Pixels of the longer side, step of the sizes: coarse boxes are corrected afterwards.
SEARCHES = ((128, 0.5), (224, 0.5), (people.DETECT_SIDE, people.SHRINK))
NEWCOMERS = 3


class Follower:
    """Looks at the frames of one video in order; holds the faces last seen."""

    def __init__(self, search_every: int):
        self._every = search_every
        self._boxes = np.zeros((0, 4), np.float32)
        self._searched = 0

    def look(
        self, frame: UInt8[ndarray, "Y X 3"], index: int, new_shot: bool
    ) -> Float[ndarray, "J 4"]:
        """Boxes of all faces in frame `index`."""
        since = index - self._searched
        # Nobody: wait for newcomers, but not long.
        patience = self._every * (NEWCOMERS if len(self._boxes) else 1)
        if new_shot or since >= patience:
            return self._search(frame, index)
        moved = [refine(frame, box) for box in self._boxes]
        if any(box is None for box in moved) or _meet(moved):
            return self._search(frame, index)
        if moved:
            self._boxes = _steadied(self._boxes, np.stack(moved))
        return self._boxes

    def _search(self, frame: ndarray, index: int) -> ndarray:
        self._searched = index
        for side, shrink in SEARCHES:
            found = people.find_faces(frame, side, shrink)
            if _complete(found, frame.shape[:2], side):
                break
        # A small picture shows a box to a pixel of its own.
        closer = [refine(frame, box) for box in found]
        pairs = zip(closer, found, strict=True)
        boxes = [box if near is None else near for near, box in pairs]
        self._boxes = np.float32(boxes).reshape(-1, 4)
        return self._boxes


def _steadied(before: ndarray, now: ndarray) -> ndarray:
    """Boxes where they are now, of sides that follow by half.

    A mouth that opens stretches the box; a head comes nearer more slowly.
    """
    centres = (now[:, :2] + now[:, 2:]) / 2
    half = (now[:, 2:] - now[:, :2] + before[:, 2:] - before[:, :2]) / 4
    moved = np.concatenate([centres - half, centres + half], axis=1)
    return np.clip(moved, 0, 1).astype(np.float32)


def _meet(boxes: list[ndarray]) -> bool:
    """Whether two boxes have come to lie on the same face."""
    centres = [(box[:2] + box[2:]) / 2 for box in boxes]
    return any(
        (np.abs(a - b) < (box[2:] - box[:2]) / 4).all()
        for (a, box), (b, _) in itertools.permutations(
            zip(centres, boxes, strict=True), 2
        )
    )


def _complete(found: ndarray, shape: tuple[int, int], side: int) -> bool:
    """Whether a search at `side` cannot have missed a face that counts. (1)."""
    longer = max(shape)
    highest = max((found[:, 3] - found[:, 1]), default=0.0) * shape[0] / longer
    return people.SMALLEST / min(side, longer) <= people.RIVAL * highest
