"""What became of the method's claims: two rows, one metric and a verdict a line (ours).

With a and b the rows' means over pairs, [.] intervals at the results' level, people
drawn (`metrics_statistics`), d = a - b pair by pair, turned so that more is better:

    (1) beats    holds: [a] lies above [b]    fails: [d] lies below 0
    (2) keeps    a loses less than SHARE of |b|
                 holds: [d] lies above -SHARE |b|    fails: [d] lies below it
    (3) reaches  holds: [a] is a limit or better     fails: [a] is worse than it

All else is undecided. (1) asks more than that [d] is above 0, which says that the rows
differ: `p` and [d] stand beside the verdict. A row that no evaluation made, or a metric
that it lacks, is "not run".
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from tavr_jax.errors import InputError
from tavr_jax.evaluation import benchmark, metrics_statistics, results
from tavr_jax.evaluation.benchmark import Metric
from tavr_jax.evaluation.metrics_statistics import Comparison
from tavr_jax.evaluation.page import Cell, Table
from tavr_jax.evaluation.results import Results

SHARE = 0.05  # of a mean: a loss that is none, (2)
STAGES = ("same_scene", "cross_scene", "policy")
HOLDS, FAILS, NOT_RUN = "holds", "fails", "not run"
_LINE = {
    "beats": "undecided (intervals overlap)",
    "keeps": f"undecided (interval reaches a loss of {SHARE:.0%})",
    "reaches": "undecided (interval reaches the limit)",
}

Rule = Literal["beats", "keeps", "reaches"]


class Row(NamedTuple):
    """Which row is meant."""

    protocol: str = "video"
    stage: str = ""  # "": the last one of which all rows of the claim are there
    attention: str = "global"


class Claim(NamedTuple):
    """A line. `limit` is of (3), which has no `other`."""

    text: str
    metric: str
    rule: Rule
    one: Row
    other: Row | None = None
    limit: float = 0.0
    needs_truth: bool = False  # the renderer's, not the real video's pixels


class Outcome(NamedTuple):
    """What a claim came to. None: it was not run, or has no other row."""

    verdict: str
    names: tuple[str, str] = ("", "")
    one: Mapping[str, Any] | None = None  # an `Estimate`
    other: Mapping[str, Any] | None = None
    apart: Comparison | None = None
    seeds: tuple[int, ...] = ()  # of each row


class Found(NamedTuple):
    """A row of some evaluation."""

    results: Results
    slug: str

    @property
    def about(self) -> dict[str, Any]:
        """What the results say of it."""
        return self.results["rows"][self.slug]


def _k(frames: int) -> Row:
    return Row(f"k{frames}")


VIDEO, WHOLE, DEAF, LONG = map(Row, ("video", "unselected", "deaf", "chunks6"))
FIRST, SECOND, THIRD = (Row(stage=stage) for stage in STAGES)
CLAIMS = (
    Claim("A video reference beats one image", "identity", "beats", VIDEO,
          Row("image")),
    Claim("A video reference, unheard, beats one image", "identity", "beats", DEAF,
          Row("image")),
    *(
        Claim(f"{more} reference frames beat {less}", "identity", "beats", _k(more),
              _k(less))
        for less, more in ((12, 48), (1, 4), (4, 12), (12, 20), (20, 48))
    ),
    Claim("48 reference frames keep the mouth of 12", "mouth", "keeps", _k(48), _k(12)),
    Claim("48 reference frames keep the lip-sync of 12", "sync_c", "keeps", _k(48),
          _k(12)),
    Claim("Stage 2 beats stage 1 across scenes", "identity", "beats", SECOND, FIRST),
    Claim("Stage 3 beats stage 2", "identity", "beats", THIRD, SECOND),
    Claim("Stage 3 keeps the mouth of stage 2", "mouth", "keeps", THIRD, SECOND),
    Claim("Stage 3 keeps the lip-sync of stage 2", "sync_c", "keeps", THIRD, SECOND),
    Claim("Token selection keeps identity", "identity", "keeps", VIDEO, WHOLE),
    Claim("Token selection keeps the mouth", "mouth", "keeps", VIDEO, WHOLE),
    Claim("Token selection takes fewer FLOPs", "gflops", "beats", VIDEO, WHOLE),
    Claim("Token selection takes less time", "seconds", "beats", VIDEO, WHOLE),
    Claim("Reference audio helps identity", "identity", "beats", VIDEO, DEAF),
    Claim("Reference audio helps the mouth", "mouth", "beats", VIDEO, DEAF),
    Claim("Reference audio helps the way of talking", "style", "beats", VIDEO, DEAF),
    Claim("Global reference attention beats frame-local", "identity", "beats", VIDEO,
          Row(attention="frame")),
    Claim("6 chunks keep the identity of 1", "identity", "keeps", LONG,
          Row("chunks1")),
    Claim("6 chunks drift in identity by at most 0.05", "identity_drift", "reaches",
          LONG, limit=0.05),
    Claim("6 chunks drift in the scene's colour by at most 2.3", "colour_scene",
          "reaches", LONG, limit=2.3),  # just seen: Mahy et al. 1994
    Claim("The mouth opens as in truth at stage 3, r of 0.8", "mouth", "reaches",
          THIRD, limit=0.8, needs_truth=True),
)  # fmt: skip


def claim_tables(
    runs: Sequence[Results], names: Sequence[str], claims: Sequence[Claim] = CLAIMS
) -> list[Table]:
    """One table of what several evaluations, read from `names`, say of the claims.

    InputError: they are not of the same samples or networks; two different checkpoints
    could be meant by one row.
    """
    for run, name in zip(runs[1:], names[1:], strict=True):
        results.check_comparable(runs[0], run, (names[0], name), "--claims")
    found = [outcome(claim, runs) for claim in claims]
    p_values = {str(i): o.apart and o.apart.p for i, o in enumerate(found)}
    holm = metrics_statistics.holm(p_values)
    level, samples = runs[0]["level"], runs[0]["samples"]
    people = len({sample["person"] for sample in samples})
    part = "" if runs[0]["benchmark"]["complete"] else " (incomplete)"
    note = (
        f"{runs[0]['benchmark']['name']}{part}: {len(samples)} pair(s) of {people} "
        f"person(s), means and {level:.0%} intervals, people drawn with replacement. "
        f"Beats: intervals of both rows apart. Keeps: loses less than {SHARE:.0%}. "
        "Fails: the interval of the difference is on the wrong side of that. p: "
        "sign-flip test of the difference over people; Holm: for all lines together."
    )
    heads = (
        "Claim", "Verdict", "Metric", "Row", "Against", "Mean", "Mean against",
        "Difference", "p", "p, Holm", "Seeds",
    )  # fmt: skip
    metrics = {m.key: m for run in runs for m in benchmark.listed(run["methods"])}
    rows = [
        (True, _cells(claim, one, metrics.get(claim.metric), holm[str(i)]))
        for i, (claim, one) in enumerate(zip(claims, found, strict=True))
    ]
    return [Table("Claims", note, [(head, "") for head in heads], rows)]


def outcome(claim: Claim, runs: Sequence[Results]) -> Outcome:
    """A claim's rows, found and compared. InputError: as `claim_tables`."""
    found = next(
        filter(None, (_rows(claim, alike) for alike in _alike(claim, runs))), None
    )
    if found is None:
        return Outcome(NOT_RUN)
    metric = next(
        (m for m in benchmark.listed(found[0].results["methods"])
         if m.key == claim.metric), None,
    )  # fmt: skip
    sums = [row.results["summary"][row.slug].get(claim.metric) for row in found]
    names = tuple([*(_name(row) for row in found), ""][:2])
    seeds = tuple(_seeds(row) for row in found)
    if metric is None or None in sums:
        return Outcome(NOT_RUN, names)
    if claim.other is None:
        verdict = _reached(claim, metric, sums[0])
        return Outcome(verdict, names, sums[0], seeds=seeds)
    apart = _apart(found, metric)
    if apart is None:
        return Outcome(NOT_RUN, names)
    verdict = _verdict(claim.rule, metric, *sums, apart)
    return Outcome(verdict, names, *sums, apart, seeds)


def _alike(claim: Claim, runs: Sequence[Results]) -> list[Sequence[Results]]:
    """The runs in which a claim's metric is one thing; those that know mouths first."""
    known = [run for run in runs if results.knows_mouths(run)]
    others = [run for run in runs if not results.knows_mouths(run)]
    if claim.needs_truth:
        return [known]
    return [known, others] if claim.metric == results.MOUTH else [runs]


def _rows(claim: Claim, runs: Sequence[Results]) -> list[Found] | None:
    """The rows of a claim; None: some were not made."""
    wanted = [row for row in (claim.one, claim.other) if row is not None]
    for stage in reversed(STAGES):
        found = [_find(row._replace(stage=row.stage or stage), runs) for row in wanted]
        if None not in found:
            return found
    return None


def _find(wanted: Row, runs: Sequence[Results]) -> Found | None:
    """The one row that is meant; of the same row made twice that with more seeds."""
    matching = [
        Found(run, slug)
        for run in runs
        for slug, about in run["rows"].items()
        if Row(about["protocol"], about.get("stage"), about.get("attention")) == wanted
    ]
    marks = {found.about["provenance"]["fingerprint"]: found for found in matching}
    if len(marks) > 1:
        told = " and ".join(_name(found) for found in marks.values())
        raise InputError(
            f"--claims: {told}: different checkpoints of stage {wanted.stage}; leave "
            "out the results of all but one"
        )
    return max(matching, key=_seeds, default=None)


def _apart(found: Sequence[Found], metric: Metric) -> Comparison | None:
    columns = [row.results["scores"][row.slug] for row in found]
    samples = [[{metric.key: x} for x in of[metric.key]] for of in columns]
    one = found[0].results
    people = [sample["person"] for sample in one["samples"]]
    told = benchmark.compare(*samples, people, one["level"], one["seed"], [metric])
    return told[metric.key]


def _verdict(
    rule: Rule,
    metric: Metric,
    one: Mapping[str, Any],
    other: Mapping[str, Any],
    apart: Comparison,
) -> str:
    """(1), (2)."""
    mine, theirs, between = (
        _turned(metric, e) for e in (one, other, apart.difference._asdict())
    )
    if None in (*mine, *theirs, *between):
        return _LINE[rule]  # of one person: there is no interval
    line = -SHARE * abs(other["mean"]) if rule == "keeps" else 0.0
    holds = between[0] > line if rule == "keeps" else mine[0] > theirs[1]
    return HOLDS if holds else FAILS if between[1] < line else _LINE[rule]


def _reached(claim: Claim, metric: Metric, one: Mapping[str, Any]) -> str:
    """(3)."""
    low, high = _turned(metric, one)
    if low is None or high is None:
        return _LINE[claim.rule]
    limit = claim.limit if metric.better == "high" else -claim.limit
    return HOLDS if low >= limit else FAILS if high < limit else _LINE[claim.rule]


def _turned(
    metric: Metric, found: Mapping[str, Any]
) -> tuple[float | None, float | None]:
    """An interval's ends, so that more is better."""
    low, high = found["low"], found["high"]
    if metric.better == "high" or low is None:
        return low, high
    return -high, -low


def _cells(
    claim: Claim,
    found: Outcome,
    metric: Metric | None,
    holm: float | None,
) -> list[Cell]:
    digits = metric.digits + 1 if metric else 3
    apart = found.apart
    estimates = (
        (found.one, ""),
        (found.other, ""),
        (apart and apart.difference._asdict(), "+"),
    )
    shown = [Cell(_estimate(e, digits, sign), None) for e, sign in estimates]
    p_values = [
        Cell("" if p is None else f"{p:.4f}", p) for p in (apart and apart.p, holm)
    ]
    return [
        *(Cell(text, text) for text in (claim.text, found.verdict)),
        Cell(metric.label if metric else claim.metric, None),
        *(Cell(name, name) for name in found.names),
        *shown,
        *p_values,
        Cell(", ".join(map(str, dict.fromkeys(found.seeds))), None),
    ]


def _estimate(found: Mapping[str, Any] | None, digits: int, sign: str) -> str:
    if found is None:
        return ""
    text = f"{found['mean']:{sign}.{digits}f}"
    if found["low"] is None:
        return text
    return f"{text} [{found['low']:.{digits}f}, {found['high']:.{digits}f}]"


def _name(row: Found) -> str:
    attention = row.about["attention"]
    return row.about["name"] + f" ({attention})" * (attention != "global")


def _seeds(row: Found) -> int:
    return len(row.about["seeds"])
