"""Comparisons: the grid, the summary by hand, and a small one end to end."""

from __future__ import annotations

import csv
import dataclasses
import math
import os
import signal
from pathlib import Path

import pytest
import torch

from stanley_fast import comparison, plots, runs
from stanley_fast.comparison import Cell, Run
from stanley_fast.experiments import ToyConfig, preset
from stanley_fast.methods import SettingsError
from stanley_fast.parallel import WorkerDiedError

STANLEY, LANGEVIN = (
    dataclasses.replace(
        preset("rings", name), steps=2, batch_size=4, iterations=4, evaluate_every=2
    )
    for name in ("stanley", "langevin")
)


def cell(config: ToyConfig, *distances: float | None) -> Cell:
    """A cell whose runs ended at these distances; None diverged after iteration 2."""
    made = []
    for distance in distances:
        figures = {2: {"histogram_tv": 0.5, "histogram_tv_floor": 0.99}}
        if distance is not None:
            figures[4] = {"histogram_tv": distance, "histogram_tv_floor": 0.99}
        made.append(Run(Path("nowhere"), figures, 3 if distance is None else None))
    return Cell(config, tuple(made))


def test_grid_is_every_combination() -> None:
    cells = comparison.grid([STANLEY, LANGEVIN], (0.1, 0.2), (0.5, 1.0), (0.3,))
    assert [(c.sampler, c.threshold, c.step_size, c.noise_scale) for c in cells] == [
        ("stanley", 0.1, 0.5, 0.3),
        ("stanley", 0.1, 1.0, 0.3),
        ("stanley", 0.2, 0.5, 0.3),
        ("stanley", 0.2, 1.0, 0.3),
        ("langevin", None, 0.5, 0.3),
        ("langevin", None, 1.0, 0.3),
    ]
    assert comparison.grid([STANLEY, LANGEVIN]) == [STANLEY, LANGEVIN]


def test_grid_refuses_bad_values() -> None:
    with pytest.raises(SettingsError, match="threshold must be positive"):
        comparison.grid([STANLEY], (0.1, -1.0))


def test_runs_have_names_of_their_own() -> None:
    cells = comparison.grid([STANLEY, LANGEVIN], (0.1, 0.2), (0.5, 1.0), (0.3, 0.4))
    names = {comparison.run_name(dataclasses.replace(c, seed=s)) for c in cells for s in (0, 1)}
    assert len(names) == 2 * len(cells) == 24


def test_summary_is_mean_and_sd_over_the_runs_that_came_so_far() -> None:
    cells = [cell(STANLEY, 0.9, 0.8, 0.7), cell(LANGEVIN, 0.6, None), cell(LANGEVIN, None)]
    stanley, langevin, none = comparison.summary(cells, 4)
    assert stanley == {
        "sampler": "stanley",
        "threshold": 0.1,
        "step_size": 1.0,
        "noise_scale": 0.15,
        "leapfrog_steps": None,
        "iteration": 4,
        "runs": 3,
        "diverged": 0,
        "histogram_tv": pytest.approx(0.8),
        "histogram_tv_sd": pytest.approx(0.1),
        "histogram_tv_floor": pytest.approx(0.99),
    }
    assert (langevin["runs"], langevin["diverged"], langevin["histogram_tv"]) == (1, 1, 0.6)
    assert "histogram_tv_sd" not in langevin
    assert (none["runs"], none["diverged"]) == (0, 1)
    assert "histogram_tv" not in none
    assert [row["histogram_tv"] for row in comparison.summary(cells, 2)] == [0.5, 0.5, 0.5]


def test_table_marks_diverged_cells() -> None:
    lines = comparison.table([cell(STANLEY, 0.9, 0.8), cell(LANGEVIN, 0.6, None)]).splitlines()
    assert lines[0].split() == ["sampler", "threshold", "step", "size", "noise", "histogram_tv"]
    assert lines[1].split() == ["stanley", "0.1", "1", "0.15", "0.850", "±", "0.071"]
    assert lines[2].split() == ["langevin", "0.14", "0.15", "0.600", "1", "of", "2", "diverged"]
    assert lines[3].split() == ["true", "samples", "0.990"]


def test_table_when_everything_diverged() -> None:
    lines = comparison.table([cell(STANLEY, None)]).splitlines()
    assert lines[1].split() == ["stanley", "0.1", "1", "0.15", "1", "of", "1", "diverged"]


def test_samplers_with_other_settings_stand_in_one_table_and_heat_map(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mala, hmc = (preset("rings", name) for name in ("mala", "hmc"))
    configs = comparison.grid([STANLEY, mala, hmc], (0.2,), (0.5, 1.0), (0.3,))
    assert [c.settings for c in configs[2:5]] == [
        {"step_size": 0.5},
        {"step_size": 1.0},
        {"step_size": 0.5, "leapfrog_steps": 5},
    ]
    assert comparison.run_name(configs[4]) == "hmc-step0.5-leapfrog5-seed0"
    cells = [cell(dataclasses.replace(c, iterations=4, evaluate_every=2), 0.7) for c in configs]
    lines = comparison.table(cells).splitlines()
    assert " ".join(lines[0].split()) == (
        "sampler threshold step size noise leapfrog steps histogram_tv"
    )
    assert lines[3].split() == ["mala", "0.5", "0.700"]
    assert lines[5].split() == ["hmc", "0.5", "5", "0.700"]
    heat = heats(cells, monkeypatch)[-1]
    assert (heat.title, heat.rows, heat.columns[1]) == ("HMC", ("", [""]), ["0.5", "1"])


def test_best_prefers_cells_without_divergence() -> None:
    fine, finer, broken = cell(STANLEY, 0.7, 0.9), cell(STANLEY, 0.75), cell(STANLEY, 0.1, None)
    assert comparison.best([fine, finer, broken]) is finer
    assert comparison.best([broken, cell(STANLEY, None, None)]) is broken


def heats(cells: list[Cell], monkeypatch: pytest.MonkeyPatch) -> list[plots.Heat]:
    """What the heat map of these cells draws."""
    drawn: list[plots.Heat] = []
    monkeypatch.setattr(plots, "heat_map", lambda path, quantity, panels: drawn.extend(panels))
    comparison.draw_heat_map(cells, Path("nowhere"))
    return drawn


def test_heat_map_has_a_panel_per_noise_scale_or_noise_scale_down(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    configs = comparison.grid([STANLEY, LANGEVIN], (0.2, 0.1), (1.0, 0.5), (0.3, 0.15))
    cells = [cell(c, 0.90 + 0.005 * i) for i, c in enumerate(configs)]
    more, less, langevin = heats(cells, monkeypatch)
    assert [h.title for h in (more, less, langevin)] == [
        "STANLEY, noise scale 0.3",
        "STANLEY, noise scale 0.15",
        "Langevin",
    ]
    assert more.rows == ("threshold", ["0.1", "0.2"])
    assert langevin.rows == ("noise scale", ["0.15", "0.3"])
    assert more.columns == langevin.columns == ("step size", ["0.5", "1"])
    torch.testing.assert_close(more.values, torch.tensor([[0.93, 0.92], [0.91, 0.90]]))
    torch.testing.assert_close(langevin.values, torch.tensor([[0.955, 0.945], [0.95, 0.94]]))
    # The best of STANLEY's eight cells and of Langevin's four.
    assert [h.outlined for h in (more, less, langevin)] == [(1, 1), None, (1, 1)]


def test_heat_map_counts_divergences_apart_from_the_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    fine, some, none = comparison.grid([LANGEVIN], (), (0.1, 0.2, 0.3))
    cells = [cell(fine, 0.7, 0.8), cell(some, None, 0.9), cell(none, None, None)]
    (heat,) = heats(cells, monkeypatch)
    want = torch.tensor([[0.75, 0.9, math.nan]])
    torch.testing.assert_close(heat.values, want, equal_nan=True)
    assert heat.diverged.tolist() == [[0, 1, 2]]
    assert (heat.seeds, heat.outlined) == (2, (0, 0))


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Cell]]:
    """Two samplers, two seeds, two processes; Langevin cannot but diverge."""
    folder = tmp_path_factory.mktemp("comparison")
    configs = [STANLEY, dataclasses.replace(LANGEVIN, step_size=1e25)]
    return folder, comparison.compare(configs, (0, 1), folder, jobs=2, progress=False)


def test_a_comparison_leaves_its_files(compared: tuple[Path, list[Cell]]) -> None:
    folder, _ = compared
    for name in ("comparison.csv", "figure1.png", "heat_map.png"):
        assert (folder / name).stat().st_size > 0
    with (folder / "comparison.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    stanley = [row for row in rows if row["sampler"] == "stanley"]
    assert [(row["iteration"], row["runs"]) for row in stanley] == [("2", "2"), ("4", "2")]
    assert all(float(row["histogram_tv_sd"]) > 0 for row in stanley)
    langevin = [row for row in rows if row["sampler"] == "langevin"]
    assert [(row["runs"], row["diverged"], row["histogram_tv"]) for row in langevin] == [
        ("0", "2", "")
    ] * 2


def test_a_comparisons_runs_are_ordinary_runs(
    compared: tuple[Path, list[Cell]], tmp_path: Path
) -> None:
    folder, (stanley, langevin) = compared
    assert [run.diverged for run in stanley.runs] == [None, None]
    assert [run.diverged for run in langevin.runs] == [1, 1]
    config = dataclasses.replace(STANLEY, seed=1)
    runs.train(config, tmp_path, progress=False)
    theirs = folder / comparison.run_name(config)
    assert (theirs / "metrics.csv").read_bytes() == (tmp_path / "metrics.csv").read_bytes()


def test_a_comparison_is_resumed_with_more_seeds(compared: tuple[Path, list[Cell]]) -> None:
    folder, (before, _) = compared
    with pytest.raises(FileExistsError, match="already holds a comparison"):
        comparison.compare([STANLEY], (0, 2), folder, progress=False)
    (after,) = comparison.compare([STANLEY], (0, 2), folder, resume=True, progress=False)
    assert after.runs[0] == before.runs[0]
    assert after.runs[1].figures.keys() == {2, 4}


def test_equal_cells_are_refused(tmp_path: Path) -> None:
    base = preset("rings", "stanley")
    with pytest.raises(SettingsError, match="is there twice"):
        comparison.compare([base, base], [0], tmp_path)


def test_a_killed_process_does_not_hang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "_run", kill_oneself)
    with pytest.raises(WorkerDiedError, match="was killed"):
        comparison.compare([preset("rings", "stanley")], [0], tmp_path, progress=False)


def kill_oneself(task: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)
