"""Faces followed by one network are where a whole search would find them."""

import numpy as np
import pytest
from drawn import footage

from data_pipelines import people
from data_pipelines.prepare import follow
from data_pipelines.prepare.refine import refine


def overlap(a, b) -> float:
    sides = np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None)
    areas = (a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod()
    return sides.prod() / (areas - sides.prod())


@pytest.fixture(scope="module")
def frame():
    return footage(1)[0]


def test_a_box_beside_a_face_is_brought_back_and_noise_is_no_face(frame):
    (box,) = people.find_faces(frame)
    side = (box[2:] - box[:2]).max()
    for shift in ([0.12, 0], [-0.12, 0], [0, 0.12], [0.08, -0.08]):
        back = refine(frame, box + np.tile(np.float32(shift) * side, 2))
        assert overlap(back, box) > 0.75
    noise = np.random.default_rng(0).integers(0, 256, frame.shape, np.uint8)
    assert refine(noise, box) is None


def test_a_square_over_the_edge_is_as_wide_as_one_inside(frame):
    (box,) = people.find_faces(frame)
    rows, columns = frame.shape[:2]
    left, top = int(box[0] * columns), int(box[1] * rows)
    cut = frame[max(0, top - 4) :, max(0, left - 4) :]
    assert refine(cut, np.float32([-0.05, -0.05, 0.45, 0.6])) is not None


def test_newcomers_are_seen_and_who_leaves_is_not(frame):
    empty = footage(1, people=())[0]
    pair = np.concatenate([frame, frame], axis=1)
    alone = np.concatenate([frame, empty], axis=1)
    follower = follow.Follower(search_every=5)
    assert len(follower.look(alone, 0, True)) == 1
    assert len(follower.look(pair, 5, False)) == 1  # not searched for yet
    assert len(follower.look(pair, 5 * follow.NEWCOMERS, False)) == 2
    assert len(follower.look(alone, 5 * follow.NEWCOMERS + 5, False)) == 1


def test_a_search_stops_only_when_no_face_that_counts_can_be_missing():
    shape = (100, 200)
    tall = np.float32([[0.1, 0.1, 0.5, 0.9]])  # 80 of 200: a rival has 40 or more
    assert follow._complete(tall, shape, 101)
    assert not follow._complete(tall, shape, 99)
    assert not follow._complete(tall[:0], shape, 320)
