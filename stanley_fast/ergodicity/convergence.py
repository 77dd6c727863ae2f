"""One sampler on one target: from overdispersed starts to its limit law, and how far off that is.

Distances are taken in units of the target's standard deviations, so that every coordinate counts.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor

from stanley_fast import keys, ops
from stanley_fast.chain import NonFiniteError, sample
from stanley_fast.distances import (
    Floor,
    Law,
    directions,
    energy_floor,
    sliced_wasserstein,
    wasserstein_floor,
)
from stanley_fast.ergodicity import drift
from stanley_fast.ergodicity.problems import Entry, Problem
from stanley_fast.ergodicity.rates import Rate, fit_rate
from stanley_fast.reference import STREAM_STARTS
from stanley_fast.samplers import Sampler

DIRECTIONS = 32  # that the sliced Wasserstein distance projects on
SETS = 14  # of a law, every two of which are a pair of its floor
BIAS_SETS = 6  # exact ones, over which a limit law's distance to the target is averaged
RECORDED = 8  # transitions looked at per factor 3, so that a rate is fitted to 8 points
FEWEST = 10  # transitions
STILL = 1e-12  # of a variance, in the target's: nothing moves
FAR = 1e15  # in the target's standard deviations: what goes there has diverged


@dataclass(frozen=True)
class Limit:
    """A sampler's limit law: where chains are that started at exact samples, 2 K transitions on.

    Attributes:
        bias: sliced Wasserstein distance to exact sets, their mean.
        energy_bias: energy distance to exact sets, their mean.
        floor, energy_floor: of the distances, for two sets of the limit law.
        time: integrated autocorrelation time in transitions, the largest over coordinates z_i and
            |z_i|, over the last K transitions; NaN where nothing moves.
        seconds: per transition of one chain.
    """

    bias: float
    energy_bias: float
    floor: Floor
    energy_floor: Floor
    time: float
    seconds: float


@dataclass(frozen=True)
class Convergence:
    """One sampler on one target.

    Attributes:
        target, sampler: their names.
        entry: the sampler's settings.
        k: transitions after which the chains were looked at, up to K or where one diverged.
        wasserstein, energy: distances to the limit law after each; empty where there is no limit.
        to_target: sliced Wasserstein distance to exact samples after each.
        reached: the first of `k` with `wasserstein` below its floor's upper end, or None.
        rate: None where there is too little to fit: chains that mix within a few transitions.
        limit: None where the chains diverged on their way there.
        acceptance: mean over chains and transitions, or None.
        diverged: what happened and when, or "".
        drift: condition (9) on spheres, from the innermost.
    """

    target: str
    sampler: str
    entry: Entry
    k: list[int]
    wasserstein: list[float]
    energy: list[float]
    to_target: list[float]
    reached: int | None
    rate: Rate | None
    limit: Limit | None
    acceptance: float | None
    diverged: str
    drift: list[drift.Shell]


class Bench:
    """What the samplers of a problem share: starts, exact samples, keys, units.

    Args:
        problem: the target and its samplers.
        chains: of each sampler.
        key: int64 (2,); decides everything but the seconds.
    """

    def __init__(self, problem: Problem, chains: int, key: Tensor) -> None:
        self.problem, self.target = problem, problem.target
        self.chains, self.key = chains, key
        self.mean, self.sd = self.target.mean.float(), self.target.variance.sqrt().float()
        start, truth, along, self.limit_key, self.chain_key, self.drift_key = keys.split(key, 6)
        # Overdispersed, and off centre: starts around the centre would not excite the odd modes,
        # the slowest ones among them.
        noise = ops.normal((chains, len(self.sd)), start, stream=STREAM_STARTS)
        self.starts = self.mean + self.sd * (2 + 2 * noise)
        self.exact = torch.stack(
            [self.white(self.target.sample(chains, each)) for each in keys.split(truth, SETS)]
        )
        self.along = directions(DIRECTIONS, len(self.sd), along)

    def white(self, z: Tensor) -> Tensor:
        """z in units of the target's standard deviations."""
        return (z - self.mean) / self.sd

    def wasserstein(self, x: Tensor, y: Tensor) -> float:
        return sliced_wasserstein(x, y, self.along)

    def floors(self, sets: Tensor | None = None) -> tuple[Floor, Floor]:
        """Of both distances, for sets (S, n, d) of one law; of the target unless told."""
        sets = self.exact if sets is None else sets
        return wasserstein_floor(sets, self.along), energy_floor(sets)

    def generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(int(self.key[0]))


def recorded(steps: int) -> list[int]:
    """The transitions looked at: 0, then ever further apart, the last `steps`.

    >>> recorded(30)
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 13, 15, 17, 20, 23, 26, 30]
    """
    count = math.ceil(RECORDED * math.log(steps, 3))
    return sorted({0, *(round(steps ** (i / count)) for i in range(count + 1))})


@dataclass(frozen=True)
class _Course:
    """The chains at the transitions k, in the bench's units, until one diverged."""

    k: list[int]
    states: list[Tensor]
    acceptance: float | None
    diverged: str


def measure(bench: Bench, target: str, name: str, budget: int) -> Convergence:
    """Runs the problem's sampler of that name for `budget` evaluations of f, and looks at it."""
    entry = bench.problem.samplers[name]
    steps = max(budget // entry.evaluations, FEWEST)
    course = _course(bench, entry.sampler, steps)
    wasserstein: list[float] = []
    energy: list[float] = []
    reached = rate = limit = None
    diverged = course.diverged
    try:
        states, limit = _limit(bench, entry.sampler, steps)
    except NonFiniteError as error:
        diverged = diverged or f"from exact samples: {error}"
    else:
        law = Law(states)
        wasserstein = [bench.wasserstein(z, states) for z in course.states]
        energy = [float(law.against(z).estimate()) for z in course.states]
        below = (k for k, at in zip(course.k, wasserstein, strict=True) if at <= limit.floor.upper)
        reached = next(below, None)
        if not course.diverged:
            top = limit.energy_floor.upper
            rate = fit_rate(course.k, course.states, energy, law, top, bench.generator())
    return Convergence(
        target=target,
        sampler=name,
        entry=entry,
        k=course.k,
        wasserstein=wasserstein,
        energy=energy,
        to_target=[bench.wasserstein(z, bench.exact[0]) for z in course.states],
        reached=reached,
        rate=rate,
        limit=limit,
        acceptance=course.acceptance,
        diverged=diverged,
        drift=drift.shells(bench.target, entry.sampler, bench.problem.beta, bench.drift_key),
    )


def _course(bench: Bench, sampler: Sampler, steps: int) -> _Course:
    """From the starts, K transitions."""
    k = recorded(steps)
    wanted, states = set(k), [bench.white(bench.starts)]

    def keep(transition: int, z: Tensor) -> None:
        if transition + 1 in wanted:
            states.append(bench.white(z))

    record = ("acceptance",) if "acceptance" in sampler.records else ()
    acceptance, diverged = None, ""
    f, starts = bench.target, bench.starts
    try:
        out = sample(f, starts, sampler, steps, key=bench.chain_key, record=record, callback=keep)
    except NonFiniteError as error:
        diverged = str(error)
    else:
        acceptance = float(out.stats["acceptance"].mean()) if record else None
    near = [bool((z.abs() < FAR).all()) for z in states]
    if not all(near):
        states = states[: near.index(False)]
        diverged = diverged or f"a chain {FAR:g} standard deviations away at step {k[len(states)]}"
    return _Course(k[: len(states)], states, acceptance, diverged)


def _limit(bench: Bench, sampler: Sampler, steps: int) -> tuple[Tensor, Limit]:
    """The limit law: from exact samples K transitions, then K more that are looked at."""
    start_key, burn_in_key, run_key = keys.split(bench.limit_key, 3)
    f = bench.target
    z = f.sample(bench.chains, start_key)
    began = time.perf_counter()
    z = sample(f, z, sampler, steps, key=burn_in_key).z
    seconds = (time.perf_counter() - began) / (steps * bench.chains)
    moments = _Moments()

    def look(transition: int, z: Tensor) -> None:
        moments.add(bench.white(z))

    states = bench.white(sample(f, z, sampler, steps, key=run_key, callback=look).z)
    # Sets of the limit law are drawn from these states with replacement.
    drawn = torch.randint(len(states), (SETS, len(states)), generator=bench.generator())
    law, exact = Law(states), bench.exact[:BIAS_SETS]
    floor, floor_of_energy = bench.floors(states[drawn])
    return states, Limit(
        bias=fmean(bench.wasserstein(states, each) for each in exact),
        energy_bias=fmean(float(law.against(each).estimate()) for each in exact),
        floor=floor,
        energy_floor=floor_of_energy,
        time=moments.autocorrelation_time(),
        seconds=seconds,
    )


class _Moments:
    """Running sums of z_i and |z_i| per chain, from which their autocorrelation time follows."""

    def __init__(self) -> None:
        self.count = 0
        self.sums: Tensor | float = 0.0
        self.squares: Tensor | float = 0.0

    def add(self, z: Tensor) -> None:
        both = torch.cat([z, z.abs()], dim=1)
        self.count += 1
        self.sums = self.sums + both
        self.squares = self.squares + both.square().mean(dim=0)

    def autocorrelation_time(self) -> float:
        """T var(mean over T transitions) / var(z): batch means with one batch a chain."""
        assert isinstance(self.sums, Tensor)
        means = self.sums / self.count
        variance = self.squares / self.count - means.mean(dim=0).square()
        if not bool((variance > STILL).all()):
            return math.nan
        return float((self.count * means.var(dim=0) / variance).max())
