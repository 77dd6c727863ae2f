"""Images by the name of a data set, or from a file or folder of one's own."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from stanley_fast.data import arrays, cache, celeba, cifar, flowers, idx, pictures
from stanley_fast.data.images import Images
from stanley_fast.data.pictures import Pictures

Content = tuple[Tensor | Pictures, Tensor | None]


@dataclass(frozen=True)
class Known:
    """A data set that `load` knows by name.

    Attributes:
        read: (folder, split) -> pixels or pictures, and labels.
        splits: the splits it has.
        size: what its pictures are resized to unless told.
    """

    read: Callable[[Any, str], Content]
    splits: tuple[str, ...]
    size: int | None = None


KNOWN = {
    "cifar10": Known(cifar.read, tuple(cifar.BATCHES)),
    "mnist": Known(idx.read, tuple(idx.PREFIXES)),
    "fashion-mnist": Known(idx.read, tuple(idx.PREFIXES)),
    "flowers102": Known(flowers.read, tuple(flowers.SETS), size=32),
    "celeba": Known(celeba.read, tuple(celeba.PARTITIONS), size=64),
    "digits": Known(arrays.read_digits, tuple(arrays.DIGITS)),
}


def load(
    source: str | os.PathLike[str],
    folder: str | os.PathLike[str] | None = None,
    *,
    split: str | None = None,
    limit: int | None = None,
    size: int | None = None,
    channels: int | None = None,
    cache_folder: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Images:
    """Images by a data set's name, or from a file or folder of pictures or arrays.

    Arrays (cifar10, mnist, fashion-mnist, digits, .npy, .npz) are read as they are. Pictures
    (flowers102, celeba, a folder, a .zip) are decoded once, on all cores, and then come from a
    cache, as long as the files' names, sizes and times of change stay the same.

    Args:
        source: "cifar10", "mnist", "fashion-mnist", "flowers102", "celeba" or "digits"; or the
            path of a folder or .zip of pictures, an .npy or an .npz.
        folder: where a named data set's files are, as its authors give them; docs/data.md has the
            layouts. None for digits, and for a path.
        split: "train" (unless told), "test", "all", of Flowers 102 and CelebA "valid"; None for a
            path.
        limit: no more than the first so many; the others are not decoded.
        size: pictures' central squares are resized to size x size. Unless told: 32 for flowers102,
            64 for celeba; others must all be of one size.
        channels: of pictures, 3 (RGB, unless told) or 1 (grey).
        cache_folder: for decoded pictures, by default $XDG_CACHE_HOME/stanley-fast.
        progress: show a progress bar while decoding, if tqdm is installed.

    Raises:
        ValueError: an argument that makes no sense, or does not apply to this source.
        FileNotFoundError: a file that the data set wants, or the source.
        DataError: files that are broken, truncated, missing, of unequal size, or refused because
            reading them would run code; by name.
        ImportError: what to install for this source.

    >>> load("digits").shape
    (1, 8, 8)
    """
    _check(limit, size, channels)
    if known := KNOWN.get(str(source)):
        name, split = str(source), split or "train"
        if split not in known.splits:
            raise ValueError(f"split must be one of {', '.join(known.splits)}, got {split!r}")
        if folder is None and name != "digits":
            raise ValueError(f"folder must say where the files of {name} are")
        content, labels = known.read(None if folder is None else Path(folder), split)
        size = known.size if size is None and isinstance(content, Pictures) else size
    else:
        if folder is not None or split is not None:
            raise ValueError(
                f"folder and split are for {', '.join(KNOWN)} alone, not for {os.fspath(source)!r}"
            )
        name, split = Path(source).resolve().name, "all"
        content, labels = _read_path(Path(source))
    labels = None if labels is None else labels[:limit]
    if isinstance(content, Pictures):
        if limit is not None:
            content = content.first(limit)
        pixels = _decode_once(content, name, split, size, channels or 3, cache_folder, progress)
    else:
        if size is not None or channels is not None:
            raise ValueError(f"size and channels are for pictures; {name} has arrays")
        pixels = content[:limit]
    return Images(pixels, labels, name, split)


def _check(limit: int | None, size: int | None, channels: int | None) -> None:
    for name, count in (("limit", limit), ("size", size)):
        if count is not None and count < 1:
            raise ValueError(f"{name} must be 1 or more, got {count}")
    if channels is not None and channels not in pictures.MODES:
        raise ValueError(f"channels must be 1 or 3, got {channels}")


def _read_path(path: Path) -> Content:
    if path.is_dir():
        return pictures.in_folder(path), None
    if not path.exists():
        raise FileNotFoundError(f"source must be one of {', '.join(KNOWN)}, or exist, got {path}")
    if path.suffix == ".zip":
        return pictures.in_zip(path), None
    if path.suffix in (".npy", ".npz"):
        return arrays.read(path)
    raise ValueError(f"source must be a folder, .zip, .npy or .npz, got {path}")


def _decode_once(
    files: Pictures,
    name: str,
    split: str,
    size: int | None,
    channels: int,
    cache_folder: str | os.PathLike[str] | None,
    progress: bool,
) -> Tensor:
    settings = [str(files.place.resolve()), split, len(files.names), size, channels]
    suffix = hashlib.sha256(repr(settings).encode()).hexdigest()[:12]
    return cache.cached(
        lambda: pictures.decode(files, size=size, channels=channels, progress=progress),
        name=f"{name}-{split}-{suffix}",
        source={"settings": settings, "files": files.stamp},
        folder=cache_folder,
    )
