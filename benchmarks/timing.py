"""Ratios that mean something: candidates take turns in one process, medians are compared."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple


class Candidate(NamedTuple):
    """What is called, and what is entered once around many calls."""

    run: Callable[[], object]
    around: Callable[[], AbstractContextManager[None]] = nullcontext


def interleaved(
    candidates: dict[str, Candidate],
    rounds: tuple[int, int] = (7, 31),
    per_round: float = 0.01,
    budget: float = 4.0,
) -> dict[str, float]:
    """Median seconds per call of each candidate.

    Every round runs each candidate for about `per_round` seconds, once at the least; there are as
    many rounds, between the two numbers, as fit into `budget` seconds.
    """
    once = {name: _once(candidate) for name, candidate in candidates.items()}
    calls = {name: max(1, int(per_round / seconds)) for name, seconds in once.items()}
    one_round = sum(calls[name] * seconds for name, seconds in once.items())
    fewest, most = rounds
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(min(most, max(fewest, int(budget / one_round)))):
        for name, (run, around) in candidates.items():
            with around():
                begin = time.perf_counter()
                for _ in range(calls[name]):
                    run()
                times[name].append((time.perf_counter() - begin) / calls[name])
    return {name: statistics.median(values) for name, values in times.items()}


def _once(candidate: Candidate) -> float:
    """Seconds of one warm call, roughly."""
    with candidate.around():
        candidate.run()
        begin = time.perf_counter()
        for _ in range(3):
            candidate.run()
        return max((time.perf_counter() - begin) / 3, 1e-7)
