"""The script that makes what is shipped: its commands are real, whole and in order."""

import inspect
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from test_docs import ROOT, problems

from configs import codec, face
from data_pipelines import benchmark_mini
from launch import ship_weights, shipped, stages, sweep_grid

SCRIPT = ROOT / "launch/reproduce_mini.sh"
SCRIPTS = sorted(ROOT.glob("launch/*.sh"))
PREFIX = "--config."
# In place of python: draws, cuts, trains and ships in so far as files show it.
STUB = """#!{python} -IS
import os, sys
from pathlib import Path
module = sys.argv[2]
words = " ".join(sys.argv[3:]).replace("=", " ").split()
flags = dict(zip(words[::2], words[1::2]))
with open("calls", "a") as calls:
    print(module, flags.get("--output") or flags.get("--workdir"), file=calls)
def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        path.write_text(text)
if module == "launch.render_people":
    for person in range(int(flags["--people"])):
        write(Path(flags["--output"], f"person_{{person}}/scene.mp4"), str(person))
elif module == "launch.prepare_data":  # cut again if other videos are there
    Path(flags["--output"]).mkdir(exist_ok=True)
    videos = sorted(map(str, Path(flags["--source"]).rglob("*.mp4")))
    Path(flags["--output"], "dataset").write_text(chr(10).join(videos))
elif module == "launch.train":
    data = Path(flags["--config.data.path"], "dataset").read_text()
    learnt = Path(flags["--workdir"], "checkpoints", "data")
    write(learnt, data)
    if learnt.read_text() != data:
        sys.exit("error: not the data that the run learns from")
elif module == "launch.ship":
    for end in ("safetensors", "md"):
        write(Path(flags["--output"], flags["--name"] + "." + end), "")
if os.environ.get("STOP") == str(len(Path("calls").read_text().splitlines())):
    sys.exit("killed")
"""
# what a command reads of what others wrote
READ = ("--source", "--config.data.path", "--config.init_from", "--data_commands")


def dry_run(out: Path) -> str:
    done = subprocess.run(
        ["bash", SCRIPT, "--dry-run", out], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0 and not done.stderr, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def printed(tmp_path_factory) -> str:
    out = tmp_path_factory.mktemp("reproduce") / "out"
    text = dry_run(out)
    assert not out.exists(), "a dry run writes nothing"
    return text.replace(str(out), "OUT")


def commands(text: str) -> list[tuple[str, dict[str, str]]]:
    """(module, {flag: value}) of every `python -m` line."""
    found = []
    for line in re.findall(r"python -m (launch.*)", text):
        module, *words = shlex.split(line)
        flags, name = {}, None
        for word in words:
            if name:
                flags[name], name = word, None
            elif "=" in word:
                flags.update([word.split("=", 1)])
            else:
                name = word
        assert name is None, line
        found.append((module, flags))
    return found


def test_every_command_has_real_flags_fields_and_values(printed):
    assert problems(ROOT / "x.md", f"```\n{printed}```\n") == []
    seen = 0
    for module, flags in commands(printed):
        if "--config" not in flags:
            continue
        fields = {
            name.removeprefix(PREFIX): value
            for name, value in flags.items()
            if name.startswith(PREFIX)
        }
        config = sweep_grid.load(flags["--config"], fields)  # as absl would
        if module == "launch.train":
            stages.check(config)
            seen += 1
    assert seen >= 9


def test_what_a_command_reads_was_written_before(printed):
    written = set()
    for module, flags in commands(printed):
        networks = {n for n in flags if n.startswith(("--config.networks.", "--codec"))}
        networks |= {"--config.evaluation.face"} & flags.keys()
        wanted = {flags[n] for n in (*READ, *networks) if n in flags} - {"random"}
        if module == "launch.ship":
            wanted.add(flags["--workdir"])
        assert wanted <= written, (module, wanted - written)
        match module:
            case "launch.train":
                assert flags["--workdir"] not in written
                written.add(flags["--workdir"])
            case "launch.ship":
                written.add(f"{flags['--output']}/{flags['--name']}.safetensors")
            case _:
                written.add(flags["--output"])
                stem = re.sub(r"_?(people|dataset)$", "", flags["--output"])
                written.add(f"{stem}.txt" if stem != "OUT/" else "OUT/stages.txt")


def test_everything_that_is_shipped_is_made_in_an_order_that_loads(printed):
    names = [f["--name"] for module, f in commands(printed) if module == "launch.ship"]
    assert sorted(names) == sorted(ship_weights.NAMES)
    order = [name for name in names if name in shipped.STAGES]
    assert order == list(shipped.STAGES)
    for name in names:  # what a stage was trained with is shipped before it
        assert name in order or names.index(name) < names.index(order[0])


def test_stopped_or_finished_it_goes_on_with_the_data_it_had(tmp_path):
    (tmp_path / "launch").mkdir()
    (tmp_path / "launch/install.sh").write_text("install() { :; }\n")
    shutil.copy(SCRIPT, tmp_path / "launch")
    python = tmp_path / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(STUB.format(python=sys.executable))
    python.chmod(0o755)

    def again(stop=0):
        (tmp_path / "calls").unlink(missing_ok=True)
        done = subprocess.run(
            ["bash", tmp_path / "launch" / SCRIPT.name, tmp_path / "out"],
            env={**os.environ, "STOP": str(stop)}, capture_output=True, text=True,
        )  # fmt: skip
        return done, (tmp_path / "calls").read_text().splitlines()

    done, calls = again()
    assert done.returncode == 0, done.stderr
    shutil.rmtree(tmp_path / "out")
    drawn = [i for i, call in enumerate(calls, 1) if "render_people" in call]
    assert again(stop=drawn[-1])[1] == calls[: drawn[-1]]
    for _ in range(2):  # it goes on; and when all is done, nothing is in the way
        done, _ = again()
        assert done.returncode == 0, done.stderr
    clips = {
        name: len(list((tmp_path / "out" / name).rglob("*.mp4")))
        for name in ("people", "more_people")
    }
    assert clips == {"people": 240, "more_people": 360}
    linked = tmp_path / "out/more_people/person_7/scene.mp4"
    assert linked.samefile(tmp_path / "out/people/person_7/scene.mp4")


def test_the_networks_are_trained_as_their_configs_say(printed):
    """Commands of the docstrings, but for places."""

    def told(text):
        places = ("--workdir", "--source", "--output", *READ[1:3])
        return {
            (module, *sorted(f"{n}={v}" for n, v in flags.items() if n not in places))
            for module, flags in commands(re.sub(r"\\\n\s*", " ", text))
        }

    made = told(re.sub(r" --config\.networks\.\w+=\S*", "", printed))
    for config in (codec, face):
        assert told(inspect.getdoc(config)) <= made, config.__name__


def test_no_network_learns_from_those_that_are_to_be_unseen(printed):
    """Of the benchmark, and the quickstart's stranger; nor the judge from others'."""
    drawn = {}
    for module, flags in commands(printed):
        if module == "launch.render_people":
            first, seed = int(flags["--first_person"]), int(flags.get("--seed", 0))
            people = range(first, first + int(flags["--people"]))
            drawn[flags["--output"]] = {(seed, person) for person in people}
    made = benchmark_mini
    scored = {(made.SEED, made.FIRST + n) for n in range(made.PEOPLE)}
    quick = (ROOT / "launch/quickstart.sh").read_text()
    strangers = re.findall(r"--people 1 [^\n]*\n *--first_person (\d+)", quick)
    assert len(strangers) == 1
    unseen = scored | {(0, int(strangers[0]))}
    judge = drawn.pop("OUT/judge_people")
    assert len(drawn) == 4 and not judge & unseen
    for people in drawn.values():
        assert not people & (unseen | judge)


def test_the_hours_are_told_first(printed):
    first, *rest = printed.splitlines()
    seconds = [int(s) for s in re.findall(r"\(about (\d+) s;", "\n".join(rest))]
    steps, hours = re.fullmatch(r"(\d+) steps, about ([\d.]+) hours.*", first).groups()
    assert int(steps) == len(seconds) and float(hours) == sum(seconds) // 360 / 10


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.name)
def test_shells_take_it(script):
    """bash -n everywhere, shellcheck where it is installed."""
    checks = [["bash", "-n"]]
    if shutil.which("shellcheck"):
        checks.append(["shellcheck", "-x", "-s", "bash"])
    for check in checks:
        done = subprocess.run(
            [*check, script], cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_quickstart_has_real_flags_and_fields():
    text = (ROOT / "launch/quickstart.sh").read_text()
    lines = re.findall(r"^ *run (launch.*)", re.sub(r"\\\n\s*", " ", text), re.M)
    shown = "\n".join(f"python -m {line}" for line in lines)
    assert len(lines) >= 8
    assert problems(ROOT / "x.md", f"```\n{shown}\n```\n") == []
