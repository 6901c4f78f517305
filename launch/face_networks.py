"""The face network that tells people apart while footage is prepared."""

import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from data_pipelines.prepare.identity import AlignedNetwork, CropNetwork, FaceNetwork
from launch import build
from launch.weights_source import resolve
from tavr_jax.encoders.weights import fingerprint
from tavr_jax.errors import InputError

_KNOW_NOBODY = (build.PACKAGED, build.UNTRAINED)  # no real people, at least
_BATCH = 8  # crops embedded at once: one shape, compiled once


class _FaceNet:
    """`FaceNet` as a function of uint8 crops; built in the process that calls it."""

    def __init__(self, config: ConfigDict):
        self._config, self._run = config, None

    def __call__(self, faces):
        if self._run is None:
            graph, weights = nnx.split(build.face_net(self._config))
            call = nnx.jit(lambda state, x: nnx.merge(graph, state)(x))
            self._run = lambda x: call(weights, x)
        found = []
        for start in range(0, len(faces), _BATCH):
            some = faces[start : start + _BATCH]
            filling = [(0, _BATCH - len(some)), (0, 0), (0, 0), (0, 0)]
            scaled = jnp.asarray(np.pad(some, filling), jnp.float32) / 127.5 - 1
            found.append(np.asarray(self._run(scaled))[: len(some)])
        return np.concatenate(found)

    def __getstate__(self):
        return {"_config": self._config, "_run": None}


def load(config: ConfigDict) -> FaceNetwork | None:
    """The network of networks.identity, else of networks.face; None if untrained.

    It survives pickling: worker processes open it themselves.
    InputError: no such file, not such a network; people to cluster by the mini world's.
    """
    if config.networks.identity:
        path = resolve(config.networks.identity, flag="--config.networks.identity")
        return AlignedNetwork(path)
    if config.prepare.cluster_people and config.networks.face in _KNOW_NOBODY:
        raise InputError(
            "prepare.cluster_people: the mini face network knows no real people; "
            "give another with --config.networks.identity=FILE.onnx"
        )
    if config.networks.face == build.UNTRAINED:
        return None
    name = fingerprint(build.face_net(config))
    return CropNetwork(name, config.face.size, _FaceNet(config))
