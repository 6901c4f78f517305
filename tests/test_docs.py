"""Pages say what is there: every link, file, name, command, flag and field in them.

Flags are read from the sources, not by running commands. What a page names is looked up
in the repository, beside the page, or by the end of its path. What the page of a room
has to tell: test_room_pages.py.
"""

import ast
import functools
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from configs import base, models
from data_pipelines import video_files

ROOT = Path(__file__).parents[1]
ROOMS = ("tavr_jax", "configs", "data_pipelines", "launch", "tests", "notebooks")
PAGES = sorted(
    [*ROOT.glob("*.md"), *(p for r in ROOMS for p in ROOT.glob(f"{r}/**/*.md"))]
)
# of the release; what launch.evaluate writes; recorded activations; a tag of .mp4
ELSEWHERE = {"infer.py", "results.md", "tavr_seed0", "wan_seed0", "major_brand"}
MEDIA = ("mp4", "wav", "png", "txt", "npz", "json", "jsonl", "py", "md")  # no fields
CONFIG = base.get_config()

FENCE = re.compile(r"^```.*?^```$", re.S | re.M)
SPAN = re.compile(r"`([^`]+)`")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
FILE = re.compile(r"([\w./-]+\.(?:py|sh|md|toml))(?::(\w+))?")
INSIDE = re.compile(rf"(?:{'|'.join(ROOMS)})/[\w./-]+\.\w+")
NAMED = re.compile(r"([\w./-]+\.py): ([\w., ()]+)")
FIELD = re.compile(r"--config((?:\.\w+)+)")
# Programs whose flags are not ours.
OTHERS = re.compile(r"(?:pip|git|gcloud|kubectl|docker|pytest|srun)\b")
PLACEHOLDER = re.compile(r"(?:^|[/_])(?:[A-Z]{2,}|[A-Z])(?=[./]|$)")
NAME = re.compile(r"_?[A-Za-z]\w*(?:\(\))?")  # of code if it has a _ or a hump
CODE = re.compile(r"_|[a-z][A-Z]")
SPARE = re.compile(r"(?:^|_)[A-Z]{2,}_[a-z]")  # NAME_weight: put yours in its place


def problems(page: Path, text: str) -> list[str]:
    """What `text`, the contents of `page`, says that is not so."""
    blocks = FENCE.findall(text)
    prose = FENCE.sub("", text)
    spans = [" ".join(span.split()) for span in SPAN.findall(prose)]
    shown = [*spans, *(line for block in blocks for line in _lines(block))]
    found = [*_links(page, prose)]
    for words in shown:
        command = re.search(r"python -m ([\w.]+)(.*)", words)
        if command and command[1].split(".")[0] in ROOMS:
            found += _command(command[1], command[2])
        elif not command and not OTHERS.match(words):
            found += _flags(words, _all_flags(), "any command")
            found += _module(words)
        found += _fields(words)
        found += _files(page, words)
    for span in spans:
        found += _names(page, span)
        if NAME.fullmatch(span) and CODE.search(span) and not SPARE.search(span):
            known = span.strip("()") in _words() | ELSEWHERE
            found += [] if known else [f"{span}: nothing has this name"]
    return found


def _lines(block: str) -> list[str]:
    """Of a fenced block: commands in one line each, without comments."""
    joined = re.sub(r"\\\n\s*", " ", block)
    return [re.sub(r"\s+#.*", "", line) for line in joined.splitlines()[1:-1]]


def _links(page: Path, prose: str) -> list[str]:
    found = []
    for target in LINK.findall(prose):
        path, _, anchor = target.partition("#")
        if re.match(r"\w+:", target):
            continue
        there = (page.parent / path).resolve() if path else page
        if not there.exists():
            found.append(f"link to {target}, which is not there")
        elif anchor and anchor not in _anchors(there.read_text()):
            found.append(f"link to {target}: no such heading")
    return found


def _anchors(text: str) -> list[str]:
    heads = re.findall(r"^#+ (.*)$", text, re.M)
    return [re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads]


def _command(module: str, rest: str) -> list[str]:
    """A command of ours: its module, and the flags that are shown beside it."""
    if not _source(module).is_file():
        return [f"python -m {module}: no such module"]
    known, words = _flags_of(module), rest.split()
    if module == "launch.bench" and words and not words[0].startswith("-"):
        owners = _bench(words[0])
        if not owners:
            return [f"python -m {module} {words[0]}: no such bench"]
        known = known.union(*map(_flags_of, owners))
    return _flags(rest, known, f"python -m {module}")


def _bench(named: str) -> list[str]:
    """Modules of a bench: a file of its name alone, or the parts of bench_model.py."""
    if _source(f"launch.bench_{named}").is_file():
        return [f"launch.bench_{named}"]
    parts = set(named.split(",")) <= _texts(_source("launch.bench"))
    return ["launch.bench_model"] if parts else []


def _module(span: str) -> list[str]:
    """`launch.x` alone is a command."""
    named = re.fullmatch(r"launch\.[a-z_]+", span)
    if not named or _source(span).is_file():
        return []
    return [f"{span}: no such module"]


def _flags(words: str, known: frozenset, owner: str) -> list[str]:
    names = re.findall(r"(?:^|\s)--([a-zA-Z][\w-]*)(?![\w.-])", words)
    unknown = [n for n in names if n.replace("-", "_") not in known]
    return [f"--{name}: no flag of {owner}" for name in unknown]


def _fields(words: str) -> list[str]:
    found = []
    for path in FIELD.findall(words):
        section = CONFIG
        for name in path[1:].split("."):
            if name not in section:
                found.append(f"--config{path}: no such field")
                break
            section = section[name]
    return found


def _files(page: Path, words: str) -> list[str]:
    found = []
    for word in re.split(r"[\s=,]+", words):
        word = word.rstrip(":;)").lstrip("(")
        named = FILE.fullmatch(word)
        if not named or named[1] in ELSEWHERE:
            inside = INSIDE.fullmatch(word) and not PLACEHOLDER.search(word)
            if inside and not named and not (ROOT / word).is_file():
                found.append(f"{word}: no such file")
            continue
        if PLACEHOLDER.search(named[1]) and not named[1].endswith(".md"):
            continue
        if not _paths(page, named[1]):
            found.append(f"{named[1]}: no such file")
        elif (
            named[2]
            and named[1].startswith("configs/")
            and named[2] not in models.SIZES
        ):
            found.append(f"{word}: no such size")
    return found


def _paths(page: Path, name: str) -> list[Path]:
    """What `name` may mean on this page."""
    direct = [p for p in (page.parent / name, ROOT / name) if p.is_file()]
    return direct or [
        p for p in _everything() if f"/{p.as_posix()}".endswith(f"/{name}")
    ]


def _names(page: Path, span: str) -> list[str]:
    """`file.py: name, name()` names what the file defines; `section.field` a field, or
    what a module of that name defines."""
    if named := NAMED.fullmatch(span):
        files = _paths(page, named[1])
        wanted = [word.strip(" ()").split(".")[0] for word in named[2].split(",")]
        return [
            f"{span}: {name} is not defined there"
            for name in wanted
            if files and not any(name in _defined(path) for path in files)
        ]
    field = re.fullmatch(r"(\w+)\.(\w+)(?:=.*)?", span)
    if not field or field[1] not in CONFIG or field[2] in MEDIA:
        return []
    section = CONFIG[field[1]]
    modules = [p for p in _everything() if p.name == f"{field[1]}.py"]
    if not hasattr(section, "keys") or field[2] in section:
        return []
    if any(field[2] in _defined(path) for path in modules):
        return []
    return [f"{span}: neither a field nor a name of {field[1]}.py"]


# The sources


@functools.cache
def _everything() -> tuple[Path, ...]:
    inside = [p for room in ROOMS for p in (ROOT / room).rglob("*.*")]
    return tuple(p for p in [*ROOT.glob("*.*"), *inside] if p.is_file())


@functools.cache
def _words() -> frozenset[str]:
    """Every word of the sources that pages speak of."""
    kinds = (".py", ".js", ".sh")
    tests = ROOT / "tests"
    files = [p for p in _everything() if p.suffix in kinds and tests not in p.parents]
    return frozenset().union(*(re.findall(r"\w+", p.read_text()) for p in files))


def _source(module: str) -> Path:
    return ROOT / f"{module.replace('.', '/')}.py"


@functools.cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@functools.cache
def _defined(path: Path) -> frozenset[str]:
    """Functions, classes, methods and constants of a file."""
    kinds = (ast.FunctionDef, ast.ClassDef)
    nodes = list(ast.walk(_tree(path)))
    names = {n.name for n in nodes if isinstance(n, kinds)}
    stored = {
        n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)
    }
    return frozenset(names | stored)


@functools.cache
def _texts(path: Path) -> frozenset[str]:
    """Strings that a file spells out."""
    nodes = ast.walk(_tree(path))
    return frozenset(
        n.value
        for n in nodes
        if isinstance(n, ast.Constant) and isinstance(n.value, str)
    )


@functools.cache
def _flags_of(module: str) -> frozenset[str]:
    """Flags that a command has: its own and those of all of launch that it imports."""
    waiting, seen = [module], set()
    while waiting:
        name = waiting.pop()
        if name not in seen and _source(name).is_file():
            seen.add(name)
            waiting += _imported(_tree(_source(name)))
    return frozenset().union({"help"}, *(_own_flags(_tree(_source(n))) for n in seen))


@functools.cache
def _all_flags() -> frozenset[str]:
    found = {f"launch.{path.stem}" for path in (ROOT / "launch").glob("*.py")}
    return frozenset().union(*map(_flags_of, [*found, "data_pipelines.inspect"]))


def _imported(tree: ast.Module) -> list[str]:
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            found += [node.module, *(f"{node.module}.{n.name}" for n in node.names)]
        elif isinstance(node, ast.Import):
            found += [name.name for name in node.names]
    return [name for name in found if name.startswith("launch")]


def _own_flags(tree: ast.Module) -> set[str]:
    """Of absl's DEFINE_*, of argparse, and `config` of cli.config_flag()."""
    found, constants = set(), {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            constants[node.targets[0].id] = node.value
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        first = node.args[0] if node.args else None
        if name == "config_flag":
            found.add("config")
        elif name.startswith("DEFINE_") and isinstance(first, ast.Name):
            found |= _looped(tree, first.id, constants)
        elif name.startswith("DEFINE_") and isinstance(first, ast.Constant):
            found.add(first.value)
        elif name == "add_argument" and isinstance(first, ast.Constant):
            found.add(first.value.lstrip("-").replace("-", "_"))
    return found


def _looped(tree: ast.Module, variable: str, constants: dict) -> set[str]:
    """Keys of the dict constants that a loop gives to `variable`."""
    return {
        key.value
        for node in ast.walk(tree)
        if isinstance(node, ast.For)
        and variable in {n.id for n in ast.walk(node.target) if isinstance(n, ast.Name)}
        for name in ast.walk(node.iter)
        if isinstance(name, ast.Name) and name.id in constants
        for key in constants[name.id].keys
    }


# The laws


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_page_names_only_what_is_there(page):
    found = problems(page, page.read_text())
    assert not found, "\n".join(found)


GOOD = """
See [the house](README.md) and `configs/base.py: policy()`, `policy.eta`, `sampler.py`,
`configs/mini_benchmark.json`, `drop_conditions`, `make_encoder()`, `NAME_weight`.

```
python -m launch.generate --checkpoint C --sample-steps 8 \\
    --config.sampler.steps=4   # --nonsense in a comment
python -m launch.bench data --dataset D --source configs/policy.py:mini
python -m data_pipelines.inspect DATASET --samples 3
python -m pip install DATASET/x.py
```
"""
LIES = {
    "[the house](README.md)": "[the house](READYOU.md)",
    "README.md)": "README.md#no-such-heading)",
    "configs/base.py:": "configs/bass.py:",
    "policy()": "polizei()",
    "policy.eta": "policy.theta",
    "`sampler.py`": "`simpler.py`",
    "mini_benchmark.json": "mini_benchmarks.json",
    "drop_conditions": "drop_condition",
    "make_encoder()": "makeEncoder()",
    "launch.generate": "launch.degenerate",
    "--checkpoint": "--chequepoint",
    "--sample-steps": "--sample-stops",
    "sampler.steps": "sampler.stops",
    "bench data": "bench date",
    "bench data --dataset D --source": "bench step,data --config",
    "--dataset": "--checkpoint",  # a flag, but of another command
    "policy.py:mini": "policy.py:midi",
    "--samples": "--sampled",
}


def test_the_guard_finds_every_kind_of_lie():
    page = ROOT / "PAGE.md"
    assert problems(page, GOOD) == []
    for truth, lie in LIES.items():
        assert truth in GOOD
        assert len(problems(page, GOOD.replace(truth, lie, 1))) == 1, lie


def test_flags_are_those_that_the_command_defines():
    """What the sources are read for, against what absl itself was told."""
    known = _flags_of("launch.generate")
    assert {"debug", "config", "reference", "dit_ckpt", "aud_guide_scale"} <= known
    assert "workdir" not in known and "workdir" in _flags_of("launch.train")


def test_the_tags_of_a_video_are_those_that_the_page_lists():
    section = (ROOT / "RESPONSIBLE_USE.md").read_text().split("\n## ")[2]
    listed = re.findall(r"^\| `(\w+)` \|", section, re.M)
    (made,) = [
        node
        for node in ast.walk(_tree(_source("launch.checkpoints")))
        if getattr(node, "name", "") == "provenance"
    ]
    assert listed == [key.value for key in made.body[-1].value.keys]


def test_the_command_of_the_page_prints_the_tags(tmp_path):
    page = (ROOT / "RESPONSIBLE_USE.md").read_text()
    program = re.search(r'python -c "(.+)" out\.mp4$', page, re.M)[1]
    tags = {"synthetic": "true", "fingerprint": "0123456789ab"}
    frames = np.zeros((5, 32, 32, 3), np.uint8)
    video_files.write_video(tmp_path / "out.mp4", frames, 25, metadata=tags)
    command = [sys.executable, "-c", program, str(tmp_path / "out.mp4")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert tags.items() <= ast.literal_eval(done.stdout).items()
