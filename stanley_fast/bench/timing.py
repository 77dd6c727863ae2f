"""Ratios that mean something: candidates take turns in one process, medians are compared."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from time import perf_counter
from typing import NamedTuple

import torch

Run = Callable[[], object]


class Candidate(NamedTuple):
    """What is called, and what is entered once around many calls."""

    run: Run
    around: Callable[[], AbstractContextManager[None]] = nullcontext


def interleaved(
    candidates: dict[str, Candidate],
    rounds: tuple[int, int] = (7, 31),
    per_round: float = 0.01,
    budget: float = 4.0,
    device: str = "cpu",
) -> dict[str, float]:
    """Median seconds per call of each candidate, by the host's clock.

    Every round runs each candidate for about `per_round` seconds, once at the least; there are as
    many rounds, between the two numbers, as fit into `budget` seconds. On a GPU a stretch of calls
    ends when its work does.
    """
    once = {name: _warm(candidate, device) for name, candidate in candidates.items()}
    calls = {name: max(1, int(per_round / seconds)) for name, seconds in once.items()}
    one_round = sum(calls[name] * seconds for name, seconds in once.items())
    fewest, most = rounds
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(min(most, max(fewest, int(budget / one_round)))):
        for name, candidate in candidates.items():
            with candidate.around():
                times[name].append(_by_clock(candidate.run, calls[name], device))
    return {name: statistics.median(values) for name, values in times.items()}


def _warm(candidate: Candidate, device: str) -> float:
    """Seconds of one warm call, roughly."""
    with candidate.around():
        candidate.run()
        return max(_by_clock(candidate.run, 3, device), 1e-7)


def _by_clock(run: Run, calls: int, device: str) -> float:
    synchronize(device)
    begin = perf_counter()
    for _ in range(calls):
        run()
    synchronize(device)
    return (perf_counter() - begin) / calls


def synchronize(device: str) -> None:
    """Waits for the GPU, if it is one."""
    if device == "cuda":
        torch.cuda.synchronize()


# Kernels on a GPU ---------------------------------------------------------------------------------


def by_events(
    candidates: dict[str, Candidate], rounds: int = 15, per_round: float = 0.004
) -> dict[str, float]:
    """Median seconds per call of each candidate by CUDA events: the GPU's work, not the launches.

    A stretch of calls is queued behind a sleeping kernel, so that no launch is waited for.
    """
    calls = {}
    for name, candidate in candidates.items():
        stretch(candidate, 3)
        # Few enough to be queued at once.
        calls[name] = max(3, min(100, int(per_round / stretch(candidate, 3))))
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, candidate in candidates.items():
            times[name].append(stretch(candidate, calls[name]))
    return {name: statistics.median(values) for name, values in times.items()}


def stretch(candidate: Candidate, calls: int) -> float:
    """Seconds per call of `calls` calls that the GPU finds queued when it begins."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    with candidate.around():
        torch.cuda._sleep(100_000 * calls)  # cycles: about 50 us for each call
        begin.record()
        for _ in range(calls):
            candidate.run()
        end.record()
        end.synchronize()
    return float(begin.elapsed_time(end)) * 1e-3 / calls


def beyond_cache(nbytes: int, device: str) -> int:
    """How many buffers of `nbytes`, taken in turns, push each other out of a GPU's cache.

    One on a CPU: a state is in its caches, if it fits, when its gradient has just been made.
    """
    if device == "cpu":
        return 1
    cache = torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size
    return min(512, max(2, math.ceil(2 * cache / max(1, nbytes))))


def rotating(runs: Sequence[Run]) -> Run:
    """Each call makes the next of `runs`, so that states which share no cache take turns.

    >>> turns = rotating([lambda: "a", lambda: "b"])
    >>> turns(), turns(), turns()
    ('a', 'b', 'a')
    """
    turn = itertools.cycle(runs)
    return lambda: next(turn)()
