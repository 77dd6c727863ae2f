"""Rows of results: kept on disk as soon as they are known, printed as one table."""

from __future__ import annotations

import json
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

PASS, FAIL, MISS, NOT_RUN = "pass", "FAIL", "MISS", "n/a"


class Rows:
    """Appends rows of one part and backend to a file, one JSON object a line."""

    def __init__(self, path: Path, part: str, backend: str) -> None:
        self.path, self.labels = path, {"part": part, "backend": backend}

    def add(self, what: str, verdict: str, **values: Any) -> None:
        row = {**self.labels, "what": what, "verdict": verdict, **values}
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(line(row), flush=True)

    def check(self, what: str, cases: Mapping[str, Callable[[], float]], **labels: Any) -> None:
        """One row for many cases; each gives its error as a share of what is allowed, or raises."""
        begin, worst, failures = time.perf_counter(), 0.0, []
        for name, case in cases.items():
            try:
                worst = max(worst, case())
            except Exception as error:
                failures.append(f"{name}: {reason(error)}")
        values = {"cases": len(cases), "worst": round(worst, 3), **labels}
        values["seconds"] = round(time.perf_counter() - begin, 2)
        if failures:
            values["detail"] = f"{len(failures)} of {len(cases)} failed; " + "; ".join(failures[:3])
        self.add(what, FAIL if failures else PASS, **values)


def reason(error: Exception) -> str:
    """The error and where in these files it was raised."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "benchmarks" in f.filename]
    where = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    first = (str(error).strip() or "no message").splitlines()
    return f"{type(error).__name__}: {' '.join(first[:3])[:400]}{where}"


def load(path: Path) -> list[dict[str, Any]]:
    return [json.loads(text) for text in path.read_text().splitlines()] if path.exists() else []


def failed(rows: list[dict[str, Any]]) -> bool:
    """A wrong result anywhere; a missed speed target is none."""
    return any(row["verdict"] == FAIL for row in rows)


def line(row: Mapping[str, Any]) -> str:
    """A row as one line of text: labels, then whatever else it holds."""
    fixed = ("part", "backend", "what", "verdict")
    rest = [f"{name}={show(value)}" for name, value in row.items() if name not in fixed]
    part, backend, what, verdict = (row[name] for name in fixed)
    return f"{verdict:5} {part:12} {backend:16} {what:32} {'  '.join(rest)}"


def show(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def summary(rows: list[dict[str, Any]]) -> str:
    """Every row that has a target or went wrong, and how many there are of each verdict."""
    targets = [line(row) for row in rows if "target" in row]
    wrong = [line(row) for row in rows if row["verdict"] == FAIL]
    counts = Counter(row["verdict"] or "without a target" for row in rows)
    found = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
    return "\n".join([*targets, *wrong, found])
