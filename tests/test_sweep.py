"""Sweeps: every combination once, checked before anything is written, and commands that
survive a shell, SLURM and Kubernetes."""

import itertools
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from launch import sweep_grid, sweep_run, sweep_scripts
from launch.sweep_grid import Run
from tavr_jax.errors import InputError

ROOT = Path(__file__).parents[1]
FILE = "configs/policy.py:tiny"
RATES, ETAS = (1e-5, 3e-5), (0.5, 0.7)
GRIDS = ("optimizer.learning_rate=1e-5,3e-5", "policy.eta=0.5,0.7")
NASTY = """it's "a" $HOME $(id) $$ `id`, (b); c\\d & e|f #g *"""


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch):
    monkeypatch.chdir(ROOT)


def expand(*grids, given=None, rows=({},), seeds=1, file=FILE):
    return sweep_grid.expand(file, given or {}, grids, rows, seeds)


def config_of(words: list[str]):
    """What launch.train reads from the words of a command."""
    fields = dict(w.removeprefix("--config.").split("=", 1) for w in words[4:-1])
    assert words[3] == f"--config={FILE}" and words[-1].startswith("--workdir=")
    return sweep_grid.load(FILE, fields)


def test_every_combination_once_with_every_seed_and_as_the_trainer_reads_it():
    given = {"data.path": NASTY, "data.reference_latents": (1, 2), "seed": 7}
    runs = expand(*GRIDS, given=given, seeds=2)
    lines = sweep_scripts.shell(runs, Path("W W")).splitlines()
    found = []
    for run, line in zip(runs, lines, strict=True):
        words = shlex.split(line)
        assert words[:3] == ["python", "-m", "launch.train"]
        assert words[-1] == f"--workdir=W W/{run.name}"
        config = config_of(words)
        assert config.data.path == NASTY
        assert config.data.reference_latents == (1, 2)
        found.append((config.optimizer.learning_rate, config.policy.eta, config.seed))
    assert found == list(itertools.product(RATES, ETAS, (7, 8)))
    assert runs[0].name == "learning_rate=1e-05__eta=0.5__seed=7"


def test_a_real_shell_hands_over_the_same_words():
    [run] = expand(given={"data.path": NASTY})
    line = sweep_scripts.shell([run], Path("W'; echo 1"))
    script = f"python() {{ printf '%s\\0' \"$@\"; }}; {line}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, check=True)
    words = done.stdout.decode().split("\0")[:-1]
    assert words == sweep_scripts.command(run, Path("W'; echo 1"))[1:]


def test_names_are_unique_folders_and_do_not_change_when_the_sweep_grows():
    grids = ["data.path='a/b','a,b',a-b,,'" + "x" * 300 + "'", "train.steps=1,2"]
    small = expand(*grids)
    large = expand(grids[0].replace("=", "=new,", 1), "train.steps=1,2,3", seeds=3)
    names = [run.name for run in large]
    assert len(set(names)) == len(names) == 6 * 3 * 3
    for name in names:
        assert len(name) < 200 and not set(name) & set("/, '\"\\$")
    assert {run.name for run in small} <= set(names)
    # two fields of one last name are told apart
    [run] = expand("flow.shift=3", "sampler.shift=5")
    assert run.name == "flow.shift=3.0__sampler.shift=5.0__seed=42"


@pytest.mark.parametrize(
    ("grids", "given", "seeds", "says"),
    [
        (["policy.etta=1"], {}, 1, "did you mean eta"),
        (["train.steps.x=1"], {}, 1, "no such field"),
        (["policy=3"], {}, 1, "a section"),
        (["policy.eta=0.5,x"], {}, 1, "expected float"),
        (["train.steps=1e3"], {}, 1, "expected int"),
        (["policy.ratio_norm=maybe"], {}, 1, "expected bool"),
        (["policy.eta"], {}, 1, "FIELD=VALUE"),
        (["data.reference_latents=(1,2"], {}, 1, "left open"),
        (["data.path='a\nb'"], {}, 1, "printable"),
        (["policy.eta=1,1.0"], {}, 1, "the same"),
        (["policy.eta=1", "policy.eta=2"], {}, 1, "more than once"),
        (["policy.eta=1"], {"policy.eta": 2.0}, 1, "more than once"),
        (["seed=1,2"], {}, 2, "seeds already"),
        ([], {}, 0, "--seeds=0"),
    ],
)
def test_what_cannot_be_trained_is_refused_in_one_line(grids, given, seeds, says):
    with pytest.raises(InputError, match=says) as caught:
        expand(*grids, given=given, seeds=seeds)
    assert "\n" not in str(caught.value)


def test_a_config_can_hold_its_own_sweep(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from configs import policy\n"
        "def get_config(size='tiny'): return policy.get_config(size)\n"
        "def sweep():\n"
        "    for latents in ([0, 0], (1, 2)):\n"
        "        yield {'data.reference_latents': latents, 'policy.kl_weight': 0}\n"
        "    yield {'policy.kl_weight': 0.1}\n"
    )
    file = f"{path}:tiny"
    runs = expand(
        "policy.eta=1,2", rows=sweep_grid.rows_of_config(file), seeds=2, file=file
    )
    assert len(runs) == 3 * 2 * 2
    assert "--config.data.reference_latents=(1, 2)" in runs[4].arguments
    some = expand(rows=[{}, {"seed": 1}, {"seed": 2, "policy.eta": 1.0}])
    assert [r.name for r in some] == ["unchanged", "seed=1", "seed=2__eta=1.0"]
    for rows, says in (
        ([{"policy.eta": "much"}], "expected float"),
        ([{"train.steps": 1.0}], "expected int"),
        ([{"name": 3}], "expected str"),
        ([("policy.eta", 1.0)], "field: value"),
    ):
        with pytest.raises(InputError, match=says):
            expand(rows=rows)
    for text, says in (
        ("def sweep(): return [1 / 0]", "division by zero"),
        ("def sweep(): return []", "yields nothing"),
        ("", "no `def sweep"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=says):
            sweep_grid.rows_of_config(file)


def test_a_slurm_task_runs_its_own_command(tmp_path):
    runs = expand(*GRIDS, given={"data.path": NASTY})
    script = tmp_path / "sweep.sh"
    script.write_text(sweep_scripts.slurm(runs, Path("W")))
    assert f"#SBATCH --array=0-{len(runs) - 1}\n" in script.read_text()
    python = tmp_path / "python"
    python.write_text("#!/bin/bash\nprintf '%s\\0' \"$@\"\n")
    python.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    for number, run in enumerate(runs):
        env = {"PATH": path, "SLURM_ARRAY_TASK_ID": str(number)}
        done = subprocess.run(["bash", script], env=env, capture_output=True)
        words = done.stdout.decode().split("\0")[:-1]
        assert words == sweep_scripts.command(run, Path("W"))[1:]
    env["SLURM_ARRAY_TASK_ID"] = str(len(runs))
    assert subprocess.run(["bash", script], env=env, capture_output=True).returncode


def test_a_slurm_task_that_is_stopped_waits_for_the_run_to_save_and_queues_again(
    tmp_path,
):
    script = tmp_path / "sweep.sh"
    script.write_text(sweep_scripts.slurm(expand(), tmp_path))
    saves = "trap 'sleep 0.5; echo saved; exit 130' TERM; echo began; sleep 30 & wait"
    for name, does in {"python": saves, "scontrol": 'echo "$@"'}.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{does}\n")
        (tmp_path / name).chmod(0o755)
    task = {"SLURM_ARRAY_TASK_ID": "0", "SLURM_ARRAY_JOB_ID": "7"}
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", **task}
    batch = subprocess.Popen(["bash", script], env=env, stdout=subprocess.PIPE)
    assert batch.stdout.readline() == b"began\n"
    batch.terminate()
    assert batch.stdout.readline() == b"saved\n"
    assert batch.stdout.readline() == b"requeue 7_0\n"
    assert batch.wait(10) == 130


def test_jobsets_are_those_of_launch_pod_one_a_run():
    runs = expand(*GRIDS, given={"data.path": NASTY}, seeds=2)
    folder = "gs://bucket/a_long_name.of-a-folder_with-things"
    found = sweep_scripts.jobsets(runs, folder, "i:1", "v6e:2x4")
    documents = list(yaml.safe_load_all(found))
    names = [document["metadata"]["name"] for document in documents]
    assert len(set(names)) == len(documents) == len(runs)
    for run in runs:
        workdir = f"--workdir={folder}/{run.name}"
        words = {*run.arguments, workdir}
        assert any(words <= set(shlex.split(line)) for line in runs_of(found))


def runs_of(rendered: str) -> list[str]:
    """The commands that manifests say they run, in their first lines."""
    return re.findall(r"^# runs (.*)$", rendered, re.MULTILINE)


def documented() -> list[list[str]]:
    """Words of every command of launch.train and launch.sweep in configs/."""
    texts = [p.read_text() for p in sorted((ROOT / "configs").glob("*.py"))]
    table = (ROOT / "configs/README.md").read_text()
    texts.append(table.replace("train --config configs/...", ""))
    texts += [f"launch.train --config configs/{c}" for c in CELL.findall(table)]
    whole = [re.sub(r"\\+\n", " ", text) for text in texts]
    return [shlex.split(line) for text in whole for line in COMMAND.findall(text)]


CELL = re.compile(r"`(\w+\.py:mini --[^`]*)`")
COMMAND = re.compile(r"launch\.(?:train|sweep) --config.*")


def test_documented_commands_name_fields_that_exist():
    commands = documented()
    assert {"launch.train", "launch.sweep"} == {words[0] for words in commands}
    files = [words[words.index("--config") + 1] for words in commands]
    configs = {p.stem for p in (ROOT / "configs").glob("*.py")}
    configs -= {"__init__", "base", "models"}
    assert {Path(file).name.partition(".py")[0] for file in files} == configs
    for file, words in zip(files, commands, strict=True):
        given = [w.removeprefix("--config.") for w in words if "--config." in w]
        fields = dict(field.split("=", 1) for field in given)
        grids = [words[i + 1] for i, w in enumerate(words) if w == "--grid"]
        assert expand(*grids, given=fields, file=file)


# --- running them here ---------------------------------------------------------------

# A trainer: counts its calls, fails or waits if its first argument says so.
TRAINER = """
import sys, time, pathlib
workdir = pathlib.Path(sys.argv[-1].removeprefix("--workdir="))
calls = workdir / "calls"
calls.write_text((calls.read_text() if calls.exists() else "") + "x")
if "fail" in sys.argv: sys.exit("error: optimizer: it broke\\nSee the manual.")
if "wait" in sys.argv:
    import signal
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(130))
    (workdir / "ready").touch()
    time.sleep(60)
"""


@pytest.fixture
def trainer(monkeypatch, tmp_path):
    script = tmp_path / "trainer.py"
    script.write_text(TRAINER)
    monkeypatch.setattr(
        sweep_run,
        "command",
        lambda run, folder, python: [
            python, script, *run.arguments, f"--workdir={folder / run.name}",
        ],
    )  # fmt: skip
    return tmp_path / "W"


def calls(folder: Path) -> dict[str, int]:
    return {p.parent.name: len(p.read_text()) for p in folder.glob("*/calls")}


def test_a_failed_run_does_not_stop_the_rest_and_finished_ones_are_not_repeated(
    trainer, capsys
):
    runs = [Run("a", ["ok"]), Run("b", ["fail"]), Run("c", ["ok"])]
    outcome = sweep_run.run_all(runs, trainer)
    assert outcome == (["a", "c"], [], ["b"], False)
    assert "[2/3] b: FAILED (1): error: optimizer: it broke" in capsys.readouterr().out
    # b is tried again; c, asked for something else, is trained again
    outcome = sweep_run.run_all([*runs[:2], Run("c", ["longer"])], trainer)
    assert outcome == (["c"], ["a"], ["b"], False)
    assert calls(trainer) == {"a": 1, "b": 2, "c": 2}
    (trainer / "a" / sweep_run.MARK).write_text("{")  # a mark that was cut off
    assert sweep_run.run_all(runs[:1], trainer).finished == ["a"]


def test_a_stopped_sweep_stops_its_run_first_and_goes_on_later(trainer):
    code = (
        "import sys; from pathlib import Path; from launch import sweep_run as s;"
        "script, folder = map(Path, sys.argv[1:]);"
        "s.command = lambda run, folder, python: "
        "[python, script, *run.arguments, f'--workdir={folder / run.name}'];"
        "o = s.run_all([s.Run('a', ['wait']), s.Run('b', [])], folder);"
        "sys.exit(130 if o.stopped else 0)"
    )
    words = [sys.executable, "-c", code, trainer.parent / "trainer.py", trainer]
    child = subprocess.Popen(words, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 30
    while not (trainer / "a/ready").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    child.send_signal(signal.SIGTERM)
    assert child.wait(timeout=30) == 130
    assert calls(trainer) == {"a": 1}  # b was not begun
    runs = [Run("a", ["ok"]), Run("b", [])]
    assert sweep_run.run_all(runs, trainer).finished == ["a", "b"]


def test_the_command_line_prints_by_default_and_changes_nothing(tmp_path):
    words = [
        *("--config", FILE, "--workdir", str(tmp_path / "W"), "--seeds=2"),
        "--config.data.path=x",
    ]
    base = [sys.executable, "-m", "launch.sweep", *words]
    good, *refused = (
        subprocess.run([*base, f"--grid={g}"], capture_output=True, text=True)
        for g in ("policy.eta=0.5,0.7", "policy.etta=1", "policy.sde=flow,foo")
    )
    assert good.returncode == 0 and len(good.stdout.splitlines()) == 4
    assert "--config.data.path=x" in shlex.split(good.stdout.splitlines()[0])
    for bad in refused:
        assert bad.returncode == 2 and bad.stderr.count("\n") == 1 and not bad.stdout
    assert not (tmp_path / "W").exists()
