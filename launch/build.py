"""From a config to modules with weights: the only place that knows both."""

from collections.abc import Callable
from functools import partial
from importlib import resources
from pathlib import Path
from typing import NamedTuple, TypeVar

import jax
from flax import nnx
from ml_collections import ConfigDict

from launch.weights_source import resolve
from tavr_jax.encoders.face import FaceConfig, FaceNet
from tavr_jax.encoders.lipsync import LipsyncConfig, SyncNet
from tavr_jax.encoders.tensors import open_tensors
from tavr_jax.encoders.vae import Codec, CodecConfig
from tavr_jax.encoders.weights import fingerprint, load_network
from tavr_jax.encoders.weights_vae import load_vae
from tavr_jax.models.transformer import Transformer, TransformerConfig

Network = TypeVar("Network", bound=nnx.Module)
PACKAGED, UNTRAINED = "mini", "random"  # what a network may be named instead of a path
ASSETS = resources.files("tavr_jax") / "assets" / "mini"


class Judges(NamedTuple):
    """The frozen networks of stage 3's rewards."""

    codec: Codec
    sync: SyncNet
    face: FaceNet
    other_face: FaceNet | None  # evaluation.face; None: it is `face` itself


def transformer(config: ConfigDict) -> Transformer:
    """The transformer with seeded weights; `abstract_transformer` makes none."""
    return Transformer(TransformerConfig(**config.model), rngs=nnx.Rngs(config.seed))


def abstract_transformer(config: ConfigDict) -> Transformer:
    """Its shapes, without memory for weights."""
    return nnx.eval_shape(lambda: transformer(config))


def codec(config: ConfigDict) -> Codec:
    """The video autoencoder named by networks.codec: ours, or a published Wan VAE."""

    def make() -> Codec:
        return Codec(CodecConfig(**config.codec), rngs=nnx.Rngs(config.seed))

    source = config.networks.codec
    if source not in (PACKAGED, UNTRAINED):
        path = resolve(source, flag="--config.networks.codec")
        if "encoder.conv_in.kernel" not in open_tensors(path):
            return load_vae(path, nnx.eval_shape(make))
    return _filled(make, source, "codec", "networks.codec")


def face_net(config: ConfigDict) -> FaceNet:
    """The reward's face network, named by networks.face."""
    return _face_net(config, config.networks.face, "face", "networks.face")


def judging_face_net(config: ConfigDict) -> FaceNet:
    """The face network that scores, named by evaluation.face."""
    return _face_net(config, config.evaluation.face, "face_judge", "evaluation.face")


def sync_net(config: ConfigDict) -> SyncNet:
    """The lip-sync network, named by networks.lipsync."""
    sizes = LipsyncConfig(**config.lipsync)
    return _filled(
        lambda: SyncNet(sizes, rngs=nnx.Rngs(config.seed)),
        config.networks.lipsync,
        "lipsync",
        "networks.lipsync",
    )


def judges(config: ConfigDict) -> Judges:
    """What rewards are made of, with weights."""
    face, other = face_net(config), judging_face_net(config)
    same = fingerprint(other) == fingerprint(face)
    return Judges(codec(config), sync_net(config), face, None if same else other)


def abstract_judges(config: ConfigDict) -> Judges:
    """Their shapes: no file is read, and none need be there. Two face networks of one
    name are taken to be one, unless the name is that of the package's two."""
    plain = config.copy_and_resolve_references()
    n, e = plain.networks, plain.evaluation
    same = n.face == e.face != PACKAGED
    n.codec = n.lipsync = n.face = e.face = UNTRAINED
    shapes = [
        nnx.eval_shape(partial(make, plain))
        for make in (codec, sync_net, face_net, judging_face_net)
    ]
    return Judges(*shapes[:3], None if same else shapes[3])


def parameters(module: nnx.Module) -> int:
    """How many numbers a network has learned."""
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(module, nnx.Param)))


def _face_net(config: ConfigDict, source: str, asset: str, field: str) -> FaceNet:
    sizes = FaceConfig(**config.face)

    def make() -> FaceNet:
        return FaceNet(sizes, rngs=nnx.Rngs(config.seed))

    return _filled(make, source, asset, field)


def _filled(
    make: Callable[[], Network], source: str, asset: str, field: str
) -> Network:
    """The network that `make` makes, with the weights of `source`, or with those of
    `asset` in the package. `field` of the config named the source."""
    if source == UNTRAINED:
        return make()
    path = Path(str(ASSETS / f"{asset}.safetensors"))
    if source != PACKAGED:
        path = resolve(source, flag=f"--config.{field}")
    return load_network(path, nnx.eval_shape(make))
