"""What is plainly wrong with a video, in a word: tags to filter by (ours).

    wrong_person  identity below a share of the ceiling's
    frozen        the face moves less than a share of the ceiling's, and not in silence
    out_of_sync   its best shift is more frames from the real video's
    blurred       the face is less sharp than a share of the ceiling's
    flicker       the scene changes by more grey levels than the real one
    drift         the colour of scene or face goes further from its start, CIE 1976
    seam          where chunks join, more than so many times the usual change
    copied        the mouth follows the reference's talk by more, above chance and
                  above what the real one does, which knows nothing of it, and that is
                  no chance; clips under 1.7 s are too short to tell
    short         lacks frames              missing   is not there, or cannot be read

The ceiling is the autoencoder's copy of the real video where that is a row, else the
real video: what the autoencoder loses is lost in every video, so a tag of it would tell
none apart. Its own row's scores say how much that is.

The last two are found where videos are read. Limits are section `evaluation.failures`
of the config; a score that is not defined gives no tag.
"""

import dataclasses
import math

from tavr_jax.errors import InputError
from tavr_jax.evaluation.score_video import Scores

MISSING, SHORT = "missing", "short"


@dataclasses.dataclass(frozen=True)
class FailureConfig:
    """Section `evaluation.failures`; meanings and values are in configs/base.py."""

    wrong_person: float
    frozen: float
    out_of_sync: float
    blurred: float
    flicker: float
    drift: float
    seam: float
    copied: float
    copied_p: float

    def __post_init__(self):
        for name, value in dataclasses.asdict(self).items():
            if not 0 <= value < math.inf:
                raise InputError(
                    f"evaluation.failures.{name}: {value}: give a number, 0 or more"
                )


def tags(
    scores: Scores, real: Scores, limits: FailureConfig, copy: Scores | None = None
) -> list[str]:
    """The tags of a video with these scores, beside those of the real one.

    `copy`: the scores of the autoencoder's copy of that, where there are some.
    """

    def over(key: str, limit: float) -> bool:
        value = scores[key]
        return value is not None and value > limit

    def under(key: str, limit: float) -> bool:
        value = scores[key]
        return value is not None and value < limit

    def short_of(key: str, share: float, of_real: float | None) -> bool:
        copied = (copy or {}).get(key)
        ceiling = of_real if copied is None else copied
        return ceiling is not None and under(key, share * ceiling)

    offset = real["offset"]
    shifted = None not in (scores["offset"], offset) and (
        abs(scores["offset"] - offset) > limits.out_of_sync
    )
    silent = scores.get("silence_moves") is not None  # to hold still is right there
    alike = max(0.0, real["leak"] or 0.0)  # mouths that agree by accident
    found = {
        "wrong_person": short_of("identity", limits.wrong_person, real["identity"]),
        "frozen": short_of("motion", limits.frozen, 1.0) and not silent,
        "out_of_sync": shifted,
        "blurred": short_of("sharpness", limits.blurred, 1.0),
        "flicker": over("flicker", limits.flicker),
        "drift": any(over(f"colour_{of}", limits.drift) for of in ("scene", "face")),
        "seam": over("seam", limits.seam),
        "copied": (
            over("leak", limits.copied + alike) and under("leak_p", limits.copied_p)
        ),
    }
    return [name for name, applies in found.items() if applies]
