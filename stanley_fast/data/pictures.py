"""Picture files, from a folder or a zip, decoded into one uint8 tensor."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stanley_fast.checkpoint import first_line
from stanley_fast.data.images import DataError
from stanley_fast.extras import need
from stanley_fast.terminal import counting_bar

ENDINGS = {"bmp", "jpg", "jpeg", "pgm", "png", "ppm", "tif", "tiff", "webp"}
MODES = {1: "L", 3: "RGB"}
NAMED = 5  # broken files that an error lists

Pixels = np.ndarray[Any, np.dtype[np.uint8]]


@dataclass(frozen=True)
class Pictures:
    """Picture files, not yet decoded.

    Attributes:
        names: of the files, in order.
        read: a name -> the file's bytes.
        stamp: plain values that change when the files do.
        place: the folder or zip they are in.
    """

    names: list[str]
    read: Callable[[str], bytes]
    stamp: list[Any]
    place: Path

    def first(self, n: int) -> Pictures:
        """The first n of them."""
        return replace(self, names=self.names[:n], stamp=self.stamp[:n])


def in_folder(folder: Path, *, nested: bool = True) -> Pictures:
    """All pictures in a folder, sorted by name; subfolders too if `nested`."""
    found = (p for p in (folder.rglob("*") if nested else folder.iterdir()) if _is_picture(p.name))
    return named(folder, [path.relative_to(folder).as_posix() for path in sorted(found)])


def named(folder: Path, names: Sequence[str]) -> Pictures:
    """The pictures of these names in a folder.

    Raises:
        DataError: there are none, or some are missing.
    """
    stamp, missing = [], []
    for name in names:
        try:
            status = (folder / name).stat()
        except FileNotFoundError:
            missing.append(name)
        else:
            stamp.append([name, status.st_size, status.st_mtime_ns])
    if missing:
        raise DataError(f"{folder} lacks {_some(missing)}")
    _check_any(names, folder)
    return Pictures(list(names), lambda name: (folder / name).read_bytes(), stamp, folder)


def in_zip(path: Path) -> Pictures:
    """All pictures in a zip, sorted by name."""
    try:
        archive = zipfile.ZipFile(path)  # stays open for `read`
    except zipfile.BadZipFile as error:
        raise DataError(f"{path} is no zip file, or a truncated one: {error}") from error
    names = sorted(name for name in archive.namelist() if _is_picture(name))
    _check_any(names, path)
    members = [archive.getinfo(name) for name in names]
    stamp = [[member.filename, member.file_size, member.CRC] for member in members]
    return Pictures(names, archive.read, stamp, path)


def _is_picture(name: str) -> bool:
    """By its ending; macOS adds "._" files beside the real ones."""
    last = name.rpartition("/")[2]
    return last.rpartition(".")[2].lower() in ENDINGS and not last.startswith("._")


def _check_any(names: Sequence[str], place: Path) -> None:
    if not names:
        raise DataError(f"{place} holds no pictures ({', '.join(sorted(ENDINGS))})")


def decode(pictures: Pictures, *, size: int | None, channels: int, progress: bool) -> Tensor:
    """uint8 (n, channels, H, W): as they are, or their central squares resized to size x size.

    Args:
        size: None wants pictures that are all of one size.
        channels: 3 for RGB, 1 for grey.
        progress: show a progress bar.

    Raises:
        DataError: pictures that are broken or of another size, by name.
    """
    need("PIL.Image", "images", "decoding pictures")
    names = pictures.names
    first = _decode_one(pictures, names[0], size, channels)
    out = np.empty((len(names), *first.shape), np.uint8)

    def put(i: int) -> str | None:
        """Decodes picture i into its place, or says what is wrong with it."""
        try:
            image = _decode_one(pictures, names[i], size, channels)
        except DataError as error:
            return str(error)
        if image.shape != first.shape:
            sizes = f"{_size(image)} pixels, but {names[0]} has {_size(first)}"
            return f"{pictures.place / names[i]}: {sizes}; give a size to resize them all to"
        out[i] = image
        return None

    pool = ThreadPoolExecutor(os.cpu_count())  # Pillow decodes outside Python's lock
    wrong = []
    try:
        with counting_bar(len(names), "decoding", progress) as advance:
            for problem in pool.map(put, range(len(names))):
                wrong += [problem] if problem else []
                advance(1)
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C need not wait for the rest
    if wrong:
        what = f"{len(wrong)} of {len(names)} pictures can't be used"
        raise DataError(f"{what}: {_some(wrong, '; ')}")
    return torch.from_numpy(out)


def _decode_one(pictures: Pictures, name: str, size: int | None, channels: int) -> Pixels:
    """(C, H, W), or DataError with the picture's name and what is wrong with it."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(pictures.read(name))) as image:
            if image.mode.startswith(("I", "F")):
                raise ValueError(f"pixels of mode {image.mode}, 8 bits are wanted")
            picture = image.convert(MODES[channels])
    except UnidentifiedImageError as error:
        what = "broken, or no picture that Pillow knows"
        raise DataError(f"{pictures.place / name}: {what}") from error
    except Exception as error:  # a broken file makes Pillow and zipfile raise nearly anything
        raise DataError(f"{pictures.place / name}: {first_line(error)}") from error
    if size is not None:
        side = min(picture.size)
        left, top = (picture.width - side) // 2, (picture.height - side) // 2
        square = picture.crop((left, top, left + side, top + side))
        picture = square.resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(picture).reshape(picture.height, picture.width, channels).transpose(2, 0, 1)


def _size(image: Pixels) -> str:
    """Width x height, as one says it of pictures."""
    return f"{image.shape[2]}x{image.shape[1]}"


def _some(items: Sequence[str], separator: str = ", ") -> str:
    more = f" and {len(items) - NAMED} more" if len(items) > NAMED else ""
    return separator.join(items[:NAMED]) + more
