"""An ONNX file of a network of pictures, opened for the CPU by onnxruntime."""

from pathlib import Path

import numpy as np
from numpy import ndarray

from tavr_jax.errors import InputError

Shape = tuple[int | None, ...]  # None: any size


class Model:
    """One network; its inputs are pictures (n, 3, ..., rows, columns) of one size."""

    def __init__(self, path: str, session):
        self.path, self._session = path, session
        given = session.get_inputs()
        self._inputs = [each.name for each in given]
        self.shape = _sizes(given[0].shape)
        self.outputs = {o.name: _sizes(o.shape) for o in session.get_outputs()}

    def __call__(self, *pictures: ndarray) -> list[ndarray]:
        """All outputs. InputError: the network fails on these pictures."""
        feed = {
            name: np.ascontiguousarray(picture, np.float32)
            for name, picture in zip(self._inputs, pictures, strict=True)
        }
        try:
            return self._session.run(None, feed)
        except Exception as error:
            raise _reason(self.path, "the network fails", error) from error


def open_model(path: str, ranks: tuple[int, ...] = (4,)) -> Model:
    """A network of so many inputs, each of so many dimensions: a detector's is (4,).

    InputError: no such file, not such a network, or onnxruntime is missing.
    """
    if not Path(path).is_file():
        raise InputError(f"{path}: no such file; check the path of the network")
    try:
        import onnxruntime
    except ImportError as error:
        raise InputError(
            f"{path}: reading an .onnx file needs onnxruntime; pip install onnxruntime"
        ) from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # a network's own warnings are no news to the user
    try:
        session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # onnxruntime has a class for each of its faults
        raise _reason(path, "not a readable ONNX model", error) from error
    pictures = session.get_inputs()
    sound = [p.type == "tensor(float)" and p.shape[1:2] == [3] for p in pictures]
    if tuple(len(p.shape) for p in pictures) != ranks or not all(sound):
        wanted = ", ".join(
            "(1, 3, rows, columns)" if rank == 4 else "(1, 3, frames, rows, columns)"
            for rank in ranks
        )
        raise InputError(
            f"{path}: its input is not {len(ranks)} float32 picture {wanted}; give a "
            "network exported that way"
        )
    return Model(str(path), session)


def _sizes(shape) -> Shape:
    return tuple(size if isinstance(size, int) else None for size in shape)


def _reason(path, what: str, error: Exception) -> InputError:
    first = str(error).strip().splitlines()
    return InputError(f"{path}: {what} ({first[0] if first else error!r}); replace it")
