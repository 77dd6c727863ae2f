"""Images, the minibatches drawn from them, and `load` with its cache."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import image_files
import numpy as np
import pytest
import torch
from torch import Tensor

import stanley_fast as sf
from stanley_fast import checkpoint
from stanley_fast.data import DataError, Images, cache, load, pictures, to_pixels, to_unit


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "stanley-fast"


def numbered(n: int, labels: bool = True) -> Images:
    """n images (1, 2, 2) whose left pixels say which they are, 0 to n - 1, the right ones 255."""
    left = torch.arange(n, dtype=torch.uint8).view(n, 1, 1, 1).expand(n, 1, 2, 1)
    images = torch.cat([left, torch.full_like(left, 255)], dim=3)
    return Images(images, torch.arange(n) if labels else None, "numbered", "all")


ROOT = Path(__file__).parents[1]


def test_the_documentations_example_trains() -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/data.md").read_text(), re.DOTALL)
    scope: dict[str, sf.Trainer] = {}
    exec(blocks[0], scope)
    assert scope["trainer"].iteration == 5


# Images ------------------------------------------------------------------------------------------


def test_to_unit_and_back() -> None:
    every = torch.arange(256, dtype=torch.uint8)
    z = to_unit(every)
    assert z.min() == -1
    assert z.max() == 1
    assert torch.equal(to_pixels(z), every)
    assert torch.equal(to_pixels(z + 0.0038), every)  # less than half a level of 2 / 255
    assert to_pixels(torch.tensor([-9.0, 9.0])).tolist() == [0, 255]
    assert to_pixels(z.bfloat16()).dtype == torch.uint8
    with pytest.raises(ValueError, match="NaN"):
        to_pixels(torch.tensor([torch.nan]))


def test_minibatch() -> None:
    batch = numbered(10).minibatches()(1000, sf.key(3))
    assert batch.shape == (1000, 1, 2, 2)
    assert batch.dtype == torch.float32
    back = to_pixels(batch)
    assert (back[..., 1] == 255).all()
    counts = torch.bincount(back[:, 0, 0, 0].long(), minlength=10)
    # Chi-squared with 9 degrees of freedom: beyond 27.9 with probability 0.001.
    assert ((counts - 100.0).square() / 100).sum() < 27.9


def test_minibatches_follow_from_the_key() -> None:
    draw = numbered(100).minibatches(flip=True)
    assert torch.equal(draw(20, sf.key(1)), draw(20, sf.key(1)))
    assert not torch.equal(draw(20, sf.key(1)), draw(20, sf.key(2)))
    key = sf.key(1)
    draw(20, key)
    assert torch.equal(key, sf.key(1))


def test_minibatches_are_those_of_the_trainers_own_tensors() -> None:
    images = numbered(50)
    trainer = sf.Trainer(
        sf.ConvEnergy(1, 2, 1, 2), to_unit(images.pixels), sf.Stanley(0.1), start=sf.NoiseStart(),
        optimizer=torch.optim.Adam, steps=1, batch_size=16, key=sf.key(5), progress=False,
    )  # fmt: skip
    assert torch.equal(trainer.feed.draw(16, 0), images.minibatches()(16, trainer.keys[1]))


def test_flips_are_half() -> None:
    batch = numbered(200).minibatches(flip=True)(10_000, sf.key(4))
    plain = numbered(200).minibatches()(10_000, sf.key(4))
    flipped = (batch == plain.flip(3)).flatten(1).all(dim=1)
    straight = (batch == plain).flatten(1).all(dim=1)
    assert (flipped ^ straight).all()  # no image is its own mirror image
    assert abs(int(flipped.sum()) - 5000) < 4 * 50  # four standard deviations


def test_trainer_takes_them() -> None:
    images = load("digits", limit=100)
    trainer = sf.Trainer(
        sf.ConvEnergy(1, 4, 2, 8), images.minibatches(), sf.Stanley(0.1, noise_scale=0.1),
        start=sf.NoiseStart(1.0, "uniform"), optimizer=torch.optim.Adam, steps=2, batch_size=8,
        key=sf.key(0), data_noise=0.03, progress=False,
    )  # fmt: skip
    trainer.fit(2)
    assert trainer.iteration == 2


def test_take() -> None:
    images = numbered(40)
    some = images.take(15, sf.key(1))
    assert len(some) == 15
    ids = some.pixels[:, 0, 0, 0].tolist()
    assert len(set(ids)) == 15
    assert ids != sorted(ids)
    assert some.labels is not None
    assert ids == some.labels.tolist()
    assert sorted(images.take(40, sf.key(2)).pixels[:, 0, 0, 0].tolist()) == list(range(40))
    assert numbered(40, labels=False).take(3, sf.key(1)).labels is None
    for n in (0, 41):
        with pytest.raises(ValueError, match=f"n must be from 1 to the 40 images, got {n}"):
            images.take(n, sf.key(1))


def test_fingerprint_is_of_the_pixels() -> None:
    a, b = numbered(5), numbered(5, labels=False)
    assert a.fingerprint == b.fingerprint
    assert len(a.fingerprint) == 64
    assert Images(a.pixels.view(5, 4, 1, 1), None, "", "").fingerprint != a.fingerprint
    assert Images(a.pixels.flip(0), None, "", "").fingerprint != a.fingerprint
    assert a.to("cpu").fingerprint == a.fingerprint


def test_images_check_what_they_are_given() -> None:
    good = numbered(3).pixels
    with pytest.raises(TypeError, match=r"pixels must be uint8, got torch\.float32"):
        Images(good.float(), None, "", "")
    for bad in (good[0], good[:0]):
        with pytest.raises(ValueError, match=r"pixels must be \(n, C, H, W\)"):
            Images(bad, None, "", "")
    with pytest.raises(ValueError, match=r"labels must be \(3,\), got \[2\]"):
        Images(good, torch.zeros(2), "", "")


# load: what it is asked for ----------------------------------------------------------------------


def test_unknown_sources() -> None:
    with pytest.raises(FileNotFoundError, match=r"one of cifar10, .* or exist, got no-such-data"):
        load("no-such-data")


def test_path_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(ValueError, match=r"source must be a folder, .zip, .npy or .npz, got"):
        load(tmp_path / "a.txt")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "valid"}, "split must be one of train, test, all, got 'valid'"),
        ({"folder": None}, "folder must say where the files of mnist are"),
        ({"limit": 0}, "limit must be 1 or more, got 0"),
        ({"size": -1}, "size must be 1 or more, got -1"),
        ({"channels": 2}, "channels must be 1 or 3, got 2"),
        ({"size": 8}, "size and channels are for pictures; mnist has arrays"),
        ({"channels": 1}, "size and channels are for pictures; mnist has arrays"),
    ],
)
def test_arguments(tmp_path: Path, arguments: dict[str, object], message: str) -> None:
    image_files.idx(tmp_path)
    with pytest.raises(ValueError, match=re.escape(message)):
        load(**{"source": "mnist", "folder": tmp_path} | arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("arguments", [{"split": "train"}, {"folder": "."}])
def test_paths_have_no_splits(tmp_path: Path, arguments: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="folder and split are for cifar10"):
        load(tmp_path, **arguments)  # type: ignore[arg-type]


def test_digits() -> None:
    every = load("digits", split="all")
    assert (len(every), every.shape) == (1797, (1, 8, 8))
    # The grey values are 0 to 16, and the first digit's first row 0 0 5 13 9 1 0 0.
    assert every.pixels[0, 0, 0].tolist() == [0, 0, 80, 207, 143, 16, 0, 0]
    assert every.pixels.max() == 255
    assert every.labels is not None
    assert every.labels[:12].tolist() == [*range(10), 0, 1]
    parts = [load("digits", split=split) for split in ("train", "test")]
    assert [len(part) for part in parts] == [1500, 297]
    assert torch.equal(torch.cat([part.pixels for part in parts]), every.pixels)
    assert load("digits").split == "train"
    with pytest.raises(ValueError, match="folder must be None"):
        load("digits", "here")


def test_limit(tmp_path: Path) -> None:
    images, _ = image_files.idx(tmp_path)
    some = load("mnist", tmp_path, limit=2)
    assert torch.equal(some.pixels[:, 0], torch.from_numpy(images[:2]))
    assert some.labels is not None
    assert some.labels.tolist() == [0, 1]
    assert len(load("mnist", tmp_path, limit=99)) == 5


def test_absent_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image_files.write_png(tmp_path / "a.png", image_files.pixels(4, 4))
    for module, source in (("PIL.Image", tmp_path), ("sklearn.datasets", "digits")):
        monkeypatch.setitem(__import__("sys").modules, module, None)
        with pytest.raises(ImportError, match=r"needs .*: pip install 'stanley-fast\[images\]'"):
            load(source)


# The cache ---------------------------------------------------------------------------------------


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many pictures each call of `decode` was asked for."""
    counts: list[int] = []
    real = pictures.decode

    def decode(files: pictures.Pictures, **settings: object) -> Tensor:
        counts.append(len(files.names))
        return real(files, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr(pictures, "decode", decode)
    return counts


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i, image in enumerate(image_files.pixels(6, 9, 7, 3)):
        image_files.write_png(tmp_path / f"pictures/{i}.png", image)
    return tmp_path / "pictures"


def test_pictures_are_decoded_once(folder: Path, decoded: list[int], own_cache: Path) -> None:
    first, again = load(folder), load(folder)
    assert decoded == [6]
    assert first.fingerprint == again.fingerprint
    assert torch.equal(
        first.pixels, torch.from_numpy(image_files.pixels(6, 9, 7, 3)).permute(0, 3, 1, 2)
    )
    assert [path.parent for path in own_cache.glob("**/*.pt")] == [own_cache]


def test_other_settings_are_decoded_for_themselves(folder: Path, decoded: list[int]) -> None:
    settings = ({}, {"size": 5}, {"channels": 1}, {"limit": 2})
    for _ in range(2):
        for each in settings:
            load(folder, **each)  # type: ignore[arg-type]
    assert decoded == [6, 6, 6, 2]


def changed(folder: Path) -> None:
    image_files.write_png(folder / "3.png", image_files.pixels(1, 9, 7, 3, seed=9)[0])


def added(folder: Path) -> None:
    changed(folder)
    (folder / "3.png").rename(folder / "9.png")


def removed(folder: Path) -> None:
    (folder / "2.png").unlink()


def renamed(folder: Path) -> None:
    (folder / "2.png").rename(folder / "7.png")


@pytest.mark.parametrize("change", [changed, added, removed, renamed])
def test_a_changed_source_is_decoded_anew(
    folder: Path, decoded: list[int], own_cache: Path, change: Callable[[Path], None]
) -> None:
    before = load(folder).fingerprint
    change(folder)
    after = load(folder).fingerprint
    assert len(decoded) == 2
    assert before != after
    assert load(folder).fingerprint == after
    assert len(decoded) == 2


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip_a_pixel(path: Path) -> None:
    """A file that is whole but for one value."""
    entry = checkpoint.load(path)
    entry["tensor"][1, 1, 1, 1] ^= 1
    checkpoint.save(path, entry)


def replace_by_another(path: Path) -> None:
    checkpoint.save(path, {"something": "else"})


def replace_by_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES = [truncate, empty, flip_a_pixel, replace_by_another]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_cache_is_made_anew(
    folder: Path, decoded: list[int], own_cache: Path, damage: Callable[[Path], None]
) -> None:
    good = load(folder).fingerprint
    damage(next(own_cache.glob("*.pt")))
    with pytest.warns(UserWarning, match="making the cached data anew"):
        again = load(folder)
    assert again.fingerprint == good
    assert load(folder).fingerprint == good  # and is whole again
    assert decoded == [6, 6]


def test_an_evil_cache_runs_nothing(folder: Path, own_cache: Path, tmp_path: Path) -> None:
    load(folder)
    mark = tmp_path / "mark"
    torch.save({"tensor": image_files.Evil(mark)}, next(own_cache.glob("*.pt")))
    with pytest.warns(UserWarning, match="making the cached data anew"):
        load(folder)
    assert not mark.exists()


def test_a_cache_that_cannot_be_written(folder: Path, tmp_path: Path, decoded: list[int]) -> None:
    (tmp_path / "file").write_text("")
    for _ in range(2):
        with pytest.warns(UserWarning, match="nothing is cached"):
            assert len(load(folder, cache_folder=tmp_path / "file")) == 6
    assert decoded == [6, 6]


def test_two_processes_that_make_the_same(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One writes its file while the other does: neither is in the other's way."""

    def cached() -> torch.Tensor:
        return cache.cached(lambda: torch.arange(3), name="a", source={"b": 1}, folder=None)

    save, others = torch.save, [1]

    def saving(*arguments: object) -> None:
        if others:
            others.pop()
            with monkeypatch.context() as patch:
                patch.setattr(os, "getpid", lambda: 1)
                cached()
        save(*arguments)

    monkeypatch.setattr(torch, "save", saving)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(cached(), torch.arange(3))
        assert torch.equal(cached(), torch.arange(3))
    assert [path.name for path in own_cache.iterdir()] == ["a.pt"]


def test_a_failed_decoding_leaves_nothing(folder: Path, own_cache: Path) -> None:
    (folder / "2.png").write_bytes(b"nothing")
    with pytest.raises(DataError):
        load(folder)
    assert list(own_cache.glob("*")) == []


def test_arrays_are_not_cached(tmp_path: Path, own_cache: Path) -> None:
    image_files.idx(tmp_path)
    load("mnist", tmp_path)
    assert not own_cache.exists()


def test_default_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache.default_folder() == tmp_path / ".cache" / "stanley-fast"


# Broken files of any kind ------------------------------------------------------------------------


def npz(folder: Path) -> None:
    np.savez(folder / "a.npz", images=image_files.pixels(3, 4, 4), labels=np.arange(3))


def npy(folder: Path) -> None:
    np.save(folder / "a.npy", image_files.pixels(3, 4, 4))


def png(folder: Path) -> None:
    for i, image in enumerate(image_files.pixels(2, 6, 6, 3)):
        image_files.write_png(folder / f"{i}.png", image)


WRITTEN: dict[str, tuple[Callable[[Path], object], str, Callable[[Path], Images]]] = {
    "cifar python": (
        lambda p: image_files.cifar(p, image_files.cifar_python2), "data_batch_3",
        lambda p: load("cifar10", p),
    ),
    "idx": (image_files.idx, "train-images-idx3-ubyte", lambda p: load("mnist", p)),
    "idx.gz": (
        lambda p: image_files.idx(p, zipped=True), "train-labels-idx1-ubyte.gz",
        lambda p: load("mnist", p),
    ),
    "npy": (npy, "a.npy", lambda p: load(p / "a.npy")),
    "npz": (npz, "a.npz", lambda p: load(p / "a.npz")),
    "png": (png, "1.png", lambda p: load(p, cache_folder=p / "cache", progress=False)),
    "mat": (
        image_files.flowers, "setid.mat",
        lambda p: load("flowers102", p, cache_folder=p / "cache", progress=False),
    ),
}  # fmt: skip


def mutations(data: bytes) -> Iterator[bytes]:
    """Truncated at forty places, and with one to three bytes changed, in sixty ways."""
    random = np.random.default_rng(0)
    for end in np.linspace(0, len(data) - 1, 40).astype(int):
        yield data[:end]
    for _ in range(60):
        changed = bytearray(data)
        for at in random.integers(0, min(len(data), 1500), random.integers(1, 4)):
            changed[at] = random.integers(256)
        yield bytes(changed)


@pytest.mark.parametrize("name", WRITTEN)
@pytest.mark.filterwarnings("ignore")  # of NumPy and SciPy, about headers they make nothing of
def test_damaged_files_are_refused_or_make_images(name: str, tmp_path: Path) -> None:
    """No other error, and no end of memory or time."""
    write, victim, read = WRITTEN[name]
    write(tmp_path)
    good = (tmp_path / victim).read_bytes()
    want = read(tmp_path)
    refusals = []
    for bad in mutations(good):
        (tmp_path / victim).write_bytes(bad)
        try:
            assert read(tmp_path).pixels.dtype == torch.uint8
        except DataError as error:
            refusals.append(str(error))
    assert len(refusals) >= 38  # what is truncated by more than its last bytes
    assert [text for text in refusals if "\n" in text or Path(victim).stem not in text] == []
    (tmp_path / victim).write_bytes(good)
    assert read(tmp_path).fingerprint == want.fingerprint
