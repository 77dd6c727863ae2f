"""Medians to results: speeds, shares of the ceilings; a Markdown table, a JSON file, a roofline."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any

from stanley_fast import run_folder
from stanley_fast.bench.ceilings import Peak
from stanley_fast.bench.work import Work
from stanley_fast.plots import ACCENT, DPI, FAINT, INK, PALE, STYLE

COPY = "copy"  # the candidate that a result's bandwidth comes from


@dataclass(frozen=True)
class Result:
    """One job, timed in several ways.

    Attributes:
        what, size: the job, for people.
        work: what it takes at least, however it is done.
        seconds: median by way, ours first.
        bandwidth: bytes a second of a copy of as many bytes, timed in turns with them.
        peak: floating-point operations a second that are possible in the job's precision.
        missing: ways that did not run, and why.
        note: more about ours.

    >>> job = Result("step", "1,000 elements", Work(12_000, 10_000), {"ours": 2e-6}, 12e9, 1e12)
    >>> job.share("ours"), job.bound
    (0.5, 'bytes')
    """

    what: str
    size: str
    work: Work
    seconds: dict[str, float]
    bandwidth: float
    peak: float
    missing: dict[str, str] = field(default_factory=dict)
    note: str = ""

    @property
    def bound(self) -> str:
        """Which of the two takes the machine longer."""
        moving, computing = self._least
        return "bytes" if moving >= computing else "FLOPs"

    def share(self, way: str) -> float:
        """The least time that the machine needs for the work, over the way's: 1 is the ceiling."""
        return max(self._least) / self.seconds[way]

    @property
    def _least(self) -> tuple[float, float]:
        return self.work.bytes / self.bandwidth, self.work.flops / self.peak

    def rows(self) -> list[dict[str, Any]]:
        """For the JSON file: one for each way."""
        ours = next(iter(self.seconds.values()))
        return [
            {
                "what": self.what,
                "size": self.size,
                "way": way,
                "seconds": seconds,
                "over_ours": seconds / ours,
                "bytes": self.work.bytes,
                "flops": self.work.flops,
                "bytes_per_s": self.work.bytes / seconds,
                "flops_per_s": self.work.flops / seconds,
                "bandwidth": self.bandwidth,
                "peak": self.peak,
                "share_of_ceiling": self.share(way),
                "bound_by": self.bound,
                "note": self.note if is_ours(way) else "",
            }
            for way, seconds in self.seconds.items()
        ]


def is_ours(way: str) -> bool:
    """By its name."""
    return way.startswith("ours")


def record(
    facts: Mapping[str, Any], peaks: Mapping[str, Peak], results: Sequence[Result]
) -> dict[str, Any]:
    """What the JSON file holds."""
    return {
        "facts": dict(facts),
        "peaks": {name: peak._asdict() for name, peak in peaks.items()},
        "rows": [row for result in results for row in result.rows()],
        "missing": {
            f"{result.what}, {result.size}": result.missing for result in results if result.missing
        },
    }


# The table ---------------------------------------------------------------------------------------

HEAD = (
    "| job | size | way | time | over ours | GB/s | GFLOP/s | of the ceiling | bound by |\n"
    "|---|---|---|---:|---:|---:|---:|---:|---|"
)

LEGEND = """\
Medians of runs that take turns in one process. GB and GFLOP are those that the job takes at least,
counted; so *GB/s* and *GFLOP/s* are speeds of the job, whatever else a way moves and computes. *Of
the ceiling*: the time of a copy of as many bytes, or of the FLOPs at the peak, whichever is longer
and named under *bound by*, over the way's time. In a cache, what writes where it has read can be
faster than a copy."""

COUNTED = {
    "step": "z and its gradient read, z written; 10 FLOPs an element, without those of its noise, "
    "so that states in a cache stay far below the copy",
    "toy chain": "the net of the paper's rings; weights and states read once, states written once; "
    "FLOPs of products",
    "conv chain": "the paper's net for CIFAR-10, unless another is named; likewise",
    "accept": "two states and gradients of adjusted STANLEY read, one of each written; 22 FLOPs an "
    "element, in float64",
}


def table(results: Sequence[Result]) -> str:
    """One line per job and way, in Markdown."""
    lines = [HEAD]
    for result in results:
        for row in result.rows():
            cells = [
                *(row["what"], row["size"], row["way"], duration(row["seconds"])),
                *(f"{row['over_ours']:.1f}", f"{row['bytes_per_s'] / 1e9:.3g}"),
                *(f"{row['flops_per_s'] / 1e9:.3g}", f"{row['share_of_ceiling']:.1%}"),
                row["bound_by"],
            ]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def duration(seconds: float) -> str:
    """
    >>> duration(2.03e-6), duration(0.0123), duration(2.5)
    ('2.03 µs', '12.3 ms', '2.5 s')
    """
    for unit, name in ((1e-6, "µs"), (1e-3, "ms")):
        if seconds < 999.5 * unit:
            return f"{seconds / unit:.3g} {name}"
    return f"{seconds:.3g} s"


def markdown(facts: Mapping[str, Any], peaks: Mapping[str, Peak], results: Sequence[Result]) -> str:
    """The machine, its ceilings, the table, and what is in it."""
    counted = [f"- *{what}*: {text}" for what, text in COUNTED.items() if what in _jobs(results)]
    notes = [f"- {r.what}, {r.size}: {r.note}" for r in results if r.note]
    missing = dict.fromkeys(
        f"- not run: {way}: {why}" for r in results for way, why in r.missing.items()
    )
    parts = [machine(facts), ceilings(peaks, results), table(results), LEGEND]
    return "\n\n".join([*parts, "\n".join([*counted, *notes, *missing])]) + "\n"


def _jobs(results: Sequence[Result]) -> set[str]:
    return {result.what for result in results}


def machine(facts: Mapping[str, Any]) -> str:
    """A sentence of what was measured, on what."""
    where = [f"{facts['cpu']}, {facts['cores']} cores, {facts['threads']} of them used"]
    if "gpu" in facts:
        where.insert(0, f"{facts['gpu']}, CUDA {facts['cuda']}")
    level = facts["vector_level"] or "no compiled library"
    commit = f" ({facts['commit']})" if facts["commit"] else ""
    return (
        f"stanley-fast {facts['version']}{commit} on {'; '.join(where)}; {level}; torch "
        f"{facts['torch']}; {facts['date']}, load {facts['load']:.1f} before."
    )


def ceilings(peaks: Mapping[str, Peak], results: Sequence[Result]) -> str:
    """What the machine does at most."""
    lines = [
        f"- {name}: {peak.rate / 1e9:,.0f} GFLOP/s, {peak.how}" for name, peak in peaks.items()
    ]
    copies = bandwidths(results)
    lines += [
        f"- copy of {size / 1e6:,.3g} MB: {rate / 1e9:,.3g} GB/s, read and written together"
        for size, rate in copies.items()
    ]
    return "\n".join(["Ceilings, measured in the same run:", "", *lines])


def bandwidths(results: Sequence[Result]) -> dict[int, float]:
    """By bytes, of the jobs that bytes bound. A smaller copy is a call and little else."""
    return {
        r.work.bytes: r.bandwidth for r in results if r.bound == "bytes" and r.work.bytes > 2**20
    }


# The roofline (Williams et al. 2009) --------------------------------------------------------------

MARKERS = "osD^vP"


def roofline(
    path: Path, facts: Mapping[str, Any], peaks: Mapping[str, Peak], results: Sequence[Result]
) -> None:
    """Speed over FLOPs per byte, both logarithmic: the ceilings, and a point for each row, whose
    shape is the job's.

    Args:
        path: the PNG to write.
        facts, peaks, results: as in `markdown`; at least one result.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), dpi=DPI, layout="constrained")
    axis = figure.subplots()
    intensities = [r.work.flops / r.work.bytes for r in results]
    left, right = min(intensities) / 4, max(intensities) * 4
    copies = bandwidths(results)
    for (size, rate), dashes in zip(copies.items(), ("-", "--", ":", "-."), strict=False):
        label = f"copy of {size / 1e6:,.3g} MB: {rate / 1e9:,.3g} GB/s"
        ends = left, max(peak.rate for peak in peaks.values()) / rate
        axis.plot(ends, [rate * x for x in ends], dashes, color=PALE, label=label)
    for name, peak in peaks.items():
        axis.axhline(peak.rate, color=INK, linewidth=1)
        axis.annotate(
            f"{name}: {peak.rate / 1e9:,.0f} GFLOP/s", (left, peak.rate), xytext=(3, 3),
            textcoords="offset points", fontsize=8, color=INK,
        )  # fmt: skip
    markers = dict(zip(dict.fromkeys(r.what for r in results), cycle(MARKERS), strict=False))
    unnamed = set(markers)
    for x, result in zip(intensities, results, strict=True):
        for way, seconds in result.seconds.items():
            axis.plot(
                x, result.work.flops / seconds, markers[result.what],
                color=ACCENT if is_ours(way) else PALE, markersize=7 if is_ours(way) else 5,
                label=result.what if result.what in unnamed else None,
            )  # fmt: skip
            unnamed.discard(result.what)
    speeds = [r.work.flops / s for r in results for s in r.seconds.values()]
    axis.set(
        xscale="log", yscale="log", xlim=(left, right),
        ylim=(min(speeds) / 3, 3 * max(p.rate for p in peaks.values())),
    )  # fmt: skip
    axis.set_xlabel("FLOPs per byte that the job takes at least", **STYLE)
    axis.set_ylabel("FLOP/s", **STYLE)
    axis.set_title(f"{facts.get('gpu') or facts['cpu']}: ours red, the others grey", **STYLE)
    axis.grid(color=FAINT, linewidth=0.5)
    axis.tick_params(labelsize=8, colors=INK)
    figure.legend(frameon=False, fontsize=7, labelcolor=INK, loc="outside right upper")
    FigureCanvasAgg(figure)
    figure.savefig(path, format="png")


def write(
    folder: Path,
    facts: Mapping[str, Any],
    peaks: Mapping[str, Peak],
    results: Sequence[Result],
    names: tuple[str, str, str] = ("bench.md", "bench.json", "roofline.png"),
) -> list[Path]:
    """Leaves the table, the record and the roofline in a folder; returns where."""
    table_file, json_file, picture = left = [folder / name for name in names]
    run_folder.write(table_file, markdown(facts, peaks, results))
    run_folder.write(json_file, json.dumps(record(facts, peaks, results), indent=1) + "\n")
    roofline(picture, facts, peaks, results)
    return left
