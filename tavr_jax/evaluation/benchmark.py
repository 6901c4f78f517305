"""What is scored, what the numbers mean, and what rows of them say.

A row is a way to make the video of a sample: a checkpoint, somebody's folder of videos,
or one of the marks that tell how its numbers read:

    truth    the real video: what identity, sharpness and lip-sync can be at best
    codec    the real video through the autoencoder: the ceiling of every checkpoint
    still    frame 0 repeated: the right face in the right place, that does not speak
    copied   the reference's own frames: who, but neither where nor what is said
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from tavr_jax.evaluation import metrics_statistics
from tavr_jax.evaluation.metrics_method import OURS, Method
from tavr_jax.evaluation.metrics_statistics import Comparison, Estimate
from tavr_jax.evaluation.score_video import Scores

VERSION = "2"  # of the scores; a change of what is computed is a change of it

MARKS = {
    "truth": "Ground truth",
    "codec": "Codec reconstruction",
    "still": "Still, repeated",
    "copied": "Reference, copied",
}

NAMED = ("identity", "identity_best", "identity_target", "facesim")  # of each network

Better = Literal["high", "low", "one", "zero"]
ARROWS = {"high": "↑", "low": "↓", "one": "→ 1", "zero": "→ 0"}


class Metric(NamedTuple):
    """One column. What is best at zero is averaged by its size: -3 and 3 are 3."""

    key: str
    name: str
    better: Better
    digits: int
    meaning: str
    how: str  # a key of `methods`' words, or of a network that a user gave

    @property
    def label(self) -> str:
        """With an arrow: which way is better."""
        return f"{self.name} {ARROWS[self.better]}"


METRICS = (
    Metric(
        "identity", "Identity", "high", 3,
        "cosine to all reference faces, mean", "face",
    ),
    Metric(
        "identity_best", "Identity, best", "high", 3,
        "cosine to the nearest reference face, mean over frames", "face",
    ),
    Metric(
        "identity_target", "Identity, target", "high", 3,
        "cosine to the real video's faces, mean", "face",
    ),
    Metric(
        "identity_lost", "Identity lost", "low", 3,
        "identity of the real video - identity", "face",
    ),
    Metric(
        "facesim", "FaceSim", "high", 3,
        "cosine to the reference's faces over 16 frames, none below 0", "face",
    ),
    Metric(
        "sync_c", "Sync-C", "high", 3,
        "median - min of the sync distance over shifts", "sync",
    ),
    Metric("sync_d", "Sync-D", "low", 3, "sync distance at the best shift", "sync"),
    Metric("offset", "Offset", "zero", 1, "best shift, frames", "sync"),
    Metric(
        "mouth", "Mouth r", "high", 3,
        "mouth motion, correlation with the real one", "mouth",
    ),
    Metric(
        "follows", "Follows", "high", 3,
        "how far the mouth follows the real video's, above chance", "curves",
    ),
    Metric(
        "leak", "Leak", "low", 3,
        "how far the mouth follows the reference's talk, above chance", "curves",
    ),
    Metric("psnr", "PSNR", "high", 2, "against the real video, dB", "image"),
    Metric("ssim", "SSIM", "high", 3, "against the real video", "image"),
    Metric(
        "bg_psnr", "Scene PSNR", "high", 2,
        "against the real video outside the person, dB", "image",
    ),
    Metric(
        "bg_ssim", "Scene SSIM", "high", 3,
        "against the real video outside the person", "image",
    ),
    Metric(
        "sharpness", "Sharpness", "one", 2,
        "fine detail of the face / the real one's", "luma",
    ),
    Metric(
        "flicker", "Flicker", "zero", 2,
        "change outside the face - the real one's, grey levels", "luma",
    ),
    Metric(
        "motion", "Motion", "one", 2, "motion of the face / the real one's", "luma",
    ),
    Metric(
        "blinks", "Blinks", "zero", 1,
        "blinks a minute - the real video's", "curves",
    ),
    Metric(
        "style", "Style", "low", 3,
        "how differently from the reference mouth, head and eyes move", "curves",
    ),
    Metric(
        "identity_drift", "Identity drift", "zero", 3,
        "likeness to its own first seconds, last seconds - first", "face",
    ),
    Metric(
        "colour_scene", "Scene drift", "low", 2,
        "colour outside the person, last seconds to first, CIE 1976", "image",
    ),
    Metric(
        "colour_face", "Face drift", "low", 2,
        "colour of the face, last seconds to first, CIE 1976", "image",
    ),
    Metric(
        "seam", "Seam", "low", 2,
        "change where chunks join / the usual change, the largest", "image",
    ),
)  # fmt: skip


SILENT = (
    Metric(
        "silence_moves", "Silent mouth", "low", 3,
        "motion of the mouth in silence / the reference's talking mouth", "curves",
    ),
    Metric(
        "silence_sync", "Silent Sync-C", "low", 3,
        "lip-sync to the reference's speech of a video driven by silence", "sync",
    ),
)  # fmt: skip
COST = (
    Metric(
        "gflops", "GFLOPs", "low", 1,
        "of sampling the video, by arithmetic, billions", "arithmetic",
    ),
    Metric(
        "seconds", "Seconds", "low", 2,
        "of sampling the video, by the clock of the machine that made it", "clock",
    ),
)  # fmt: skip
LPIPS = Metric("lpips", "LPIPS", "low", 3, "perceptual distance to the real", "lpips")


class Network(NamedTuple):
    """A network that judges."""

    what: str  # with the fingerprint of its weights
    licence: str
    commercial: bool
    preprocessing: str = ""  # of one that a user gave


def metrics_of(
    networks: Mapping[str, Network], silent: bool, sampled: bool = False
) -> tuple[Metric, ...]:
    """The columns: `METRICS`, and those of what a user gave and asked for.

    `silent`: some row is driven by silence; `sampled`: some row is a checkpoint's.

    A face network called NAME is "face NAME" among `networks`.
    """
    named = [
        m._replace(key=f"{name}/{m.key}", name=f"{m.name}, {name}", how=how)
        for how in networks
        for kind, _, name in [how.partition(" ")]
        if kind == "face" and name
        for m in METRICS
        if m.key in NAMED
    ]
    apart = [LPIPS] if "lpips" in networks else []
    asked = (*(SILENT if silent else ()), *(COST if sampled else ()))
    return (*METRICS, *named, *apart, *asked)


def listed(methods: Mapping[str, Mapping[str, Any]]) -> tuple[Metric, ...]:
    """The columns of a results.json, from its "methods"."""
    fields = [name for name in Metric._fields if name not in ("key", "how")]
    return tuple(
        Metric(key=key, how="", **{name: told[name] for name in fields})
        for key, told in methods.items()
    )


def methods(
    networks: Mapping[str, Network], metrics: Sequence[Metric] = METRICS
) -> dict[str, Method]:
    """How each metric was computed: by "face" and "lipsync", and by what was given."""
    crops = "square crops, 1.25 x the median face box of the real video"
    frames = "frames at bucket size as decoded, before any video compression of ours"
    told = {
        "face": crops,
        "sync": f"{crops}; log-mel rows; windows where both exist",
        "image": frames,
        "luma": f"{frames}; luma in grey levels 0..255",
        "mouth": "luma of the lower face, projected on the first principal direction "
        "of the real video; Pearson correlation with the real video's curve, or with "
        "the true mouth opening where it is known",
        "arithmetic": "matrix products of the transformer (models/flops.py), places "
        "that only pad among them; no encoder, no decoder",
        "clock": "the sampler alone, without encoding and decoding, while other "
        "videos are scored; not the first run of a program, which compiles it",
        "curves": "contrast of mouth and eyes in luma crops around the median face "
        "box, laid over each other; the reference from the first frame shown on",
    }
    judge = {**networks, "sync": networks["lipsync"]}
    none = Network("none", OURS, True)

    def method(metric: Metric) -> Method:
        used = judge.get(metric.how, none)
        fed = told.get(metric.how) or used.preprocessing
        return Method(used.what, VERSION, used.licence, fed, used.commercial)

    return {metric.key: method(metric) for metric in metrics}


def set_methods(networks: Mapping[str, Network]) -> dict[str, Method]:
    """How the distances of sets were computed."""
    mini = Network("metrics_mini", OURS, True, "bucket size, RGB; every 5th frame")
    clips = mini._replace(preprocessing="bucket size, RGB; all disjoint 16 frames")
    used = {
        **{"fid_mini": mini, "kid_mini": mini, "fvd_mini": clips, "kvd_mini": clips},
        **{kind: networks[kind] for kind in ("fid", "fvd") if kind in networks},
    }
    return {
        key: Method(n.what, VERSION, n.licence, n.preprocessing, n.commercial)
        for key, n in used.items()
    }


def columns(
    samples: Sequence[Scores], metrics: Sequence[Metric] = METRICS
) -> dict[str, list[float | None]]:
    """Each metric's values over the samples, as they are averaged."""
    found: dict[str, list[float | None]] = {}
    for metric in metrics:
        values = [sample.get(metric.key) for sample in samples]
        if metric.better == "zero":
            values = [None if value is None else abs(value) for value in values]
        found[metric.key] = values
    return found


def summarise(
    samples: Sequence[Scores],
    people: Sequence[str],
    level: float,
    seed: int,
    metrics: Sequence[Metric] = METRICS,
) -> dict[str, Estimate | None]:
    """Mean and interval of every metric; None where no sample has it."""
    return {
        key: metrics_statistics.estimate(values, people, level, seed)
        for key, values in columns(samples, metrics).items()
    }


def compare(
    first: Sequence[Scores],
    second: Sequence[Scores],
    people: Sequence[str],
    level: float,
    seed: int,
    metrics: Sequence[Metric] = METRICS,
) -> dict[str, Comparison | None]:
    """A row less another on the same samples: what they share, as an easy face,
    cancels."""
    rows = columns(first, metrics), columns(second, metrics)
    return metrics_statistics.compare(*rows, people, level, seed)
