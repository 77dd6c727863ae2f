"""Pictures of experiments as PNG files. Nothing here touches pyplot or its global state."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from stanley_fast import metrics
from stanley_fast.energies import Target

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

GRID = 200  # cells per axis of a picture of a density (Nijkamp et al. 2020)
DPI = 150
DENSITIES = "magma"  # perceptually uniform, dark where nothing is
HEAT = "viridis_r"  # smaller is better, and bright
INK, PALE, FAINT, ACCENT = "#22223b", "#8d8fa3", "#d9dae3", "#b5367a"
STYLE: dict[str, Any] = {"color": INK, "fontsize": 9}


@dataclass(frozen=True)
class Snapshot:
    """What a model has learned after `iteration` iterations.

    Attributes:
        iteration: of the training.
        density: the learned density on the picture's grid, (200, 200), as `grid_density` gives it.
        samples: generated samples (n, 2).
    """

    iteration: int
    density: Tensor
    samples: Tensor


@dataclass(frozen=True)
class Heat:
    """One panel of a heat map.

    Attributes:
        title: of the panel.
        rows, columns: the axis's name and its tick labels.
        values: (rows, columns), means over the seeds that did not diverge; NaN if all did.
        diverged: (rows, columns), how many seeds did.
        seeds: of how many.
        outlined: the row and column of the cell to outline, or None.
    """

    title: str
    rows: tuple[str, Sequence[str]]
    columns: tuple[str, Sequence[str]]
    values: Tensor
    diverged: Tensor
    seeds: int
    outlined: tuple[int, int] | None = None


def sample_density(samples: Tensor, extent: float, size: int = GRID) -> Tensor:
    """Kernel density estimate of samples (n, 2) on the picture's grid: float32 (size, size).

    A fine histogram blurred by a Gaussian whose standard deviation is extent / 60.

    >>> density = sample_density(torch.zeros(9, 2), extent=1.0)
    >>> round(float(density.sum()) * (2 / GRID) ** 2, 5)  # its integral
    1.0
    """
    cell = 2 * extent / size
    width = extent / 60 / cell
    reach = int(4 * width) + 1
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / width).square())
    kernel = kernel / kernel.sum()
    blurred = metrics.histogram(samples.detach().cpu().float(), extent, size)[None, None]
    blurred = torch.conv2d(blurred, kernel[None, None, :, None], padding=(reach, 0))
    blurred = torch.conv2d(blurred, kernel[None, None, None, :], padding=(0, reach))
    return blurred[0, 0] / cell**2


def figure1(
    path: Path, target: Target, truth: Tensor, runs: Mapping[str, Sequence[Snapshot]]
) -> None:
    """The paper's Figure 1: per run, a row of learned densities above a row of generated samples.

    Args:
        path: the PNG to write.
        target: 2-D; its density and samples fill the first column.
        truth: true samples (n, 2).
        runs: a name (the sampler's) -> its snapshots, oldest first.

    All panels share one colour scale, from 0 to the true density's largest value.
    """
    columns = 1 + max(1, *(len(snapshots) for snapshots in runs.values()))
    figure = _figure(1.8 * columns + 0.3, 4.15 * len(runs))
    true = [metrics.grid_density(target, target.extent, GRID), sample_density(truth, target.extent)]
    top = float(true[0].max())
    blocks = figure.subfigures(len(runs), 1, squeeze=False)[:, 0]
    for block, (name, snapshots) in zip(blocks, runs.items(), strict=True):
        size = 11 if columns > 2 else 8  # two columns are narrower than a sampler's settings
        block.suptitle(name, color=INK, fontsize=size, fontweight="bold")
        axes = block.subplots(2, columns, squeeze=False)
        for axis in axes[:, 1 + len(snapshots) :].flat:  # a run that diverged has fewer
            axis.set_axis_off()
        for row, truth_title in enumerate(("true density", "true samples")):
            _density(axes[row, 0], true[row], top)
            axes[row, 0].set_title(truth_title, **STYLE)
        for column, shot in enumerate(snapshots, start=1):
            _density(axes[0, column], shot.density, top)
            _density(axes[1, column], sample_density(shot.samples, target.extent), top)
            axes[0, column].set_title(f"{shot.iteration:,} iterations".replace(",", " "), **STYLE)
        for row, learned_label in enumerate(("learned density", "generated samples")):
            axes[row, 1].set_ylabel(learned_label, **STYLE)
    _write(figure, path)


def densities(path: Path, panels: Mapping[str, Tensor]) -> None:
    """Densities side by side, on a colour scale from 0 to the first one's largest value.

    Args:
        path: the PNG to write.
        panels: a title -> its density, as `grid_density` or `sample_density` give it.
    """
    top = float(next(iter(panels.values())).max())
    figure = _figure(2.6 * len(panels), 2.9)
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (title, density) in zip(axes, panels.items(), strict=True):
        _density(axis, density, top)
        axis.set_title(title, **STYLE)
    _write(figure, path)


def loss_curve(path: Path, iterations: Sequence[int], gaps: Sequence[float]) -> None:
    """The energy gap mean f(x) - mean f(z) over the training: its values and their running mean.

    Args:
        path: the PNG to write.
        iterations, gaps: equally long.
    """
    figure = _figure(7, 3)
    axis = figure.subplots()
    axis.plot(iterations, gaps, color=PALE, linewidth=0.6, alpha=0.6, label="one iteration")
    window = max(1, len(gaps) // 50)
    if window > 1:
        means = torch.tensor(gaps, dtype=torch.float64).unfold(0, window, 1).mean(dim=1)
        middle = iterations[window // 2 :][: len(means)]
        axis.plot(middle, means.tolist(), color=ACCENT, linewidth=1.5, label="running mean")
        axis.legend(frameon=False, fontsize=8, labelcolor=INK)
    axis.axhline(0, color=INK, linewidth=0.6)
    axis.set_xlabel("iteration", **STYLE)
    axis.set_ylabel("energy gap\nmean f(x) - mean f(z)", **STYLE)
    axis.margins(x=0)
    _plain(axis)
    _write(figure, path)


def curves(
    path: Path,
    x: str,
    y: str,
    lines: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    levels: Mapping[str, float],
) -> None:
    """Lines on one logarithmic axis, and levels to hold them against.

    Args:
        path: the PNG to write.
        x, y: what the axes are.
        lines: a name -> its x and y, equally long, y positive.
        levels: a name -> its y, a dashed line.
    """
    figure = _figure(9, 3.5)
    axis = figure.subplots()
    for name, (at, values) in lines.items():
        axis.plot(at, values, marker="o", markersize=3, linewidth=1.5, label=name)
    for (name, value), dashes in zip(levels.items(), ("--", ":", "-."), strict=False):
        axis.axhline(value, color=PALE, linewidth=1, linestyle=dashes, label=name)
    axis.set_yscale("log")
    axis.set_xlabel(x, **STYLE)
    axis.set_ylabel(y, **STYLE)
    figure.legend(loc="outside right center", frameon=False, fontsize=8, labelcolor=INK)
    _plain(axis)
    _write(figure, path)


def heat_map(path: Path, quantity: str, panels: Sequence[Heat]) -> None:
    """Panels of distances on one colour scale, two abreast.

    Cells where every seed diverged are white and hatched; where some did, they say how many.

    Args:
        path: the PNG to write.
        quantity: what the numbers are.
        panels: at least one.
    """
    found = torch.cat([panel.values.flatten() for panel in panels])
    found = found[found.isfinite()]
    span = (float(found.min()), float(found.max())) if len(found) else (0.0, 1.0)
    across = min(len(panels), 2)
    down = math.ceil(len(panels) / across)
    widths = [max(panel.values.shape[1] for panel in panels[i::across]) for i in range(across)]
    heights = [
        max(panel.values.shape[0] for panel in panels[i * across : (i + 1) * across])
        for i in range(down)
    ]
    size = 1.4 + sum(0.9 + 0.72 * w for w in widths), 0.3 + sum(0.8 + 0.42 * h for h in heights)
    figure = _figure(*size)
    grid = figure.subplots(down, across, squeeze=False, width_ratios=widths, height_ratios=heights)
    axes = grid.flatten().tolist()
    images = [_heat(axis, panel, *span) for axis, panel in zip(axes, panels, strict=False)]
    for unused in axes[len(panels) :]:
        unused.set_axis_off()
    bar = figure.colorbar(images[0], ax=axes)
    bar.set_label(quantity, **STYLE)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8, colors=INK, length=0)
    _write(figure, path)


def traces(path: Path, draws: Tensor, autocorrelation: Tensor, keep_every: int = 1) -> None:
    """For each coordinate the course of up to 8 chains, and the autocorrelation of all.

    Args:
        path: the PNG to write.
        draws: (draws, B, d), after burn-in.
        autocorrelation: (draws, d), as `diagnostics.autocorrelation` gives it; the first half is
            shown, as later lags have few pairs of draws.
        keep_every: transitions from one draw to the next.
    """
    dims, lags = draws.shape[2], len(draws) // 2 + 1
    figure = _figure(8, 0.4 + 1.7 * dims)
    axes = figure.subplots(dims, 2, squeeze=False, sharex="col", width_ratios=(2, 1))
    after = keep_every * torch.arange(1, len(draws) + 1)
    for i, (course, decay) in enumerate(axes):
        course.plot(after, draws[:, :8, i], linewidth=0.7, alpha=0.8)
        course.set_ylabel(f"z[{i}]", **STYLE)
        decay.plot(keep_every * torch.arange(lags), autocorrelation[:lags, i], color=ACCENT)
        decay.axhline(0, color=INK, linewidth=0.6)
        for axis in (course, decay):
            axis.margins(x=0)
            _plain(axis)
    axes[0, 0].set_title(f"{min(8, draws.shape[1])} of {draws.shape[1]} chains", **STYLE)
    axes[0, 1].set_title("autocorrelation of all chains", **STYLE)
    axes[-1, 0].set_xlabel("transitions after burn-in", **STYLE)
    axes[-1, 1].set_xlabel("lag in transitions", **STYLE)
    _write(figure, path)


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=DPI, layout="constrained")


def _write(figure: Figure, path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    figure.savefig(path, format="png")


def _density(axis: Axes, density: Tensor, top: float) -> None:
    axis.imshow(density.numpy(), origin="lower", cmap=DENSITIES, vmin=0, vmax=top)
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_visible(False)


def _plain(axis: Axes) -> None:
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=8, colors=INK)


def _heat(axis: Axes, panel: Heat, low: float, high: float) -> AxesImage:
    values = panel.values
    image = axis.imshow(values.numpy(), cmap=HEAT, vmin=low, vmax=high, aspect="auto")
    axis.set_xlabel(panel.columns[0], **STYLE)
    axis.set_ylabel(panel.rows[0], **STYLE)
    axis.set_xticks(range(values.shape[1]), panel.columns[1], **STYLE)
    axis.set_yticks(range(values.shape[0]), panel.rows[1], **STYLE)
    axis.set_title(panel.title, **STYLE)
    axis.tick_params(length=0)
    for spine in axis.spines.values():
        spine.set_visible(False)
    for row, column in product(*map(range, values.shape)):
        value, diverged = float(values[row, column]), int(panel.diverged[row, column])
        label = f"{value:.3f}"
        if diverged == panel.seeds:
            label = "diverged"
            _frame(axis, row, column, hatch="////", edgecolor=FAINT, linewidth=0)
        elif diverged:
            label += f"\n{diverged} of {panel.seeds} div."
        ink = "white" if value > low + 0.4 * (high - low) else INK
        axis.text(column, row, label, ha="center", va="center", fontsize=7, color=ink)
    if panel.outlined is not None:
        _frame(axis, *panel.outlined, edgecolor=ACCENT, linewidth=2.5, clip_on=False)
    return image


def _frame(axis: Axes, row: int, column: int, **style: Any) -> None:
    """A rectangle around a cell of a heat map."""
    from matplotlib.patches import Rectangle

    axis.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, **style))
