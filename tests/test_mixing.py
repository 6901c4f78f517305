"""Where a mixed stream reads."""

import numpy as np
import pytest

from data_pipelines.mixing import Mixture, weighted
from tavr_jax.errors import InputError


@pytest.mark.parametrize(
    ("weights", "start", "length"),
    [
        ((1.0,), (), 0),
        ((0.3, 0.7), (), 0),
        ((0.001, 0.599, 0.4), (), 0),
        ((0.2, 0.3, 0.1, 0.4), (1, 0, 0, 0), 503),
        ((0.5, 0.5), (1, 0), 7),
        ((0.5, 0.5), (1, 0), 3),
    ],
)
def test_every_part_is_read_without_gaps_and_as_often_as_it_weighs(
    weights, start, length
):
    mixture, count = Mixture(weights, start, length), 3000
    found = [mixture.locate(position) for position in range(count)]
    for part, weight in enumerate(weights):
        items = [item for where, item in found if where == part]
        assert items == list(range(len(items)))
        late = [where == part for where, _ in found[length:]]
        drift = np.abs(np.cumsum(late) - weight * np.arange(1, len(late) + 1))
        assert drift.max() < len(weights)
    assert mixture.locate(10**15)[1] > 0  # found without the positions before it


def test_a_curriculum_starts_at_its_start():
    mixture = Mixture((0.1, 0.9), (1.0, 0.0), 1000)
    parts = np.array([mixture.locate(p)[0] for p in range(1000)]).reshape(10, 100)
    np.testing.assert_allclose(parts.mean(axis=1), 0.09 * np.arange(10), atol=0.02)


def test_names_and_weights():
    assert weighted("A", "f") == {"A": 1.0}
    assert weighted("A:3, B:1", "f") == {"A": 0.75, "B": 0.25}
    assert weighted("gs://b/x,gs://b/y", "f") == {"gs://b/x": 0.5, "gs://b/y": 0.5}
    assert weighted("gs://b/x:1", "f") == {"gs://b/x": 1.0}
    for bad in ("", "A,", "A:0", "A:-1", "A:inf", "A:nan", "A,A", ":1"):
        with pytest.raises(InputError, match=r"^f="):
            weighted(bad, "f")
