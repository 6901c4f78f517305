"""results.json: every score of an evaluation, and what follows from the scores.

    version     of the scores                command, seed, level   of the run
    benchmark   {name, sha256, samples, complete, missing: {key: reason}, truth: whether
                mouths were held against the true ones}
    rows        {slug: {name, protocol, family, frames, chunks, hears, stage, attention,
                seeds, provenance, made_with}}
    methods     {metric: {network, version, licence, preprocessing, commercial,
                name, meaning, better, digits}}
    samples     [{key, person, reference, target, caption, seconds, size, ...}]
    scores      {slug: {metric: [value or null, a sample each]}}, of a row with several
                seeds their means
    draws       {slug: {metric: [[value or null, a seed each], a sample each]}}, of the
                rows that have several
    failures    {slug: {key: [tag, ...]}}
    summary     {slug: {metric: Estimate or null}}
    sets        {slug: {fid_mini, kid_mini, fvd_mini, kvd_mini}}, from the real videos;
                fid, fvd with networks for them
    set_methods {the same keys: as methods}
    comparisons {"a|b": {metric: Comparison or null}}, a less b
    unspoken    Estimate of (6) of `metrics_leakage`, the mouth r that needs no speech;
                only where the true openings are known
    sweep       {metric: {family: {k, mean, low, high}}}, lists of equal length in the
                order of k; only if some family was made with several k

Means, intervals and tests are those of `metrics_statistics`. Two files compare if they
are of the same samples in the same order, scored in the same way.
"""

import json
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from tavr_jax.errors import InputError
from tavr_jax.evaluation import (
    benchmark,
    failures,
    metrics_features,
    metrics_leakage,
    metrics_statistics,
)
from tavr_jax.evaluation.benchmark import METRICS, Metric
from tavr_jax.evaluation.failures import FailureConfig
from tavr_jax.evaluation.metrics_method import Method
from tavr_jax.evaluation.score_video import Scores

Results = dict[str, Any]
# Kinds of features: what their Frechet and their kernel distance are called.
SETS = {
    "frames": ("fid_mini", "kid_mini"),
    "clips": ("fvd_mini", "kvd_mini"),
    "fid": ("fid", None),
    "fvd": ("fvd", None),
}
REAL = "truth"  # slug of the row that sets are held against
COPY = "codec"  # slug of its copy by the autoencoder, where there is one
MOUTH = "mouth"  # the metric whose meaning depends on benchmark.truth


class Record(NamedTuple):
    """What is kept of one row on one sample."""

    scores: Scores
    failures: tuple[str, ...]
    features: Mapping[str, Float[ndarray, "n _"]]  # by the keys of `SETS`
    reason: str = ""  # why the video is missing
    draws: tuple[Scores, ...] = ()  # of each seed, where these are means over several


def merged(draws: Sequence[Record], metrics: Sequence[Metric] = METRICS) -> Record:
    """One row on one sample, made with several seeds: it counts as one sample.

    Scores are means over the seeds that have one, of their sizes where what is best is
    0. Features are those of the first: distances of sets fall with their size, and rows
    of one seed stand beside.
    """
    if len(draws) == 1:
        return draws[0]
    each = [benchmark.columns([record.scores], metrics) for record in draws]
    scores: Scores = {}
    for key in each[0]:
        known = [value for one in each if (value := one[key][0]) is not None]
        scores[key] = float(np.mean(known)) if known else None
    told = dict.fromkeys(tag for record in draws for tag in record.failures)
    of_each = tuple(record.scores for record in draws)
    return draws[0]._replace(scores=scores, failures=tuple(told), draws=of_each)


def described(
    methods: Mapping[str, Method], metrics: Sequence[Metric] = METRICS
) -> dict[str, dict[str, Any]]:
    """`methods`, with what each metric means."""
    return {
        m.key: methods[m.key]._asdict()
        | {"name": m.name, "meaning": m.meaning, "better": m.better, "digits": m.digits}
        for m in metrics
    }


def findings(
    records: Mapping[str, Sequence[Record]],
    samples: Sequence[Mapping[str, Any]],
    compared: Sequence[tuple[str, str]],
    limits: FailureConfig,
    level: float,
    seed: int,
    metrics: Sequence[Metric] = METRICS,
) -> Results:
    """Everything above that follows from the records of rows, by their slug.

    `compared` names the pairs of rows that are tested against each other. The row
    `REAL` is one of the records.
    """
    people = [sample["person"] for sample in samples]
    keys = [sample["key"] for sample in samples]
    scores = {slug: [r.scores for r in row] for slug, row in records.items()}
    copies = records.get(COPY, [None] * len(keys))
    return {
        "scores": {
            slug: {m.key: [s.get(m.key) for s in row] for m in metrics}
            for slug, row in scores.items()
        },
        "failures": {
            slug: {
                key: tags
                for key, record, real, copy in zip(
                    keys, row, records[REAL], copies, strict=True
                )
                if (tags := _tags(record, real, copy, limits))
            }
            for slug, row in records.items()
        },
        "draws": {
            slug: {
                m.key: [[s.get(m.key) for s in r.draws] for r in row] for m in metrics
            }
            for slug, row in records.items()
            if any(r.draws for r in row)
        },
        "summary": {
            slug: _plain(benchmark.summarise(row, people, level, seed, metrics))
            for slug, row in scores.items()
        },
        "sets": {
            slug: distances(row, records[REAL])
            for slug, row in records.items()
            if slug != REAL
        },
        "comparisons": {
            f"{a}|{b}": _plain(
                benchmark.compare(scores[a], scores[b], people, level, seed, metrics)
            )
            for a, b in compared
        },
    }


def unspoken(
    openings: Mapping[str, Float[ndarray, " _"]] | None,
    samples: Sequence[Mapping[str, Any]],
    level: float,
    seed: int,
) -> Results:
    """ "unspoken" of the samples' true mouth openings, by their keys; {} without."""
    if openings is None:
        return {}
    people = [sample["person"] for sample in samples]
    values = metrics_leakage.unspoken([openings[s["key"]] for s in samples], people)
    found = metrics_statistics.estimate(values, people, level, seed)
    return {} if found is None else {"unspoken": found._asdict()}


def _tags(
    record: Record, real: Record, copy: Record | None, limits: FailureConfig
) -> list[str]:
    """What is wrong with the video, or with that of any seed."""
    each = record.draws or (record.scores,)
    beside = real.scores, limits, copy and copy.scores
    found = [tag for one in each for tag in failures.tags(one, *beside)]
    return list(dict.fromkeys([*record.failures, *found]))


def sweep(
    rows: Mapping[str, Mapping[str, Any]],
    summary: Mapping[str, Mapping[str, Mapping[str, Any] | None]],
) -> Results:
    """Every metric over the number of reference frames: {} if none was varied.

    What no sample has at some k is not a point there.
    """
    families: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for slug, row in rows.items():
        if row["frames"]:
            families[row["family"]].append((row["frames"], slug))
    found: Results = defaultdict(dict)
    for family, points in families.items():
        if len(points) < 2:
            continue
        for key in summary[points[0][1]]:
            known = [(k, summary[slug][key]) for k, slug in sorted(points)]
            known = [(k, of) for k, of in known if of is not None]
            if known:
                found[key][family] = {"k": [k for k, _ in known]} | {
                    name: [of[name] for _, of in known]
                    for name in ("mean", "low", "high")
                }
    return dict(found)


def distances(row: Sequence[Record], real: Sequence[Record]) -> dict[str, Any]:
    """The distances of `SETS` between the videos of a row and the real ones.

    Of kinds of features that the real videos have.
    """
    found: dict[str, Any] = {}
    for kind, (frechet, kernel) in SETS.items():
        sets = [
            [r.features[kind] for r in records if len(r.features.get(kind, ()))]
            for records in (row, real)
        ]
        if not sets[1]:
            continue
        apart = between = None
        if sets[0]:
            whole = [np.concatenate(rows) for rows in sets]
            apart = metrics_features.distance(*map(metrics_features.gather, whole))
            between = metrics_features.kernel_distance(*whole)
        found[frechet] = apart and apart._asdict()
        if kernel:
            found[kernel] = between
    return found


def read(path: str | Path, flag: str = "--compare") -> Results:
    """A results.json, or that of a folder. InputError: none, or of another version."""
    path = Path(path)
    path = path / "results.json" if path.is_dir() else path
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        version, keys = found["version"], [s["key"] for s in found["samples"]]
        sound = all(
            len(row[m.key]) == len(keys)
            for row in found["scores"].values()
            if version == benchmark.VERSION
            for m in benchmark.listed(found["methods"])
        )
        _ = found["benchmark"]["sha256"], [s["person"] for s in found["samples"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{flag} {path}: not the results.json of launch.evaluate "
            f"({type(error).__name__}); give such a file or its folder"
        ) from error
    if version != benchmark.VERSION or not sound:
        raise InputError(
            f"{flag} {path}: scores of version {version}, this is "
            f"{benchmark.VERSION}; evaluate again"
        )
    return found


def compare(first: Results, second: Results, names: tuple[str, str]) -> Results:
    """Rows of one file against rows of another: {"a|b": {metric: Comparison}}.

    Rows of one name are held against each other, marks left out; where no name is in
    both, every row against every row. The mouth is left out where it was not held
    against the same truth. InputError: they are not of the same samples, or were not
    scored in the same way.
    """
    metrics = [
        metric
        for metric in benchmark.listed(first["methods"])
        if metric.key in second["methods"]
        and (metric.key != MOUTH or knows_mouths(first) == knows_mouths(second))
    ]
    check_comparable(first, second, names, "--compare")
    people = [sample["person"] for sample in first["samples"]]
    mine, theirs = (_rows(found) for found in (first, second))
    both = [(slug, slug) for slug in mine if slug in theirs]
    pairs = both or [(a, b) for a in mine for b in theirs]
    level, seed = first["level"], first["seed"]
    return {
        f"{a}|{b}": _plain(
            benchmark.compare(mine[a], theirs[b], people, level, seed, metrics)
        )
        for a, b in pairs
    }


def knows_mouths(found: Results) -> bool:
    """Whether `MOUTH` is of the true openings, not of the real video's pixels."""
    return bool(found["benchmark"].get("truth"))


def check_comparable(
    first: Results, second: Results, names: tuple[str, str], flag: str
) -> None:
    """InputError: not of the same samples, or not scored in the same way."""
    shared = first["methods"].keys() & second["methods"].keys()
    for what, of in (
        ("benchmark", lambda r: r["benchmark"]["sha256"]),
        ("samples", lambda r: [s["key"] for s in r["samples"]]),
        ("judging networks", lambda r: _judges(r["methods"], shared)),
    ):
        if of(first) != of(second):
            raise InputError(
                f"{flag} {names[0]} {names[1]}: not the same {what}; compare "
                "evaluations of one benchmark by the same networks"
            )


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


def _judges(
    methods: Mapping[str, Mapping[str, Any]], shared: Collection[str]
) -> dict[str, str]:
    return {key: methods[key]["network"] for key in sorted(shared)}


def _plain(found: Mapping[str, Any]) -> dict[str, Any]:
    """Named tuples as the objects of a JSON file."""
    return {key: value and _object(value) for key, value in found.items()}


def _object(value: Any) -> Any:
    if hasattr(value, "_asdict"):
        return {key: _object(inner) for key, inner in value._asdict().items()}
    return value
