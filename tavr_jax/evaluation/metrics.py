"""Scores of a talking video, as functions of arrays.

Frames are compared in 0..255; embeddings are rows. With f_i the face embedding of
generated frame i, r_j that of reference face j, v_t and a_t the lip and speech
embeddings of window t, x and y generated and true frames:

    (1) identity       mean_ij cos(f_i, r_j)                     all pairs
    (2) identity best  mean_i max_j cos(f_i, r_j)                best-matching face
    (3) sync curve     D(s) = mean_t |v_t - a_(t+s)|, s = -k..k
        Sync-D = min_s D,  Sync-C = median_s D - min_s D,  offset = -argmin_s D
    (4) PSNR           10 log10(255^2 / mean (x - y)^2)
    (5) SSIM           (2 mx my + c1)(2 sxy + c2) / (mx^2 + my^2 + c1)(sx + sy + c2)
        under an 11-tap Gaussian of sigma 1.5, where it fits, channels averaged,
        population (co)variances, c1 = 2.55^2, c2 = 7.65^2
    (6) sharpness      variance of the Laplacian of luma inside the face box
    (7) flicker        mean |x_(i+1) - x_i| over pixels no face box comes near
    (8) mouth motion   p_i = w . m_i, where m_i is the luma of the mouth region and w
                       the first principal direction of the true mouth regions;
                       the score is the Pearson correlation of two such curves
    (9) Frechet        |m1 - m2|^2 + tr(C1 + C2 - 2 (C1^(1/2) C2 C1^(1/2))^(1/2)) of
        distance       the means and covariances of two sets of features

(3) is SyncNet's (joonson/syncnet_python, `calc_pdist` and `evaluate`): a positive
offset means the speech runs ahead of the lips. SyncNet takes a = 0 outside the clip,
which is harmless for its long embeddings and wrong for unit ones: zero is nearer to a
unit vector than another one that has nothing to do with it, so that lips without any
sync would seem to fit best at the largest shift. There the mean is over the t where
both exist. (5) is Wang et al. 2004 as scikit-image computes it with
`gaussian_weights=True, use_sample_covariance=False`. (6) to (8) are ours: only
comparison with the ground truth of the same clip gives them a meaning. (9) is Heusel
et al. 2017 (arXiv 1706.08500) with the product under the root made symmetric, which
needs no complex root and holds for singular covariances: fewer samples than features.
"""

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8

_EPS = 1e-6  # torch's pairwise_distance adds it to every difference
_LUMA = np.array([0.299, 0.587, 0.114])
_MOUTH = (0.2, 0.6, 0.8, 1.0)  # left top right bottom, as shares of the face box
_MOUTH_SIZE = (16, 24)  # rows, columns it is resampled to
_FACE_MARGIN = 0.5  # of a box's size, kept away from by flicker on every side


class Identity(NamedTuple):
    """(1) and (2), cosines in -1..1."""

    mean: float
    best: float


class Moments(NamedTuple):
    """Mean and covariance of features, what (9) compares."""

    mean: Float[np.ndarray, " Z"]
    covariance: Float[np.ndarray, "Z Z"]


class LipSync(NamedTuple):
    """(3). Distances in the embedding's units; offset in frames."""

    confidence: float
    distance: float
    offset: int
    curve: Float[np.ndarray, " shifts"]


def identity(
    frames: Float[np.ndarray, "F Z"], references: Float[np.ndarray, "J Z"]
) -> Identity:
    """Whose face is it: face embeddings of a video against reference faces."""
    found = cosines(frames, references)
    return Identity(float(found.mean()), float(found.max(axis=1).mean()))


def cosines(
    first: Float[np.ndarray, "F Z"], second: Float[np.ndarray, "J Z"]
) -> Float[np.ndarray, "F J"]:
    """Of all pairs of rows."""
    return _unit(first) @ _unit(second).T


def lip_sync(
    video: Float[np.ndarray, "W Z"],
    speech: Float[np.ndarray, "W Z"],
    max_shift: int,
    zero_ends: bool,
) -> LipSync:
    """Do the lips follow the speech: embeddings of W windows, k = `max_shift` < W.

    `zero_ends`: SyncNet's own ends, for embeddings as long as its; false for unit ones.
    """
    apart, count = sync_distances(video, speech, max_shift), len(video)
    curve = np.empty(2 * max_shift + 1)
    for i in range(len(curve)):
        both = slice(max(0, max_shift - i), count - max(0, i - max_shift))
        curve[i] = (apart[:, i] if zero_ends else apart[both, i]).mean()
    distance = curve.min()
    return LipSync(
        confidence=float(np.median(curve) - distance),
        distance=float(distance),
        offset=int(max_shift - curve.argmin()),
        curve=curve,
    )


def sync_distances(
    video: Float[np.ndarray, "W Z"], speech: Float[np.ndarray, "W Z"], max_shift: int
) -> Float[np.ndarray, "W shifts"]:
    """|v_t - a_(t+s)| of (3), a = 0 outside the clip."""
    video, speech = video.astype(np.float64), speech.astype(np.float64)
    padded = np.pad(speech, ((max_shift, max_shift), (0, 0)))
    apart = (
        np.linalg.norm(video - padded[i : i + len(video)] + _EPS, axis=1)
        for i in range(2 * max_shift + 1)
    )
    return np.stack(list(apart), axis=1)


def psnr(
    video: UInt8[np.ndarray, "F Y X 3"], truth: UInt8[np.ndarray, "F Y X 3"]
) -> float:
    """(4) in dB over the whole video; infinite for identical ones."""
    error = np.mean((video.astype(np.float64) - truth.astype(np.float64)) ** 2)
    return float(10 * np.log10(255.0**2 / error)) if error else float("inf")


def ssim(
    video: UInt8[np.ndarray, "F Y X 3"], truth: UInt8[np.ndarray, "F Y X 3"]
) -> float:
    """(5), mean over frames; 1 for identical ones. Frames are at least 11 x 11."""
    return ssim_of(video, truth, [None])[0]


def ssim_of(
    video: UInt8[np.ndarray, "F Y X 3"],
    truth: UInt8[np.ndarray, "F Y X 3"],
    regions: Sequence[Bool[np.ndarray, "Y-10 X-10"] | None],
) -> list[float]:
    """(5) over each of some regions of its map, none of them empty; None: all of it."""
    found = []
    for x, y in zip(video, truth, strict=True):
        whole = ssim_map(x, y)
        parts = (whole if r is None else whole[r] for r in regions)
        found.append([part.mean() for part in parts])
    return [float(np.mean(part)) for part in zip(*found, strict=True)]


def ssim_map(
    x: UInt8[np.ndarray, "Y X 3"], y: UInt8[np.ndarray, "Y X 3"]
) -> Float[np.ndarray, "Y-10 X-10"]:
    """(5) of one frame, at every pixel 5 or more from its edge."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    c1, c2 = 2.55**2, 7.65**2

    def local_mean(image: np.ndarray) -> np.ndarray:
        return cv2.GaussianBlur(image, (11, 11), 1.5)[5:-5, 5:-5]

    mx, my = local_mean(x), local_mean(y)
    sx = local_mean(x * x) - mx * mx
    sy = local_mean(y * y) - my * my
    sxy = local_mean(x * y) - mx * my
    above = (2 * mx * my + c1) * (2 * sxy + c2)
    below = (mx * mx + my * my + c1) * (sx + sy + c2)
    return (above / below).mean(axis=-1)


def sharpness(
    video: UInt8[np.ndarray, "F Y X 3"], boxes: Float[np.ndarray, "F 4"]
) -> float:
    """(6), mean over frames: how much fine detail the face shows."""
    crops = (
        frame[top:bottom, left:right]
        for frame, (left, top, right, bottom) in zip(
            _luma(video), _pixels(boxes, video.shape[1:3]), strict=True
        )
    )
    return float(np.mean([cv2.Laplacian(crop, cv2.CV_64F).var() for crop in crops]))


def flicker(
    video: UInt8[np.ndarray, "F Y X 3"], boxes: Float[np.ndarray, "F 4"]
) -> float:
    """(7) in grey levels: does the scene hold still where nothing should move.

    The pixels are those that no box of the clip, grown by half its size, covers.
    NaN if there are none.
    """
    size = (boxes[:, 2:] - boxes[:, :2]) * _FACE_MARGIN
    grown = np.concatenate([boxes[:, :2] - size, boxes[:, 2:] + size], axis=1)
    free = outside(grown, video.shape[1:3])
    if not free.any() or len(video) < 2:
        return float("nan")
    return float(np.abs(np.diff(_luma(video)[:, free], axis=0)).mean())


def outside(
    boxes: Float[np.ndarray, "n 4"], size: tuple[int, int]
) -> Bool[np.ndarray, "Y X"]:
    """The pixels of a frame of `size` (Y, X) that no box (in 0..1) covers."""
    free = np.ones(size, bool)
    for left, top, right, bottom in _pixels(boxes, size):
        free[top:bottom, left:right] = False
    return free


def mouth_direction(
    truth: UInt8[np.ndarray, "F Y X 3"], boxes: Float[np.ndarray, "F 4"]
) -> Float[np.ndarray, " Z"]:
    """w of (8): the mouth's main motion in `truth`. Its sign is arbitrary."""
    true = _mouths(truth, boxes)
    return np.linalg.svd(true - true.mean(axis=0), full_matrices=False)[2][0]


def mouth_motion(
    video: UInt8[np.ndarray, "F Y X 3"],
    boxes: Float[np.ndarray, "F 4"],
    direction: Float[np.ndarray, " Z"],
) -> Float[np.ndarray, " F"]:
    """p of (8): a curve along the true mouth's `direction`.

    Shows the same face in the same place: `boxes` are those of the truth.
    """
    return _mouths(video, boxes) @ direction


def correlation(x: Float[np.ndarray, " F"], y: Float[np.ndarray, " F"]) -> float:
    """Pearson's; 0 where one curve is constant: what does not move follows nothing."""
    x, y = x - x.mean(), y - y.mean()
    scale = float(np.linalg.norm(x) * np.linalg.norm(y))
    return float(x @ y) / scale if scale > 1e-9 else 0.0


def moments(features: Float[np.ndarray, "n Z"]) -> Moments:
    """Of n >= 2 rows, in float64; the covariance is divided by n - 1."""
    features = features.astype(np.float64)
    return Moments(features.mean(axis=0), np.cov(features, rowvar=False, ddof=1))


def frechet_distance(first: Moments, second: Moments) -> float:
    """(9): FID, FVD and their kin, whatever network made the features."""
    values, vectors = np.linalg.eigh(first.covariance)
    root = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    inner = np.linalg.eigvalsh(root @ second.covariance @ root)
    shared = np.sqrt(np.clip(inner, 0, None)).sum()
    apart = np.sum((first.mean - second.mean) ** 2)
    spread = np.trace(first.covariance) + np.trace(second.covariance)
    return float(apart + spread - 2 * shared)


def _unit(rows: np.ndarray) -> np.ndarray:
    rows = rows.astype(np.float64)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def _luma(video: np.ndarray) -> np.ndarray:
    return video @ _LUMA


def _pixels(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Boxes in 0..1 -> whole pixels inside the frame, never empty."""
    rows, columns = size
    edges = np.rint(boxes * np.array([columns, rows, columns, rows])).astype(int)
    start = np.clip(edges[:, :2], 0, [columns - 3, rows - 3])
    end = np.clip(edges[:, 2:], start + 3, [columns, rows])
    return np.concatenate([start, end], axis=1)


def _mouths(video: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Luma of the mouth region, resampled and flattened, (F, pixels)."""
    rows, columns = _MOUTH_SIZE
    left, top = boxes[:, 0], boxes[:, 1]
    width, height = boxes[:, 2] - left, boxes[:, 3] - top
    share_l, share_t, share_r, share_b = _MOUTH
    regions = _pixels(
        np.stack(
            [
                left + share_l * width,
                top + share_t * height,
                left + share_r * width,
                top + share_b * height,
            ],
            axis=1,
        ),
        video.shape[1:3],
    )
    crops = [
        cv2.resize(frame[t:b, lf:r], (columns, rows), interpolation=cv2.INTER_AREA)
        for frame, (lf, t, r, b) in zip(_luma(video), regions, strict=True)
    ]
    return np.stack(crops).reshape(len(crops), -1)
