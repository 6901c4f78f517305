"""results.json: every score of an evaluation, and what follows from the scores.

    version     of the scores                command, seed, level   of the run
    benchmark   {name, sha256, samples, complete, missing: {key: reason}}
    rows        {slug: {name, protocol, provenance, made_with}}
    methods     {metric: {network, version, licence, preprocessing, commercial,
                name, meaning, better, digits}}
    samples     [{key, person, reference, target, caption, seconds, size, ...}]
    scores      {slug: {metric: [value or null, a sample each]}}
    failures    {slug: {key: [tag, ...]}}
    summary     {slug: {metric: Estimate or null}}
    sets        {slug: {fid_mini, kid_mini, fvd_mini, kvd_mini}}, from the real videos
    comparisons {"a|b": {metric: Comparison or null}}, a less b

Means, intervals and tests are those of `metrics_statistics`. Two files compare if they
are of the same samples in the same order, scored in the same way.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from tavr_jax.errors import InputError
from tavr_jax.evaluation import benchmark, failures, metrics_features
from tavr_jax.evaluation.benchmark import METRICS
from tavr_jax.evaluation.failures import FailureConfig
from tavr_jax.evaluation.metrics_method import Method
from tavr_jax.evaluation.score_video import Scores

Results = dict[str, Any]
SETS = ("fid_mini", "kid_mini", "fvd_mini", "kvd_mini")
REAL = "truth"  # slug of the row that sets are held against


class Record(NamedTuple):
    """What is kept of one row on one sample."""

    scores: Scores
    failures: tuple[str, ...]
    frames: Float[ndarray, "n 39"]  # features, of `metrics_mini`
    clips: Float[ndarray, "n 51"]


def described(methods: Mapping[str, Method]) -> dict[str, dict[str, Any]]:
    """`methods`, with what each metric means."""
    return {
        m.key: methods[m.key]._asdict()
        | {"name": m.name, "meaning": m.meaning, "better": m.better, "digits": m.digits}
        for m in METRICS
    }


def findings(
    records: Mapping[str, Sequence[Record]],
    samples: Sequence[Mapping[str, Any]],
    compared: Sequence[tuple[str, str]],
    limits: FailureConfig,
    level: float,
    seed: int,
) -> Results:
    """Everything above that follows from the records of rows, by their slug.

    `compared` names the pairs of rows that are tested against each other. The row
    `REAL` is one of the records.
    """
    people = [sample["person"] for sample in samples]
    keys = [sample["key"] for sample in samples]
    scores = {slug: [r.scores for r in row] for slug, row in records.items()}
    return {
        "scores": {
            slug: {m.key: [s[m.key] for s in row] for m in METRICS}
            for slug, row in scores.items()
        },
        "failures": {
            slug: {
                key: tags
                for key, record, real in zip(keys, row, records[REAL], strict=True)
                if (
                    tags := [
                        *record.failures,
                        *failures.tags(record.scores, real.scores, limits),
                    ]
                )
            }
            for slug, row in records.items()
        },
        "summary": {
            slug: _plain(benchmark.summarise(row, people, level, seed))
            for slug, row in scores.items()
        },
        "sets": {
            slug: distances(row, records[REAL])
            for slug, row in records.items()
            if slug != REAL
        },
        "comparisons": {
            f"{a}|{b}": _plain(
                benchmark.compare(scores[a], scores[b], people, level, seed)
            )
            for a, b in compared
        },
    }


def distances(row: Sequence[Record], real: Sequence[Record]) -> dict[str, Any]:
    """The distances of `SETS` between the videos of a row and the real ones."""
    found: dict[str, Any] = dict.fromkeys(SETS)
    for kind, frechet, kernel in (("frames", *SETS[:2]), ("clips", *SETS[2:])):
        sets = [
            np.concatenate([getattr(record, kind) for record in records])
            for records in (row, real)
        ]
        apart = metrics_features.distance(*map(metrics_features.gather, sets))
        found[frechet] = apart and apart._asdict()
        found[kernel] = metrics_features.kernel_distance(*sets)
    return found


def read(path: str | Path) -> Results:
    """A results.json, or that of a folder. InputError: none, or of another version."""
    path = Path(path)
    path = path / "results.json" if path.is_dir() else path
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        version, keys = found["version"], [s["key"] for s in found["samples"]]
        sound = all(
            len(row[m.key]) == len(keys)
            for row in found["scores"].values()
            for m in METRICS
            if version == benchmark.VERSION
        )
        _ = found["benchmark"]["sha256"], [s["person"] for s in found["samples"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"--compare {path}: not the results.json of launch.evaluate "
            f"({type(error).__name__}); give such a file or its folder"
        ) from error
    if version != benchmark.VERSION or not sound:
        raise InputError(
            f"--compare {path}: scores of version {version}, this is "
            f"{benchmark.VERSION}; evaluate again"
        )
    return found


def compare(first: Results, second: Results, names: tuple[str, str]) -> Results:
    """Rows of one file against rows of another: {"a|b": {metric: Comparison}}.

    Rows of one name are held against each other, marks left out; where no name is in
    both, every row against every row. InputError: they are not of the same samples, or
    were not scored in the same way.
    """
    for what, of in (
        ("benchmark", lambda r: r["benchmark"]["sha256"]),
        ("samples", lambda r: [s["key"] for s in r["samples"]]),
        ("judging networks", lambda r: _judges(r["methods"])),
    ):
        if of(first) != of(second):
            raise InputError(
                f"--compare {names[0]} {names[1]}: not the same {what}; compare "
                "evaluations of one benchmark by the same networks"
            )
    people = [sample["person"] for sample in first["samples"]]
    mine, theirs = (_rows(found) for found in (first, second))
    shared = [(slug, slug) for slug in mine if slug in theirs]
    pairs = shared or [(a, b) for a in mine for b in theirs]
    return {
        f"{a}|{b}": _plain(
            benchmark.compare(mine[a], theirs[b], people, first["level"], first["seed"])
        )
        for a, b in pairs
    }


def _rows(found: Results) -> dict[str, list[Scores]]:
    """The scores of every row that is no mark, a dict a sample."""
    return {
        slug: [
            dict(zip(columns, values, strict=True))
            for values in zip(*columns.values(), strict=True)
        ]
        for slug, columns in found["scores"].items()
        if slug not in benchmark.MARKS
    }


def _judges(methods: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    return {key: method["network"] for key, method in methods.items()}


def _plain(found: Mapping[str, Any]) -> dict[str, Any]:
    """Named tuples as the objects of a JSON file."""
    return {key: value and _object(value) for key, value in found.items()}


def _object(value: Any) -> Any:
    if hasattr(value, "_asdict"):
        return {key: _object(inner) for key, inner in value._asdict().items()}
    return value
