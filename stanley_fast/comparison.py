"""Samplers side by side: a grid of settings, each over several seeds; a table and pictures."""

from __future__ import annotations

import csv
import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from stanley_fast import plots, run_folder, runs
from stanley_fast.experiments import TARGETS, ToyConfig
from stanley_fast.methods import SAMPLERS, SETTINGS, SamplerName, SettingsError
from stanley_fast.parallel import in_parallel
from stanley_fast.run_folder import columns
from stanley_fast.trainer import DivergedError

# The figure of quality that tells cells apart, for any target: of a disc without rings nine tenths
# already count as on a ring.
SHOWN = "histogram_tv"


@dataclass(frozen=True)
class Run:
    """One seed of a cell: its folder, figures by iteration, and where it diverged, if it did."""

    folder: Path
    figures: dict[int, dict[str, float]]
    diverged: int | None


@dataclass(frozen=True)
class Cell:
    """One setting of the grid with its runs, one per seed. The setting's own seed says nothing."""

    config: ToyConfig
    runs: tuple[Run, ...]

    @property
    def diverged(self) -> int:
        """How many runs did."""
        return sum(run.diverged is not None for run in self.runs)

    def figures(self, iteration: int) -> dict[str, list[float]]:
        """Each figure at `iteration`, over the runs that came so far."""
        reached = [run.figures[iteration] for run in self.runs if iteration in run.figures]
        return {name: [each[name] for each in reached] for name in (reached[0] if reached else ())}


def grid(
    bases: Sequence[ToyConfig],
    thresholds: Sequence[float] = (),
    step_sizes: Sequence[float] = (),
    noise_scales: Sequence[float] = (),
) -> list[ToyConfig]:
    """Every combination of the values, for each of `bases`; an empty sequence is the base's value.

    A sampler's part of the grid lacks the axes of settings that it doesn't take.

    Raises SettingsError: a value out of its range.

    >>> from stanley_fast.experiments import preset
    >>> both = [preset("rings", "stanley"), preset("rings", "langevin")]
    >>> len(grid(both, thresholds=(0.05, 0.1), noise_scales=(0.1, 0.15, 0.2)))
    9
    """
    cells = []
    for base in bases:
        given = {"threshold": thresholds, "step_size": step_sizes, "noise_scale": noise_scales}
        axes = {name: values for name, values in given.items() if values and name in base.settings}
        for values in itertools.product(*axes.values()):
            cell: dict[str, Any] = dict(zip(axes, values, strict=True))
            cells.append(replace(base, **cell))
    return cells


def compare(
    configs: Sequence[ToyConfig],
    seeds: Sequence[int],
    folder: Path,
    *,
    jobs: int = 1,
    resume: bool = False,
    progress: bool = True,
) -> list[Cell]:
    """Trains every config with every seed; leaves comparison.csv, figure1.png and heat_map.png.

    The runs have nothing to do with each other. One that diverges is a result too.

    Args:
        configs: of one target; each is a cell.
        seeds: of each cell.
        folder: of the comparison.
        jobs: runs at a time, each in its own process.
        resume: go on with what the folder holds. Runs that it lacks are added.
        progress: show a progress bar over the runs.

    Returns:
        The cells, in the order of `configs`.

    Raises:
        SettingsError: two cells are the same.
        FileExistsError: the folder holds a comparison, and `resume` is False.
        WorkerDiedError: the process of a run was killed.
    """
    names = [run_name(config) for config in configs]
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise SettingsError(f"the cells of a grid must differ, but {twice} is there twice")
    if not resume and next(folder.glob("*/config.json"), None) is not None:
        raise FileExistsError(f"{folder} already holds a comparison")
    tasks = [
        _Task(replace(config, seed=seed), folder / run_name(replace(config, seed=seed)))
        for config in configs
        for seed in seeds
    ]
    done = list(in_parallel(_run, tasks, jobs, progress))
    cells = [
        Cell(config, tuple(done[i * len(seeds) : (i + 1) * len(seeds)]))
        for i, config in enumerate(configs)
    ]
    write_csv(cells, folder / "comparison.csv")
    draw_figure1(cells, folder / "figure1.png")
    draw_heat_map(cells, folder / "heat_map.png")
    return cells


def run_name(config: ToyConfig) -> str:
    """The name of a run's folder within its comparison's.

    >>> from stanley_fast.experiments import preset
    >>> run_name(preset("rings", "stanley"))
    'stanley-threshold0.1-step1-noise0.15-seed0'
    """
    settings = [f"{name.split('_')[0]}{value:g}" for name, value in config.settings.items()]
    return "-".join((config.sampler, *settings, f"seed{config.seed}"))


# Running -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Task:
    config: ToyConfig
    folder: Path


def _run(task: _Task) -> Run:
    diverged = None
    resume = (task.folder / "config.json").exists()
    try:
        runs.train(task.config, task.folder, resume=resume, progress=False)
    except DivergedError as error:
        diverged = error.iteration
    return read_run(task.folder, task.config.target, diverged)


def read_run(folder: Path, target: str, diverged: int | None) -> Run:
    """What a run left in its folder."""
    figures = {
        int(row["iteration"]): {
            c: row[c] for n in run_folder.qualities(row) for c in (n, f"{n}_floor")
        }
        for row in run_folder.read_metrics(folder)
        if SHOWN in row and row["iteration"] > 0
    }
    return Run(folder, figures, diverged)


# Reporting ---------------------------------------------------------------------------------------


def summary(cells: Sequence[Cell], iteration: int) -> list[dict[str, float | str | None]]:
    """A row per cell: settings, runs that reached `iteration`, runs that diverged, figures.

    Figures are means over the seeds; their standard deviation between seeds is beside them.
    """
    rows = []
    for cell in cells:
        config, figures = cell.config, cell.figures(iteration)
        row: dict[str, float | str | None] = {
            "sampler": config.sampler,
            **{name: getattr(config, name) for name in SETTINGS},
            "iteration": iteration,
            "runs": sum(iteration in run.figures for run in cell.runs),
            "diverged": cell.diverged,
        }
        for name, values in figures.items():
            row[name] = statistics.fmean(values)
            if not name.endswith("_floor") and len(values) > 1:
                row[f"{name}_sd"] = statistics.stdev(values)
        rows.append(row)
    return rows


def write_csv(cells: Sequence[Cell], path: Path) -> None:
    """`summary` of every evaluation."""
    iterations = sorted({i for cell in cells for run in cell.runs for i in run.figures})
    rows = [row for iteration in iterations for row in summary(cells, iteration)]
    columns = list(dict.fromkeys(column for row in rows for column in row))
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def table(cells: Sequence[Cell]) -> str:
    """The cells after the last iteration, for people: mean +- sd over the seeds."""
    rows = summary(cells, cells[0].config.iterations)
    full = max(rows, key=len)  # of a cell that reached the end, if one did
    names = run_folder.qualities(full)
    taken = [s for s in SETTINGS if any(s in cell.config.settings for cell in cells)]
    lines = [["sampler", *(SETTINGS[s] for s in taken), *names, ""]]
    for cell, row in zip(cells, rows, strict=True):
        config = cell.config
        own = config.settings
        settings = [config.sampler, *(f"{own[s]:g}" if s in own else "" for s in taken)]
        marks = f"{cell.diverged} of {len(cell.runs)} diverged" if cell.diverged else ""
        lines.append([*settings, *(_mean_sd(row, name) for name in names), marks])
    if names:
        lines.append(
            [
                "true samples",
                *("" for _ in taken),
                *(f"{full[f'{n}_floor']:.3f}" for n in names),
                "",
            ]
        )
    return columns(lines)


def _mean_sd(row: Mapping[str, object], name: str) -> str:
    sd = f" ± {row[f'{name}_sd']:.3f}" if f"{name}_sd" in row else ""
    return f"{row[name]:.3f}{sd}" if name in row else "-"


def best(cells: Sequence[Cell]) -> Cell:
    """The cell with the fewest divergences; of those, the one nearest to the truth."""

    def demerit(cell: Cell) -> tuple[int, float]:
        distance = _distance(cell)
        return cell.diverged, math.inf if math.isnan(distance) else distance

    return min(cells, key=demerit)


def _distance(cell: Cell) -> float:
    """Mean total variation from the truth of the runs that came to the end; NaN if none did."""
    values = cell.figures(cell.config.iterations).get(SHOWN, [])
    return statistics.fmean(values) if values else math.nan


def draw_figure1(cells: Sequence[Cell], path: Path) -> None:
    """The paper's Figure 1: two rows for each sampler, of its best cell's first run."""
    target = TARGETS[cells[0].config.target]()
    truth = target.sample(runs.EVALUATED, run_folder.key_for(0, "truth"))
    samplers = dict.fromkeys(cell.config.sampler for cell in cells)
    shown = [best([c for c in cells if c.config.sampler == sampler]) for sampler in samplers]
    rows = {cell.config.title: runs.snapshots(cell.runs[0].folder) for cell in shown}
    plots.figure1(path, target, truth, rows)


def draw_heat_map(cells: Sequence[Cell], path: Path) -> None:
    """The total variation from the truth, mean over the seeds; outlined is each sampler's best.

    For samplers with a threshold a panel per noise scale, threshold down and step size across; for
    others one panel, noise scale down, or a single row if they have none.
    """
    panels: dict[tuple[SamplerName, float | None], list[Cell]] = {}
    chosen = []
    for sampler in dict.fromkeys(cell.config.sampler for cell in cells):
        own = [cell for cell in cells if cell.config.sampler == sampler]
        chosen.append(best(own))
        for cell in own:
            noise = None if cell.config.threshold is None else cell.config.noise_scale
            panels.setdefault((sampler, noise), []).append(cell)
    heats = [_heat(sampler, noise, group, chosen) for (sampler, noise), group in panels.items()]
    plots.heat_map(path, "total variation from the truth", heats)


def _heat(
    sampler: SamplerName, noise: float | None, cells: Sequence[Cell], chosen: Sequence[Cell]
) -> plots.Heat:
    """One panel, of one sampler and, unless it is None, one noise scale."""
    down = "noise_scale" if noise is None else "threshold"
    places = [(getattr(cell.config, down), cell.config.step_size) for cell in cells]
    rows, columns = (sorted(set(values)) for values in zip(*places, strict=True))
    values = torch.full((len(rows), len(columns)), math.nan)
    diverged = torch.zeros(len(rows), len(columns), dtype=torch.int64)
    outlined = None
    for cell, (row, column) in zip(cells, places, strict=True):
        place = rows.index(row), columns.index(column)
        values[place], diverged[place] = _distance(cell), cell.diverged
        if any(cell is each for each in chosen):
            outlined = place
    title = SAMPLERS[sampler].title
    return plots.Heat(
        title if noise is None else f"{title}, noise scale {noise:g}",
        ("", [""]) if rows == [None] else (down.replace("_", " "), [f"{row:g}" for row in rows]),
        ("step size", [f"{value:g}" for value in columns]),
        values,
        diverged,
        len(cells[0].runs),
        outlined,
    )
