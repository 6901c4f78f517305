"""Is it the person: one face network's answer on one video, from every side.

With f_i the embedding of video frame i, r_j those of the reference's faces and g_k
those of the real target, and `identity` the averages (1) and (2) of `metrics`:

    (1) to the reference   identity(f, r): what is asked, a person seen in another scene
    (2) to the target      identity(f, g): the same scene; light, pose and make-up agree
    (3) ceiling            identity(g, r): how like the reference the real video is
    (4) lost               ceiling - to the reference, of the means
    (5) FaceSim            mean_ij max(0, cos(f_i, r_j)) over SAMPLED frames, as
                           ConsisID's script does with one reference picture

(5) is FaceSim-Arc or FaceSim-Cur with the network of that name; (3) exists because the
target is real, and says what part of a low score is the scene's. A row of NaN is a
frame without a face: it is left out, and the share of frames that have one is told,
since a score of the frames that happen to have a face flatters a video that loses it.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from tavr_jax.evaluation import metrics

SAMPLED = 16  # frames of (5), evenly spread


class Likeness(NamedTuple):
    """(1) to (5). None: no face to speak of, or no real target."""

    reference: metrics.Identity | None
    target: metrics.Identity | None
    ceiling: metrics.Identity | None
    lost: float | None
    facesim: float | None
    coverage: float  # share of the video's frames with a face


def likeness(
    video: Float[ndarray, "F Z"],
    references: Float[ndarray, "J Z"],
    target: Float[ndarray, "K Z"] | None,
) -> Likeness:
    """Face embeddings of a video, of its reference and of the real target."""
    faces, known = _with_face(video), _with_face(references)
    real = np.zeros((0, video.shape[1])) if target is None else _with_face(target)
    reference, ceiling = _identity(faces, known), _identity(real, known)
    both = reference is not None and ceiling is not None
    return Likeness(
        reference=reference,
        target=_identity(faces, real),
        ceiling=ceiling,
        lost=ceiling.mean - reference.mean if both else None,
        facesim=_facesim(video, known),
        coverage=len(faces) / len(video),
    )


def _identity(faces: ndarray, others: ndarray) -> metrics.Identity | None:
    return metrics.identity(faces, others) if len(faces) and len(others) else None


def _facesim(video: ndarray, references: ndarray) -> float | None:
    spread = np.linspace(0, len(video) - 1, min(SAMPLED, len(video)))
    faces = _with_face(video[np.rint(spread).astype(int)])
    if not len(faces) or not len(references):
        return None
    return float(np.clip(metrics.cosines(faces, references), 0, None).mean())


def _with_face(rows: ndarray) -> ndarray:
    good = np.isfinite(rows).all(axis=1)
    good[good] = np.linalg.norm(rows[good], axis=1) > 0
    return rows[good]
