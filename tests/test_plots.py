"""Pictures: what they show is tested on the densities; the files are opened and looked into."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
import torch

from stanley_fast import keys, metrics, plots
from stanley_fast.energies import Rings, gaussian_ring
from stanley_fast.plots import Heat, Snapshot


def snapshot(iteration: int) -> Snapshot:
    target = Rings()
    density = metrics.grid_density(target, target.extent, plots.GRID)
    return Snapshot(iteration, density, target.sample(2000, keys.key(iteration)))


def picture(path: Path) -> np.ndarray:
    """The PNG's pixels, (height, width, 4); it must not be blank."""
    pixels = matplotlib.image.imread(path)
    assert pixels.std() > 0.05
    return pixels


def test_sample_density_is_near_the_true_density() -> None:
    target = gaussian_ring()
    found = plots.sample_density(target.sample(1_000_000, keys.key(0)), target.extent)
    want = metrics.grid_density(target, target.extent, plots.GRID)
    # The blur widens each mode's variance from 0.15^2 to 0.15^2 + (1.6 / 60)^2: 3 % off at a peak;
    # a pixel under the kernel holds about 1e6 * 0.9 * 4 pi * 0.027^2 = 8 000 samples: 1 % noise.
    assert float((found - want).abs().max() / want.max()) < 0.08
    assert float(found.sum()) * (2 * target.extent / plots.GRID) ** 2 == pytest.approx(1, abs=1e-3)


def test_figure1_has_two_rows_a_run(tmp_path: Path) -> None:
    truth = Rings().sample(2000, keys.key(0))
    shots = [snapshot(2000), snapshot(4000)]
    plots.figure1(tmp_path / "one.png", Rings(), truth, {"STANLEY": shots})
    plots.figure1(tmp_path / "two.png", Rings(), truth, {"STANLEY": shots, "Langevin": shots[:1]})
    one, two = picture(tmp_path / "one.png"), picture(tmp_path / "two.png")
    assert two.shape[1] == one.shape[1]
    assert two.shape[0] == pytest.approx(2 * one.shape[0], abs=2)


@pytest.mark.parametrize("shots", [[], [snapshot(2000)]], ids=["both", "one"])
def test_figure1_shows_a_run_that_diverged_at_once(tmp_path: Path, shots: list[Snapshot]) -> None:
    truth = Rings().sample(2000, keys.key(0))
    plots.figure1(tmp_path / "f.png", Rings(), truth, {"STANLEY": shots, "Langevin": []})
    picture(tmp_path / "f.png")


def test_densities_share_the_first_ones_scale(tmp_path: Path) -> None:
    flat = torch.full((20, 20), 0.1)
    plots.densities(tmp_path / "d.png", {"true": torch.full((20, 20), 0.2), "learned": flat})
    pixels = picture(tmp_path / "d.png")
    row = pixels[pixels.shape[0] // 2]
    left, right = row[row.shape[0] // 4], row[3 * row.shape[0] // 4]
    assert left.sum() > right.sum() + 0.5  # the top of the map is bright, its middle is not


@pytest.mark.parametrize("n", [1, 30, 3000])
def test_loss_curve(tmp_path: Path, n: int) -> None:
    gaps = [math.exp(-i / 500) for i in range(n)]
    plots.loss_curve(tmp_path / "loss.png", range(1, n + 1), gaps)
    picture(tmp_path / "loss.png")


def heat(values: list[list[float]], diverged: list[list[int]], **more: Any) -> Heat:
    names = [[str(i) for i in range(n)] for n in (len(values), len(values[0]))]
    axes = ("threshold", names[0]), ("step size", names[1])
    return Heat("STANLEY", *axes, torch.tensor(values), torch.tensor(diverged), 3, **more)


def white(path: Path) -> float:
    """The share of white pixels."""
    return float((picture(path) == 1).all(axis=2).mean())


def test_heat_map_leaves_cells_white_where_all_diverged(tmp_path: Path) -> None:
    shares = []
    for name, value, count in (("fine", 0.95, 0), ("some", 0.95, 2), ("all", math.nan, 3)):
        panel = heat([[0.9, value], [0.95, 0.95]], [[0, count], [0, 0]])
        plots.heat_map(tmp_path / f"{name}.png", "distance", [panel, panel])
        shares.append(white(tmp_path / f"{name}.png"))
    fine, some, everything = shares
    assert some == pytest.approx(fine, abs=0.01)  # a line of text
    assert everything > fine + 0.05  # two of eight cells, less their hatching


def test_heat_map_outlines_a_cell(tmp_path: Path) -> None:
    accent = np.array([int(plots.ACCENT[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    found = []
    for outlined in (None, (1, 0)):
        panel = heat([[0.9, 0.95], [0.92, 0.95]], [[0, 0], [0, 0]], outlined=outlined)
        plots.heat_map(tmp_path / "h.png", "distance", [panel])
        near = np.abs(picture(tmp_path / "h.png")[..., :3] - accent).max(axis=2) < 0.02
        found.append(np.argwhere(near))
    assert len(found[0]) == 0
    lower, left = found[1].mean(axis=0) / picture(tmp_path / "h.png").shape[:2]
    assert lower > 0.5 > left


@pytest.mark.parametrize("panels", [1, 2, 3, 5])
def test_heat_map_takes_any_number_of_panels(tmp_path: Path, panels: int) -> None:
    shapes = [heat([[0.9] * (i + 1)] * 2, [[0] * (i + 1)] * 2) for i in range(panels)]
    plots.heat_map(tmp_path / "h.png", "distance", shapes)
    picture(tmp_path / "h.png")


def test_heat_map_of_nothing_but_divergence(tmp_path: Path) -> None:
    plots.heat_map(tmp_path / "h.png", "distance", [heat([[math.nan]], [[3]])])
    assert (tmp_path / "h.png").stat().st_size > 0


@pytest.mark.parametrize("chains", [1, 20])
def test_traces(tmp_path: Path, chains: int) -> None:
    draws = torch.randn(50, chains, 3, generator=torch.Generator().manual_seed(0))
    plots.traces(tmp_path / "t.png", draws, torch.ones(50, 3), keep_every=2)
    picture(tmp_path / "t.png")


def test_pyplot_is_left_alone() -> None:
    code = (
        "import sys; from stanley_fast import plots; assert 'matplotlib' not in sys.modules\n"
        "from pathlib import Path; plots.loss_curve(Path(sys.argv[1]), [1, 2], [0.0, 1.0])\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, "/dev/null"], check=True)
