"""Random access to a prepared dataset: the rows a run may use, and their records.

Encoded records are read where prepare stored them. Where it did not
(prepare.encode=False), an `Encoder` makes them of the clips, the same ones, and the
last few are kept.
"""

from collections.abc import Callable, Mapping
from functools import cached_property, lru_cache
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from ml_collections import ConfigDict
from numpy import ndarray

from data_pipelines import records
from data_pipelines.mixing import weighted
from tavr_jax import storage
from tavr_jax.errors import InputError

_ENCODING = Lock()  # networks are used by one reading thread at a time


class Encoder(NamedTuple):
    """What makes encoded records: a function of a clip alone, and null text rows.

    Made by `launch` of the networks that a config names; this module knows none.
    """

    encode: Callable[[Mapping[str, Any]], dict[str, Any]]
    null_text: Float[ndarray, "L E"]


def paths(config: ConfigDict) -> dict[str, float]:
    """The datasets of data.path and their weights, which sum to 1.

    InputError: none, or not as `mixing.weighted` reads them.
    """
    path = config.data.path
    if not path:
        raise InputError(
            "data.path: empty; set --config.data.path to a dataset of "
            "launch.prepare_data"
        )
    is_one = not storage.is_bucket(path) and Path(path).exists()
    return {path: 1.0} if is_one else weighted(path, "data.path")


class Source:
    """One split of a dataset, the clips of one frame size.

    `rows[i]`, `clip(i)` and `encoded(i)` speak of the same clip. Files are opened at
    the first record read, in the process that reads it.
    `encoder` is the one in use: None where encoded records are stored.
    InputError: no dataset, another version, no clip of this split and size.
    """

    def __init__(
        self,
        config: ConfigDict,
        split: str,
        path: str | None = None,
        encoder: Encoder | None = None,
    ):
        """`path` None: the first dataset of data.path. `encoder` None: only read."""
        self.root = storage.place(
            next(iter(paths(config))) if path is None else path, "data.path"
        )
        self.split = split
        self.is_encoded = records.is_encoded(self.root)
        self.encoder = None if self.is_encoded else encoder
        self._cache = config.data.encoded_cache
        size = tuple(config.prepare[config.data.orientation])
        rows = records.read_index(self.root)
        in_split = [row for row in rows if row.split == split]
        if not in_split:
            raise InputError(
                f"data.split={split}: no clip of {self.root} is in it; other clips are "
                f"in {', '.join(sorted({row.split for row in rows}))} (people go to "
                "test by prepare.held_out)"
            )
        self.rows = [row for row in in_split if row.size == size]
        if not self.rows:
            sizes = sorted({row.size for row in in_split})
            raise InputError(
                f"data.orientation={config.data.orientation}: no clip of {size}, "
                f"{self.root} has {sizes}; choose the other orientation or the size of "
                "config it was prepared with"
            )

    def clip(self, index: int) -> dict[str, Any]:
        """The record with pictures and sound."""
        return self._clips[self.rows[index].record]

    def encoded(self, index: int) -> dict[str, Any]:
        """The record with latents and features.

        InputError: it is not stored, and there is no encoder.
        """
        if self.is_encoded:
            return self._encoded[self.rows[index].record]
        with _ENCODING:
            return self._made(index)

    @cached_property
    def null_text(self) -> Float[ndarray, "L E"]:
        """Text rows of the empty caption. InputError as `encoded`."""
        if not self.is_encoded:
            return self._given().null_text
        path = self.root / records.NULL_TEXT
        try:
            with path.open("rb") as file:
                return np.load(file, allow_pickle=False)
        except (OSError, ValueError) as error:
            if storage.may_pass(error):
                raise
            raise InputError(
                f"{path}: cannot be read ({error}); run launch.prepare_data again"
            ) from error

    @cached_property
    def _clips(self):
        return records.open_records(self.root, "clips", self.split)

    @cached_property
    def _encoded(self):
        return records.open_records(self.root, "encoded", self.split)

    @cached_property
    def _made(self) -> Callable[[int], dict[str, Any]]:
        """Encoded records, made; the last ones are kept."""
        encode = self._given().encode
        return lru_cache(self._cache)(lambda index: encode(self.clip(index)))

    def _given(self) -> Encoder:
        if self.encoder is None:
            raise InputError(
                f"{self.root}: is not encoded; run launch.prepare_data with "
                "--config.prepare.encode=true (launch.train alone also encodes while "
                "it runs)"
            )
        return self.encoder

    def __getstate__(self):
        # Open files do not travel to worker processes.
        state = dict(self.__dict__)
        for name in ("_clips", "_encoded", "_made"):
            state.pop(name, None)
        return state
