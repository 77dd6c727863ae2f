"""Medians to results: the shares of the bounds, a Markdown table, a JSON file and a figure."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from providers import BASELINES, BOUNDS, PROVIDERS


class Row(NamedTuple):
    """One case: the median seconds of every provider that ran, and why others did not."""

    size: int
    threads: int
    dtype: str
    medians: dict[str, float]
    missing: dict[str, str]

    def share(self, provider: str, bound: str) -> float:
        """A bound's time over the provider's: 1 is as fast as the bound."""
        return self.medians[bound] / self.medians[provider]

    def binding(self) -> str:
        """The slower of the two bounds, which the step cannot beat: its traffic or its noise."""
        return max(("triad", "noise"), key=self.medians.__getitem__)

    def record(self) -> dict[str, Any]:
        """For the JSON file: the row with its shares spelled out."""
        shares = {
            name: {bound: self.share(name, bound) for bound in BOUNDS}
            for name in self.medians
            if name not in BOUNDS
        }
        return {**self._asdict(), "binding_bound": self.binding(), "share_of_bound": shares}


HEAD = (
    "| elements | threads | dtype | {ours}, µs | ns per element | of triad | of noise "
    "| a new z, µs | naive | tuned | inductor | torchebm | copy, µs | triad, µs | noise, µs "
    "| stochastic, µs |\n"
    "|---:|---:|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|"
)


def table(rows: list[Row], ours: str) -> str:
    """One line per case: our times, their share of each bound, the baselines' times over ours."""
    lines = [HEAD.format(ours=ours)]
    for row in sorted(rows, key=lambda r: (r.dtype != "float32", r.dtype, r.size, r.threads)):
        time = row.medians[ours]
        ratios = [
            f"{row.medians[name] / time:.1f}" if name in row.medians else "" for name in BASELINES
        ]
        rounded = row.medians.get(f"{ours}, stochastic")
        cells = [
            *(f"{row.size:,}", str(row.threads), row.dtype, micro(time)),
            *(f"{time * 1e9 / row.size:.2f}", percent(row.share(ours, "triad"))),
            *(percent(row.share(ours, "noise")), micro(row.medians[f"{ours}, new"]), *ratios),
            *(micro(row.medians[name]) for name in BOUNDS),
            micro(rounded) if rounded else "",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def micro(seconds: float) -> str:
    return f"{seconds * 1e6:,.1f}" if seconds < 1e-3 else f"{seconds * 1e6:,.0f}"


def percent(share: float) -> str:
    return f"{share:.0%}"


def legend(rows: list[Row]) -> str:
    """What the columns are, and why some are empty."""
    used = {name for row in rows for name in row.medians}
    lines = [f"- *{name}*: {p.definition}" for name, p in PROVIDERS.items() if name in used]
    missing = {f"{name}: {why}" for row in rows for name, why in row.missing.items()}
    lines += [f"- not run: {line}" for line in sorted(missing)]
    return "\n".join(lines)


INTRO = """\
One STANLEY step on the CPU: {cpu}, {cores} cores, vector level {vector_level}; torch {torch},
commit {commit}, {date}, malloc settings {malloc}, load {load:.1f} before. Made by `make bench`.

Medians of interleaved runs in one process. *of triad* and *of noise*: that bound's time over ours,
so 100 % is as fast as the bound. The step must do both, and the slower one binds: the
noise's issue rate wherever the state fits a cache. A baseline's column is its time over ours."""


def markdown(facts: dict[str, Any], rows: list[Row], ours: str) -> str:
    return "\n\n".join([INTRO.format_map(facts), table(rows, ours), legend(rows)]) + "\n"


def write(folder: Path, name: str, facts: dict[str, Any], rows: list[Row], ours: str) -> str:
    """Writes name.json, name.md and name.png to the folder; returns the Markdown."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {"facts": facts, "rows": [row.record() for row in rows]}
    (folder / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")
    text = markdown(facts, rows, ours)
    (folder / f"{name}.md").write_text(text)
    figure(folder / f"{name}.png", facts, rows)
    return text


def figure(path: Path, facts: dict[str, Any], rows: list[Row]) -> None:
    """Share of the binding bound over the state's size: one panel per thread count."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    counts = sorted({row.threads for row in rows})
    fig, panels = plt.subplots(
        1, len(counts), figsize=(6.2 * len(counts), 4.6), sharey=True, squeeze=False
    )
    for panel, threads in zip(panels[0], counts, strict=True):
        for label, points in curves([row for row in rows if row.threads == threads]).items():
            style = "o-" if label.endswith("float32") else "s:"
            panel.plot(*zip(*sorted(points), strict=True), style, label=label, markersize=4)
        panel.set(xscale="log", xlabel="elements", title=f"{threads} thread{'s'[: threads - 1]}")
        panel.axhline(1.0, color="black", linewidth=0.8)
        panel.grid(alpha=0.3)
    panels[0][0].set_ylabel("share of the bound: max(triad, noise) / time")
    panels[0][-1].legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    fig.suptitle(f"One STANLEY step, {facts['cpu']}, {facts['vector_level']}", fontsize=10)
    fig.savefig(path, dpi=110, bbox_inches="tight")
    plt.close(fig)


def curves(rows: list[Row]) -> dict[str, list[tuple[int, float]]]:
    """(size, share of the binding bound): all providers in float32, else our in-place step."""
    found: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        for name in row.medians.keys() - BOUNDS:
            if row.dtype == "float32" or (name not in BASELINES and not name.endswith("new")):
                point = row.size, row.share(name, row.binding())
                found.setdefault(f"{name}, {row.dtype}", []).append(point)
    return dict(sorted(found.items()))
