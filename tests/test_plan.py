"""Plans: bounds, programs, layouts, the page; test_plan_hlo.py: what XLA made."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_dataset
from flax import nnx

from configs import cross_scene, policy, same_scene
from data_pipelines import loader
from launch import (
    build,
    plan_compile,
    plan_dump,
    plan_layouts,
    plan_page,
    plan_program,
    plan_roofline,
)
from launch.pod_topology import parse
from tavr_jax.diffusion import chunks
from tavr_jax.errors import InputError
from tavr_jax.evaluation import generate
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


def test_each_program_of_generate_lies_beside_the_other_network():
    config = tiny(cross_scene)
    every = plan_program.programs(config, "generate", mesh_of(config))
    prefill, denoise, decoder = every
    held = plan_compile.device_bytes
    codec = held(decoder.inputs["weights"])
    assert held(prefill.beside) == held(denoise.beside) == codec > 0
    kept = held(denoise.inputs["weights"]) + held(denoise.inputs["cache"])
    assert held(decoder.beside) == kept > 0
    config.networks.speech = "OWNER/NAME"  # of the published size; not read
    every = plan_program.programs(config, "generate", mesh_of(config))
    more = {
        held(p.beside) - n for p, n in zip(every, (codec, codec, kept), strict=True)
    }
    (listens,) = more
    assert listens == pytest.approx(1.26e9, rel=0.01)  # 315 million in float32


@pytest.mark.parametrize("split", [1, 2])
def test_the_planned_chunk_is_what_generate_samples(split):
    """To the letter, from a request on, so that `plan --save` is of use; and nothing
    in it calls back, or no compilation cache would keep it."""
    config = tiny(cross_scene)
    mesh = make_mesh(MeshConfig(1, 1, split, 1), jax.devices()[:split])
    _, planned = plan_program.sampler(config, mesh)
    shapes = planned.inputs["weights"]
    weights = jax.tree.map(
        lambda x: jnp.zeros(x.shape, x.dtype, device=x.sharding), shapes
    )
    told = planned.inputs["conditions"]
    one = jax.tree.map(lambda x: np.zeros(x.shape[1:], x.dtype), told)
    request = generate.Request(
        one.still, ~one.still_tokens, one.reference, ~one.reference_tokens,
        one.reference_audio, one.text, one.text, one.text, np.zeros((29, 128)),
    )  # fmt: skip
    graph, _ = nnx.split(build.abstract_transformer(config), nnx.Param)
    settings = generate.SamplerConfig(**config.sampler)
    said = []

    def denoise(*arguments):
        *operands, still = arguments
        run = generate.programs(graph, settings, mesh, 1, still).denoise
        with jax.set_mesh(mesh):
            said.append(run.lower(*operands).as_text())
        return operands[1]

    sample = generate.sampler(graph, settings, mesh)._replace(denoise=denoise)
    size, parts = config.model.num_video_latents, config.chunks
    spans = chunks.plan(29, size, parts.motion_latents, parts.canvas_tail)
    list(generate.pieces(sample, weights, request, spans, jax.random.key(0)))
    assert said == [planned.lowered().as_text()] * 2
    assert "callback" not in said[0]


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
    assert near.place.devices > 4 and near.bytes < 15.75 * GIB


def test_a_plan_of_generate_is_of_one_host():
    """launch.generate is one process (launch/distributed.py: alone)."""
    config = cross_scene.get_config("tavr_14b")
    for topology, slices, hosts, most in (
        ("v5e:4x4", 1, 4, "v5e:2x4"),
        ("v6e:2x4", 2, 2, "v6e:2x4"),
        ("tpu7x:4x4x4", 1, 16, "tpu7x:2x2x1"),
    ):
        place = plan_layouts.Place(parse(topology), slices)
        with pytest.raises(InputError, match=f"these are {hosts}; .* is {most}$"):
            plan_layouts.check_hosts("generate", place)
        plan_layouts.check_hosts("train", place)
    small = plan_layouts.Place(parse("v5e:1x1"), 1)
    count = plan_layouts.counts(config, "generate")
    rest = plan_layouts.guess(config, "generate", count, (1, 1, 1, 1)).rest
    near = plan_layouts.nearest(config, "generate", small, 15.75 * GIB, rest)
    assert near.place.topology.hosts == 1 and near.place.topology.chips > 1
    # what no host can hold has no plan, however many there are
    assert plan_layouts.nearest(config, "generate", small, 4 * GIB, rest) is None


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
    made, owed = text.split("Not compiled yet:")
    assert "1 of 2 rows" in made and "v5p" not in made
    assert "`python -m launch.plan --topology v5p:4x4x4`" in owed and "|" not in owed
    rows.write_text("= one\na | x\na | y\n")
    with pytest.raises(InputError, match=r"rows:3"):
        plan_page.read_rows(rows)


def test_the_published_rows_name_configs_and_slices_that_exist():
    for row in plan_page.read_rows(ROOT / "launch/plans/rows"):
        given = dict(zip(row.arguments, row.arguments[1:], strict=False))
        place = plan_layouts.Place(parse(given["--topology"]), 1)
        plan_layouts.check_hosts(given.get("--job", "train"), place)
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
    sizes += ["--config.model.dtype=bfloat16"]  # whose kernel is particular: see splash
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
    cases = [
        ("gpu:2x8", "", "only TPUs"),
        ("v6e:2x2", "--output=/nowhere/plan.json", "no such folder"),
        ("v6e:2x2", "--xla=memory_fitting_effort=much", "--xla: "),
    ]
    if not importlib.util.find_spec("libtpu"):
        cases.append(("v6e:2x2", "", "pip install 'tavr_jax[plan]'"))
    for topology, more, named in cases:
        given = ["--config=configs/cross_scene.py:tiny", f"--topology={topology}"]
        done = plan(*given, *filter(None, [more]))
        assert done.returncode == 2 and named in done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_a_killed_plan_leaves_nothing():
    """In the middle of a long step of C, as a compilation is."""
    run = [sys.executable, "-c", BUSY]
    busy = subprocess.Popen(run, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    folder = Path(busy.stdout.readline().strip())
    assert (folder / "program").exists()
    busy.terminate()
    assert busy.wait(timeout=20) == 143 and not folder.exists()
    before = signal.getsignal(signal.SIGTERM)
    with plan_dump.folder() as folder:
        (folder / "program").touch()
    assert not folder.exists() and signal.getsignal(signal.SIGTERM) is before


BUSY = """
import hashlib
from launch import plan_dump
with plan_dump.folder() as folder:
    (folder / "program").touch()
    print(folder, flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**30)
"""


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
from launch import cli, plan_program
from tavr_jax.parallel.mesh import MeshConfig, make_mesh
cli.exact_products()
config = same_scene.get_config("tiny")
mesh = make_mesh(MeshConfig(**config.parallel))
plan_program.train(config, mesh).lowered().compile()
"""
