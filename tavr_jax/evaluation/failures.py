"""What is plainly wrong with a video, in a word: tags to filter by (ours).

    wrong_person  identity below a share of the real video's
    frozen        the face moves less than a share of the real one, and not in silence
    out_of_sync   its best shift is more frames from the real video's
    blurred       sharpness below a share of the real face's
    flicker       the scene changes by more grey levels than the real one
    drift         the colour of scene or face goes further from its start, CIE 1976
    seam          where chunks join, more than so many times the usual change
    copied        the mouth follows the reference's talk by more, above chance and
                  above what the real one does, which knows nothing of it, and that is
                  no chance; clips under 1.7 s are too short to tell
    short         lacks frames              missing   is not there, or cannot be read

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


def tags(scores: Scores, real: Scores, limits: FailureConfig) -> list[str]:
    """The tags of a video with these scores, beside those of the real one."""

    def over(key: str, limit: float) -> bool:
        value = scores[key]
        return value is not None and value > limit

    def under(key: str, limit: float | None) -> bool:
        value = scores[key]
        return value is not None and limit is not None and value < limit

    ceiling, offset = real["identity"], real["offset"]
    shifted = None not in (scores["offset"], offset) and (
        abs(scores["offset"] - offset) > limits.out_of_sync
    )
    silent = scores.get("silence_moves") is not None  # to hold still is right there
    alike = max(0.0, real["leak"] or 0.0)  # mouths that agree by accident
    found = {
        "wrong_person": under("identity", ceiling and limits.wrong_person * ceiling),
        "frozen": under("motion", limits.frozen) and not silent,
        "out_of_sync": shifted,
        "blurred": under("sharpness", limits.blurred),
        "flicker": over("flicker", limits.flicker),
        "drift": any(over(f"colour_{of}", limits.drift) for of in ("scene", "face")),
        "seam": over("seam", limits.seam),
        "copied": (
            over("leak", limits.copied + alike) and under("leak_p", limits.copied_p)
        ),
    }
    return [name for name, applies in found.items() if applies]
