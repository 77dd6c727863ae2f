"""The ergodicity study as a table, a CSV file and a JSON file."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from stanley_fast.ergodicity import drift
from stanley_fast.ergodicity.convergence import Convergence
from stanley_fast.ergodicity.limit_law import Variance
from stanley_fast.ergodicity.study import Study

ENOUGH = 5.0  # a chain shorter than so many autocorrelation times gives a lower bound of it


def table(study: Study) -> str:
    """The study for people: a block per target, then the closed form."""
    blocks = []
    for target, (wasserstein, _) in study.floors.items():
        cosine = study.outward[target]
        blocks.append(
            f"{target}: two exact sets lie {wasserstein.mean:.3f} apart "
            f"(95 %: {wasserstein.upper:.3f}); the largest cosine of z and ∇f far out is "
            f"{cosine:.3f}, so H1 {'can hold' if cosine < 0 else 'does not hold'}"
        )
        lines = [
            ["", "rho", "", "reached", "bias", "acceptance", "ESS/1000 f", "ESS/s", "condition (9)"]
        ]
        lines += [_line(row) for row in study.rows if row.target == target]
        blocks.append(_aligned(lines))
    blocks.append("STANLEY's variance in one dimension, as step_size -> 0:")
    blocks.append(_aligned(_variance_lines(study.variances)))
    return "\n".join(blocks)


def _line(row: Convergence) -> list[str]:
    name = f"  {row.sampler}"
    condition = _condition(row.drift)
    if row.limit is None:
        return [name, "diverges", "", "-", "-", "-", "-", "-", condition]
    if row.diverged:
        rate, interval = "diverges", ""
    elif row.rate is None:
        rate, interval = "-", ""
    else:  # still decaying at the end: slower modes may be left
        rate = f"{'~' if row.rate.last == row.k[-1] else ''}{row.rate.rho:.5f}"
        interval = f"[{row.rate.low:.5f}, {row.rate.high:.5f}]"
    return [
        name,
        rate,
        interval,
        "-" if row.reached is None else str(row.reached),
        f"{row.limit.bias:.3f}",
        "" if row.acceptance is None else f"{row.acceptance:.2f}",
        *_ess(row),
        condition,
    ]


def _ess(row: Convergence) -> tuple[str, str]:
    """Effective samples per 1 000 evaluations and per second; bounds where the chain is short."""
    assert row.limit is not None
    if not math.isfinite(row.limit.time):
        return "-", "-"
    bound = "<" if row.limit.time * ENOUGH > row.k[-1] else ""
    each = 1 / row.limit.time
    return (
        f"{bound}{1000 * each / row.entry.evaluations:.3g}",
        f"{bound}{each / row.limit.seconds:.3g}",
    )


def _condition(shells: list[drift.Shell]) -> str:
    outside = drift.ball(shells)
    if outside is None:
        worst = max(shells, key=lambda each: each.ratio)
        return f"no: {_ratio(worst.ratio)} at |z| = {worst.radius:.3g}"
    return f"{_ratio(outside.ratio)} outside |z| = {outside.radius:.3g}"


def _ratio(value: float) -> str:
    """Its distance from 1, where that is what matters."""
    if 0 < 1 - value < 0.01:
        return f"1 - {1 - value:.1g}"
    return f"{value:.3f}" if 0.001 <= value < 100 else f"{value:.0e}"


def _variance_lines(cells: Sequence[Variance]) -> list[list[str]]:
    lines = [["  f", "threshold", "ε", "seen", "closed form", "exp(f/ε²)", "exp f"]]
    for cell in cells:
        lines.append(
            [
                f"  {cell.target}",
                f"{cell.threshold:g}",
                f"{cell.noise_scale:g}",
                f"{cell.seen:.3f} ± {cell.error:.3f}",
                f"{cell.closed_form:.3f}",
                f"{cell.tempered:.3f}",
                f"{cell.wanted:.3f}",
            ]
        )
    return lines


def _aligned(lines: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = [[text.ljust(w) for text, w in zip(line, widths, strict=True)] for line in lines]
    return "\n".join("  ".join(line).rstrip() for line in padded)


def write_csv(study: Study, path: Path) -> None:
    """A row per target and sampler: what the table shows, in full precision."""
    rows = []
    for row in study.rows:
        outside = drift.ball(row.drift)
        rows.append(
            {
                "target": row.target,
                "sampler": row.sampler,
                "settings": repr(row.entry.sampler),
                "transitions": row.k[-1],
                "evaluations": row.entry.evaluations,
                "rho": row.rate and row.rate.rho,
                "rho_low": row.rate and row.rate.low,
                "rho_high": row.rate and row.rate.high,
                "fitted_from": row.rate and row.rate.first,
                "fitted_to": row.rate and row.rate.last,
                "r_squared": row.rate and row.rate.r_squared,
                "reached": row.reached,
                "bias": row.limit and row.limit.bias,
                "bias_floor": study.floors[row.target][0].upper,
                "energy_bias": row.limit and row.limit.energy_bias,
                "energy_bias_floor": study.floors[row.target][1].upper,
                "acceptance": row.acceptance,
                "autocorrelation_time": row.limit and row.limit.time,
                "seconds": row.limit and row.limit.seconds,
                "drift_radius": outside and outside.radius,
                "drift_ratio": outside and outside.ratio,
                "drift_error": outside and outside.error,
                "diverged": row.diverged,
            }
        )
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_json(study: Study, path: Path) -> None:
    """Everything; what is not finite is null, samplers are their Python."""
    path.write_text(json.dumps(_plain(study), indent=1))


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not hasattr(value, "step"):
        value = {each.name: getattr(value, each.name) for each in fields(value)}
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | int | float | None) else repr(value)
