"""Finished chunks of an unfinished video: a killed run goes on where it was.

    FOLDER/run.json            what the video is made of; another video starts anew
    FOLDER/chunk_0003.safetensors    latents of chunk 3, as sampled

A file is there whole or not at all. The folder goes when the video is written.
"""

import hashlib
import json
import os
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from tavr_jax.encoders.tensors import read_tensors, write_tensors
from tavr_jax.errors import InputError


class Unfinished:
    """The chunks kept beside an output. `facts` tell one video from another."""

    def __init__(self, folder: Path, facts: dict[str, str]):
        self.folder = folder
        card = folder / "run.json"
        if _facts(card) != facts:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            partial = folder / ".run.json.partial"
            partial.write_text(json.dumps(facts, indent=1, sort_keys=True))
            os.replace(partial, card)

    def __len__(self) -> int:
        """How many chunks are here."""
        return sum(1 for _ in self.folder.glob("chunk_*.safetensors"))

    def load(self, index: int) -> Float[Array, "1 T H W C"] | None:
        """A chunk, or None. One that cannot be read is as good as none."""
        path = self._path(index)
        if not path.is_file():
            return None
        try:
            return jnp.asarray(read_tensors(path)["latents"])
        except (InputError, KeyError):
            path.unlink()
            return None

    def save(self, index: int, chunk: Float[Array, "1 T H W C"]) -> None:
        """Keep a chunk, once."""
        if not self._path(index).is_file():
            write_tensors(self._path(index), {"latents": np.asarray(chunk)}, {})

    def remove(self) -> None:
        """The video is written."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, index: int) -> Path:
        return self.folder / f"chunk_{index:04d}.safetensors"


def digest(arrays: tuple[np.ndarray | None, ...]) -> str:
    """Twelve hex digits of what a video is made from."""
    found = hashlib.sha256()
    for array in arrays:
        solid = np.ascontiguousarray(np.zeros(0) if array is None else array)
        found.update(f"{solid.dtype} {solid.shape}\n".encode())
        found.update(solid.tobytes())
    return found.hexdigest()[:12]


def _facts(card: Path) -> dict[str, str] | None:
    try:
        return json.loads(card.read_text())
    except (OSError, ValueError):
        return None
