import numpy as np
import pytest

from configs import same_scene
from data_pipelines import conditions


@pytest.fixture(scope="module")
def masks(shared):
    with np.load(shared / "oracles/tavr_seed0/masks.npz", allow_pickle=False) as data:
        return {name: data[name] for name in data.files}


@pytest.fixture(scope="module")
def reference(shared):
    path = shared / "oracles/tavr_seed0/reference.npz"
    with np.load(path, allow_pickle=False) as data:
        return {name: data[name] for name in data.files}


def test_reference_windows_are_the_official_table(reference):
    for latents, chunks, start, end in reference["window"].tolist():
        assert conditions.reference_window(latents, chunks, 5) == (start, end)


def test_buckets_are_the_official_ones(reference):
    prepare = same_scene.get_config("tavr_14b").prepare
    for still, bucket in zip(
        reference["bucket_in"].tolist(), reference["bucket_out"].tolist(), strict=True
    ):
        assert conditions.bucket_of(*still, prepare) == tuple(bucket)


def test_pixel_masks_become_the_official_tokens(masks):
    tokens = conditions.pixel_tokens(masks["grid_pixels"])
    np.testing.assert_array_equal(tokens, masks["grid_tokens"])


@pytest.mark.parametrize("case", ["small", "land", "port"])
def test_face_boxes_become_the_official_tokens(masks, case):
    expected = masks[f"face_{case}_tokens"]
    rows, columns = expected.shape[1] * 16, expected.shape[2] * 16
    top, bottom, left, right = np.maximum(masks[f"face_{case}_boxes"], 0).T
    boxes = np.stack([left, top, right, bottom], axis=1)
    boxes = (boxes / [columns, rows, columns, rows]).astype(np.float32)
    tokens = conditions.box_tokens(boxes, (rows, columns))
    np.testing.assert_array_equal(tokens, expected)


def test_person_boxes_become_the_official_maps(masks):
    for number, case in enumerate(masks["person_cases"]):
        rows, columns = case[:2].astype(int)
        box = (case[6:10] / [columns, rows, columns, rows]).astype(np.float32)
        person = conditions.still_mask(box, (rows, columns))
        top, bottom, left, right = case[10:14].astype(int)
        expected = np.zeros_like(person)
        expected[top:bottom, left:right] = True
        np.testing.assert_array_equal(person, expected)
        if f"person_fg_{number}" in masks:
            np.testing.assert_array_equal(person, masks[f"person_fg_{number}"])
            np.testing.assert_array_equal(
                conditions.still_tokens(person), masks[f"person_bg_tokens_{number}"]
            )


def test_boxes_in_pixels_and_in_shares_of_the_frame_are_the_same_person(masks):
    for case in masks["person_cases"]:
        size = tuple(case[:2].astype(int).tolist())
        pixels = case[6:10].astype(int)
        shares = pixels / [*size[::-1], *size[::-1]]
        np.testing.assert_array_equal(
            conditions.person_map(pixels, size),
            conditions.still_mask(shares.astype(np.float32), size),
        )


def test_grey_covers_every_pixel_of_the_person_and_nothing_of_invalid_tokens():
    generator = np.random.default_rng(0)
    still = generator.integers(0, 256, (96, 160, 3), np.uint8)
    box = np.float32([0.31, 0.27, 0.62, 1.0])
    person = conditions.still_mask(box, (96, 160))
    grey = conditions.grey_person(still, person)
    left, top, right, bottom = np.rint(box * [160, 96, 160, 96]).astype(int)
    assert not grey[top:bottom, left:right].any()
    seen = conditions.still_tokens(person).repeat(16, 0).repeat(16, 1)
    assert not grey[~seen].any()  # what no token shows is all person
    outside = ~person.repeat(8, 0).repeat(8, 1)
    np.testing.assert_array_equal(grey[outside], still[outside] / np.float32(127.5) - 1)


def test_the_person_covers_the_face_and_reaches_the_bottom_below_it():
    for face in np.random.default_rng(1).uniform(0, 1, (50, 2, 2)):
        low, high = np.sort(face, axis=0)
        box = np.float32([*low, *high])
        person = conditions.still_mask(conditions.person_box_from_face(box), (96, 160))
        below = conditions.still_mask(np.float32([*low, high[0], 1.0]), (96, 160))
        assert person[below].all()


def test_a_close_up_still_shows_its_scene_beside_the_head():
    person = conditions.still_mask(
        conditions.person_box_from_face(np.float32([0.3, 0.3, 0.7, 0.8])), (96, 96)
    )
    assert not person[:9, 0].any() and not person[:9, -1].any()
    assert person[10:].all()


def test_face_tokens_cover_the_face_in_each_of_their_frames_and_skip_absent_ones():
    boxes = np.zeros((13, 4), np.float32)
    boxes[5] = [0.4, 0.4, 0.6, 0.7]
    tokens = conditions.face_tokens(boxes, (96, 96))
    assert tokens.shape == (3, 6, 6)
    assert not tokens[0].any() and not tokens[2].any()
    assert tokens[1][2:5, 2:4].all() and not tokens[1][:, 0].any()
