"""Notebooks: stored clean, and every cell runs.

    pytest tests/test_notebooks.py
    pytest -m slow tests/test_notebooks.py      # all three stages of 04

They run one after another at :tiny in one folder, as somebody does who reads them in
order, each in a process of its own (tests/notebook_cells.py). No Jupyter is needed,
matplotlib is.
"""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from test_docs import problems

ROOT = Path(__file__).parents[1]
NAMES = (
    "01_data",
    "02_model",
    "03_generate",
    "04_training_curves",
    "05_results",
    "06_pod_plan",
)
BOOKS = {
    name: json.loads((ROOT / f"notebooks/{name}.ipynb").read_text()) for name in NAMES
}
SHELL = re.compile(r"^ *!((?:.*\\\n)*.*)$", re.M)
LINK = re.compile(r"\]\((?!\w+:)([^)#\s]+)")
PARAMETERS = {  # beside SIZE and OUT
    "01_data": "PEOPLE, SECONDS, PIXELS = 5, 1.5, 128",
    "03_generate": "SCALES, SEEDS = (1.0, 1.5), (0, 1)",
    "04_training_curves": 'STAGES = ("same_scene", "cross_scene")',
}
# What cells show, in order.
SHOWN = {
    "01_data": "cast Image, play Video, play Video, summary HTML, clips Image, "
    "clip Video, pairs figure, speech figure",
    "02_model": "sample Video, tokens Image, attention Image, layers Image, "
    "heads Image",
    "03_generate": "inputs Video, inputs Video, command Video, metadata dict, "
    "seeds Video, scales Video",
    "04_training_curves": "curves SVG, table Markdown, more SVG",
    "05_results": "table Markdown, intervals figure, videos Video, videos Video, "
    "videos Video, videos Video, report HTML",
    "06_pod_plan": "memory figure, sent figure, roofline figure",
}
# What has to be true at the end, of the names that cells left.
CHECKS = {
    "01_data": (
        "(graph == graph.T).all() and len(clips) == 10",
        "all(graph[i, j] > 0 for i, a in enumerate(clips) for j, b in enumerate(clips)"
        " if a.person == b.person)",
        "(graph > 0).sum() == 20 and (graph == 2).sum() == 10",
        "mel.shape == (config.speech.mel_bins, 4 * row.frames)",
    ),
    "02_model": (
        "apart < 1e-5 and np.isfinite(error)",
        "abs(sum(float(part.mean()) for part in read.totals().values()) - 1) < 1e-4",
        "maps.shape == (2, 2, *reference.shape)",
        "np.array_equal(maps.min(axis=(0, 1)) > 0, reference)",
    ),
    "03_generate": (
        'media.read_metadata(made)["synthetic"] == "true"',
        'media.read_metadata(OUT / "seeds.mp4")["synthetic"] == "true"',
        "(lambda w: (w[:, :, 32:64] != w[:, :, 64:]).any())("
        'media.read_frames(OUT / "seeds.mp4", 25))',
        'media.probe(OUT / "scales.mp4").width == 64',
        "abs(media.probe(made).seconds - media.probe(target).seconds) < 0.1",
    ),
    "04_training_curves": (
        "[panel.stage for panel in panels] == list(STAGES)",
        "all(len(curve.steps) == 2 for panel in panels for curve in panel.curves)",
    ),
    "05_results": (
        'len(rows) == 6 and found["samples"]',
        'found["summary"]["truth"]["ssim"]["mean"] > 0.999',
    ),
    "06_pod_plan": (
        "len(steps) >= 16 and set(gib) >= {'parameters', 'weights', 'temporaries'}",
        "(sum(gib.values()) <= 1.05 * column(lambda s: s['hbm']['total'])"
        " / plan_text.GIB).all()",
    ),
}


def cells(name: str, kind: str = "") -> list[dict]:
    return [c for c in BOOKS[name]["cells"] if c["cell_type"] == kind or not kind]


def source(cell: dict) -> str:
    return "".join(cell["source"])


def test_every_notebook_is_known():
    assert sorted(p.stem for p in (ROOT / "notebooks").glob("*.ipynb")) == list(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_it_is_stored_clean(name):
    """The format's rules, ids that stay, and nothing of a run."""
    book = BOOKS[name]
    assert (book["nbformat"], book["nbformat_minor"]) == (4, 5)
    assert book["metadata"]["kernelspec"]["name"] == "python3"
    ids = [cell["id"] for cell in cells(name)]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch(r"[a-z][a-z-]{1,40}", i) for i in ids), ids
    for cell in cells(name):
        wanted = {"cell_type", "id", "metadata", "source"}
        if cell["cell_type"] == "code":
            wanted |= {"outputs", "execution_count"}
            assert cell["outputs"] == [] and cell["execution_count"] is None
        assert set(cell) == wanted, cell["id"]
        assert set(cell["metadata"]) <= {"tags"}
        assert all(line.endswith("\n") for line in cell["source"][:-1])


@pytest.mark.parametrize("name", NAMES)
def test_it_opens_with_a_badge_an_install_and_its_parameters(name):
    title, install, parameters = (source(cell) for cell in cells(name)[:3])
    assert title.startswith(f"# {int(name[:2])}. ")
    assert (
        f"colab.research.google.com/github/OWNER/tavr_jax/blob/main/notebooks/{name}"
        in title
    )
    assert install == source(cells("01_data")[1])
    assert cells(name)[2]["metadata"] == {"tags": ["parameters"]}
    assert parameters.startswith('SIZE = "mini"') and "\nOUT = " in parameters


def test_the_install_cell_installs_where_nothing_is_and_asks_for_a_restart(
    tmp_path, monkeypatch
):
    """As in Colab, whose numpy is loaded and replaced; what `!` runs is noted only."""
    cell = re.sub(
        r"^( *)!(.*)$", r'\1ran.append(f"\2")', source(cells(NAMES[0])[1]), flags=re.M
    )
    find, missing, ran = importlib.util.find_spec, [], []
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name: None if missing and missing.pop() else find(name),
    )

    def run_cell(is_installed: bool) -> None:
        ran.clear()
        monkeypatch.chdir(tmp_path)
        missing[:] = [] if is_installed else [True]  # the first answer alone
        names = {"ran": ran}
        exec(cell, names)
        assert Path.cwd() == names["home"] and (names["home"] / "tavr_jax").is_dir()

    (tmp_path / "tavr").mkdir()
    run_cell(is_installed=False)
    assert [command.split(" --")[0] for command in ran] == [
        "git clone",
        f"{sys.executable} -m pip install",
    ]
    assert "-c constraints.txt -e '.[notebooks]'" in ran[1]
    monkeypatch.setattr(np, "__version__", "1.0")
    with pytest.raises(SystemExit, match="Restart session"):
        run_cell(is_installed=False)
    run_cell(is_installed=True)  # after it
    assert ran == []


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_to_files_and_the_next_notebook(name):
    text = "\n".join(source(cell) for cell in cells(name, "markdown"))
    links = LINK.findall(text)
    missing = [link for link in links if not (ROOT / "notebooks" / link).exists()]
    assert not missing
    assert any(link.endswith("README.md") for link in links), "no page of a room"
    later = NAMES[NAMES.index(name) + 1 :][:1]
    assert all(f"{other}.ipynb" in links for other in later)


@pytest.mark.parametrize("name", NAMES)
def test_pages_and_commands_name_only_what_is_there(name):
    text = "\n".join(source(cell) for cell in cells(name, "markdown"))
    commands = SHELL.findall("\n".join(source(cell) for cell in cells(name, "code")))
    shown = "\n".join(commands).replace("{sys.executable}", "python")
    shown = re.sub(r"\{(?:SIZE)\}", "tiny", shown)
    shown = re.sub(r"configs/\{[^}]*\}", "configs/same_scene", shown)
    assert len(commands) >= 2
    page = ROOT / f"notebooks/{name}.ipynb"
    found = problems(page, f"{text}\n\n```\n{shown}\n```\n")
    assert not found, "\n".join(found)


# Running them


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    if importlib.util.find_spec("matplotlib") is None:
        pytest.skip("matplotlib is not installed: pip install 'tavr_jax[notebooks]'")
    return tmp_path_factory.mktemp("notebooks")


def run(name: str, out: Path, parameters: str) -> list[str]:
    """What its cells have shown, as "cell kind"."""
    given = f'SIZE = "tiny"\nOUT = Path({str(out)!r})\n{parameters}'
    if "CHECKPOINT" in source(cells(name)[2]):
        given += '\nCHECKPOINT = OUT / "same_scene"'
    script, shown = ROOT / "tests/notebook_cells.py", out / "shown" / name
    command = [sys.executable, script, ROOT / f"notebooks/{name}.ipynb", shown, given]
    done = subprocess.run(
        [*command, *CHECKS[name]],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return [" ".join(pair) for pair in json.loads(done.stdout.splitlines()[-1])]


@pytest.mark.parametrize("name", NAMES)
def test_every_cell_runs(name, out):
    assert ", ".join(run(name, out, PARAMETERS.get(name, ""))) == SHOWN[name]


@pytest.mark.slow
def test_all_three_stages_run(out):
    """pytest -m slow tests/test_notebooks.py"""
    assert ", ".join(run("04_training_curves", out, "")) == SHOWN["04_training_curves"]
    lines = (out / "policy/metrics.jsonl").read_text().splitlines()
    assert "reward" in json.loads(lines[-1])
