"""From a config to modules with weights: the only place that knows both."""

from importlib import resources
from pathlib import Path

import jax
from flax import nnx
from ml_collections import ConfigDict

from tavr_jax.encoders.face import FaceConfig, FaceNet
from tavr_jax.encoders.lipsync import LipsyncConfig, SyncNet
from tavr_jax.encoders.vae import Codec, CodecConfig
from tavr_jax.encoders.weights import load_network
from tavr_jax.errors import InputError
from tavr_jax.models.transformer import Transformer, TransformerConfig

ASSETS = resources.files("tavr_jax") / "assets" / "mini"


def transformer(config: ConfigDict) -> Transformer:
    """The transformer with seeded weights; `abstract_transformer` makes none."""
    return Transformer(TransformerConfig(**config.model), rngs=nnx.Rngs(config.seed))


def abstract_transformer(config: ConfigDict) -> Transformer:
    """Its shapes, without memory for weights."""
    return nnx.eval_shape(lambda: transformer(config))


def codec(config: ConfigDict) -> Codec:
    """The video autoencoder named by networks.codec."""
    empty = Codec(CodecConfig(**config.codec), rngs=nnx.Rngs(config.seed))
    return _filled(empty, config.networks.codec, "codec")


def face_net(config: ConfigDict) -> FaceNet:
    """The reward's face network, named by networks.face."""
    empty = FaceNet(FaceConfig(**config.face), rngs=nnx.Rngs(config.seed))
    return _filled(empty, config.networks.face, "face")


def sync_net(config: ConfigDict) -> SyncNet:
    """The lip-sync network named by networks.lipsync."""
    empty = SyncNet(LipsyncConfig(**config.lipsync), rngs=nnx.Rngs(config.seed))
    return _filled(empty, config.networks.lipsync, "lipsync")


def parameters(module: nnx.Module) -> int:
    """How many numbers a network has learned."""
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(module, nnx.Param)))


def _filled(module: nnx.Module, source: str, name: str) -> nnx.Module:
    """`source`: "mini" = the one in the package, "random" = untrained, else a file."""
    if source == "random":
        return module
    path = Path(str(ASSETS / f"{name}.safetensors")) if source == "mini" else source
    if not Path(path).is_file():
        raise InputError(
            f"networks.{name}: {path} is not there; give a .safetensors file written "
            f"by launch.train --config configs/{name}.py:mini"
        )
    return load_network(path, module)
