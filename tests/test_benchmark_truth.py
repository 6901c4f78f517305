"""True mouths are cut by the clock that cuts the video."""

from pathlib import Path

import numpy as np
import pytest
from test_benchmark_media import draw, span

from data_pipelines import benchmark_media
from data_pipelines.benchmark_file import Sample
from data_pipelines.benchmark_media import Place
from launch import benchmark_truth
from launch.benchmark_inputs import Pair
from tavr_jax.errors import InputError

COUNT = 60


@pytest.fixture(scope="module")
def footage(tmp_path_factory):
    """One video, whole and cut, at its rate and at another; its truth by frames."""
    root = tmp_path_factory.mktemp("media")
    draw(root / "whole.mp4", COUNT, 25)
    draw(root / "double.mp4", 2 * COUNT, 50)
    draw(root / "cut.mp4", 30, 25)
    (root / "truth/who").mkdir(parents=True)
    np.savez(root / "truth/who/scene.0.npz", opening=np.arange(COUNT, dtype=float))
    return root


def opening(root, listed, name, alone=False):
    listed = listed._replace(video_id="who/scene.0")
    cut = benchmark_media.locate(listed, Place(root / name, alone))
    pair = Pair(Sample(0, "key", listed, listed, "", ""), cut, cut)
    found = benchmark_truth.openings(root / "truth", [pair])
    assert found.keys() == {"key"} and found["key"].dtype == np.float32
    return found["key"]


def test_frame_i_of_a_span_has_the_mouth_of_its_moment(footage):
    for listed, name, alone in (
        (span(10, 40), "whole.mp4", False),
        (span(20, 80, 50.0), "double.mp4", False),
        (span(10, 40), "double.mp4", False),  # listed at 25, the file has 50
        (span(10, 40), "cut.mp4", True),  # begins at 0 in its file
    ):
        found = opening(footage, listed, name, alone)
        np.testing.assert_array_equal(found, np.arange(10, 40), err_msg=name)


def test_a_span_that_ends_a_little_late_holds_the_last_mouth(footage):
    found = opening(footage, span(30, 62), "whole.mp4")
    np.testing.assert_array_equal(found, [*range(30, 60), 59, 59])


def test_truth_that_is_missing_or_of_other_footage_is_named(footage, tmp_path):
    (tmp_path / "truth/who").mkdir(parents=True)
    (tmp_path / "whole.mp4").symlink_to(footage / "whole.mp4")
    path = Path(tmp_path / "truth/who/scene.0.npz")
    for save, said in (
        (lambda: None, "no mouth opening"),
        (lambda: np.savez(path, other=np.zeros(60)), "no mouth opening"),
        (lambda: np.savez(path, opening=np.zeros(20)), "10 of 30 frames"),
        (lambda: np.savez(path, opening=np.zeros(5)), "0 of 30 frames"),
    ):
        save()
        with pytest.raises(InputError, match=f"--truth .*scene.0.npz: {said}"):
            opening(tmp_path, span(10, 40), "whole.mp4")
