"""Pictures of the ergodicity study."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from stanley_fast.distances import Floor
from stanley_fast.ergodicity.convergence import Convergence
from stanley_fast.ergodicity.limit_law import LINES, Variance, limit_law
from stanley_fast.plots import DPI, INK, PALE, STYLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

BOTTOM, TOP = 2e-2, 4.0  # of the distances shown

# Told apart with every kind of colour vision (Okabe and Ito 2008).
COLOURS = ("#d55e00", "#e69f00", "#0072b2", "#56b4e9", "#009e73", "#cc79a7", "#555555")


def convergence(
    path: Path, rows: Sequence[Convergence], floors: dict[str, tuple[Floor, Floor]]
) -> None:
    """A column per target: distance to the sampler's own limit law, and to the target, over time.

    Args:
        path: the PNG to write.
        rows: a curve each. One that ends in a cross diverged there.
        floors: by target, as in `ergodicity.Study`; the grey band ends at the upper end.
    """
    targets = list(dict.fromkeys(row.target for row in rows))
    names = list(dict.fromkeys(row.sampler for row in rows))
    figure = _figure(1 + 2.7 * len(targets), 5.4)
    axes = figure.subplots(2, len(targets), squeeze=False, sharey=True, sharex="col")
    lines: dict[str, Line2D] = {}
    for column, target in enumerate(targets):
        above, below = axes[:, column]
        above.set_title(target, **STYLE)
        below.set_xlabel("evaluations of f per chain", **STYLE)
        for row in (each for each in rows if each.target == target):
            colour = COLOURS[names.index(row.sampler) % len(COLOURS)]
            lines[row.sampler] = _curve(above, row, row.wasserstein, colour)
            _curve(below, row, row.to_target, colour)
        for axis in (above, below):
            axis.axhspan(BOTTOM / 2, floors[target][0].upper, color=PALE, alpha=0.25, linewidth=0)
            axis.set(xscale="log", yscale="log", ylim=(BOTTOM, TOP))
            _plain(axis)
    axes[0, 0].set_ylabel("distance to its own\nlimit law (Eq. 10)", **STYLE)
    axes[1, 0].set_ylabel("distance to the target", **STYLE)
    figure.legend(
        [lines[name] for name in names],
        names,
        loc="outside upper center",
        ncols=len(names),
        frameon=False,
        fontsize=9,
        labelcolor=INK,
    )
    _write(figure, path)


def limit_laws(path: Path, cells: Sequence[Variance]) -> None:
    """A panel per target: STANLEY's variance over the threshold, seen and in closed form.

    Args:
        path: the PNG to write.
        cells: of the table; the bars are two standard errors to each side. Dotted is the variance
            of exp(f / eps^2).
    """
    targets = list(dict.fromkeys(cell.target for cell in cells))
    figure = _figure(3.6 * len(targets), 3.2)
    for axis, target in zip(
        figure.subplots(1, len(targets), squeeze=False)[0], targets, strict=True
    ):
        here = [cell for cell in cells if cell.target == target]
        for i, eps in enumerate(dict.fromkeys(cell.noise_scale for cell in here)):
            line = [cell for cell in here if cell.noise_scale == eps]
            th, colour = [cell.threshold for cell in line], COLOURS[2 * i]
            label = f"ε = {eps:g}"
            between = torch.logspace(math.log10(min(th)), math.log10(max(th)), 40).tolist()
            f = LINES[target]
            closed = [limit_law(f, 3 * f.extent, each, eps).variance for each in between]
            axis.plot(between, closed, color=colour, linewidth=1.2)
            axis.axhline(line[0].tempered, color=colour, linewidth=0.8, linestyle=":")
            errors = [2 * cell.error for cell in line]
            seen = [cell.seen for cell in line]
            axis.errorbar(th, seen, errors, fmt="o", color=colour, markersize=4, label=label)
        axis.set(xscale="log", ylim=(0, None))
        axis.set_title(target, **STYLE)
        axis.set_xlabel("threshold", **STYLE)
        axis.set_ylabel("variance", **STYLE)
        axis.legend(frameon=False, fontsize=8, labelcolor=INK)
        _plain(axis)
    _write(figure, path)


def _curve(axis: Axes, row: Convergence, values: Sequence[float], colour: str) -> Line2D:
    """From the first transition on: there is no 0 on a logarithmic axis."""
    at = [k * row.entry.evaluations for k in row.k[1:]]
    shown = [min(each, TOP) for each in values[1:]] or [math.nan] * len(at)
    if row.diverged and at:
        axis.plot(at[-1], shown[-1], "x", color=colour, clip_on=False)
    return axis.plot(at, shown, color=colour, linewidth=1.3)[0]


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=DPI, layout="constrained")


def _plain(axis: Axes) -> None:
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=8, colors=INK)


def _write(figure: Figure, path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    figure.savefig(path, format="png")
