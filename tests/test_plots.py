"""Pictures: what they show is tested on the densities; the files are opened and looked into."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

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


def test_heat_map_leaves_diverged_cells_white(tmp_path: Path) -> None:
    for name, value in (("fine.png", 0.95), ("diverged.png", math.nan)):
        values = torch.tensor([[0.95, value], [0.95, 0.95]])
        panel = Heat("STANLEY", ("step size", ["0.5", "1"]), ("threshold", ["0.1", "0.2"]), values)
        plots.heat_map(tmp_path / name, "share on a ring", [panel, panel])
    white = [
        (picture(tmp_path / name) == 1).all(axis=2).mean() for name in ("fine.png", "diverged.png")
    ]
    assert white[1] > white[0] + 0.05  # two of eight cells


def test_heat_map_of_nothing_but_divergence(tmp_path: Path) -> None:
    panel = Heat("Langevin", ("noise", ["1"]), ("step size", ["1"]), torch.tensor([[math.nan]]))
    plots.heat_map(tmp_path / "h.png", "share on a ring", [panel])
    assert (tmp_path / "h.png").stat().st_size > 0


def test_pyplot_is_left_alone() -> None:
    code = (
        "import sys; from stanley_fast import plots; assert 'matplotlib' not in sys.modules\n"
        "from pathlib import Path; plots.loss_curve(Path(sys.argv[1]), [1, 2], [0.0, 1.0])\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, "/dev/null"], check=True)
