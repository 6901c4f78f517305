"""The target still, its buckets, and persons on the detector's board."""

import numpy as np
import pytest
from PIL import Image

from configs import same_scene
from data_pipelines import conditions, detectors, letterbox, media, still
from tavr_jax.errors import InputError

BUCKET = (96, 160)
SIZES = [(480, 896), (896, 480), (96, 160), (33, 47), (1000, 90), (720, 1280)]


@pytest.fixture(scope="module")
def prepare():
    return same_scene.get_config("tiny").prepare


def noise(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (rows, columns, 3), np.uint8)


def persons(*raw):
    """A detector that always answers this."""
    boxes = np.float32(raw).reshape(-1, 4)
    return detectors.Detectors(lambda frame: boxes[:0], None, lambda board: boxes)


# Size


def test_cover_fills_the_bucket_and_is_symmetric_under_transpose():
    generator = np.random.default_rng(0)
    for height, width, rows, columns in generator.integers(20, 2000, (500, 4)).tolist():
        high, wide = still.cover((height, width), (rows, columns))
        assert (high == rows and wide >= columns) or (wide == columns and high >= rows)
        assert abs(high * width - wide * height) <= 0.5 * max(height, width)
        if (high, wide) != (rows, columns):
            turned = still.cover((width, height), (columns, rows))
            assert turned == (wide, high)


def test_the_bucket_turns_with_the_picture(prepare):
    for height, width in np.random.default_rng(1).integers(1, 999, (99, 2)).tolist():
        if height != width:
            bucket = conditions.bucket_of(height, width, prepare)
            assert conditions.bucket_of(width, height, prepare) == bucket[::-1]


@pytest.mark.parametrize("size", SIZES)
def test_a_fitted_still_fills_its_bucket_with_the_middle(size):
    flat = np.broadcast_to(np.uint8([250, 20, 90]), (*size, 3))
    assert (still.fit(np.array(flat), BUCKET) == [250, 20, 90]).all()
    mirrored = still.fit(noise(*size)[:, ::-1].copy(), BUCKET)[:, ::-1]
    straight = still.fit(noise(*size), BUCKET)
    assert straight.shape == (*BUCKET, 3)
    even = (still.cover(size, BUCKET)[1] - BUCKET[1]) % 2 == 0
    if even and (still.cover(size, (192, 320))[1] - 320) % 2 == 0:
        assert np.abs(mirrored.astype(int) - straight).max() <= 2


def test_smooth_stills_survive_the_detour():
    y, x = np.mgrid[: BUCKET[0], : BUCKET[1]]
    smooth = np.stack([y, x, 200 - y], axis=-1).astype(np.uint8)
    once = still.fit(smooth, BUCKET)
    assert np.abs(once.astype(int) - smooth).max() <= 1
    assert np.abs(still.fit(once, BUCKET).astype(int) - once).max() <= 1


# Persons


@pytest.mark.parametrize("size", SIZES)
def test_the_board_holds_the_whole_frame_and_zeros(size):
    place = letterbox.fit(size)
    board = letterbox.letterbox(np.ones((*size, 3), np.float32))
    assert board.shape[:2] == place.board
    assert board.sum() == 3 * place.inner[0] * place.inner[1]
    assert max(place.inner[0] / size[0], place.inner[1] / size[1]) <= (
        min(place.board[0] / size[0], place.board[1] / size[1]) + 1e-9
    )


@pytest.mark.parametrize("size", SIZES)
def test_person_boxes_stay_inside_cover_their_raw_box_and_grow_with_it(size):
    place, generator = letterbox.fit(size), np.random.default_rng(2)
    pads, inner = np.array(place.pad[::-1] * 2), np.array(place.inner[::-1] * 2)
    bounds = np.array([size[1], size[0]] * 2)
    for corners in generator.uniform(0, 1, (200, 2, 2)):
        low, high = np.sort(corners, axis=0)
        raw = np.concatenate([low, high]) * inner + pads
        box = np.array(letterbox.to_frame(raw, place))
        assert (box >= 0).all() and (box <= bounds).all()
        exact = (raw - pads) / inner * bounds
        slack = 2 + bounds / inner
        assert (box[:2] <= exact[:2] + slack[:2]).all()
        assert (box[2:] >= exact[2:] - slack[2:]).all()
        wider = raw + np.array([-8, -8, 8, 8])
        grown = np.array(letterbox.to_frame(wider, place))
        assert (grown[:2] <= box[:2]).all() and (grown[2:] >= box[2:]).all()


def test_a_box_of_everything_hides_everything_and_none_hides_nothing():
    whole = np.array([0, 0, BUCKET[1], BUCKET[0]])
    assert conditions.person_map(whole, BUCKET).all()
    assert conditions.still_mask(np.float32([0, 0, 1, 1]), BUCKET).all()
    assert not conditions.person_map(np.array(letterbox.NOBODY), BUCKET).any()
    assert not conditions.person_map(np.zeros((0, 4), int), BUCKET).any()


def test_person_maps_grow_with_their_boxes():
    generator = np.random.default_rng(3)
    for _ in range(300):
        low = generator.integers(0, [150, 90])
        high = low + 1 + generator.integers(0, [160, 96] - low)
        box = np.concatenate([low, high])
        more = box + generator.integers(0, 20, 4) * [-1, -1, 1, 1]
        small, large = (conditions.person_map(b, BUCKET) for b in (box, more))
        assert not (small & ~large).any()
        both = conditions.person_map(np.stack([box, more]), BUCKET)
        np.testing.assert_array_equal(both, small | large)


def test_without_a_person_at_first_the_batch_is_taken_whole():
    one, nobody = np.float32([[100, 100, 200, 300]]), np.zeros((0, 4), np.float32)
    whole = letterbox.choose([nobody, one, nobody], (480, 896))
    np.testing.assert_array_equal(whole, [[0, 0, 896, 480]] * 3)
    later = letterbox.choose([one, nobody], (480, 896))
    assert (later[0] >= 0).all() and (later[1] == -1).all()


def test_later_frames_need_only_the_first_one_of_their_batch():
    generator = np.random.default_rng(4)
    for _ in range(50):
        low = generator.uniform(0, 300, (5, 3, 2))
        raw = list(
            np.concatenate([low, low + generator.uniform(20, 150, low.shape)], 2)
        )
        together = letterbox.choose(raw, (480, 896))
        for index in range(1, 5):
            alone = letterbox.choose([raw[index]], (480, 896), raw[0])
            np.testing.assert_array_equal(alone[0], together[index])


# The whole of it


def test_the_target_is_read_fitted_and_its_person_found(tmp_path, prepare):
    path = str(tmp_path / "scene.png")
    Image.fromarray(noise(300, 200)).save(path)
    rows, columns = prepare.portrait
    left, top, right, bottom = 0.25, 0.5, 0.75, 1.0
    box = np.float32([left, top, right, bottom])
    target = still.read_target(path, prepare, detectors.DEFAULT, box)
    assert target.still.shape == (rows, columns, 3) and target.size == (300, 200)
    np.testing.assert_array_equal(
        target.person, conditions.still_mask(box, (rows, columns))
    )
    found = still.read_target(path, prepare, persons([100, 100, 300, 500]))
    assert found.person.any() and not found.person.all()
    nothing = noise(300, 200) // 32
    Image.fromarray(nothing).save(path)
    for nobody in (persons(), detectors.DEFAULT):
        with pytest.raises(InputError, match="no person"):
            still.read_target(path, prepare, nobody)


def test_a_face_that_the_bucket_cuts_off_still_has_shoulders(tmp_path, prepare):
    """Found in the source only: the person is where the body is."""
    source, faces = noise(400, 400), np.float32([[0.45, 0.05, 0.55, 0.15]])
    seen = still.view(source, (96, 160)).shape[0]
    fitted = still.fit(source, (96, 160))
    whole = detectors.Detectors(
        lambda frame: faces if len(frame) == 400 else faces[:0], None, None
    )
    assert seen < 400
    person = still.find_person(source, fitted, whole)
    assert person[:, 10].all() and not person[:, 0].any()


def test_odd_pictures_are_one_line(tmp_path, prepare):
    strip, text = tmp_path / "strip.png", tmp_path / "text.png"
    Image.fromarray(noise(4, 400)).save(strip)
    text.write_text("not a picture")
    for path in (strip, text, tmp_path / "missing.png"):
        with pytest.raises(InputError) as error:
            still.read_target(str(path), prepare, detectors.DEFAULT)
        assert path.name in str(error.value) and "\n" not in str(error.value)


def test_damaged_pictures_are_a_result_or_an_input_error(tmp_path):
    generator, path = np.random.default_rng(5), tmp_path / "a.png"
    failures = 0
    for suffix, trials in (("png", 12), ("jpg", 12)):
        Image.fromarray(noise(40, 60)).save(tmp_path / f"whole.{suffix}")
        whole = np.fromfile(tmp_path / f"whole.{suffix}", np.uint8)
        for trial in range(trials):
            data = whole[: generator.integers(1, len(whole))] if trial % 2 else whole
            data = data.copy()
            hits = generator.integers(0, len(data), 4)
            data[hits] = generator.integers(0, 256, 4)
            data.tofile(path)
            try:
                assert media.read_image(path).ndim == 3
            except InputError as error:
                failures += 1
                assert "\n" not in str(error)
    assert failures


def test_a_real_portrait_keeps_its_scene(shared, prepare):
    path = str(shared / "media/faces/astronaut.png")
    target = still.read_target(path, prepare, detectors.DEFAULT)
    assert 0.1 < target.person.mean() < 0.9
    middle = target.person[:, target.person.shape[1] // 2]
    assert middle[-1]
