"""Captions as umT5 reads them: cleaned, cut into pieces, encoded, padded with zeros.

    (1) clean(s): repair the encoding (ftfy), undo HTML escapes twice, every run of
        white space becomes one blank, none at the ends
    (2) prompt = clean(caption without the gesture sentence)
    (3) ids = pieces of the sentencepiece model, at most `length` - 1, then </s>
    (4) rows = umT5(ids), only those of real tokens, then zero rows up to `length`

So the empty caption has exactly one row. Source: TAVR_SPEC 1 and 5. Special tokens are
never read from a caption: one that spells "</s>" is taken as letters.
"""

import html
from pathlib import Path

import ftfy
import jax.numpy as jnp
import numpy as np
import sentencepiece
from jaxtyping import Float32

from tavr_jax.encoders.umt5 import Umt5
from tavr_jax.errors import InputError

GESTURES = "The person is talking with gestures."


def without_gestures(caption: str) -> str:
    """Every occurrence of the sentence removed, exactly as it stands."""
    return caption.replace(GESTURES, "")


def clean(text: str) -> str:
    """(1)."""
    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(text.split())


class Tokenizer:
    """(3), with the vocabulary of a sentencepiece model file.

    `path` is `spiece.model` or a folder that holds it, such as Wan's
    `google/umt5-xxl`. InputError when there is none or it cannot be read.
    """

    def __init__(self, path: str | Path):
        path = Path(path)
        self.path = path / "spiece.model" if path.is_dir() else path
        if not self.path.is_file():
            raise InputError(
                f"{self.path}: no such file; give umT5's sentencepiece model, "
                "spiece.model of google/umt5-xxl, or the folder that holds it"
            )
        self._pieces = sentencepiece.SentencePieceProcessor()
        try:
            self._pieces.LoadFromSerializedProto(self.path.read_bytes())
        except (RuntimeError, OSError) as error:
            raise InputError(
                f"{self.path}: not a sentencepiece model ({error}); fetch it again"
            ) from error
        self.end = self._pieces.eos_id()
        if self.end < 0:
            raise InputError(
                f"{self.path}: the model has no end token </s>; give umT5's own"
            )

    def __len__(self) -> int:
        return self._pieces.get_piece_size()

    def __call__(self, text: str, length: int) -> list[int]:
        """At most `length` ids, the end token last."""
        return [*self._pieces.encode(text)[: length - 1], self.end]


class TextEncoder:
    """Captions to rows: (1) to (4).

    Ids always fill `length` places, so the network is compiled once.
    """

    def __init__(self, network: Umt5, tokenizer: Tokenizer, length: int):
        vocabulary = network.config.vocabulary
        if len(tokenizer) > vocabulary:
            raise InputError(
                f"{tokenizer.path}: {len(tokenizer)} pieces, but the encoder has "
                f"{vocabulary} embeddings; the two are not of the same umT5"
            )
        self._network, self._tokenizer, self._length = network, tokenizer, length

    def __call__(self, caption: str) -> Float32[np.ndarray, "L E"]:
        """(2), (3) and (4) of one caption, of the negative prompt, or of nothing."""
        ids = self._tokenizer(clean(without_gestures(caption)), self._length)
        return self.rows(np.array(ids))

    def rows(self, ids: np.ndarray) -> Float32[np.ndarray, "L E"]:
        """(4) of given ids, end token included."""
        padded = np.zeros((1, self._length), np.int32)
        padded[0, : len(ids)] = ids
        mask = np.arange(self._length)[None] < len(ids)
        rows = self._network(jnp.asarray(padded), jnp.asarray(mask))[0]
        rows = np.array(rows, np.float32)
        rows[len(ids) :] = 0
        return rows
