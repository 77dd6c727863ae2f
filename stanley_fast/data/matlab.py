"""Vectors of integers in MATLAB's .mat files (level 5), which is all that Flowers 102 has.

SciPy reads these too, but a damaged file can crash it and the process with it.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from stanley_fast.data.images import DataError

HEADER = 128
MATRIX, COMPRESSED = 14, 15
NUMBERS = {1: "<i1", 2: "<u1", 3: "<i2", 4: "<u2", 5: "<i4", 6: "<u4", 7: "<f4", 9: "<f8"}
NUMBERS |= {12: "<i8", 13: "<u8"}
LARGEST = 2**24  # bytes that a compressed variable may grow to


def read(path: Path, name: str) -> Tensor:
    """The variable `name`, a vector of whole numbers of any class, as int64 (n,).

    Raises:
        DataError: the file is damaged or has no such variable.

    Source: MathWorks, MAT-File Format, level 5.
    """
    data = path.read_bytes()
    if len(data) < HEADER or data[126:128] != b"IM":
        raise DataError(f"{path} is truncated or no little-endian .mat file of level 5")
    try:
        for kind, content in _elements(data[HEADER:]):
            found = _variable(kind, content)
            if found is not None and found[0] == name:
                return found[1]
    except (ValueError, struct.error, zlib.error, OverflowError) as error:
        raise DataError(f"{path} is truncated or damaged: {error}") from error
    raise DataError(f"{path} has no vector {name!r}")


def _elements(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(type, content) of each data element; one of up to 4 bytes may share its tag's 8."""
    at = 0
    while at < len(data):
        kind, size = struct.unpack_from("<II", data, at)
        start, end = at + 8, at + 8 + size
        if kind >> 16:
            kind, size = kind & 0xFFFF, kind >> 16
            start, end = at + 4, at + 4 + size
            if size > 4:
                raise ValueError(f"a small element of {size} bytes")
        if end > len(data):
            raise ValueError(f"{end - len(data)} bytes are missing")
        yield kind, data[start:end]
        at = end if kind == COMPRESSED else end + -end % 8  # the rest are padded


def _variable(kind: int, content: bytes) -> tuple[str, Tensor] | None:
    """A variable's name and values; None if it is no array of numbers."""
    if kind == COMPRESSED:
        stream = zlib.decompressobj()
        inside = stream.decompress(content, LARGEST)
        if not stream.eof:
            raise ValueError("a compressed variable that is too large or cut off")
        kind, content = next(_elements(inside), (0, b""))
    parts = list(_elements(content)) if kind == MATRIX else []
    if len(parts) < 4 or parts[3][0] not in NUMBERS:
        return None
    (_, (_, dimensions), (_, name), (number, values)) = parts[:4]  # the first are the array's flags
    array = np.frombuffer(values, NUMBERS[number])
    if array.size != np.prod(np.frombuffer(dimensions, "<i4"), dtype=np.float64):
        raise ValueError(f"{name!r} has another size than it says")
    whole = array.astype(np.float64)
    if not np.array_equal(whole, np.rint(whole)) or np.abs(whole).max(initial=0) >= 2**53:
        raise ValueError(f"{name!r} has values that are no whole numbers")
    return name.decode("ascii"), torch.from_numpy(whole.astype(np.int64))
