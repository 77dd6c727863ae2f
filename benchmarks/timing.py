"""Ratios that mean something: candidates take turns in one process, medians are compared."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable


def interleaved(
    candidates: dict[str, Callable[[], object]], rounds: int = 31, seconds: float = 0.01
) -> dict[str, float]:
    """Median seconds per call of each candidate; every round runs each for about `seconds`."""
    calls = {name: max(1, int(seconds / _once(run))) for name, run in candidates.items()}
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, run in candidates.items():
            begin = time.perf_counter()
            for _ in range(calls[name]):
                run()
            times[name].append((time.perf_counter() - begin) / calls[name])
    return {name: statistics.median(values) for name, values in times.items()}


def _once(run: Callable[[], object]) -> float:
    """Seconds of one warm call, roughly."""
    run()
    begin = time.perf_counter()
    for _ in range(5):
        run()
    return max((time.perf_counter() - begin) / 5, 1e-7)
