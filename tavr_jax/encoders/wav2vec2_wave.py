"""From a wave of any length to wav2vec 2.0's hidden states.

    (1) x = (wave - mean) / sqrt(var + 1e-7), float32, population variance, over the
        samples that are there                                       [TAVR_SPEC 3]
    (2) up to LIMIT samples: one piece, as released
    (3) beyond (ours; the release refuses 30 s): pieces of LIMIT samples that overlap by
        2 CONTEXT or more, each step taken from the piece in whose middle it is, so that
        every step hears at least CONTEXT on both sides. (1) is of the whole wave.

A wave is padded to a multiple of two seconds and the padding masked, so that the
network compiles once for all lengths of those two seconds. Masked is exact: only the
order of float32 sums differs.
"""

from collections.abc import Sequence
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float, Float32, Int, Shaped
from numpy import ndarray

from tavr_jax.encoders.wav2vec2 import Wav2Vec2
from tavr_jax.errors import InputError

RATE = 16000
LIMIT = 60 * RATE
CONTEXT = 5 * RATE
BUCKET = 2 * RATE  # padded lengths are multiples of it


def normalised(
    wave: Shaped[ndarray, "*B n"], samples: Int[ndarray, " B"] | None = None
) -> Float32[ndarray, "*B n"]:
    """(1) of one wave or of each row of a padded batch, in any unit.

    With `samples` row b counts its first samples[b] and is zero after them; without,
    padding is part of the wave, as the `base` models were trained.
    """
    wave = np.asarray(wave, np.float32)
    if wave.ndim == 1:
        return _unit(wave)
    counts = np.full(len(wave), wave.shape[1]) if samples is None else samples
    out = np.zeros_like(wave)
    for row, source, count in zip(out, wave, counts, strict=True):
        row[:count] = _unit(source[:count])
    return out


class Listener:
    """A network with weights, compiled as lengths come.

    `limit` and `context` are the numbers of (3), in samples.
    """

    def __init__(self, network: Wav2Vec2, limit: int = LIMIT, context: int = CONTEXT):
        c = network.config
        self.config, self._bucket = c, min(BUCKET, limit)
        self._piece, self._overlap = c.steps(limit), 2 * -(-context // c.stride)
        if self._piece <= self._overlap:
            raise ValueError(f"pieces of {limit} samples with {context} of context")
        graph, self._weights = nnx.split(network)

        def run(weights, wave, samples, states):
            heard = nnx.merge(graph, weights)(wave, samples)
            last = c.num_hidden_layers
            chosen = [heard.last if i == last else heard.hidden[i] for i in states]
            return jnp.stack(chosen)[:, 0]

        self._run = jax.jit(run, static_argnames="states")

    def __call__(
        self, wave: Float[ndarray, " n"], states: Sequence[int]
    ) -> Float32[ndarray, "states T D"]:
        """Chosen hidden states of a mono wave at 16 kHz, T = (n - 400) // 320 + 1.

        State 0 enters the first layer, state N is last_hidden_state (after the final
        norm of stable models), -1 is N; TAVR_SPEC 3.2. A wave too short for a step
        gives T = 0. InputError: samples that are not finite, no such state.
        """
        c, count = self.config, self.config.num_hidden_layers
        if not np.isfinite(wave).all():
            raise InputError("speech: samples that are not finite; export it again")
        for state in states:
            if not -1 <= state <= count:
                raise InputError(
                    f"speech: hidden state {state}: the network has 0..{count}; give "
                    "the network's own layers"
                )
        chosen = tuple(count if state == -1 else state for state in states)
        steps = c.steps(len(wave))
        if not steps:
            return np.zeros((len(chosen), 0, c.hidden_size), np.float32)
        wave = normalised(wave)
        out = np.empty((len(chosen), steps, c.hidden_size), np.float32)
        for start, stop, first, last in pieces(steps, self._piece, self._overlap):
            end = len(wave) if stop == steps else (stop - 1) * c.stride + c.reach
            heard = self._hear(wave[start * c.stride : end], chosen)
            out[:, first:last] = heard[:, first - start : last - start]
        return out

    def _hear(self, wave: ndarray, states: tuple[int, ...]) -> ndarray:
        padded = np.zeros((1, -(-len(wave) // self._bucket) * self._bucket), np.float32)
        padded[0, : len(wave)] = wave
        heard = self._run(self._weights, padded, np.array([len(wave)]), states)
        return np.asarray(heard)


def pieces(steps: int, size: int, overlap: int) -> list[tuple[int, int, int, int]]:
    """(2) and (3): piece [start, stop) gives steps [first, last).

    All pieces are `size` long, or there is one; the last ends where the wave does.
    """
    starts = list(range(0, max(steps - size, 0), size - overlap))
    starts.append(max(steps - size, 0))
    bounds = [0]
    for left, right in pairwise(starts):
        bounds.append((left + size + right) // 2)
    bounds.append(steps)
    return [
        (start, min(start + size, steps), first, last)
        for start, (first, last) in zip(starts, pairwise(bounds), strict=True)
    ]


def _unit(wave: ndarray) -> ndarray:
    if not wave.size:
        return wave
    return (wave - wave.mean()) / np.sqrt(wave.var() + np.float32(1e-7))
