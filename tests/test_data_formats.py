"""Each format is read as it is laid out, and refused with a reason where it is not."""

from __future__ import annotations

import io
import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path

import image_files
import numpy as np
import pytest
import scipy.io
import torch
from PIL import Image

from stanley_fast.data import DataError, Images, load, matlab


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def assert_holds(images: Images, pixels: np.ndarray, labels: object) -> None:
    assert torch.equal(images.pixels, torch.from_numpy(np.ascontiguousarray(pixels)))
    if labels is None:
        assert images.labels is None
    else:
        assert images.labels is not None
        assert images.labels.dtype == torch.int64
        assert images.labels.tolist() == list(labels)  # type: ignore[call-overload]


# CIFAR-10 ----------------------------------------------------------------------------------------

LAYOUTS = {
    "bin": image_files.cifar_binary,
    "python 2": image_files.cifar_python2,
    "python 3": image_files.cifar_python3,
}
SUBFOLDERS = {"bin": "cifar-10-batches-bin"}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("inside", [False, True])
def test_cifar(tmp_path: Path, layout: str, inside: bool) -> None:
    folder = tmp_path / SUBFOLDERS.get(layout, "cifar-10-batches-py") if inside else tmp_path
    pixels, labels = image_files.cifar(folder, LAYOUTS[layout])
    assert_holds(load("cifar10", tmp_path), pixels[:10], labels[:10])
    assert_holds(load("cifar10", tmp_path, split="test"), pixels[10:], labels[10:])
    assert_holds(load("cifar10", tmp_path, split="all"), pixels, labels)


def test_cifar_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"CIFAR-10 is not in .*: neither"):
        load("cifar10", tmp_path)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_cifar_lacks_a_batch(tmp_path: Path, layout: str) -> None:
    image_files.cifar(tmp_path, LAYOUTS[layout])
    victim = next(tmp_path.glob("data_batch_4*"))
    victim.unlink()
    with pytest.raises(FileNotFoundError, match=re.escape(f"{victim} is missing")):
        load("cifar10", tmp_path)


def test_cifar_binary_is_truncated(tmp_path: Path) -> None:
    image_files.cifar(tmp_path, image_files.cifar_binary)
    victim = tmp_path / "data_batch_2.bin"
    victim.write_bytes(victim.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"data_batch_2.bin is truncated .* 6145 bytes"):
        load("cifar10", tmp_path)


def test_cifar_binary_has_another_label(tmp_path: Path) -> None:
    image_files.cifar(tmp_path, image_files.cifar_binary)
    with open(tmp_path / "data_batch_2.bin", "r+b") as file:
        file.write(b"\x0a")
    with pytest.raises(DataError, match=r"data_batch_2.bin is no CIFAR-10: labels must be 0 to 9"):
        load("cifar10", tmp_path)


def cifar_with(folder: Path, content: bytes) -> Path:
    """A folder of CIFAR-10 whose third batch is `content`."""
    image_files.cifar(folder, image_files.cifar_python2)
    (folder / "data_batch_3").write_bytes(content)
    return folder


ROW = image_files.pixels(2, 3072)


@pytest.mark.parametrize(
    "make",
    [
        lambda evil: evil,
        lambda evil: {b"labels": [0, 1], b"data": ROW, b"filenames": [evil]},
        lambda evil: {b"labels": [0, 1], b"data": np.array([evil, None])},
    ],
    ids=["alone", "beside", "in an array"],
)
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_cifar_pickle_runs_nothing(
    tmp_path: Path, make: Callable[[object], object], protocol: int
) -> None:
    mark = tmp_path / "mark"
    evil = pickle.dumps(make(image_files.Evil(mark)), protocol)
    with pytest.raises(DataError, match=r"data_batch_3 is refused, and nothing in it was run"):
        load("cifar10", cifar_with(tmp_path, evil))
    assert not mark.exists()
    pickle.loads(evil)
    assert mark.exists()  # the attack is one


@pytest.mark.parametrize("name", ["os system", "builtins eval", "numpy.core.multiarray scalar"])
def test_cifar_pickle_may_name_nothing_else(tmp_path: Path, name: str) -> None:
    content = b"\x80\x02c" + "\n".join(name.split()).encode() + b"\n."
    with pytest.raises(DataError, match=f"it asks for {name.replace(' ', '.')}; only arrays"):
        load("cifar10", cifar_with(tmp_path, content))


def test_cifar_pickle_leaves_no_trace(tmp_path: Path) -> None:
    """BUILD sets attributes of what it finds on the stack: not of what the next file uses."""
    for name in (b"cnumpy\nndarray\n", b"cnumpy\ndtype\n", b"c_codecs\nencode\n"):
        attributes = b"}(X\x0c\x00\x00\x00__setstate__K\x01X\x08\x00\x00\x00__name__K\x02u"
        content = b"\x80\x02" + name + b"N" + attributes + b"\x86b."
        with pytest.raises(DataError):
            load("cifar10", cifar_with(tmp_path, content))
    image_files.cifar(tmp_path, image_files.cifar_python2)
    assert len(load("cifar10", tmp_path)) == 10


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "no array 'data' and list 'labels'"),
        ({b"labels": [0, 1]}, "no array 'data' and list 'labels'"),
        ({b"labels": (0, 1), b"data": ROW}, "no array 'data' and list 'labels'"),
        ({b"labels": [0, 11], b"data": ROW}, "labels must be 0 to 9"),
        ({b"labels": [0, "1"], b"data": ROW}, "labels must be 0 to 9"),
        (
            {b"labels": [0, 1, 2], b"data": ROW},
            r"3 labels want pixels \(3, 3072\), got \[2, 3072\]",
        ),
        ({b"labels": [0, 1], b"data": ROW.astype(np.int32)}, "an array of b?'i4', not of uint8"),
    ],
)
def test_cifar_pickle_of_something_else(tmp_path: Path, content: object, message: str) -> None:
    with pytest.raises(DataError, match=f"data_batch_3.*{message}"):
        load("cifar10", cifar_with(tmp_path, pickle.dumps(content, 2)))


def test_cifar_pickle_keeps_fortran_order(tmp_path: Path) -> None:
    content = {b"labels": [0, 1], b"data": np.asfortranarray(ROW)}
    images = load("cifar10", cifar_with(tmp_path, pickle.dumps(content, 2)))
    assert torch.equal(images.pixels[4:6].flatten(1), torch.from_numpy(ROW))


# MNIST, Fashion-MNIST ----------------------------------------------------------------------------


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_idx(tmp_path: Path, name: str, zipped: bool) -> None:
    pixels, labels = image_files.idx(tmp_path, zipped=zipped)
    assert_holds(load(name, tmp_path), pixels[:5, None], labels[:5])
    assert_holds(load(name, tmp_path, split="test"), pixels[5:, None], labels[5:])
    assert_holds(load(name, tmp_path, split="all"), pixels[:, None], labels)
    assert load(name, tmp_path).name == name


def test_idx_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no train-images-idx3-ubyte or .*\.gz in"):
        load("mnist", tmp_path)


@pytest.mark.parametrize("zipped", [False, True])
def test_idx_is_truncated(tmp_path: Path, zipped: bool) -> None:
    image_files.idx(tmp_path, zipped=zipped)
    victim = next(tmp_path.glob("train-images*"))
    victim.write_bytes(victim.read_bytes()[:-10])
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte.* is truncated"):
        load("mnist", tmp_path)


def test_idx_files_that_do_not_belong_together(tmp_path: Path) -> None:
    image_files.idx(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").replace(tmp_path / "train-labels-idx1-ubyte")
    with pytest.raises(DataError, match="5 train images but 3 labels"):
        load("mnist", tmp_path)


def test_idx_of_other_numbers(tmp_path: Path) -> None:
    image_files.idx(tmp_path)
    with open(tmp_path / "train-images-idx3-ubyte", "r+b") as file:
        file.write(b"\x00\x00\x0d")  # float32
    with pytest.raises(DataError, match="no idx file of uint8 with 3 dimensions"):
        load("mnist", tmp_path)


# Arrays ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 3), (5, 7, 1), (3, 5, 7), (1, 5, 7), (3, 5, 3)])
def test_npy(tmp_path: Path, shape: tuple[int, ...]) -> None:
    pixels = image_files.pixels(4, *shape)
    np.save(tmp_path / "a.npy", pixels)
    if len(shape) == 2:
        want = pixels[:, None]
    else:
        want = pixels if shape[0] in (1, 3) else pixels.transpose(0, 3, 1, 2)
    assert_holds(load(tmp_path / "a.npy"), want, None)
    assert load(tmp_path / "a.npy").name == "a.npy"


def test_npz(tmp_path: Path) -> None:
    pixels, labels = image_files.pixels(4, 3, 5, 5), np.array([3, 1, 2, 9], np.uint8)
    np.savez(tmp_path / "a.npz", pixels)
    assert_holds(load(tmp_path / "a.npz"), pixels, None)
    np.savez_compressed(tmp_path / "b.npz", images=pixels, labels=labels, more=labels)
    assert_holds(load(tmp_path / "b.npz"), pixels, labels)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"a": ROW, "b": ROW}, r"one array, or one named 'images'; got \['a', 'b'\]"),
        ({}, "got none"),
        ({"a": ROW}, r"got \[2, 3072\]"),
        ({"a": image_files.pixels(2, 5, 5, 5)}, r"got \[2, 5, 5, 5\]"),
        ({"a": image_files.pixels(0, 5, 5)}, r"got \[0, 1, 5, 5\]"),
        ({"a": np.zeros((2, 5, 5), np.float32)}, "images must be uint8, got float32"),
        (
            {"a": image_files.pixels(2, 5, 5), "labels": np.arange(3)},
            r"labels must be 2 integers, got int64 \[3\]",
        ),
        (
            {"a": image_files.pixels(2, 5, 5), "labels": np.zeros(2)},
            r"labels must be 2 integers, got float64 \[2\]",
        ),
    ],
)
def test_npz_of_something_else(tmp_path: Path, arrays: dict[str, object], message: str) -> None:
    np.savez(tmp_path / "a.npz", **arrays)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=rf"a\.npz.*{message}"):
        load(tmp_path / "a.npz")


@pytest.mark.parametrize("name", ["a.npy", "a.npz"])
def test_array_pickles_run_nothing(tmp_path: Path, name: str) -> None:
    mark = tmp_path / "mark"
    evil = np.array([image_files.Evil(mark), None])
    (np.save if name == "a.npy" else np.savez)(tmp_path / name, evil)
    with pytest.raises(DataError, match=f"{name} is truncated or no array file: Object arrays"):
        load(tmp_path / name)
    assert not mark.exists()


# Pictures ----------------------------------------------------------------------------------------


def one_colour(colour: np.ndarray, size: int) -> np.ndarray:
    """(n, 3) colours as (n, 3, size, size)."""
    return np.broadcast_to(colour[:, :, None, None], (*colour.shape, size, size))


def test_folder(tmp_path: Path) -> None:
    pixels = image_files.pixels(4, 6, 5, 3)
    for name, image in zip(["b/a.png", "a.PNG", "c.png", "b/c/d.bmp"], pixels, strict=True):
        image_files.write_png(tmp_path / "in" / name, image)
    (tmp_path / "in/notes.txt").write_text("no picture")
    (tmp_path / "in/._c.png").write_text("what macOS leaves")
    images = load(tmp_path / "in")
    assert_holds(images, pixels[[1, 0, 3, 2]].transpose(0, 3, 1, 2), None)  # sorted by path
    assert (images.name, images.split) == ("in", "all")


def test_zip_is_as_the_folder(tmp_path: Path) -> None:
    for i, image in enumerate(image_files.pixels(4, 6, 5, 3)):
        image_files.write_png(tmp_path / f"in/{i % 2}/{i}.png", image)
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in (tmp_path / "in").rglob("*.png"):
            archive.write(path, path.relative_to(tmp_path))
        archive.writestr("__MACOSX/in/._0.png", "what macOS leaves")
    assert load(tmp_path / "a.zip").fingerprint == load(tmp_path / "in").fingerprint


def test_modes(tmp_path: Path) -> None:
    """Grey as RGB, RGB as grey, palettes; alpha is dropped."""
    red = np.zeros((4, 4, 3), np.uint8)
    red[..., 0] = 200
    picture = Image.fromarray(red)
    alpha = picture.copy()
    alpha.putalpha(7)
    for name, each in {"rgb": picture, "palette": picture.quantize(8), "alpha": alpha}.items():
        each.save(tmp_path / f"{name}.png")
    assert (load(tmp_path).pixels[:, :, 0, 0] == torch.tensor([200, 0, 0])).all()
    # ITU-R 601: 0.299 R + 0.587 G + 0.114 B.
    assert (load(tmp_path, channels=1).pixels == 60).all()


def test_central_square_is_resized(tmp_path: Path) -> None:
    wide = np.zeros((16, 48, 3), np.uint8)
    wide[:, 16:32, 1] = 255  # red is absent, green in the middle third
    image_files.write_png(tmp_path / "in/wide.png", wide)
    image_files.write_png(tmp_path / "in/tall.png", np.ascontiguousarray(wide.transpose(1, 0, 2)))
    for size in (8, 16, 32):
        pixels = load(tmp_path / "in", size=size).pixels
        assert pixels.shape == (2, 3, size, size)
        assert (pixels == torch.tensor([0, 255, 0]).view(3, 1, 1)).all()


def test_resizing_averages(tmp_path: Path) -> None:
    """Not every second pixel: a fine chequerboard turns grey."""
    board = np.indices((64, 64)).sum(0) % 2 * 255
    image_files.write_png(tmp_path / "a.png", board.astype(np.uint8))
    small = load(tmp_path, size=8).pixels.float()
    assert (small - 127.5).abs().max() < 3


def test_unequal_sizes(tmp_path: Path) -> None:
    for name, shape in {"a": (5, 6, 3), "b": (5, 6, 3), "c": (6, 5, 3)}.items():
        image_files.write_png(tmp_path / f"{name}.png", image_files.pixels(*shape))
    message = "c.png: 5x6 pixels, but a.png has 6x5; give a size to resize them all to"
    with pytest.raises(DataError, match=message):
        load(tmp_path)
    assert load(tmp_path, size=4).shape == (3, 4, 4)


def test_broken_pictures_are_all_named(tmp_path: Path) -> None:
    for i in range(12):
        image_files.write_png(tmp_path / f"{i:02}.png", image_files.pixels(8, 8, 3))
    whole = (tmp_path / "00.png").read_bytes()
    (tmp_path / "03.png").write_bytes(whole[:-30])
    (tmp_path / "05.png").write_bytes(b"")
    (tmp_path / "07.png").write_bytes(whole[:60] + b"garbage" + whole[67:])
    for i in range(8, 12):
        (tmp_path / f"{i:02}.png").write_bytes(b"no picture at all")
    with pytest.raises(DataError, match="can't be used: ") as caught:
        load(tmp_path, progress=False)
    for name in ("03", "05", "07", "08", "09"):
        assert f"{name}.png: " in str(caught.value)
    assert str(caught.value).endswith("and 2 more")
    assert "0x" not in str(caught.value)


def test_first_picture_is_broken(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"a\.png: broken, or no picture that Pillow knows"):
        load(tmp_path)


def test_sixteen_bits_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 40_000, np.uint16)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"a\.png: pixels of mode I;16, 8 bits are wanted"):
        load(tmp_path)


def test_no_pictures(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no pictures"):
        load(tmp_path / "empty")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.txt", "")
    with pytest.raises(DataError, match=r"a\.zip holds no pictures"):
        load(tmp_path / "a.zip")


def test_zip_is_damaged(tmp_path: Path) -> None:
    image = io.BytesIO()
    Image.fromarray(image_files.pixels(64, 64, 3)).save(image, "PNG")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.png", image.getvalue())
        archive.writestr("b.png", image.getvalue())
    data = (tmp_path / "a.zip").read_bytes()
    (tmp_path / "a.zip").write_bytes(data[:5000] + b"garbage" + data[5007:])
    with pytest.raises(DataError, match=r"a\.png: Bad CRC-32"):
        load(tmp_path / "a.zip")
    (tmp_path / "a.zip").write_bytes(data[:-100])
    with pytest.raises(DataError, match=r"a\.zip is no zip file, or a truncated one"):
        load(tmp_path / "a.zip")


# Flowers 102 -------------------------------------------------------------------------------------


def test_flowers(tmp_path: Path) -> None:
    colours = image_files.flowers(tmp_path)
    splits = {"train": [1, 3, 5], "valid": [4], "test": [0, 2], "all": [1, 3, 5, 4, 0, 2]}
    for split, index in splits.items():
        images = load("flowers102", tmp_path, split=split)
        assert_holds(images, one_colour(colours[index], 32), index)
    assert load("flowers102", tmp_path, size=64).shape == (3, 64, 64)
    assert_holds(load("flowers102", tmp_path, limit=2), one_colour(colours[[1, 3]], 32), [1, 3])


@pytest.mark.parametrize("name", ["imagelabels.mat", "setid.mat"])
def test_flowers_lack_a_mat(tmp_path: Path, name: str) -> None:
    image_files.flowers(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"Flowers 102 wants .*{name}, which is not there"):
        load("flowers102", tmp_path)


def test_flowers_lack_pictures(tmp_path: Path) -> None:
    image_files.flowers(tmp_path)
    for i in (2, 6):
        (tmp_path / f"jpg/image_{i:05}.jpg").unlink()
    with pytest.raises(DataError, match=r"lacks jpg/image_00002\.jpg, jpg/image_00006\.jpg$"):
        load("flowers102", tmp_path)


def test_flowers_sets_beyond_the_labels(tmp_path: Path) -> None:
    image_files.flowers(tmp_path)
    scipy.io.savemat(tmp_path / "setid.mat", {"trnid": [[7]]})
    with pytest.raises(DataError, match=r"setid\.mat does not fit the 6 labels"):
        load("flowers102", tmp_path)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8"])
@pytest.mark.parametrize("n", [0, 1, 3, 4, 5, 120])
def test_mat_is_scipys(tmp_path: Path, compressed: bool, dtype: str, n: int) -> None:
    values = np.random.default_rng(n).integers(0, 100, n).astype(dtype)
    content = {"text": "no numbers", "a": values[None], "cells": {"x": 1}, "longer_name": values}
    scipy.io.savemat(tmp_path / "a.mat", content, do_compression=compressed)
    for name in ("a", "longer_name"):
        want = scipy.io.loadmat(tmp_path / "a.mat")[name].ravel().astype(np.int64)
        assert matlab.read(tmp_path / "a.mat", name).tolist() == want.tolist()
    with pytest.raises(DataError, match=r"a\.mat has no vector 'text'"):
        matlab.read(tmp_path / "a.mat", "text")


@pytest.mark.parametrize("values", [[0.5], [np.inf], [np.nan], [1e300]])
def test_mat_of_no_whole_numbers(tmp_path: Path, values: list[float]) -> None:
    scipy.io.savemat(tmp_path / "a.mat", {"a": values})
    with pytest.raises(DataError, match="no whole numbers"):
        matlab.read(tmp_path / "a.mat", "a")


@pytest.mark.parametrize("compressed", [False, True])
def test_mat_is_truncated(tmp_path: Path, compressed: bool) -> None:
    path = tmp_path / "a.mat"
    scipy.io.savemat(path, {"a": np.arange(500)}, do_compression=compressed)
    whole = path.read_bytes()
    for end in range(0, len(whole), 7):
        path.write_bytes(whole[:end])
        with pytest.raises(DataError, match=r"a\.mat (is truncated|has no vector)"):
            matlab.read(path, "a")


# CelebA ------------------------------------------------------------------------------------------


def test_celeba(tmp_path: Path) -> None:
    colours = image_files.celeba(tmp_path)
    splits = {"train": [0, 1, 4], "valid": [2], "test": [3], "all": [0, 1, 2, 3, 4]}
    for split, index in splits.items():
        assert_holds(load("celeba", tmp_path, split=split), one_colour(colours[index], 64), None)
    assert_holds(load("celeba", tmp_path, limit=2, size=32), one_colour(colours[:2], 32), None)


def test_celeba_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"CelebA wants .*list_eval_partition\.txt"):
        load("celeba", tmp_path)


@pytest.mark.parametrize("line", ["", "000002.jpg", "000002.jpg 3", "../../etc/passwd 0", "\x00"])
def test_celeba_partition_of_something_else(tmp_path: Path, line: str) -> None:
    image_files.celeba(tmp_path)
    (tmp_path / "list_eval_partition.txt").write_text(f"000001.jpg 0\n{line}\n000003.jpg 0\n")
    with pytest.raises(
        DataError, match=r"list_eval_partition\.txt, line 2: wanted '000001\.jpg 0'"
    ):
        load("celeba", tmp_path)


def test_celeba_lacks_pictures(tmp_path: Path) -> None:
    image_files.celeba(tmp_path)
    (tmp_path / "img_align_celeba/000002.jpg").unlink()
    with pytest.raises(DataError, match=r"lacks img_align_celeba/000002\.jpg"):
        load("celeba", tmp_path)
