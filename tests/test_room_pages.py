"""The page of a room: there, whole, and true to who imports whom.

What it names (files, commands, flags, fields) is held by test_docs.py, as on any page.
"""

import ast
import functools
import re
from pathlib import Path

import pytest
from test_docs import PAGES, ROOMS, ROOT

PACKAGES = sorted(
    path.parent for room in ROOMS for path in ROOT.glob(f"{room}/**/__init__.py")
)
BARE = {ROOT / "tavr_jax", ROOT / "configs"}  # no code of their own; data and its page
ROOM_PAGES = [room / "README.md" for room in PACKAGES if room not in BARE]
WHOLE = [page for page in ROOM_PAGES if page.parent.name != "prepare"]  # a part of one
HEADINGS = (
    "Laws",
    "To change X, edit Y",
    "How to add",
    "Where it comes from",
    "Known limits",
)
IMPORTS = re.compile(r"^Imports (.*?)\.\s+Imported by (.*?)\.", re.S | re.M)


def _part(text: str, heading: str) -> str:
    """What a page says under a heading."""
    return text.split(f"\n## {heading}\n")[1].split("\n## ")[0]


def _room(path: Path) -> str:
    """The room of a source file, or of a module's path."""
    parts = path.with_suffix("").parts
    return parts[1] if parts[0] == "tavr_jax" and len(parts) > 1 else parts[0]


@functools.cache
def _imports() -> frozenset[tuple[str, str]]:
    """(who imports, whom), rooms all."""
    found = set()
    for top in ("tavr_jax", "data_pipelines", "launch"):
        for path in (ROOT / top).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if not isinstance(node, ast.Import | ast.ImportFrom):
                    continue
                names = [alias.name for alias in node.names]
                if isinstance(node, ast.ImportFrom):
                    names = [f"{node.module}.{name}" for name in names]
                mine = [n for n in names if n.split(".")[0] in ROOMS]
                whom = {_room(Path(*n.split("."))) for n in mine}
                found |= {(_room(path.relative_to(ROOT)), name) for name in whom}
    return frozenset((who, whom) for who, whom in found if who != whom)


def _claimed(text: str) -> tuple[set[str], set[str]]:
    """Whom a page says that its room imports, and who imports it."""
    found = IMPORTS.search(text)
    assert found, "no sentences: Imports ... . Imported by ... ."
    rooms = {name for pair in _imports() for name in pair}
    return tuple(rooms & set(re.findall(r"`(\w+)`", side)) for side in found.groups())


def test_every_room_has_a_page():
    assert len(ROOM_PAGES) >= 9
    without = [
        str(p) for p in [*ROOM_PAGES, ROOT / "configs/README.md"] if not p.is_file()
    ]
    assert not without


@pytest.mark.parametrize("page", ROOM_PAGES, ids=lambda p: p.parent.name)
def test_the_page_of_a_room_tells_everything_and_what_holds_its_laws(page):
    text = page.read_text()
    told = re.findall(r"^## (.*)$", text, re.M)
    assert [h for h in told if h in HEADINGS] == list(HEADINGS)
    laws = re.findall(r"^\| (.+?) \| (.+) \|$", _part(text, "Laws"), re.M)[1:]
    assert len(laws) >= 5
    bare = [law for law, held in laws if not re.search(r"`tests/test_\w+\.py`", held)]
    assert not bare, "laws that no test holds"
    assert re.search(r"^\*\*.+?\*\*", _part(text, "How to add"), re.M)


def test_every_test_is_named_on_a_page():
    said = "\n".join(page.read_text() for page in PAGES)
    files = {path.name for path in (ROOT / "tests").glob("test_*.py")}
    unsaid = sorted(name for name in files if name not in said)
    assert not unsaid, f"name them among the laws of their room's page: {unsaid}"


@pytest.mark.parametrize("page", WHOLE, ids=lambda p: p.parent.name)
def test_a_room_imports_what_its_page_says(page):
    room, (whom, who) = page.parent.name, _claimed(page.read_text())
    assert whom == {b for a, b in _imports() if a == room}
    assert who == {a for a, b in _imports() if b == room}
