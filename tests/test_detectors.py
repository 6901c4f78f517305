"""Detectors by path, the pose network's rules, and where they put the face."""

import builtins

import numpy as np
import pytest

from data_pipelines import detectors, face_search, letterbox, media, people, pose
from tavr_jax.errors import InputError

onnx = pytest.importorskip("onnx", reason="makes the tiny networks of these tests")
pytest.importorskip("onnxruntime", reason="runs them")

FRAME = (96, 160)


def constant_network(path, picture, outputs, sees=None):
    """An .onnx that answers `outputs` {name: array} whatever it is shown.

    `picture` is its input's (rows, columns), None = any. With `sees`, that output has
    the picture's mean added, so that the answer depends on what it is shown.
    """
    from onnx import TensorProto, helper, numpy_helper

    sides = [side or f"side{i}" for i, side in enumerate(picture)]
    given = helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, *sides])
    nodes, constants, results = [], [], []
    nodes.append(helper.make_node("ReduceMean", ["images"], ["mean"], keepdims=0))
    for name, value in outputs.items():
        value = np.asarray(value, np.float32)
        constants.append(numpy_helper.from_array(value, f"{name}_value"))
        scale = numpy_helper.from_array(np.float32(name == sees), f"{name}_scale")
        constants.append(scale)
        nodes.append(helper.make_node("Mul", ["mean", f"{name}_scale"], [f"{name}_m"]))
        nodes.append(helper.make_node("Add", [f"{name}_value", f"{name}_m"], [name]))
        shape = list(value.shape)
        results.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    graph = helper.make_graph(nodes, "constant", [given], results, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    model.ir_version = 8
    onnx.save(model, str(path))
    return str(path)


def yolo_answer(*rows, anchors=300):
    """(1, 84, N) from rows of centre x, y, width, height, class, score."""
    answer = np.zeros((1, 84, anchors), np.float32)
    for index, (*box, kind, score) in enumerate(rows):
        answer[0, :4, index] = box
        answer[0, 4 + kind, index] = score
    return answer


def simcc_answer(places, score=5.0):
    """Logits (1, 133, 576) and (1, 133, 768) whose maxima are at `places`."""
    along_x = np.zeros((1, pose.JOINTS, pose.SIMCC[0]), np.float32)
    along_y = np.zeros((1, pose.JOINTS, pose.SIMCC[1]), np.float32)
    joints = np.arange(pose.JOINTS)
    along_x[0, joints, places[:, 0]] = score
    along_y[0, joints, places[:, 1]] = score
    return {"simcc_x": along_x, "simcc_y": along_y}


# Rules


@pytest.mark.parametrize("seed", range(3))
def test_suppression_keeps_the_best_and_nothing_that_overlaps_it(seed):
    generator = np.random.default_rng(seed)
    low = generator.uniform(0, 80, (60, 2))
    boxes = np.concatenate([low, low + generator.uniform(5, 40, (60, 2))], axis=1)
    scores = generator.uniform(0, 1, 60)
    kept = detectors.suppress(boxes, scores, 0.5)
    np.testing.assert_allclose(kept[0], boxes[scores.argmax()], rtol=1e-6)
    again = detectors.suppress(kept, -np.arange(len(kept), dtype=float), 0.5)
    np.testing.assert_array_equal(again, kept)
    assert len(detectors.suppress(boxes, scores, 1.0)) == 60
    assert len(detectors.suppress(boxes[:0], scores[:0], 0.5)) == 0


def test_the_pose_window_holds_the_box_at_three_to_four():
    for corners in np.random.default_rng(0).integers(-50, 900, (300, 2, 2)):
        low, high = np.sort(corners, axis=0)
        box = (*low.tolist(), *(high + 1).tolist())
        left, top, width, height = pose.window(box)
        assert left <= box[0] and top <= box[1]
        assert left + width >= box[2] - 1 and top + height >= box[3] - 1
        assert abs(4 * width - 3 * height) <= 4


def test_what_the_network_points_at_comes_back_to_its_place():
    """A bright dot in the frame, found in the input, decoded: the same dot."""
    generator = np.random.default_rng(1)
    for _ in range(20):
        frame = np.zeros((200, 300, 3), np.float32)
        x, y = generator.integers(60, 140, 2)
        frame[y - 3 : y + 4, x - 3 : x + 4] = 255
        seen = pose.window((40, 30, 160, 170))
        picture = pose.network_input(frame, seen)[..., 0]
        row, column = np.argwhere(picture == picture.max()).mean(axis=0).round()
        places = np.array([[round(2 * column), round(2 * row)]] * pose.JOINTS)
        answer = simcc_answer(places)
        point = pose.decode(answer["simcc_x"][0], answer["simcc_y"][0], seen)[0]
        assert np.abs(point[:2] - [x, y]).max() < 1.5 and point[2] == 5


def test_face_regions_grow_with_their_points_and_stay_in_the_frame():
    generator = np.random.default_rng(2)
    for _ in range(100):
        points = np.ones((1, 68, 3), np.float32)
        points[..., :2] = generator.uniform(-20, [180, 120], (68, 2))
        box = pose.face_boxes(points, FRAME)[0]
        points[:, 40:, 2] = 0.1
        part = pose.face_boxes(points, FRAME)[0]
        assert (box[:2] <= part[:2]).all() and (box[2:] >= part[2:]).all()
        assert (box >= 0).all() and (box <= [160, 96, 160, 96]).all()
        points[..., 2] = 0.2
        assert (pose.face_boxes(points, FRAME) == -1).all()
        assert np.isnan(pose.extents(points, FRAME)).all()


# Files


def test_a_yolo_file_finds_persons_on_the_board(tmp_path):
    answer = yolo_answer(
        (320, 240, 100, 200, 0, 0.9),
        (322, 241, 100, 200, 0, 0.8),  # the same person
        (100, 300, 50, 60, 0, 0.3),
        (500, 100, 50, 60, 0, 0.2),  # too unsure
        (400, 100, 90, 90, 16, 0.9),  # a dog
    )
    expected = [[270, 140, 370, 340], [75, 270, 125, 330]]
    for size, move in (((None, None), 0), ((480, 640), 0), ((640, 640), 80)):
        moved = answer.copy()
        moved[0, 1] += move * (moved[0, 3] > 0)
        path = constant_network(tmp_path / "y.onnx", size, {"output0": moved})
        found = detectors.load("", path).persons(np.zeros((480, 640, 3), np.float32))
        np.testing.assert_allclose(found, expected, atol=1e-3)


def test_a_yolox_file_finds_the_same(tmp_path):
    rows = np.zeros((1, 80 * 80 + 40 * 40 + 20 * 20, 85), np.float32)
    cell = 80 * 80 + 40 * 15 + 20  # stride 16: column 20, row 15
    rows[0, cell, :6] = [0.5, 0.25, np.log(100 / 16), np.log(200 / 16), 0.9, 0.8]
    path = constant_network(tmp_path / "x.onnx", (640, 640), {"output": rows})
    found = detectors.load("", path).persons(np.zeros((480, 640, 3), np.float32))
    np.testing.assert_allclose(found, [[278, 144, 378, 344]], atol=1e-3)


def test_a_pose_file_points_at_the_face_of_its_person(tmp_path):
    generator = np.random.default_rng(3)
    places = np.stack([generator.integers(0, n, pose.JOINTS) for n in pose.SIMCC], 1)
    answer = simcc_answer(places)
    path = constant_network(tmp_path / "p.onnx", pose.INPUT, answer)
    found = detectors.load(path, "")
    assert found.faces is people.find_faces and found.persons is None
    person = (20, 10, 80, 90)
    points = found.points(np.zeros((*FRAME, 3), np.float32), person)
    seen = pose.window(person)
    expected = pose.decode(answer["simcc_x"][0], answer["simcc_y"][0], seen)
    np.testing.assert_array_equal(points, expected[pose.FACE])


def test_points_are_searched_where_the_person_of_the_batch_is(tmp_path):
    """Frames before `start` matter only as the first of their batch."""
    asked = []

    def points(frame, person):
        asked.append(person)
        return np.ones((68, 3), np.float32)

    def persons(board):
        level = round(float(board.max()) * 100)
        boxes = [[100 + level, 100, 200 + level, 300]] * (level % 5 != 0)
        return np.float32(boxes).reshape(-1, 4)

    found = detectors.Detectors(lambda frame: np.zeros((0, 4)), points, persons)
    frames = np.linspace(0.01, 0.12, 12)[:, None, None, None] * np.ones((1, *FRAME, 3))
    whole = face_search.points_of(frames, 0, 6, found)
    everything = list(asked)
    asked.clear()
    part = face_search.points_of(frames, 8, 6, found)
    np.testing.assert_array_equal(part, whole[8:])
    assert asked == everything[-len(asked) :]
    assert not whole[4].any() and whole[5].any()  # nobody in frame 4
    # the first frame of a batch is empty: the batch is taken whole
    asked.clear()
    face_search.points_of(frames[4:10], 0, 6, found)
    assert set(asked) == {(0, 0, FRAME[1], FRAME[0])}


def test_without_a_person_detector_the_body_is_that_under_the_face():
    asked = []

    def points(frame, person):
        asked.append(person)
        return np.ones((68, 3), np.float32)

    face = np.float32([[0.4, 0.2, 0.6, 0.5]])
    found = detectors.Detectors(lambda frame: face, points, None)
    frames = np.zeros((2, *FRAME, 3), np.float32)
    face_search.point_regions(frames, 0, found)
    left, top, right, bottom = asked[0]
    assert left < 64 and right > 96 and top < 19 and bottom == FRAME[0]


@pytest.mark.parametrize("flag", ["face", "person"])
def test_unknown_and_damaged_files_are_one_line(tmp_path, flag):
    picture, letters = (64, 64), np.zeros((1, 7), np.float32)
    other = constant_network(tmp_path / "other.onnx", picture, {"letters": letters})
    whole = (tmp_path / "other.onnx").read_bytes()
    (tmp_path / "cut.onnx").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.onnx").write_text("not a network")
    cases = {
        other: "no known detector",
        str(tmp_path / "cut.onnx"): "not a readable ONNX model|not one float32",
        str(tmp_path / "text.onnx"): "not a readable ONNX model",
        str(tmp_path / "none.onnx"): "no such file",
    }
    for path, reason in cases.items():
        with pytest.raises(InputError, match=reason) as error:
            detectors.load(*((path, "") if flag == "face" else ("", path)))
        assert path in str(error.value) and "\n" not in str(error.value)


def test_a_missing_onnxruntime_is_named(tmp_path, monkeypatch):
    path = tmp_path / "a.onnx"
    path.touch()
    real = builtins.__import__

    def without(name, *rest):
        if name == "onnxruntime":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match="pip install onnxruntime"):
        detectors.load(str(path), "")


def test_damaged_networks_end_in_an_answer_or_an_input_error(tmp_path):
    answer = yolo_answer((320, 240, 100, 200, 0, 0.9), anchors=20)
    path = constant_network(tmp_path / "y.onnx", (64, 64), {"output0": answer})
    whole, failures = np.fromfile(path, np.uint8), 0
    generator = np.random.default_rng(4)
    board = np.zeros((480, 640, 3), np.float32)
    for _ in range(40):
        data = whole.copy()
        hits = generator.integers(0, 400, 3)  # the graph, not the numbers
        data[hits] = generator.integers(0, 256, 3)
        data.tofile(path)
        try:
            assert detectors.load("", path).persons(board).shape[1] == 4
        except InputError as error:
            failures += 1
            assert "\n" not in str(error)
    assert failures


def test_ultraface_agrees_with_the_default_on_real_people(shared):
    path = str(shared / "media/weights/ultraface_RFB-320.onnx")
    found = detectors.load(path, "")
    assert found.points is None and found.persons is None
    for name in ("grid-A_bbaf2n.mpg", "WDA-EdMarkey0_000.mp4"):
        frame = media.read_frames(shared / "media/videos" / name, 25, limit=1)[0]
        theirs, ours = found.faces(frame), people.find_faces(frame)
        assert len(theirs) == len(ours) == 1
        low = np.maximum(theirs[0, :2], ours[0, :2])
        high = np.minimum(theirs[0, 2:], ours[0, 2:])
        shared_area = np.clip(high - low, 0, None).prod()
        areas = [(b[0, 2:] - b[0, :2]).prod() for b in (theirs, ours)]
        assert shared_area / (sum(areas) - shared_area) > 0.6
    blank = np.full((120, 160, 3), 128, np.uint8)
    assert found.faces(blank).shape == (0, 4)
    assert letterbox.letterbox(blank / np.float32(255)).shape == (480, 640, 3)
