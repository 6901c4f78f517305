"""Plans: what is read from a compiled program, bounds, layouts, the page."""

import importlib.util
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_dataset
from jax.sharding import NamedSharding, PartitionSpec

from configs import cross_scene, policy, same_scene
from data_pipelines import loader
from launch import (
    plan_buffers,
    plan_compile,
    plan_hlo,
    plan_layouts,
    plan_moved,
    plan_page,
    plan_program,
    plan_roofline,
    plan_sent,
)
from launch.pod_topology import parse
from tavr_jax.errors import InputError
from tavr_jax.parallel import sharding
from tavr_jax.parallel.mesh import MeshConfig, make_mesh

ROOT = Path(__file__).parents[1]
GIB = 2**30


def mesh_of(config):
    return make_mesh(MeshConfig(**config.parallel))


def tiny(stage, **fields):
    config = stage.get_config("tiny")
    config.parallel.data, config.parallel.fsdp, config.parallel.context = 1, 4, 2
    config.update_from_flattened_dict(
        {k.replace("__", "."): v for k, v in fields.items()}
    )
    return config


def compiled_text(step, turns):
    """Every device sends 64 float32 in every turn of a loop inside a loop."""
    mesh = make_mesh(MeshConfig(1, 8, 1, 1))
    spec = PartitionSpec("fsdp")

    @partial(jax.shard_map, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
    def f(x):
        def inner(x, _):
            return step(x), None

        def outer(x, _):
            return jax.lax.scan(inner, x, length=turns[1])[0] * 2.0, None

        return jax.lax.scan(outer, x, length=turns[0])[0]

    x = jax.ShapeDtypeStruct((512,), jnp.float32, sharding=NamedSharding(mesh, spec))
    return jax.jit(f).lower(x).compile().as_text()


@pytest.mark.parametrize(
    ("kind", "step", "sent"),
    [
        ("all-gather", lambda x: jax.lax.all_gather(x, "fsdp").sum(0), 7 * 256),
        ("all-reduce", lambda x: jax.lax.psum(x, "fsdp"), 2 * 7 / 8 * 256),
        (
            "reduce-scatter",
            lambda x: jnp.tile(jax.lax.psum_scatter(x, "fsdp", tiled=True), 8),
            7 / 8 * 256,
        ),
        (
            "all-to-all",
            lambda x: jax.lax.all_to_all(x.reshape(8, 8), "fsdp", 0, 0).ravel(),
            7 / 8 * 256,
        ),
        (
            "collective-permute",
            lambda x: jax.lax.ppermute(x, "fsdp", [(i, (i + 1) % 8) for i in range(8)]),
            256,
        ),
    ],
)
def test_a_loop_sends_as_often_as_it_runs(kind, step, sent):
    program = plan_hlo.Program(compiled_text(step, (3, 5)))
    found = [c for c in plan_sent.collectives(program, [0] * 8) if c.kind == kind]
    assert sum(c.times for c in found) == 15
    assert sum(c.times * c.sent for c in found) == pytest.approx(15 * sent)
    assert not program.unbounded
    two = [
        c for c in plan_sent.collectives(program, [0] * 4 + [1] * 4) if c.kind == kind
    ]
    assert all(c.across > 0 for c in two)
    if kind == "all-reduce":  # first inside of each slice, then an eighth... of it
        assert two[0].across == pytest.approx(256 / 4)


HLO = """HloModule jit_step, is_scheduled=true

%cond (p: (s32[], f32[64]{0})) -> pred[] {
  %c = s32[]{:T(128)} constant(6)
  %p = (s32[]{:T(128)}, f32[64]{0:T(64)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %c), direction=LT
}

%body (p.1: (s32[], f32[64]{0})) -> (s32[], f32[64]) {
  %p.1 = (s32[]{:T(128)}, f32[64]{0:T(64)}) parameter(0)
  %i.1 = s32[]{:T(128)} get-tuple-element(%p.1), index=0
  %x = f32[64]{0:T(64)} get-tuple-element(%p.1), index=1
  %y = bf16[32]{0:T(128)(2,1)S(1)} custom-call(%x), custom_call_target="convert"
  %ag = ((f32[64]{0}, bf16[32]{0}), (f32[256]{0}, bf16[128]{0})) all-gather-start(%x, \
%y), replica_groups=[2,4]<=[4,2]T(1,0), dimensions={0}, \
metadata={op_name="jit(step)/gather"}
  %agd = (f32[256]{0}, bf16[128]{0}) all-gather-done(%ag)
  ROOT %t = (s32[]{:T(128)}, f32[64]{0:T(64)}) tuple(%i.1, %x)
}

ENTRY %main (a: (s32[], f32[64])) -> (s32[], f32[64]) {
  %a = (s32[]{:T(128)}, f32[64]{0:T(64)}) parameter(0)
  ROOT %w = (s32[]{:T(128)}, f32[64]{0:T(64)}) while(%a), condition=%cond, body=%body
}
"""


def test_starts_tuples_and_memory_spaces():
    program = plan_hlo.Program(HLO)
    (one,) = plan_sent.collectives(program, [0] * 8)
    assert (one.kind, one.times, one.name) == ("all-gather", 6, "jit(step)/gather")
    assert one.sent == 3 * (64 * 4 + 32 * 2)
    # the call reads 256 bytes and writes fast memory; the gather moves its operands,
    # and the condition compares two numbers
    assert plan_moved.traffic(program) == 6 * (256 + 2 * 256 + 9)


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("{{0,2},{1,3}}, x", [[0, 2], [1, 3]]),
        ("[2,2]<=[4], x", [[0, 1], [2, 3]]),
        ("[2,2]<=[2,2]T(1,0), x", [[0, 2], [1, 3]]),
        ("mesh['a'=2,'b'=2] {'b'}, x", [[0, 1], [2, 3]]),
        ("mesh['a'=2,'b'=2] {'a'}, x", [[0, 2], [1, 3]]),
        ("mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'a'}, x", [[0, 1], [2, 3]]),
        ("{}, x", [[0, 1, 2, 3]]),
    ],
)
def test_every_way_to_write_groups(text, rows):
    found = plan_sent.groups(f"channel_id=1, replica_groups={text}", 4)
    assert sorted(sorted(row) for row in found.tolist()) == rows


def test_a_loop_over_a_stack_reads_a_slice_in_each_turn():
    def moved(layers):
        def f(stack, x):
            return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, stack)[0]

        stack = jax.ShapeDtypeStruct((layers, 128, 128), jnp.float32)
        x = jax.ShapeDtypeStruct((128, 128), jnp.float32)
        text = jax.jit(f).lower(stack, x).compile().as_text()
        return plan_moved.traffic(plan_hlo.Program(text))

    assert moved(64) / moved(16) == pytest.approx(4, rel=0.1)


ASSIGNED = """BufferAssignment:
allocation 0: size 1000, parameter 0, shape |f32[250]| at ShapeIndex {}:
 value: <1 a @0> (size=1000,offset=0): f32[250]{0}
allocation 1: size 400, output shape is |f32[100]|, maybe-live-out:
 value: <2 out @0> (size=400,offset=0): f32[100]{0}
allocation 2: size 900, color 1, preallocated-temp:
 value: <3 fast @1> (size=900,offset=0): f32[225]{0:S(1)}
allocation 3: size 3000, preallocated-temp:
 value: <4 w{1} (phi) @0> (size=2000,offset=0): f32[500]{0}
 value: <5 big{} @0> (size=2000,offset=0): f32[500]{0}
 value: <6 later @0> (size=1500,offset=500): f32[375]{0}
 value: <7 beside @0> (size=800,offset=2000): bf16[400]{0}

Total bytes used: 4400
 value: <8 stray @0> (size=9000,offset=0): f32[1]{0}
"""


def test_memory_is_told_by_who_takes_it():
    found = plan_buffers.read(ASSIGNED, plan_hlo.Program(""))
    assert (found.arguments, found.outputs, found.temporaries) == (1000, 400, 3000)
    assert found.total == 4400
    # `later` lies where `big` was, and a loop's variable is called by what fills it
    assert [(b.name, b.bytes) for b in found.largest] == [
        ("big", 2000),
        ("beside", 800),
    ]


def test_no_bound_is_beaten_and_the_slowest_decides():
    args = dict(flops=9e17, executed=12e17, moved=1e11, sent=1e10, across=0.0)
    one = plan_roofline.bound("TPU v6 lite", 256, **args)
    assert one.by == "compute" and one.ceiling == pytest.approx(0.75)
    slow = plan_roofline.bound("TPU v6 lite", 256, **{**args, "across": 1e12})
    assert slow.by == "network" and slow.step == pytest.approx(1e12 / 12.5e9)
    assert slow.ceiling < one.ceiling


def test_shapes_of_a_batch_are_those_of_the_loader(tmp_path):
    config = tiny(cross_scene)
    config.data.path = str(tiny_dataset.write(tmp_path / "data"))
    read = next(loader.make_loader(config, rows=np.arange(8)))
    planned = plan_program.batch(config, 8, sharding.replicated(mesh_of(config)))

    def shapes(tree):
        return jax.tree.map(lambda x: (x.shape, jnp.dtype(x.dtype)), tree)

    assert shapes(planned) == shapes(read)


def test_stages_1_and_2_are_one_program():
    texts = []
    for stage in (same_scene, cross_scene):
        config = tiny(stage)
        texts.append(plan_program.train(config, mesh_of(config)).lowered().as_text())
    assert texts[0] == texts[1]


def test_the_arguments_of_a_device_are_counted():
    config = tiny(policy, policy__steps=2)
    program = plan_program.roll_out(config, mesh_of(config))
    size = {n: plan_compile.device_bytes(tree) for n, tree in program.inputs.items()}
    options = {"xla_backend_optimization_level": 0}
    compiled = program.lowered().compile(compiler_options=options)
    found = compiled.memory_analysis().argument_size_in_bytes
    # a rollout has no use for the target, and XLA leaves out what nobody reads
    assert size["frozen"] + size["params"] < found < sum(size.values())


@pytest.mark.parametrize("job", ["train", "rollout"])
def test_stage_3_is_traced_without_weights_or_files(job):
    config = tiny(policy, networks__codec="/nowhere.pth", networks__face="/no.one")
    (program,) = plan_program.programs(config, job, mesh_of(config))
    program.lowered()
    assert plan_compile.device_bytes(program.inputs["frozen"]) > 0


def test_a_stage_without_a_transformer_has_no_plan():
    config = tiny(cross_scene)
    config.stage = "codec"
    with pytest.raises(InputError, match="stage: codec"):
        list(plan_program.programs(config, "train", mesh_of(config)))


def test_layouts_divide_and_the_search_leaves_out_what_cannot_fit():
    config = cross_scene.get_config("tavr_14b")
    place = plan_layouts.Place(parse("v6e:16x16"), 1)
    every = list(plan_layouts.layouts(config, "train", place))
    assert (1, 64, 4, 1) in every
    for data, fsdp, context, tensor in every:
        assert data * fsdp * context * tensor == 256
        assert 64 % (data * fsdp) == 0 and 40 % tensor == 0
    limit = 31.25 * GIB
    tried = plan_layouts.worth(config, "train", place, limit, 3)
    count = plan_layouts.counts(config, "train")
    assert count == (18_905_907_264, 0)
    needs = [
        plan_layouts.guess(config, "train", count, sizes).total(1.0) for sizes in tried
    ]
    assert len(tried) == 3 and max(needs) < limit
    copies = [s for s in every if s[0] == 64]
    assert copies and not set(copies) & set(tried)  # 300 GB of state each


def test_the_nearest_layout_fits_and_changes_little():
    config = cross_scene.get_config("tavr_14b")
    place = plan_layouts.Place(parse("v6e:16x16"), 1)
    limit = 31.25 * GIB
    config.parallel.fsdp, config.parallel.data = 16, 16
    config.data.batch_size = 256
    count = plan_layouts.counts(config, "train")
    rest = plan_layouts.guess(config, "train", count, (16, 16, 1, 1)).rest
    near = plan_layouts.nearest(config, "train", place, limit, rest)
    assert near.bytes < limit and near.place == place
    assert set(near.fields) <= {f"parallel.{a}" for a in plan_layouts.AXES} | {
        "optimizer.accumulate"
    }
    sizes = tuple(near.fields[f"parallel.{axis}"] for axis in plan_layouts.AXES)
    changed = config.copy_and_resolve_references()
    changed.update_from_flattened_dict(near.fields)
    need = plan_layouts.guess(changed, "train", count, sizes).total(1.0)
    assert near.bytes == pytest.approx(need)
    # where the devices are too few for the state, there have to be more
    small = plan_layouts.Place(parse("v5e:2x2"), 1)
    config.parallel.data, config.parallel.fsdp = 1, -1
    config.data.batch_size = 4
    rest = plan_layouts.guess(config, "train", count, (1, 4, 1, 1)).rest
    near = plan_layouts.nearest(config, "train", small, 15.75 * GIB, rest)
    assert near is None or near.place.devices > 4


RESULT = {
    "job": "train", "topology": "v6e:2x2", "slices": 1, "chips": 4, "batch_size": 8,
    "mesh": {"data": 1, "fsdp": 2, "context": 2, "tensor": 1},
    "programs": [
        {
            "program": "train step", "fits": True, "flops": 2e15, "compile_seconds": 60,
            "hbm": {
                "total": 24 * GIB, "limit": 32 * GIB,
                "largest": [{"bytes": GIB, "shape": "f32[4]", "name": "x"}],
            },
            "collectives": {"all-gather": {"count": 2, "sent": GIB, "across": GIB}},
            "roofline": {"step": 0.5, "by": "compute", "ceiling": 0.7},
        }
    ],
}  # fmt: skip


def test_the_page_tells_what_is_compiled_and_guesses_nothing(tmp_path):
    rows, results, page = (tmp_path / n for n in ("rows", "results", "PLANS.md"))
    rows.write_text("= one\na | --topology v6e:2x2\nb | --topology v5p:4x4x4\n")
    results.mkdir()
    (results / "a.json").write_text(json.dumps(RESULT))
    command = [sys.executable, "-m", "launch.plan_table", f"--rows={rows}"]
    command += [f"--results={results}", f"--output={page}", "--budget=0"]
    subprocess.run(command, cwd=ROOT, check=True)
    text = page.read_text()
    assert "24.00 of 32.00 | 25%" in text and "| fsdp 2 context 2 |" in text
    assert "| v5p:4x4x4 |  | not compiled |" in text and "1 of 2 rows" in text
    assert "`python -m launch.plan --topology v5p:4x4x4`" in text
    rows.write_text("= one\na | x\na | y\n")
    with pytest.raises(InputError, match=r"rows:3"):
        plan_page.read_rows(rows)


def test_the_published_rows_name_configs_and_slices_that_exist():
    for row in plan_page.read_rows(ROOT / "launch/plans/rows"):
        given = dict(zip(row.arguments, row.arguments[1:], strict=False))
        assert parse(given["--topology"]).chips >= 1
        path, size = given["--config"].split(":")
        assert (ROOT / path).exists() and size.startswith("tavr_")


def plan(*arguments):
    command = [sys.executable, "-m", "launch.plan", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_a_real_plan(tmp_path):
    """The whole command, for chips that are not here (libtpu: extra `plan`)."""
    pytest.importorskip("libtpu", reason="no libtpu: pip install 'tavr_jax[plan]'")
    file = tmp_path / "plan.json"
    sizes = ["--config=configs/cross_scene.py:tiny", "--topology=v6e:2x2"]
    layout = ["--config.parallel.data=2", "--config.parallel.context=2"]
    done = plan(*sizes, *layout, f"--output={file}")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Compiled for these chips, not run" in done.stdout
    (step,) = json.loads(file.read_text())["programs"]
    assert step["fits"] and step["hbm"]["limit"] == int(31.25 * GIB)
    assert step["collectives"]["all-to-all"]["count"] > 0  # heads for tokens
    assert step["hbm"]["largest"] and step["bytes_moved"] > 0


def test_what_does_not_fit_says_what_would():
    """As above; rollouts of 400 000 samples on one chip."""
    pytest.importorskip("libtpu", reason="no libtpu: pip install 'tavr_jax[plan]'")
    done = plan(
        "--config=configs/cross_scene.py:tiny",
        "--topology=v6e:1x1",
        "--job=rollout",
        "--config.data.batch_size=400000",
    )
    assert done.returncode == 1, done.stderr[-3000:]
    assert "DOES NOT FIT" in done.stdout
    assert "guessed to fit (not compiled): --topology v6e:" in done.stdout


def test_what_cannot_be_planned_is_one_line():
    cases = [("gpu:2x8", "only TPUs")]
    if not importlib.util.find_spec("libtpu"):
        cases.append(("v6e:2x2", "pip install 'tavr_jax[plan]'"))
    for topology, named in cases:
        done = plan("--config=configs/cross_scene.py:tiny", f"--topology={topology}")
        assert done.returncode == 2 and named in done.stderr
        assert len(done.stderr.splitlines()) == 1


@pytest.mark.slow
def test_the_plan_compiles_the_very_program_that_training_runs(tmp_path):
    """pytest -m slow tests/test_plan.py: JAX's cache has the same key for both."""
    data = tiny_dataset.write(tmp_path / "data")
    train = [sys.executable, "-m", "launch.train", f"--workdir={tmp_path / 'run'}"]
    train += ["--config=configs/same_scene.py:tiny", f"--config.data.path={data}"]
    keys = []
    for number, command in enumerate((train, [sys.executable, "-c", PLANNED])):
        cache = tmp_path / str(number)
        env = {**os.environ, "JAX_PLATFORMS": "cpu"}
        env["JAX_COMPILATION_CACHE_DIR"] = str(cache)
        env["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        subprocess.run(command, cwd=ROOT, env=env, check=True)
        keys.append([f.name for f in cache.glob("jit_keyed-*-cache")])
    assert len(keys[0]) == 1 and keys[0] == keys[1]


PLANNED = """
from configs import same_scene
from launch import plan_program
from tavr_jax.parallel.mesh import MeshConfig, make_mesh
config = same_scene.get_config("tiny")
mesh = make_mesh(MeshConfig(**config.parallel))
plan_program.train(config, mesh).lowered().compile()
"""
