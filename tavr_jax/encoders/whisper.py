"""Whisper's encoder: log-mel of speech at 16 kHz to hidden states, one every 20 ms.

    (1) mel = log10(max(mel power of 25 ms every 10 ms, 1e-10)), raised to its maximum
        minus 8, then (mel + 4) / 4
    (2) x = gelu(Conv(gelu(Conv(mel)))), 3 taps with a zero at both ends, the second
        convolution on every other step;  h_0 = x + positions
    (3) h_i = z + FF(LN'(z)),  z = h_{i-1} + Att(LN(h_{i-1})),  keys without bias
    (4) last = LN_final(h_N)

Source: Radford et al. 2022 and its Hugging Face layout. Not a part of TAVR: a small
speech network with a permissive licence (MIT), for scores and rewards (ours).
"""

import dataclasses
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import librosa
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Float32
from numpy import ndarray

from tavr_jax.encoders.convnet import linear
from tavr_jax.encoders.published_config import read_fields, read_object, require
from tavr_jax.encoders.vae_blocks import lecun_uniform
from tavr_jax.encoders.wav2vec2 import (
    ACTIVATIONS,
    attention,
    layer_norm,
    stacked,
    windows,
)

RATE, WINDOW, HOP = 16000, 400, 160
TAPS = 3
FLOOR, RANGE = 1e-10, 8.0  # (1)
EPS = 1e-5  # no config field says it


@dataclasses.dataclass(frozen=True)
class WhisperConfig:
    """The fields of a published config.json that change the encoder's result."""

    d_model: int
    encoder_layers: int
    encoder_attention_heads: int
    encoder_ffn_dim: int
    num_mel_bins: int
    max_source_positions: int
    activation_function: str

    @classmethod
    def from_json(cls, path: str | Path) -> "WhisperConfig":
        """A published config.json. InputError: not readable, or another network's."""
        config = cls(**read_fields(cls, read_object(path), str(path), "whisper"))
        check = partial(require, source=str(path), config=config)
        check(
            config.activation_function in ACTIVATIONS,
            field="activation_function",
            remedy=f"expected one of {', '.join(ACTIVATIONS)}",
        )
        check(
            config.d_model % config.encoder_attention_heads == 0,
            field="encoder_attention_heads",
            remedy=f"expected a divisor of {config.d_model}",
        )
        return config


class Heard(NamedTuple):
    """What the encoder makes of a log-mel."""

    hidden: Float[Array, "layers B T D"]  # h_0 .. h_N
    last: Float[Array, "B T D"]


class Conv(nnx.Module):
    """One convolution of (2), as a matrix product."""

    def __init__(self, in_dim: int, out_dim: int, stride: int, *, rngs: nnx.Rngs):
        self.stride = stride
        self.kernel = nnx.Param(lecun_uniform(rngs.params(), (TAPS, in_dim, out_dim)))
        self.bias = nnx.Param(jnp.zeros(out_dim))

    def __call__(self, x: Float[Array, "B n c"]) -> Float[Array, "B t C"]:
        """n or n / 2 steps."""
        padded = jnp.pad(x, ((0, 0), (TAPS // 2, TAPS // 2), (0, 0)))
        kernel = self.kernel[...].reshape(-1, self.kernel.shape[-1])
        return windows(padded, TAPS, self.stride) @ kernel + self.bias[...][None, None]


class Layer(nnx.Module):
    """(3)."""

    def __init__(self, config: WhisperConfig, *, rngs: nnx.Rngs):
        width, inner = config.d_model, config.encoder_ffn_dim
        self.heads = config.encoder_attention_heads
        self.activation = config.activation_function
        self.q, self.v, self.o = (linear(width, width, rngs) for _ in range(3))
        self.k = nnx.Linear(
            width, width, use_bias=False, kernel_init=lecun_uniform, rngs=rngs
        )
        self.norm = layer_norm(width, EPS, rngs)
        self.up = linear(width, inner, rngs)
        self.down = linear(inner, width, rngs)
        self.norm_feed = layer_norm(width, EPS, rngs)

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """Every step hears every other."""
        y = self.norm(x)
        z = x + self.o(attention(self.q(y), self.k(y), self.v(y), self.heads, None))
        inner = ACTIVATIONS[self.activation](self.up(self.norm_feed(z)))
        return z + self.down(inner)


class WhisperEncoder(nnx.Module):
    """Sizes from the config, length from the log-mel."""

    def __init__(self, config: WhisperConfig, *, rngs: nnx.Rngs):
        self.config = config
        width = config.d_model
        self.conv1 = Conv(config.num_mel_bins, width, 1, rngs=rngs)
        self.conv2 = Conv(width, width, 2, rngs=rngs)
        # sinusoids, which published files hold as numbers
        shape = (config.max_source_positions, width)
        self.positions = nnx.Param(lecun_uniform(rngs.params(), shape))
        self.layers = stacked(Layer, config, config.encoder_layers, rngs)
        self.norm = layer_norm(width, EPS, rngs)

    def __call__(self, mel: Float[Array, "B n mels"]) -> Heard:
        """Hidden states of a log-mel of n rows of 10 ms, n / 2 steps.

        Whisper was trained on 30 s, silence behind the speech: pad the wave for what
        the published model would say. ValueError: more than `max_source_positions`.
        """
        act = ACTIVATIONS["gelu"]
        x = act(self.conv2(act(self.conv1(mel))))
        steps, most = x.shape[1], self.config.max_source_positions
        if steps > most:
            raise ValueError(f"{steps} steps: the network has {most} positions")
        x = x + self.positions[...][None, :steps]
        graph, weights = nnx.split(self.layers)

        def layer(x: Array, weights) -> tuple[Array, Array]:
            x = nnx.merge(graph, weights)(x)
            return x, x

        last, later = jax.lax.scan(layer, x, weights)
        return Heard(jnp.concatenate([x[None], later]), self.norm(last))


def log_mel(
    wave: Float[ndarray, " n"], config: WhisperConfig
) -> Float32[ndarray, "rows mels"]:
    """(1) of a mono wave at 16 kHz of more than 200 samples; a row is 10 ms."""
    power = librosa.feature.melspectrogram(
        y=wave,
        sr=RATE,
        n_fft=WINDOW,
        hop_length=HOP,
        n_mels=config.num_mel_bins,
        pad_mode="reflect",
    )
    mel = np.log10(np.maximum(power.T[:-1], FLOOR))
    return ((np.maximum(mel, mel.max() - RANGE) + 4) / 4).astype(np.float32)
