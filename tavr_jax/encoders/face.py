"""The face network: who is it, as a unit vector (ours).

Two crops of one person have a large cosine, whatever the scene, pose and expression.
Trained by stage "face" of `launch.train`; the loss is in `training/networks.py`.
"""

import dataclasses

from flax import nnx
from jaxtyping import Array, Float

from tavr_jax.encoders.convnet import Trunk, unit


@dataclasses.dataclass(frozen=True)
class FaceConfig:
    """The section `face` of a config; meanings and values are there."""

    size: int
    width: int
    embedding_dim: int
    temperature: float


class FaceNet(nnx.Module):
    """Face crops to points on the unit sphere."""

    def __init__(self, config: FaceConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.trunk = Trunk(config.size, config.width, config.embedding_dim, rngs=rngs)

    def __call__(self, faces: Float[Array, "B Y X 3"]) -> Float[Array, "B Z"]:
        """Crops of `config.size` in [-1, 1]."""
        return unit(self.trunk(faces))
