"""CIFAR-10 in its two official layouts, "binary version" and "python version"."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from stanley_fast.data.images import DataError

TRAIN, TEST = [f"data_batch_{i}" for i in range(1, 6)], ["test_batch"]
BATCHES = {"train": TRAIN, "test": TEST, "all": TRAIN + TEST}
PIXELS = 3 * 32 * 32  # planes of red, green and blue, each row by row

Batch = tuple[Tensor, Tensor]


def read(folder: Path, split: str) -> Batch:
    """Pixels (n, 3, 32, 32) and labels (n,) of cifar-10-batches-bin or -py, or a folder over them.

    Raises:
        FileNotFoundError: neither is there, or one of its files is not.
        DataError: a file that is truncated, or a pickle of anything but arrays and plain values.
    """
    at, ending, read_batch = _layout(folder)
    batches = [read_batch(_existing(at / f"{name}{ending}")) for name in BATCHES[split]]
    pixels, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    return pixels.view(-1, 3, 32, 32), labels


def _layout(folder: Path) -> tuple[Path, str, Callable[[Path], Batch]]:
    for at in (folder, folder / "cifar-10-batches-bin"):
        if (at / "data_batch_1.bin").exists():
            return at, ".bin", _read_binary
    for at in (folder, folder / "cifar-10-batches-py"):
        if (at / "data_batch_1").exists():
            return at, "", _read_pickle
    raise FileNotFoundError(
        f"CIFAR-10 is not in {folder}: neither cifar-10-batches-bin/data_batch_1.bin nor "
        "cifar-10-batches-py/data_batch_1"
    )


def _existing(path: Path) -> Path:
    if not path.exists():
        raise FileNotFoundError(f"CIFAR-10's {path} is missing")
    return path


def _read_binary(path: Path) -> Batch:
    """Records of a label's byte and the pixels' bytes."""
    data = np.fromfile(path, np.uint8)
    if data.size == 0 or data.size % (1 + PIXELS):
        raise DataError(
            f"{path} is truncated or no CIFAR-10: {data.size} bytes are not records of {1 + PIXELS}"
        )
    records = torch.from_numpy(data).view(-1, 1 + PIXELS)
    return _checked(path, records[:, 1:], records[:, 0].long())


def _read_pickle(path: Path) -> Batch:
    with open(path, "rb") as file:
        try:
            content = _ArraysOnly(file).load()
        except _Refused as error:
            raise DataError(f"{path} is refused, and nothing in it was run: {error}") from error
        except Exception as error:  # a damaged pickle makes the unpickler raise nearly anything
            raise DataError(f"{path} is truncated or damaged: {error!r}") from error
    data = content.get(b"data") if isinstance(content, dict) else None
    labels = content.get(b"labels") if isinstance(content, dict) else None
    if not isinstance(data, _Array) or data.values is None or not isinstance(labels, list):
        raise DataError(f"{path} is no batch of CIFAR-10: no array 'data' and list 'labels' in it")
    if not all(isinstance(label, int) and 0 <= label <= 9 for label in labels):
        raise DataError(f"{path} is no CIFAR-10: labels must be 0 to 9")
    return _checked(path, torch.from_numpy(data.values.copy()), torch.tensor(labels))


def _checked(path: Path, pixels: Tensor, labels: Tensor) -> Batch:
    if tuple(pixels.shape) != (len(labels), PIXELS):
        raise DataError(
            f"{path}: {len(labels)} labels want pixels ({len(labels)}, {PIXELS}), "
            f"got {list(pixels.shape)}"
        )
    if len(labels) == 0 or not 0 <= int(labels.min()) <= int(labels.max()) <= 9:
        raise DataError(f"{path} is no CIFAR-10: labels must be 0 to 9")
    return pixels, labels


class _Refused(pickle.UnpicklingError):
    """The pickle asks for something that is neither an array nor a plain value."""


class _Array:
    """Stands in for numpy.ndarray, so that NumPy sees nothing of the file but checked bytes."""

    values: np.ndarray[Any, np.dtype[np.uint8]] | None = None

    def __setstate__(self, state: tuple[Any, tuple[int, ...], Any, bool, bytes]) -> None:
        _, shape, dtype, is_fortran, data = state
        if not (isinstance(dtype, _DType) and isinstance(data, bytes)):
            raise _Refused("an array that is not of uint8")
        if math.prod(shape) != len(data):
            raise ValueError(f"an array {shape} of {len(data)} bytes")
        order = "F" if is_fortran else "C"
        self.values = np.frombuffer(data, np.uint8).reshape(shape, order=order)  # type: ignore[call-overload]


class _DType:
    """Stands in for numpy.dtype("uint8")."""

    def __init__(self, name: str | bytes, *_: object) -> None:
        if name not in ("u1", b"u1"):
            raise _Refused(f"an array of {name!r}, not of uint8")

    def __setstate__(self, state: object) -> None:
        """Byte order and the like: of no meaning for bytes."""


def _encode(text: str, encoding: str) -> bytes:
    """How Python 3 writes bytes in pickles that Python 2 reads."""
    return text.encode("latin1" if encoding in ("latin1", "latin-1") else "ascii")


_STAND_INS: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy.core.multiarray", "_reconstruct"): lambda *_: _Array(),
    ("numpy._core.multiarray", "_reconstruct"): lambda *_: _Array(),
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _DType,
    ("_codecs", "encode"): _encode,
}


class _ArraysOnly(pickle.Unpickler):
    """Arrays of uint8, numbers, strings and plain containers; none of NumPy's code runs."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file, encoding="bytes")

    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        stand_in = _STAND_INS.get((module, name))
        if stand_in is None:
            raise _Refused(f"it asks for {module}.{name}; only arrays and plain values are read")
        return lambda *arguments: stand_in(*arguments)  # new each time: a pickle can change it
