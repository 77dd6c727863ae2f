"""MNIST's idx files, which Fashion-MNIST has too; plain or .gz."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from stanley_fast.data.images import DataError

PREFIXES = {"train": ["train"], "test": ["t10k"], "all": ["train", "t10k"]}
UINT8 = 8  # the format's code for it, third byte of a file; the fourth counts dimensions


def read(folder: Path, split: str) -> tuple[Tensor, Tensor]:
    """Pixels (n, 1, 28, 28) and labels (n,) of train-images-idx3-ubyte[.gz] and its like.

    Raises:
        FileNotFoundError: a file is not there.
        DataError: a file is truncated, or something else.
    """
    parts = [_read_part(folder, prefix) for prefix in PREFIXES[split]]
    pixels, labels = (torch.cat(each) for each in zip(*parts, strict=True))
    return pixels[:, None], labels


def _read_part(folder: Path, prefix: str) -> tuple[Tensor, Tensor]:
    pixels = _array(_find(folder, f"{prefix}-images-idx3-ubyte"), dimensions=3)
    labels = _array(_find(folder, f"{prefix}-labels-idx1-ubyte"), dimensions=1)
    if len(pixels) != len(labels):
        raise DataError(f"{folder} has {len(pixels)} {prefix} images but {len(labels)} labels")
    return pixels, labels.long()


def _find(folder: Path, name: str) -> Path:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.exists():
            return path
    raise FileNotFoundError(f"there is no {name} or {name}.gz in {folder}")


def _array(path: Path, dimensions: int) -> Tensor:
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} is truncated or no gzip file: {error}") from error
    start = 4 + 4 * dimensions
    if len(data) < start or data[:4] != bytes([0, 0, UINT8, dimensions]):
        raise DataError(f"{path} is no idx file of uint8 with {dimensions} dimensions")
    shape = np.frombuffer(data, ">u4", dimensions, offset=4).tolist()
    if len(data) != start + math.prod(shape):
        raise DataError(
            f"{path} is truncated or damaged: {shape} want {math.prod(shape)} bytes, "
            f"got {len(data) - start}"
        )
    return torch.from_numpy(np.frombuffer(data, np.uint8, offset=start).copy()).view(shape)
