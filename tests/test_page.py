"""Plots of the page: inside their frame, whatever they show."""

import itertools
import math
import re

import numpy as np
import pytest

from tavr_jax.evaluation import page
from tavr_jax.evaluation.page import Plot, Series


@pytest.mark.parametrize("seed", range(5))
def test_a_plot_stays_inside_its_frame(seed):
    rng = np.random.default_rng(seed)
    scale = 10.0 ** rng.integers(-8, 8)
    values = (rng.normal(size=60) + rng.normal()) * scale
    steps = np.sort(rng.integers(0, 10**6, 60)).astype(float)
    values[3] = math.inf
    figure = page.plot_svg(Plot("p", [Series("s", list(steps), list(values))]))
    width, height = map(int, re.search(r'viewBox="0 0 (\d+) (\d+)"', figure).groups())
    lines = re.findall(r'points="([^"]+)"', figure)
    assert len(lines) == 2  # the points, and a running mean
    for point in itertools.chain(*(line.split() for line in lines)):
        x, y = map(float, point.split(","))
        assert 0 <= x <= width
        assert 0 <= y <= height
    assert len(lines[0].split()) == 59  # what is not finite is left out


def test_constant_single_and_empty_series_can_be_drawn():
    assert "polyline" in page.plot_svg(Plot("p", [Series("s", [0, 1], [2.0, 2.0])]))
    assert "circle" in page.plot_svg(Plot("p", [Series("s", [5], [0.0])]))
    assert page.plot_svg(Plot("p", [Series("s", [1], [math.nan])])) == ""
