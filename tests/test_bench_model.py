"""The model benches compute what they say, and count it."""

import dataclasses

import jax
import numpy as np
import pytest
from test_flops import dots

from configs import same_scene
from launch import (
    bench_cases,
    bench_learning,
    bench_measure,
    bench_problem,
    bench_speech,
)
from launch.bench_measure import Way
from launch.bench_rows import LeftOut
from tavr_jax.errors import InputError

FORWARD = (bench_cases.block, bench_cases.prefill)
FORWARD += (bench_cases.step, bench_cases.guidance)
COUNTED = (*FORWARD, bench_learning.rollout)
SMALL = dataclasses.replace(
    bench_speech.SIZES,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=48,
    conv_dim=(8,) * 7,
)


@pytest.fixture(scope="module")
def problem():
    return bench_problem.make(same_scene.get_config("tiny"), 60, 1, 2)


def products(case) -> int:
    """FLOPs of the products in the program of a case."""
    return dots(jax.make_jaxpr(case.ours.function)(*case.ours.arguments).jaxpr)


@pytest.mark.parametrize("make", COUNTED, ids=lambda f: f.__name__)
def test_a_case_does_the_work_that_it_counts(problem, make):
    case = make(problem, None)
    assert case.theirs is None
    assert products(case) == case.flops


def test_a_gradient_is_counted_as_twice_the_forward_pass(problem):
    case = bench_learning.gradient(problem, None)
    # Nobody asks for the gradient of what the network is told.
    assert 0.9 * case.flops < products(case) <= case.flops


def test_speech_does_the_work_that_it_counts():
    case = bench_speech.speech(SMALL, 0.4, 2, None)
    assert products(case) == case.flops


def test_sizes_are_those_asked_for(problem):
    assert problem.samples == 2 and problem.model.num_layers == 1
    assert abs(problem.tokens - 60) < 15
    assert problem.sizes.still == problem.model.still_bucket
    masks = problem.conditions.still_tokens, problem.conditions.reference_tokens
    for mask, room in zip(masks, problem.sizes[2::2], strict=True):
        assert np.all(np.sum(mask, axis=tuple(range(1, mask.ndim))) == room)
    own = bench_problem.make(same_scene.get_config("tiny"), 0, 0, 1)
    assert own.sizes.grid == (2, 2) and own.model.num_layers == 2
    with pytest.raises(InputError, match="--tokens: 3"):
        bench_problem.make(same_scene.get_config("tiny"), 3, 0, 1)


def test_inference_stores_matrices_in_the_dtype_of_products(problem):
    config = problem.config.copy_and_resolve_references()
    config.model.dtype = "bfloat16"
    stored = bench_problem.stored(problem._replace(config=config))
    assert stored.blocks.ffn.up.kernel.get_value().dtype == "bfloat16"
    assert stored.blocks.audio_attn.adapter_q.down.bias.get_value().dtype == "bfloat16"
    wide = (
        stored.head.kernel,
        stored.time_in.bias,
        stored.blocks.norm3.bias,
        stored.blocks.modulation,
    )
    assert all(leaf.get_value().dtype == "float32" for leaf in wide)


def test_a_row_has_a_cost_every_round_and_its_share_of_the_peak():
    row = bench_measure.measure(
        bench_measure.matmul("float32", 32, None), "float32", Way(2, 32, 1, False)
    )
    assert len(row.cost) == len(row.peak) == 2 and min(row.cost) > 0
    assert row.flops == 2 * 32**3 and row.name == "matmul 32, float32, 1 thread"
    assert row.reference is None and row.first > 0


def test_what_does_not_fit_is_one_line_and_what_fails_is_not_hidden():
    def full():
        raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes")

    def broken():
        raise RuntimeError("something else")

    row = bench_measure.attempt("step", full)
    assert isinstance(row, LeftOut) and "--layers" in row.why and "\n" not in row.why
    with pytest.raises(RuntimeError, match="something else"):
        bench_measure.attempt("step", broken)
