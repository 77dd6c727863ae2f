"""Images in .npy and .npz files, and scikit-learn's digits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stanley_fast.checkpoint import first_line
from stanley_fast.data.images import DataError
from stanley_fast.extras import need

CHANNELS = (1, 3)
DIGITS = {"train": slice(0, 1500), "test": slice(1500, 1797), "all": slice(0, 1797)}


def read(path: Path) -> tuple[Tensor, Tensor | None]:
    """Pixels (n, C, H, W) of an array, and labels (n,) where an .npz has them.

    The array is uint8 (n, H, W), (n, H, W, C) or (n, C, H, W) with C 1 or 3; in an .npz it is the
    only one or the one named "images", and the array "labels" holds integers.

    Raises:
        DataError: truncated, pickled, of another dtype or shape.
    """
    try:
        content = np.load(path, allow_pickle=False)
        if path.suffix == ".npy":
            return _pixels(path, content), None
        with content:
            arrays = {name: content[name] for name in content.files}
    except DataError:
        raise
    except Exception as error:  # a damaged header makes NumPy raise nearly anything
        raise DataError(f"{path} is truncated or no array file: {first_line(error)}") from error
    labels = arrays.pop("labels", None)
    if "images" not in arrays and len(arrays) != 1:
        raise DataError(
            f"{path} must hold one array, or one named 'images'; got {sorted(arrays) or 'none'}"
        )
    pixels = _pixels(path, arrays.get("images", next(iter(arrays.values()))))
    if labels is None:
        return pixels, None
    if labels.shape != (len(pixels),) or labels.dtype.kind not in "iu":
        raise DataError(
            f"{path}: labels must be {len(pixels)} integers, got {labels.dtype} "
            f"{list(labels.shape)}"
        )
    return pixels, torch.from_numpy(labels.astype(np.int64))


def _pixels(path: Path, array: np.ndarray[Any, Any]) -> Tensor:
    if array.dtype != np.uint8:
        raise DataError(f"{path}: images must be uint8, got {array.dtype}")
    if array.ndim == 3:
        array = array[:, None]
    elif array.ndim == 4 and array.shape[3] in CHANNELS and array.shape[1] not in CHANNELS:
        array = array.transpose(0, 3, 1, 2)
    if array.ndim != 4 or array.shape[1] not in CHANNELS or 0 in array.shape:
        raise DataError(
            f"{path}: images must be (n, H, W), (n, H, W, C) or (n, C, H, W) with C 1 or 3, none "
            f"0, got {list(array.shape)}"
        )
    return torch.from_numpy(np.ascontiguousarray(array))


def read_digits(folder: Path | None, split: str) -> tuple[Tensor, Tensor]:
    """Pixels (n, 1, 8, 8) and labels (n,) of scikit-learn's 1 797 digits, which it ships.

    The first 1 500 are "train", the others "test". Their 17 grey values are spread over 0 to 255.
    """
    if folder is not None:
        raise ValueError(f"digits come with scikit-learn; folder must be None, got {folder}")
    digits = need("sklearn.datasets", "images", "the data 'digits'").load_digits()
    part = DIGITS[split]
    pixels = torch.from_numpy(digits.images[part] * (255 / 16)).round().to(torch.uint8)
    return pixels[:, None], torch.from_numpy(digits.target[part]).long()
