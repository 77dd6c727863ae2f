"""Samplers side by side on images, all with one budget of gradient evaluations."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from stanley_fast import image_runs, pictures, run_folder
from stanley_fast.data import to_unit
from stanley_fast.image_experiments import ImageConfig
from stanley_fast.methods import SAMPLERS
from stanley_fast.parallel import in_parallel
from stanley_fast.trainer import DivergedError

SAMPLES = 12  # of each sampler in samples.png


@dataclass(frozen=True)
class Run:
    """One sampler's run: its settings and folder, and where it diverged, if it did."""

    config: ImageConfig
    folder: Path
    diverged: int | None

    @property
    def rows(self) -> list[dict[str, float]]:
        """Its evaluations."""
        return [row for row in run_folder.read_metrics(self.folder) if run_folder.qualities(row)]


def compare(
    configs: Sequence[ImageConfig],
    folder: Path,
    *,
    jobs: int = 1,
    resume: bool = False,
    progress: bool = True,
    device: str | None = None,
    weights: Path | None = None,
) -> list[Run]:
    """Trains every config; leaves comparison.csv, fid.png and samples.png.

    Args:
        configs: of different samplers; each runs in folder/SAMPLER.
        folder: of the comparison.
        jobs: runs at a time, each in its own process with its share of the cores.
        resume: go on with what the folder holds.
        progress: show a progress bar over the runs.
        device, weights: as in `image_runs.train`.

    Raises:
        FileExistsError: the folder holds a comparison, and `resume` is False.
        WorkerDiedError: the process of a run was killed.
        As `image_runs.train`, but for DivergedError: that is a result too.
    """
    if not resume and next(folder.glob("*/config.json"), None) is not None:
        raise FileExistsError(f"{folder} already holds a comparison")
    tasks = [_Task(c, folder / c.sampler, device, weights) for c in configs]
    runs = list(in_parallel(_run, tasks, jobs, progress))
    write_csv(runs, folder / "comparison.csv")
    image_runs.draw_fid(folder / "fid.png", {r.config.title: r.folder for r in runs})
    draw_samples(runs, folder / "samples.png")
    return runs


@dataclass(frozen=True)
class _Task:
    config: ImageConfig
    folder: Path
    device: str | None
    weights: Path | None


def _run(task: _Task) -> Run:
    diverged = None
    resume = (task.folder / "config.json").exists()
    try:
        image_runs.train(
            task.config, task.folder, resume=resume, progress=False, device=task.device,
            weights=task.weights,
        )  # fmt: skip
    except DivergedError as error:
        diverged = error.iteration
    return Run(task.config, task.folder, diverged)


def write_csv(runs: Sequence[Run], path: Path) -> None:
    """Every evaluation of every run, with the evaluations of f that training had spent by then."""
    rows = []
    for run in runs:
        spent = run.config.steps * run.config.batch_size
        for row in run.rows:
            head = {"sampler": run.config.sampler, "iteration": int(row["iteration"])}
            head["evaluations"] = int(row["iteration"]) * spent
            rows.append({**head, **{k: v for k, v in row.items() if k not in head}})
    names = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)


def table(runs: Sequence[Run]) -> str:
    """The runs after their last evaluation, beside held-out images and the pixels' Gaussian."""
    last = {run.config.sampler: run.rows[-1] for run in runs if run.rows}
    if not last:
        return "no run was evaluated"
    full = next(iter(last.values()))
    names = run_folder.qualities(full)
    lines = [["sampler", "iteration", *names, ""]]
    for run in runs:
        row = last.get(run.config.sampler, {})
        mark = "" if run.diverged is None else f"diverged at {run.diverged}"
        figures = [f"{row[name]:.4g}" if name in row else "-" for name in names]
        iteration = f"{row['iteration']:.0f}" if row else "-"
        lines.append([SAMPLERS[run.config.sampler].title, iteration, *figures, mark])
    for what, title in (("floor", "held-out images"), ("gaussian", "Gaussian of the pixels")):
        lines.append([title, "", *(f"{full[f'{name}_{what}']:.4g}" for name in names), ""])
    return run_folder.columns(lines)


def draw_samples(runs: Sequence[Run], path: Path) -> None:
    """A column per sampler, samples of its last evaluation downwards."""
    shown = {}
    for run in runs:
        shots = image_runs.snapshots(run.folder)
        if shots:
            last = to_unit(shots[max(shots)][:SAMPLES])
            shown[SAMPLERS[run.config.sampler].title.replace(" ", "\n").replace("-", "-\n")] = last
    if shown:
        samples = torch.stack(list(shown.values()))
        scale = image_runs.picture_scale(samples.shape)
        pictures.strip(path, samples, titles=list(shown), scale=scale)
