"""The model benches against PyTorch: the same numbers, or no numbers.

Runs where torch (and, for speech, transformers) is installed; the product needs
neither.
"""

import dataclasses

import jax
import pytest
from flax import nnx

torch = pytest.importorskip("torch", reason="compares with PyTorch")

from test_bench_model import FORWARD, SMALL  # noqa: E402

from configs import same_scene  # noqa: E402
from launch import (  # noqa: E402
    bench_cases,
    bench_learning,
    bench_measure,
    bench_problem,
    bench_speech,
    bench_torch_problem,
    build,
)
from launch.bench_measure import Way  # noqa: E402

ONCE = Way(rounds=1, side=32, threads=1, processor=True)


@pytest.fixture(scope="module")
def problem():
    bench_torch_problem.begin(1)
    return bench_problem.make(same_scene.get_config("tiny"), 60, 2, 2)


def changed(problem, section, **fields):
    """The same weights in another network."""
    config = problem.config.copy_and_resolve_references()
    config[section].update(fields)
    graph = nnx.graphdef(build.abstract_transformer(config))
    return problem._replace(config=config, graph=graph)


def error(make, problem, dtype="float32"):
    row = bench_measure.measure(make(problem, bench_torch_problem), dtype, ONCE)
    assert len(row.reference.cost) == 1
    assert row.name.endswith("1 thread, processor time")
    return row.reference.error


@pytest.mark.parametrize("make", FORWARD, ids=lambda f: f.__name__)
def test_pytorch_agrees(problem, make):
    assert error(make, problem) < 5e-6


def test_pytorch_agrees_on_gradients(problem):
    assert error(bench_learning.gradient, problem) < 5e-6


def test_pytorch_agrees_on_guided_rollouts(problem):
    problem = changed(problem, "policy", text_scale=3.0, audio_scale=2.0)
    assert error(bench_learning.rollout, problem) < 5e-6


@pytest.mark.slow
def test_pytorch_agrees_on_updates_and_rematerialised_gradients(problem):
    """A minute: pytest -m slow tests/test_bench_torch.py."""
    assert error(bench_learning.train, problem) < 5e-6
    again = changed(problem, "model", remat=True)
    assert error(bench_learning.gradient, again) < 5e-6


def test_pytorch_agrees_in_bfloat16(problem):
    # More than float32's rounding: both compute in bfloat16.
    problem = changed(problem, "model", dtype="bfloat16")
    assert error(bench_cases.step, problem, "bfloat16") > 1e-4


def test_transformers_agrees():
    pytest.importorskip("transformers", reason="compares with transformers")
    for sizes in (SMALL, dataclasses.replace(SMALL, do_stable_layer_norm=False)):
        case = bench_speech.speech(sizes, 0.4, 2, bench_torch_problem)
        row = bench_measure.measure(case, "float32", ONCE)
        assert row.reference.error < 5e-6


def test_times_of_other_numbers_are_not_reported(problem):
    case = bench_cases.step(problem, bench_torch_problem)
    params, *rest = case.ours.arguments
    case.ours.arguments = (jax.tree.map(lambda w: 1.01 * w, params), *rest)
    with pytest.raises(AssertionError, match="outputs differ by"):
        bench_measure.measure(case, "float32", ONCE)
