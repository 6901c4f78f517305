"""Captions to rows: the mini world's stand-in for umT5 (ours).

Every word is a fixed unit vector drawn from a digest of its letters, so captions are
told apart without a language model and the same on every machine. What the transformer
relies on is kept: rows of real tokens, an end token, zero rows up to `length`, and an
empty caption of exactly one row (TAVR_SPEC 5).
"""

import dataclasses
import hashlib
import re
import unicodedata

import numpy as np
from jaxtyping import Float32

_END = "</s>"  # no word can be spelt like this


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """The section `text` of a config; meanings and values are there."""

    dim: int
    length: int
    dtype: str
    negative: str


def embed(caption: str, config: TextConfig) -> Float32[np.ndarray, "L E"]:
    """A row per lower-cased word, the end token, then zero rows.

    Words that leave no room for the end token are dropped, as umT5's tokenizer does.
    """
    words = re.findall(r"\w+(?:'\w+)*", unicodedata.normalize("NFKC", caption).lower())
    tokens = [*words[: config.length - 1], _END]
    rows = np.zeros((config.length, config.dim), np.float32)
    rows[: len(tokens)] = [_direction(token, config.dim) for token in tokens]
    return rows


def _direction(token: str, dim: int) -> np.ndarray:
    # bytes of a digest, not a seeded generator: those may change between releases
    digest = hashlib.shake_256(token.encode()).digest(2 * dim)
    vector = np.frombuffer(digest, "<i2").astype(np.float32) + 0.5
    return vector / np.linalg.norm(vector)
