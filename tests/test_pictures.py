"""Pictures of images: the files are opened again and their pixels compared."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from torch import Tensor

from stanley_fast import pictures
from stanley_fast.extras import MissingExtraError
from stanley_fast.inpainting import make_mask, psnr
from stanley_fast.pictures import GAP

WHITE = 255


def images(n: int, channels: int = 3, size: int = 8, seed: int = 0) -> Tensor:
    """Of the 256 values that a picture can show."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, channels, size, size), generator=generator) / 127.5 - 1


def pixels(path: Path) -> np.ndarray:
    with PIL.Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def shown(image: Tensor, scale: int = 1) -> np.ndarray:
    """What an image (C, H, W) of those values must look like."""
    values = ((image + 1) * 127.5).round().to(torch.uint8).expand(3, -1, -1).permute(1, 2, 0)
    return np.kron(values.numpy(), np.ones((scale, scale, 1), dtype=np.uint8))


@pytest.mark.parametrize("channels", [1, 3], ids=["grey", "rgb"])
def test_sheet(tmp_path: Path, channels: int) -> None:
    batch = images(5, channels)
    pictures.sheet(tmp_path / "s.png", batch, columns=2, scale=3)
    found, pitch = pixels(tmp_path / "s.png"), 24 + GAP
    assert found.shape == (3 * pitch + GAP, 2 * pitch + GAP, 3)
    covered = np.zeros(found.shape[:2], dtype=bool)
    for i, image in enumerate(batch):
        top, left = GAP + i // 2 * pitch, GAP + i % 2 * pitch
        assert np.array_equal(found[top : top + 24, left : left + 24], shown(image, 3))
        covered[top : top + 24, left : left + 24] = True
    assert (found[~covered] == WHITE).all()


def test_sheet_is_about_square_and_cuts_off(tmp_path: Path) -> None:
    batch = torch.tensor([-7.0, -1.0, 0.0, 1.0, 7.0]).view(5, 1, 1, 1)
    pictures.sheet(tmp_path / "s.png", batch)
    found = pixels(tmp_path / "s.png")
    assert found.shape == (2 * 3 + GAP, 3 * 3 + GAP, 3)
    assert [int(found[2, x, 0]) for x in (2, 5, 8)] == [0, 0, 128]
    assert [int(found[5, x, 0]) for x in (2, 5)] == [255, 255]


def test_strip_has_a_row_per_chain(tmp_path: Path) -> None:
    trace = images(6).view(3, 2, 3, 8, 8)  # 3 states of 2 chains
    pictures.strip(tmp_path / "s.png", trace, scale=2)
    found, pitch = pixels(tmp_path / "s.png"), 16 + GAP
    assert found.shape == (2 * pitch + GAP, 3 * pitch + GAP, 3)
    for k in range(3):
        for chain in range(2):
            top, left = GAP + chain * pitch, GAP + k * pitch
            part = found[top : top + 16, left : left + 16]
            assert np.array_equal(part, shown(trace[k, chain], 2))


def test_titles_stand_above_and_do_not_overlap(tmp_path: Path) -> None:
    trace = images(4).view(2, 2, 3, 8, 8)
    pictures.strip(tmp_path / "bare.png", trace)
    pictures.strip(tmp_path / "long.png", trace, titles=["a title wider than 8 pixels", "k = 2"])
    bare, found = pixels(tmp_path / "bare.png"), pixels(tmp_path / "long.png")
    head = len(found) - len(bare)
    assert head > 8
    dark = (found[:head] < 128).all(axis=2).any(axis=0)
    column = np.flatnonzero((found[head + GAP] != WHITE).any(axis=1))
    second = column[column > GAP + 8][0]  # where the second column's image begins
    assert dark[GAP:second].any()
    assert dark[second:].any()
    assert not dark[second - GAP : second].any()
    assert np.array_equal(found[head + GAP : head + GAP + 8, GAP : GAP + 8], shown(trace[0, 0]))


def test_gif_has_a_frame_per_state(tmp_path: Path) -> None:
    trace = torch.linspace(-1, 1, 4).view(4, 1, 1, 1, 1).expand(4, 3, 1, 8, 8)
    pictures.gif(tmp_path / "c.gif", trace, columns=3, scale=2, milliseconds=50)
    with PIL.Image.open(tmp_path / "c.gif") as found:
        assert found.format == "GIF"
        assert found.n_frames == 4  # type: ignore[attr-defined]
        assert found.size == (3 * 18 + GAP, 18 + GAP)
        values, times = [], []
        for k in range(4):
            found.seek(k)
            values.append(found.convert("RGB").getpixel((5, 5)))
            times.append(found.info["duration"])
    assert values == [(v,) * 3 for v in (0, 85, 170, 255)]
    assert times == [50, 50, 50, 1000]


@pytest.mark.parametrize("chunk", [1, 7, 50, 4096])
def test_nearest_is_exact(chunk: int) -> None:
    samples, data = images(6, seed=1), images(50, seed=2)
    data[17], data[41] = samples[3], samples[3]  # copies: the first counts
    data[42] = samples[3] + 1e-4
    indices, distances = pictures.nearest(samples, data, 4, chunk=chunk)
    want = (samples[:, None].double() - data.double()).flatten(2).norm(dim=2)
    want, order = want.sort(dim=1, stable=True)
    assert torch.equal(indices, order[:, :4])
    assert torch.allclose(distances.double(), want[:, :4], rtol=1e-5)
    assert indices[3, :3].tolist() == [17, 41, 42]
    assert distances[3, :2].tolist() == [0.0, 0.0]


def test_nearest_takes_all_and_halves() -> None:
    samples, data = images(2).half(), images(5, seed=1)
    indices, distances = pictures.nearest(samples, data, 5)
    assert sorted(indices[0].tolist()) == list(range(5))
    assert distances.dtype == torch.float32
    assert pictures.nearest(samples[:0], data)[0].shape == (0, 1)


def test_neighbour_sheet(tmp_path: Path) -> None:
    samples, data = images(2, 1), images(9, 1, seed=1)
    indices = torch.tensor([[4, 0], [8, 3]])
    pictures.neighbour_sheet(tmp_path / "n.png", samples, data, indices)
    found, far = pixels(tmp_path / "n.png"), 4 * GAP
    assert found.shape == (2 * (8 + GAP) + GAP, GAP + 8 + far + 2 * (8 + GAP), 3)
    for i in range(2):
        top, right = GAP + i * (8 + GAP), GAP + 8 + far
        assert np.array_equal(found[top : top + 8, GAP : GAP + 8], shown(samples[i]))
        for j, left in enumerate((right, right + 8 + GAP)):
            assert np.array_equal(found[top : top + 8, left : left + 8], shown(data[indices[i, j]]))


def test_inpainting_sheet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    titles: list[str] = []
    grid = pictures._grid
    monkeypatch.setattr(pictures, "_grid", lambda *a: titles.extend(a[2]) or grid(*a))
    originals, mask = images(2, size=64), make_mask("half", 64, 64)
    methods = {}
    for seed, name in enumerate(("STANLEY", "Langevin"), start=1):
        methods[name] = torch.where(mask, images(2, size=64, seed=seed), originals)
    pictures.inpainting_sheet(tmp_path / "i.png", originals, mask, methods)
    found, pitch = pixels(tmp_path / "i.png"), 128 + GAP
    decibels = [float(psnr(m, originals, mask).mean()) for m in methods.values()]
    wanted = [f"{name}\n{d:.1f} dB" for name, d in zip(methods, decibels, strict=True)]
    assert titles == ["original", "masked", *wanted]
    assert found.shape[1] == 4 * pitch + GAP
    head = found.shape[0] - 2 * pitch - GAP
    assert head > 16
    grey = torch.full_like(originals, 1 / 255)  # shown as 128
    columns = [originals, torch.where(mask, grey, originals), *methods.values()]
    for j, column in enumerate(columns):
        for i in range(2):
            top, left = head + GAP + i * pitch, GAP + j * pitch
            part = found[top : top + 128, left : left + 128]
            assert np.array_equal(part, shown(column[i], 2)), (i, j)


def test_energy_histogram(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    sets = {name: torch.randn(500, generator=generator) for name in ("data", "held out", "samples")}
    pictures.energy_histogram(tmp_path / "e.png", sets)
    found = pixels(tmp_path / "e.png")
    assert found.shape == (450, 1050, 3)
    assert found.std() > 10
    pictures.energy_histogram(tmp_path / "one.png", {"data": torch.ones(3)})  # no width


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: pictures.sheet(p, images(1)[0]), r"images must be \(n, C, H, W\).*\[3, 8, 8\]"),
        (lambda p: pictures.sheet(p, images(1, 2)), r"1 or 3 channels.*\[1, 2, 8, 8\]"),
        (lambda p: pictures.sheet(p, images(0)), r"none of it empty, got \[0, 3, 8, 8\]"),
        (lambda p: pictures.sheet(p, images(1) * torch.nan), "images must be finite, got NaN"),
        (lambda p: pictures.sheet(p, images(1), columns=0), "columns must be 1 or more, got 0"),
        (lambda p: pictures.sheet(p, images(1), scale=0), "scale must be 1 or more, got 0"),
        (lambda p: pictures.strip(p, images(1)), r"trace must be \(states.*\[1, 3, 8, 8\]"),
        (lambda p: pictures.strip(p, images(2)[None], titles=["a", "b"]), "titles must be 1, one"),
        (lambda p: pictures.gif(p, images(1)[None][:0]), "at least one state, got"),
        (
            lambda p: pictures.gif(p, images(1)[None], milliseconds=5),
            "milliseconds must be 10 or more, got 5",
        ),
        (
            lambda p: pictures.neighbour_sheet(p, images(2), images(3), torch.zeros(1, 1).long()),
            r"indices must be \(2, neighbours\).*got \[1, 1\]",
        ),
        (
            lambda p: pictures.inpainting_sheet(
                p, images(2), make_mask("half", 8, 8), {"HMC": images(1)}
            ),
            r"methods\['HMC'\] must be like the originals, \[2, 3, 8, 8\], got \[1, 3, 8, 8\]",
        ),
        (
            lambda p: pictures.inpainting_sheet(p, images(2), torch.ones(8, 8), {}),
            r"mask must be bool \[8, 8\] like the images, got torch.float32",
        ),
        (lambda p: pictures.energy_histogram(p, {}), "energies must have at least one set"),
        (
            lambda p: pictures.energy_histogram(p, {"data": torch.tensor([torch.inf])}),
            r"energies\['data'\] must be .* finite, got \[1\] with NaN or infinity",
        ),
    ],
    ids=lambda x: "" if callable(x) else x[:20],
)
def test_errors_leave_no_file(tmp_path: Path, call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(tmp_path / "x.png")
    assert not (tmp_path / "x.png").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": images(3, 1)}, r"data must have images of the samples' shape \[3, 8, 8\]"),
        ({"neighbours": 0}, r"neighbours must be in \[1, 3\], got 0"),
        ({"neighbours": 4}, r"neighbours must be in \[1, 3\], got 4"),
        ({"chunk": 0}, "chunk must be 1 or more, got 0"),
    ],
    ids=["data", "none", "too many", "chunk"],
)
def test_nearest_errors(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"samples": images(1), "data": images(3)} | change
    with pytest.raises(ValueError, match=message):
        pictures.nearest(**arguments)


def test_without_pillow_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [m for m in sys.modules if m.split(".")[0] == "PIL"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [_NoPillow(), *sys.meta_path])
    install = r"needs PIL: pip install 'stanley-fast\[images\]'"
    with pytest.raises(MissingExtraError, match="a picture of images " + install):
        pictures.sheet(tmp_path / "s.png", images(1))
    (tmp_path / "m.png").touch()
    with pytest.raises(MissingExtraError, match="reading a mask " + install):
        make_mask(tmp_path / "m.png", 8, 8)


class _NoPillow:
    def find_spec(self, name: str, *_: object) -> None:
        if name.split(".")[0] == "PIL":
            raise ModuleNotFoundError(f"No module named {name!r}", name="PIL")
