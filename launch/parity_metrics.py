"""Replays of the scores of a video."""

import functools
from collections.abc import Callable

import numpy as np
from scipy.signal import medfilt

from launch.parity_oracle import EXACT, FORWARD, Check, Oracle
from tavr_jax.evaluation import metrics

SCORE = 1e-6
_SMOOTHED = 9  # frames under the median of SyncNet's curve of confidence


def replay_metrics(oracle: Oracle) -> list[Check]:
    """Frechet distance, lip sync, identity, PSNR and SSIM."""
    found: dict[str, tuple[Callable, float]] = {}
    for name in oracle.names:
        if name.startswith("fid_") and name.endswith("_f1"):
            found |= _frechet(oracle, name.removesuffix("_f1"))
        elif name.endswith("_dim"):
            found |= _closed(oracle, name.removesuffix("_dim"))
        elif name.startswith("sync_") and name.endswith("_video"):
            found |= _sync(oracle, name.removesuffix("_video"))
    if "id_frames" in oracle:
        found |= _identity(oracle)
    if "img1" in oracle:
        images = oracle["img1"][None], oracle["img2"][None]
        found |= {
            "psnr": (lambda: np.asarray(metrics.psnr(*images)), SCORE),
            "ssim": (lambda: np.asarray(metrics.ssim(*images)), SCORE),
        }
    return oracle.checks(found)


def _frechet(oracle: Oracle, stem: str) -> dict:
    """Both divisors of the covariance, both published ways to take the root."""
    sets = oracle[f"{stem}_f1"], oracle[f"{stem}_f2"]

    def distance(ddof: int) -> np.ndarray:
        both = []
        for features in sets:
            found, count = metrics.moments(features), len(features)
            scale = (count - 1) / (count - ddof)
            both.append(found._replace(covariance=found.covariance * scale))
        return np.asarray(metrics.frechet_distance(*both))

    return {
        f"{stem}_ddof{ddof}{root}": (functools.partial(distance, ddof), SCORE)
        for ddof in (0, 1)
        for root in ("", "_sqrtm")
    }


def _closed(oracle: Oracle, stem: str) -> dict:
    """Two round Gaussians, one g times as wide and moved by mu on every axis."""
    dim = int(oracle[f"{stem}_dim"])
    g, mu = float(oracle[f"{stem}_g"]), float(oracle[f"{stem}_mu"])

    def distance() -> np.ndarray:
        first = metrics.Moments(np.zeros(dim), np.eye(dim))
        second = metrics.Moments(np.full(dim, mu), g * np.eye(dim))
        return np.asarray(metrics.frechet_distance(first, second))

    return {stem: (distance, SCORE)}


def _sync(oracle: Oracle, stem: str) -> dict:
    """The curve of one clip, its scores, and what its frames add to them."""
    pair = oracle[f"{stem}_video"], oracle[f"{stem}_audio"]
    reach = len(oracle.expected(f"{stem}_mean_dist")) // 2
    score = functools.cache(lambda: metrics.lip_sync(*pair, reach, zero_ends=True))
    apart = functools.cache(lambda: metrics.sync_distances(*pair, reach))
    head = f"{stem}_dists_head"

    def frames() -> np.ndarray:
        curve = score().curve
        return medfilt(np.median(curve) - apart()[:, curve.argmin()], _SMOOTHED)

    return {
        f"{stem}_mean_dist": (lambda: score().curve, SCORE),
        f"{stem}_offset": (lambda: np.asarray(score().offset), EXACT),
        f"{stem}_min_dist": (lambda: np.asarray(score().distance), SCORE),
        f"{stem}_conf": (lambda: np.asarray(score().confidence), SCORE),
        f"{stem}_frame_conf": (frames, SCORE),
        head: (lambda: apart()[: len(oracle.expected(head))], SCORE),
    }


def _identity(oracle: Oracle) -> dict:
    """Cosines of all frames with one reference face."""
    frames, reference = oracle["id_frames"], oracle["id_ref"]

    def cosines() -> np.ndarray:
        return np.array([metrics.identity(f[None], reference).mean for f in frames])

    def mean() -> np.ndarray:
        return np.asarray(metrics.identity(frames, reference).mean)

    return {"id_cos": (cosines, FORWARD), "id_mean": (mean, FORWARD)}
