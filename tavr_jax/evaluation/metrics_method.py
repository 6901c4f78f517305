"""What made a number: it travels with every score that is published.

Scores of two networks, or of one network fed in two ways, do not compare. `KNOWN` names
the networks that the literature reports with, what their weights may be used for, and
how they are fed. None of them ships here or is ever a default: a user brings the file,
and `notice` is printed before it is used.

Licences are stated from memory of their repositories: read them before you rely on
them. A network's licence is not that of the pictures that it was trained on.
"""

from typing import NamedTuple

OURS = "Apache-2.0"  # of what ships with this project


class Method(NamedTuple):
    """How a number was computed."""

    network: str  # what it is, and the fingerprint or hash of its weights
    version: str  # of the code of the score
    licence: str  # of the weights
    preprocessing: str  # from decoded frames to the network's input
    commercial: bool  # the licence of the weights allows commercial use


class Known(NamedTuple):
    """A network of the literature, by path."""

    metric: str
    licence: str
    preprocessing: str
    commercial: bool


KNOWN = {
    "syncnet_v2": Known(
        "Sync-C, Sync-D, offset",
        "MIT-style; trained on BBC footage",
        "S3FD track, crop scale 0.4, 224 x 224 BGR, 5 frames; 13 MFCC at 100 Hz, 20",
        True,
    ),
    "i3d_kinetics400": Known(
        "FVD",
        "Apache-2.0; TorchScript of StyleGAN-V's build",
        "16 frames, 224 x 224, RGB / 255, rescale=False, resize=False, 400 logits",
        True,
    ),
    "inception_v3_fid": Known(
        "FID",
        "Apache-2.0; pytorch-fid's port of the TensorFlow weights",
        "299 x 299 bilinear, RGB in [-1, 1], pool3, 2048 features",
        True,
    ),
    "lpips_alex": Known(
        "LPIPS",
        "BSD-2-Clause heads on torchvision's AlexNet (BSD-3-Clause)",
        "RGB in [-1, 1], ImageNet scaling inside, five layers",
        True,
    ),
    "arcface_antelopev2": Known(
        "identity (FaceSim-Arc)",
        "InsightFace models: non-commercial research only",
        "RetinaFace at 320, largest face, five points to 112 x 112, RGB / 127.5 - 1",
        False,
    ),
    "curricularface_ir101": Known(
        "identity (FaceSim-Cur)",
        "trained on MS1MV2: non-commercial research only",
        "InsightFace norm_crop 224 to 112 x 112, RGB in [-1, 1]",
        False,
    ),
    "q_align": Known(
        "IQA, ASE",
        "S-Lab Licence 1.0: non-commercial",
        "one frame a second, mPLUG-Owl2-7B, five level words",
        False,
    ),
}


def given(name: str, fingerprint: str, version: str) -> Method:
    """The method of a network of `KNOWN` whose file the user gave.

    KeyError: no such name; whoever calls knows which he offered.
    """
    known = KNOWN[name]
    network = f"{name} {fingerprint}"
    return Method(
        network, version, known.licence, known.preprocessing, known.commercial
    )


def notice(method: Method) -> str | None:
    """The line to print before weights are used that not everybody may use."""
    if method.commercial:
        return None
    return (
        f"{method.network}: {method.licence}. You gave this file; what you compute "
        "with it falls under its terms"
    )
