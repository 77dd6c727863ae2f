"""Small image data in the layouts of the real data sets, written by the tests themselves."""

from __future__ import annotations

import gzip
import pickle
import struct
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import scipy.io
from PIL import Image

Array = np.ndarray


def pixels(n: int, *shape: int, seed: int = 0) -> Array:
    """Random uint8 (n, *shape)."""
    return np.random.default_rng(seed).integers(0, 256, (n, *shape), np.uint8)


def write_png(path: Path, image: Array) -> None:
    """(H, W, 3) or (H, W), without loss."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, "PNG")


# CIFAR-10 ----------------------------------------------------------------------------------------

CIFAR_FILES = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]


def cifar(folder: Path, write: Callable[[Path, Array, Sequence[int]], None]) -> tuple[Array, Array]:
    """Six batches of two images; all pixels (12, 3, 32, 32) and labels (12,)."""
    images, labels = pixels(12, 3, 32, 32), np.arange(12) % 10
    for i, name in enumerate(CIFAR_FILES):
        part = slice(2 * i, 2 * i + 2)
        write(folder / name, images[part].reshape(2, 3072), labels[part].tolist())
    return images, labels


def cifar_binary(path: Path, images: Array, labels: Sequence[int]) -> None:
    rows = np.concatenate([np.array(labels, np.uint8)[:, None], images], axis=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    rows.tofile(path.with_suffix(".bin"))


def cifar_python2(path: Path, images: Array, labels: Sequence[int]) -> None:
    """As Python 2 pickled the official files: protocol 2, bytes as its strings."""

    def string(text: bytes) -> bytes:
        if len(text) < 256:
            return b"U" + struct.pack("<B", len(text)) + text
        return b"T" + struct.pack("<i", len(text)) + text

    def integer(value: int) -> bytes:
        return b"J" + struct.pack("<i", value)

    dtype = b"cnumpy\ndtype\n(" + string(b"u1") + b"K\x00K\x01tR"
    dtype += b"(K\x03" + string(b"|") + b"NNN" + integer(-1) + integer(-1) + b"K\x00tb"
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00t" + string(b"b") + b"tR"
    )
    array += b"(K\x01" + b"(" + b"".join(map(integer, images.shape)) + b"t"
    array += dtype + b"\x89" + string(images.tobytes()) + b"tb"
    content = b"\x80\x02}(" + string(b"batch_label") + string(b"batch 1 of 5")
    content += string(b"labels") + b"](" + b"".join(map(integer, labels)) + b"e"
    content += string(b"data") + array
    content += string(b"filenames") + b"](" + string(b"a.png") + string(b"b.png") + b"eu."
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def cifar_python3(path: Path, images: Array, labels: Sequence[int]) -> None:
    """Pickled again by a newer Python, and NumPy."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps({b"labels": list(labels), b"data": images}, protocol=2))


# Others ------------------------------------------------------------------------------------------


def idx(folder: Path, *, zipped: bool = False) -> tuple[Array, Array]:
    """MNIST's four files: five training images and three of test, (8, 28, 28), and labels."""
    images, labels = pixels(8, 28, 28), np.arange(8, dtype=np.uint8)
    for name, part in (("train", slice(0, 5)), ("t10k", slice(5, 8))):
        for kind, array in (("images-idx3", images[part]), ("labels-idx1", labels[part])):
            header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
            data = header + array.tobytes()
            path = folder / f"{name}-{kind}-ubyte{'.gz' if zipped else ''}"
            path.write_bytes(gzip.compress(data, mtime=0) if zipped else data)
    return images, labels


def flowers(folder: Path) -> Array:
    """Six pictures of one colour each, (6, 3); labels 1 to 6, split 3 / 1 / 2, of unequal sizes."""
    colours = pixels(6, 3, seed=3)
    for i, colour in enumerate(colours):
        image = np.broadcast_to(colour, (40 + i, 60, 3))
        # A PNG under a name of JPEG's: Pillow goes by the content, and colours stay exact.
        write_png(folder / f"jpg/image_{i + 1:05}.jpg", np.ascontiguousarray(image))
    labels = np.arange(1, 7, dtype=np.uint8)[None]
    scipy.io.savemat(folder / "imagelabels.mat", {"labels": labels})
    sets = {"trnid": [[2, 4, 6]], "valid": [[5]], "tstid": [[1, 3]]}
    scipy.io.savemat(folder / "setid.mat", {k: np.array(v, np.uint16) for k, v in sets.items()})
    return colours


def celeba(folder: Path) -> Array:
    """Five faces of one colour each, (5, 3), in the partitions 0 0 1 2 0."""
    colours = pixels(5, 3, seed=4)
    for i, colour in enumerate(colours):
        image = np.ascontiguousarray(np.broadcast_to(colour, (218, 178, 3)))
        write_png(folder / f"img_align_celeba/{i + 1:06}.jpg", image)
    lines = "".join(f"{i + 1:06}.jpg {part}\n" for i, part in enumerate([0, 0, 1, 2, 0]))
    (folder / "list_eval_partition.txt").write_text(lines)
    return colours


class Evil:
    """Pickled, it makes a file when it is loaded by anything that runs what it is told."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.mark,)
