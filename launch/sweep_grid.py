"""From a grid to runs: every combination once, checked against the config, named."""

import hashlib
import importlib.util
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags
from ml_collections import ConfigDict, config_flags

from tavr_jax.errors import InputError

Point = dict[str, Any]  # field -> value

_LONGEST = 180  # characters of a name: folders end at 255, and files go into them
_SHOWN = 40  # characters of a text value in a name


class Run(NamedTuple):
    """One training run of a sweep."""

    name: str  # no two of a sweep; a folder's; more values or seeds keep it
    arguments: list[str]  # of launch.train, but for --workdir

    @property
    def fields(self) -> dict[str, str]:
        """What its arguments set, as text."""
        words = (word.removeprefix("--config.") for word in self.arguments[1:])
        return dict(word.split("=", 1) for word in words)


def expand(
    file: str,
    given: Mapping[str, Any],
    grids: Sequence[str],
    rows: Iterable[Any],
    seeds: int,
) -> list[Run]:
    """Every row with every combination of the grids, each with `seeds` seeds.

    `file` is a config with its size, `given` the fields that all runs share, a grid
    "FIELD=A,B,C". Seeds count up from the config's own and are in every name, so that
    more of them leave the runs that there are alone.
    InputError: a field that does not exist, is given twice or cannot have the value;
    two runs that are the same.
    """
    shared = {field: _text(value) for field, value in given.items()}
    base = load(file, shared)
    axes = [parse_grid(text) for text in grids]
    fields = [field for field, _ in axes]
    rows = [_checked_row(file, base, row) for row in rows]
    if seeds < 1:
        raise InputError(f"--seeds={seeds}: give 1 or more")
    if "seed" not in {*fields, *(field for row in rows for field in row)}:
        shared.pop("seed", None)  # where the count begins
        axes.append(("seed", [str(base.seed + n) for n in range(seeds)]))
    elif seeds > 1:
        raise InputError(f"--seeds={seeds}: the sweep names its seeds already")

    columns = [
        [(field, _parsed(file, base, field, text, "--grid")) for text in texts]
        for field, texts in axes
    ]
    points = []
    for row in rows:
        _check_once([*shared, *row, *fields])
        points += [row | dict(chosen) for chosen in itertools.product(*columns)]
    _check_different(points)
    names = named(points)
    fixed = [f"--config={file}", *_flags(shared)]
    return [
        Run(name, [*fixed, *_flags({f: _text(v) for f, v in point.items()})])
        for name, point in zip(names, points, strict=True)
    ]


def load(file: str, fields: Mapping[str, str]) -> ConfigDict:
    """The config as launch.train would read it. Errors are those of its flags."""
    values, argv = flags.FlagValues(), ["launch.train", f"--config={file}"]
    argv += _flags(fields)
    config_flags.DEFINE_config_file(
        "config", flag_values=values, lock_config=True, sys_argv=argv
    )
    values(argv)
    return values["config"].value


def parse_grid(text: str) -> tuple[str, list[str]]:
    """FIELD=A,B,(1,2),'x,y' -> FIELD and its four values: commas inside brackets and
    quotes do not separate."""
    field, equals, values = text.partition("=")
    if not equals or not field:
        raise InputError(f"--grid {text}: expected FIELD=VALUE,VALUE,...")
    field = field.removeprefix("config.")
    parts, depth, quote = [""], 0, ""
    for letter in values:
        if quote or letter in "'\"":
            closes = letter == quote
            if quote and not closes:
                parts[-1] += letter
            quote = "" if closes else quote or letter
        elif letter == "," and not depth:
            parts.append("")
        else:
            depth += (letter in "([") - (letter in ")]")
            parts[-1] += letter
    if quote or depth:
        raise InputError(f"--grid {text}: a bracket or a quote is left open")
    return field, parts


def rows_of_config(file: str) -> list[Any]:
    """What `def sweep()` of a config file yields. InputError: it has none, it fails."""
    path = Path(file.partition(".py")[0] + ".py")
    spec = importlib.util.spec_from_file_location("swept_config", path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        rows = list(module.sweep())
    except Exception as error:
        if not hasattr(module, "sweep"):
            raise InputError(
                f"{path}: no `def sweep()`; write one that yields "
                '{"optimizer.learning_rate": 1e-5} and the like'
            ) from error
        raise InputError(f"{path}: sweep(): {_line(error)}") from error
    if not rows:
        raise InputError(f"{path}: sweep() yields nothing")
    return rows


def named(points: Sequence[Point]) -> list[str]:
    """A name for each point: `learning_rate=1e-05__eta=0.5__seed=43`.

    Fields go by their last part where no other swept field has it too. A comma would
    break the lists of workdirs that other commands take.
    """
    fields = {field for point in points for field in point}
    ends = [_end(field) for field in fields]
    labels = {f: _end(f) if ends.count(_end(f)) == 1 else f for f in fields}
    names = []
    for point in points:
        parts = [f"{labels[field]}={_shown(v)}" for field, v in point.items()]
        name = "__".join(parts) or "unchanged"
        if len(name) > _LONGEST:
            name = f"{name[:_LONGEST]}__{_digest(name)}"
        names.append(name)
    return names


def _shown(value: Any) -> str:
    """A value in a name; a text that loses letters there gets a digest in return."""
    if isinstance(value, tuple):
        return "-".join(map(_shown, value)) or "none"
    plain = re.sub(r"[^A-Za-z0-9.+]+", "-", str(value)).strip("-")[:_SHOWN]
    if not isinstance(value, str):
        return str(value)
    return plain if plain == value else f"{plain}-{_digest(value)}".strip("-")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:6]


def _end(field: str) -> str:
    return field.rpartition(".")[2]


def _flags(fields: Mapping[str, str]) -> list[str]:
    return [f"--config.{field}={text}" for field, text in fields.items()]


def _text(value: Any) -> str:
    """As a flag says it."""
    return value if isinstance(value, str) else repr(value)


def _parsed(file: str, base: ConfigDict, field: str, text: str, where: str) -> Any:
    """The value that launch.train would see."""
    at, found = f"{where}: {field}={text!r}", base
    for part in field.split("."):
        if not isinstance(found, ConfigDict) or part not in found:
            near = get_close_matches(
                part, found if isinstance(found, ConfigDict) else ()
            )
            hint = f"; did you mean {near[0]}?" if near else ""
            raise InputError(f"{at}: no such field in {file}{hint}")
        found = found[part]
    if isinstance(found, ConfigDict):
        raise InputError(f"{at}: a section; name one of its fields")
    if not text.isprintable():
        raise InputError(f"{at}: one printable line, please")
    try:
        value = load(file, {field: text})
    except (flags.Error, TypeError, ValueError) as error:
        kind = type(found).__name__
        raise InputError(f"{at}: expected {kind}, such as {found!r}") from error
    for part in field.split("."):
        value = value[part]
    return value


def _checked_row(file: str, base: ConfigDict, row: Any) -> Point:
    if not isinstance(row, Mapping):
        raise InputError(f"{file}: sweep() yields {row!r}; expected {{field: value}}")
    point = {}
    for field, value in row.items():
        value = tuple(value) if isinstance(value, list) else value
        found = _parsed(file, base, field, _text(value), "sweep()")
        if found != value:
            raise InputError(
                f"sweep(): {field}={value!r}: expected {type(found).__name__}"
            )
        point[field] = found
    return point


def _check_once(fields: Sequence[str]) -> None:
    for field in fields:
        if fields.count(field) > 1:
            raise InputError(f"{field}: given more than once")


def _check_different(points: Sequence[Point]) -> None:
    seen = set()
    for point in points:
        key = tuple(sorted((field, repr(value)) for field, value in point.items()))
        if key in seen:
            raise InputError(f"two runs of this sweep are the same: {point}")
        seen.add(key)


def _line(error: Exception) -> str:
    text = str(error.args[0] if error.args else error)
    return " ".join(text.replace("\\n", " ").split())[:200]
