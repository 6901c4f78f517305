"""The case `speech` of launch.bench: wav2vec 2.0 of the released size.

Sizes are those of TAVR_SPEC 3.2, weights are drawn; all hidden states are made. The
reference is Wav2Vec2Model of transformers, where that is installed.

FLOPs, with T steps of width D, f inside a layer, k taps of c channels:

    front end  sum over its layers of 2 T_i k_i c_{i-1} c_i        projection  2 T c D
    positions  2 T taps D^2 / groups       layers  N (8 T D^2 + 4 T^2 D + 4 T D f)
"""

import dataclasses
import importlib
from importlib.util import find_spec

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from launch.bench_cases import Case, Pairs, Program
from tavr_jax.encoders.wav2vec2 import Wav2Vec2, Wav2Vec2Config
from tavr_jax.encoders.weights_wav2vec2 import entries

RATE = 16000
SIZES = Wav2Vec2Config(
    hidden_size=1024,
    num_hidden_layers=24,
    num_attention_heads=16,
    intermediate_size=4096,
    conv_dim=(512,) * 7,
    conv_kernel=(10, 3, 3, 3, 3, 2, 2),
    conv_stride=(5, 2, 2, 2, 2, 2, 2),
    conv_bias=True,
    feat_extract_norm="layer",
    feat_extract_activation="gelu",
    hidden_act="gelu",
    do_stable_layer_norm=True,
    num_conv_pos_embeddings=128,
    num_conv_pos_embedding_groups=16,
    layer_norm_eps=1e-5,
)


def speech(config: Wav2Vec2Config, seconds: float, samples: int, torch) -> Case:
    """Of `samples` waves; `torch` as in bench_cases."""
    network = Wav2Vec2(config, rngs=nnx.Rngs(0))
    graph, params = nnx.split(network)
    rng = np.random.default_rng(0)
    wave = jnp.asarray(rng.standard_normal((samples, int(RATE * seconds)), np.float32))
    run = jax.jit(lambda params, wave: nnx.merge(graph, params)(wave))

    def pairs(ours, theirs) -> Pairs:
        ours = (ours.features, *ours.hidden, ours.last)
        sides = zip(ours, theirs, strict=True)
        return [(np.asarray(a), torch.array(b)) for a, b in sides]

    theirs = None
    if torch and find_spec("transformers"):
        theirs = _transformers(config, network, wave, torch)
    c = config
    name = f"speech {c.num_hidden_layers} x {c.hidden_size}, {seconds:g} s, batch "
    work = samples * flops(c, wave.shape[1])
    return Case(f"{name}{samples}", work, Program(run, params, wave), theirs, pairs)


def flops(c: Wav2Vec2Config, samples: int) -> float:
    """See the module; of one wave of so many samples."""
    total, steps, before = 0, samples, 1
    layers = zip(c.conv_dim, c.conv_kernel, c.conv_stride, strict=True)
    for width, taps, stride in layers:
        steps = (steps - taps) // stride + 1
        total += 2 * steps * taps * before * width
        before = width
    d, f = c.hidden_size, c.intermediate_size
    total += 2 * steps * before * d
    groups = c.num_conv_pos_embedding_groups
    total += 2 * steps * c.num_conv_pos_embeddings * d * d // groups
    layer = 8 * steps * d**2 + 4 * steps**2 * d + 4 * steps * d * f
    return float(total + c.num_hidden_layers * layer)


def _transformers(config: Wav2Vec2Config, network: Wav2Vec2, wave, torch):
    transformers = importlib.import_module("transformers")
    settings = transformers.Wav2Vec2Config(**dataclasses.asdict(config))
    model = transformers.Wav2Vec2Model(settings).to(torch.device()).eval()
    state = torch.carried(nnx.state(network, nnx.Param), entries(network))
    missing = model.load_state_dict(state, strict=False).missing_keys
    if set(missing) - {"masked_spec_embed"}:
        raise AssertionError(f"weights of transformers without a value: {missing}")
    sound = torch.tensor(wave)

    def run():
        heard = model(sound, output_hidden_states=True)
        return heard.extract_features, *heard.hidden_states, heard.last_hidden_state

    return torch.inferred(run)
