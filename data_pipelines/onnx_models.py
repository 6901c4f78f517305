"""A detector's ONNX file, opened for the CPU by onnxruntime."""

from pathlib import Path

import numpy as np
from numpy import ndarray

from tavr_jax.errors import InputError

Shape = tuple[int | None, ...]  # None: any size


class Model:
    """One network with one picture as input (1, 3, rows, columns)."""

    def __init__(self, path: str, session):
        self.path, self._session = path, session
        given = session.get_inputs()[0]
        self._input = given.name
        self.shape = _sizes(given.shape)
        self.outputs = {o.name: _sizes(o.shape) for o in session.get_outputs()}

    def __call__(self, picture: ndarray) -> list[ndarray]:
        """All outputs. InputError: the network fails on this picture."""
        feed = {self._input: np.ascontiguousarray(picture, np.float32)}
        try:
            return self._session.run(None, feed)
        except Exception as error:
            raise _reason(self.path, "the network fails", error) from error


def open_model(path: str) -> Model:
    """InputError: no such file, not such a network, or onnxruntime is missing."""
    if not Path(path).is_file():
        raise InputError(f"{path}: no such file; check the path of the detector")
    try:
        import onnxruntime
    except ImportError as error:
        raise InputError(
            f"{path}: reading an .onnx detector needs onnxruntime; "
            "pip install onnxruntime"
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
    shape = pictures[0].shape if len(pictures) == 1 else []
    if len(shape) != 4 or shape[1] != 3 or pictures[0].type != "tensor(float)":
        raise InputError(
            f"{path}: its input is not one float32 picture (1, 3, rows, columns); give "
            "a detector exported that way"
        )
    return Model(str(path), session)


def _sizes(shape) -> Shape:
    return tuple(size if isinstance(size, int) else None for size in shape)


def _reason(path, what: str, error: Exception) -> InputError:
    first = str(error).strip().splitlines()
    return InputError(f"{path}: {what} ({first[0] if first else error!r}); replace it")
