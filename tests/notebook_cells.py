"""Runs the code cells of a notebook, without Jupyter: a process for tests.

python tests/notebook_cells.py NOTEBOOK FOLDER PARAMETERS [CHECK...]

PARAMETERS is Python that runs after the cell tagged "parameters"; each CHECK is an
expression that has to be true in the end. `!` lines run in a shell, and have to
succeed. What cells show goes to FOLDER as CELL.N.EXTENSION, and the last line that is
printed is a JSON list of [cell, kind]. matplotlib has to be there, IPython has not.
"""

import ast
import json
import re
import subprocess
import sys
import types
from pathlib import Path

import flax.nnx  # noqa: F401 - before the stand-in: it looks for all of IPython
from matplotlib import pyplot

from data_pipelines import media

SHELL = re.compile(r"^( *)!((?:.*\\\n)*.*)$", re.M)
CALL = r'\1shell(rf"""\2""")'


class Shown:
    """What a cell shows: text, or a file, by the constructor's first argument."""

    def __init__(self, data=None, **named):
        self.data = data


KINDS = {
    name: type(name, (Shown,), {}) for name in ("HTML", "Markdown", "SVG", "Video")
}


class Screen:
    """Keeps what is shown."""

    def __init__(self, folder: Path):
        self.folder, self.cell = folder, ""
        self.list: list[tuple[str, str]] = []
        folder.mkdir(parents=True, exist_ok=True)

    def show(self, thing) -> None:
        kind = type(thing).__name__
        place = f"{self.folder}/{self.cell}.{len(self.list)}"
        if isinstance(thing, KINDS["Video"]):
            media.probe(thing.data)  # it is one, and can be read
        elif isinstance(thing, Shown):
            assert len(thing.data) > 20, (self.cell, thing.data)
            Path(f"{place}.{kind.lower()}").write_text(thing.data, encoding="utf-8")
        elif hasattr(thing, "save"):
            kind = "Image"
            thing.save(f"{place}.png")
        self.list.append((self.cell, kind))

    def figures(self) -> None:
        for number in pyplot.get_fignums():
            place = f"{self.folder}/{self.cell}.{len(self.list)}.png"
            pyplot.figure(number).savefig(place, bbox_inches="tight")
            self.list.append((self.cell, "figure"))
        pyplot.close("all")


def shell(command: str) -> None:
    """As `!` does, but a command that fails is an error."""
    sys.stdout.flush()
    subprocess.run(command, shell=True, check=True)


def run(source: str, names: dict, screen: Screen) -> None:
    """One cell; its last expression is shown."""
    tree = ast.parse(SHELL.sub(CALL, source))
    last = None
    if tree.body and isinstance(tree.body[-1], ast.Expr):
        last = ast.Expression(tree.body.pop().value)
    exec(compile(tree, screen.cell, "exec"), names)
    if last is not None:
        value = eval(compile(last, screen.cell, "eval"), names)
        if value is not None:
            screen.show(value)
    screen.figures()


def main(notebook: str, folder: str, parameters: str, *checks: str) -> None:
    """All cells in one namespace, then the checks."""
    pyplot.switch_backend("Agg")
    screen = Screen(Path(folder))
    display = types.ModuleType("IPython.display")
    display.__dict__.update(KINDS, display=screen.show)
    package = types.ModuleType("IPython")
    package.version_info, package.get_ipython = (9, 0), lambda: None  # asked by pyplot
    sys.modules |= {"IPython": package, "IPython.display": display}
    names = {"__name__": "__main__", "shell": shell}
    for cell in json.loads(Path(notebook).read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] != "code":
            continue
        screen.cell = cell["id"]
        run("".join(cell["source"]), names, screen)
        if "parameters" in cell["metadata"].get("tags", ()):
            exec(parameters, names)
    for check in checks:
        assert eval(check, names), check
    print(json.dumps(screen.list))


if __name__ == "__main__":
    main(*sys.argv[1:])
