"""A stand-in for a bucket behind gs://: no network, and only what a bucket can do."""

import fsspec
from fsspec.implementations.memory import MemoryFileSystem


class Bucket(MemoryFileSystem):
    """Objects in memory. They appear whole; none is appended to or renamed."""

    protocol = ("gs", "gcs")
    store, pseudo_dirs = {}, [""]

    @classmethod
    def _strip_protocol(cls, path):
        path = str(path).removeprefix("gs://").removeprefix("gcs://")
        return "/" + path.strip("/") if path.strip("/") else ""

    def open(self, path, mode="rb", **named):
        if not set(mode) <= set("rwbt"):
            raise NotImplementedError(f"{path}: a bucket opens nothing with {mode}")
        return super().open(path, mode, **named)

    def mv(self, *given, **named):
        raise NotImplementedError("a bucket renames nothing")

    rename = move = mv


def open_bucket() -> None:
    """An empty one, for this process."""
    Bucket.store.clear()
    fsspec.register_implementation("gs", Bucket, clobber=True)
    fsspec.register_implementation("gcs", Bucket, clobber=True)
