"""A trace holds the steps asked for; a step without memory leaves a profile of it."""

import gzip
import json

import jax
import pytest
from test_training import TOY, compiled_toy, run_toy

from tavr_jax.errors import InputError
from tavr_jax.training import loop
from tavr_jax.training.profile import STEP


def traced(workdir) -> list[int]:
    """The numbers of the steps in a workdir's only trace."""
    (file,) = (workdir / "profile").rglob("*.trace.json.gz")
    events = json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]
    return [int(e["args"]["step_num"]) for e in events if e.get("name") == STEP]


@pytest.mark.parametrize(
    ("steps", "first", "count", "expected"),
    [(6, 3, 2, [3, 4]), (4, 3, 9, [3, 4]), (2, 0, 3, [])],
)
def test_a_trace_holds_the_steps_asked_for(
    tmp_path, capsys, steps, first, count, expected
):
    run_toy(tmp_path, steps, profile_from=first, profile_steps=count)
    if not expected:
        assert not (tmp_path / "profile").exists()
        return
    assert traced(tmp_path) == expected
    assert ("xprof --logdir" in capsys.readouterr().out) == (first + count <= steps)


def test_out_of_memory_is_one_line_and_leaves_its_profile(tmp_path):
    whole = compiled_toy(*TOY)[-1]

    def update(state, batch):
        if int(state.step) == 3:
            text = "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes."
            raise jax.errors.JaxRuntimeError(text)
        return whole(state, batch)

    with pytest.raises(InputError, match=r"out of memory.*launch\.plan") as told:
        run_toy(tmp_path, 6, given={"update": update}, checkpoint_every=2)
    fields = ("data.batch_size", "optimizer.accumulate", "parallel.context")
    assert all(name in str(told.value) for name in (*fields, "model.remat"))
    assert "\n" not in str(told.value)
    stored = (tmp_path / "profile" / "memory_0.prof").read_bytes()
    assert stored[:2] == b"\x1f\x8b", "pprof is gzip"
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["2"]
    assert int(run_toy(tmp_path, 4).step) == 4, "the run goes on from there"


def test_other_errors_of_a_device_are_not_taken_for_it(tmp_path):
    def update(state, batch):
        raise jax.errors.JaxRuntimeError("INTERNAL: a chip is gone")

    with pytest.raises(jax.errors.JaxRuntimeError, match="a chip"):
        run_toy(tmp_path, 2, given={"update": update})
    assert not (tmp_path / "profile").exists()


def test_steps_of_a_trace_are_checked():
    fields = {f: 1 for f in loop.LoopConfig.__dataclass_fields__}
    loop.LoopConfig(**fields | {"profile_from": 0})
    with pytest.raises(InputError, match=r"train\.profile_steps: 0"):
        loop.LoopConfig(**fields | {"profile_steps": 0})
