"""Eq. 10's geometric rate, fitted to the decay of a distance, with a bootstrap over chains."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stanley_fast.distances import Law, resamples

RESAMPLES = 100
POINTS = 4  # that a fit needs at least
WINDOW = 3.0  # from a fit's first transition to its last
SMALLEST = 1e-10  # below it an energy distance in float32 is rounding


@dataclass(frozen=True)
class Rate:
    """rho of Eq. 10.

    Attributes:
        rho: the factor per transition, of the energy distance's square root: like the norm in
            Eq. 10 it is one of the difference of two laws (an MMD).
        low, high: 95 % bootstrap interval, over chains and samples of the limit law.
        first, last: the transitions between which it is fitted.
        r_squared: share of the variance of the logarithm that the line explains.
    """

    rho: float
    low: float
    high: float
    first: int
    last: int
    r_squared: float


def fit_rate(
    k: Sequence[int],
    states: Sequence[Tensor],
    energy: Sequence[float],
    law: Law,
    floor: float,
    generator: torch.Generator,
) -> Rate | None:
    """Fits rho^k to the distances of a set of chains to their limit law.

    The fit ends before the energy distance first comes within four times its floor, or at the last
    k, and begins at a third of that k: when the fast modes have died out, and before the noise.

    Args:
        k: transitions, increasing.
        states: the chains after each, (n, d).
        energy: their energy distances to the law.
        law: the limit law.
        floor: upper end of the energy distance's floor.
        generator: of the bootstrap, which draws the same chains at every k.

    Returns:
        Rate, or None if fewer than four points are left to fit.
    """
    lowest = max(4 * floor, SMALLEST)
    above = next((i for i, each in enumerate(energy) if each <= lowest), len(energy))
    window = [i for i in range(above) if k[i] * WINDOW >= k[above - 1] > 0]
    if len(window) < POINTS:
        return None
    at = torch.tensor([float(k[i]) for i in window])
    of_x = resamples(len(states[0]), RESAMPLES, generator)
    of_y = resamples(len(law.y), RESAMPLES, generator)
    found = torch.tensor([energy[i] for i in window])
    drawn = [law.against(states[i]).bootstrap(of_x, of_y) for i in window]
    low, high = _rho(at, torch.stack(drawn, dim=1)).quantile(torch.tensor([0.025, 0.975])).tolist()
    rho = float(_rho(at, found))
    y = found.log() / 2
    explained = float((math.log(rho) * at).var() / y.var())
    return Rate(rho, low, high, k[window[0]], k[window[-1]], explained)


def _rho(k: Tensor, energy: Tensor) -> Tensor:
    """exp of the slope of a line through log sqrt(energy) over k, along the last dimension."""
    y = energy.clamp_min(SMALLEST).log() / 2
    from_mean = k - k.mean()
    return ((y * from_mean).sum(dim=-1) / from_mean.square().sum()).exp()


def efold(rho: float) -> float:
    """Transitions in which a distance that decays as rho^k falls to 1/e; infinite if rho >= 1.

    >>> round(efold(0.99), 1)
    99.5
    """
    return -1 / math.log(rho) if 0 < rho < 1 else math.inf
