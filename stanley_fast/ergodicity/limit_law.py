"""What unadjusted STANLEY samples: its limit law in closed form, beside the chain's variance.

Eq. 5 is an Euler step of dz = gamma(z)/2 grad f dt + sqrt(gamma(z)) eps dB, which lacks the drift
eps^2/2 div gamma that would keep exp(f / eps^2) invariant. For separable f each coordinate has the
stationary law exp(f / eps^2) / gamma, that is exp(f / eps^2) max(th, |f'|), as step_size -> 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stanley_fast import keys, ops
from stanley_fast.chain import sample
from stanley_fast.energies import GaussianMixture, Target
from stanley_fast.reference import STREAM_STARTS
from stanley_fast.samplers import Stanley

POINTS = 20_001  # of the quadrature: errors below 1e-6, the kinks at |f'| = th included
STEP_SIZE = 0.02  # small beside the targets' scale: the law is the closed form's to about 1 %


@dataclass(frozen=True)
class Law:
    """A law on the line, by its density at evenly spaced points.

    Attributes:
        z: the points, float64 (N,).
        density: normalised, float64 (N,).
    """

    z: Tensor
    density: Tensor

    def mean(self, of: Callable[[Tensor], Tensor]) -> float:
        """The expectation of a function of z."""
        return float(torch.trapezoid(of(self.z) * self.density, self.z))

    @property
    def variance(self) -> float:
        mean = self.mean(lambda z: z)
        return self.mean(lambda z: (z - mean).square())

    def sample(self, n: int, key: Tensor) -> Tensor:
        """n samples by the inverse of the distribution function, float32 (n, 1)."""
        below = torch.cumulative_trapezoid(self.density, self.z)
        uniform = torch.special.ndtr(ops.normal((n,), key, stream=STREAM_STARTS).double())
        return self.z[torch.searchsorted(below, uniform * below[-1])].float()[:, None]


def limit_law(
    f: Callable[[Tensor], Tensor],
    extent: float,
    threshold: float = math.inf,
    noise_scale: float = 1.0,
) -> Law:
    """The law of STANLEY's chain as step_size -> 0, for one coordinate of a separable f.

    Args:
        f: the log-density of the coordinate, (B, 1) -> (B,), in float64.
        extent: the law is taken on [-extent, extent].
        threshold: th of Eq. 4; infinity gives Langevin's law, exp(f / noise_scale^2).
        noise_scale: eps, > 0.

    >>> normal = limit_law(lambda z: -z[:, 0].square() / 2, 9.0)
    >>> round(normal.variance, 6)
    1.0
    >>> round(limit_law(lambda z: -z[:, 0].square() / 2, 9.0, threshold=0.5).variance, 2)
    1.79
    """
    z = torch.linspace(-extent, extent, POINTS, dtype=torch.float64).requires_grad_()
    with torch.enable_grad():
        value = f(z[:, None])
        (slope,) = torch.autograd.grad(value.sum(), z)
    log_law = value.detach() / noise_scale**2
    if math.isfinite(threshold):
        log_law = log_law + slope.abs().clamp_min(threshold).log()
    density = (log_law - log_law.max()).exp()
    z = z.detach()
    return Law(z, density / torch.trapezoid(density, z))


@dataclass(frozen=True)
class Variance:
    """One cell of the table.

    Attributes:
        target, threshold, noise_scale: of the cell.
        seen: variance of the chain's states, with its standard error.
        error: that standard error.
        closed_form: variance of STANLEY's limit law.
        tempered: of exp(f / eps^2), which Langevin's chain would sample.
        wanted: of the target exp(f).
    """

    target: str
    threshold: float
    noise_scale: float
    seen: float
    error: float
    closed_form: float
    tempered: float
    wanted: float


LINES: dict[str, Target] = {
    "normal": GaussianMixture(torch.zeros(1, 1), 1.0),
    "two modes": GaussianMixture(torch.tensor([[-1.2], [1.2]]), 0.7, torch.tensor([3.0, 1.0])),
}
THRESHOLDS = (0.1, 0.3, 1.0, 3.0)
NOISE_SCALES = (0.5, 1.0)


def variances(
    key: Tensor,
    chains: int = 2000,
    steps: int = 1000,
    thresholds: Sequence[float] = THRESHOLDS,
    noise_scales: Sequence[float] = NOISE_SCALES,
) -> list[Variance]:
    """STANLEY's variance as seen, beside the closed form and the target's, over th and eps.

    The chains start from the closed form: if it were not invariant they would leave it.

    Args:
        key: int64 (2,), of starts and noise.
        chains: per cell.
        steps: of each chain; the states of the last half are looked at.
        thresholds, noise_scales: the table's axes.
    """
    cells = [(name, th, eps) for name in LINES for th in thresholds for eps in noise_scales]
    each_key = keys.split(key, len(cells))
    return [
        _variance(name, th, eps, chains, steps, one)
        for (name, th, eps), one in zip(cells, each_key, strict=True)
    ]


def _variance(
    name: str, threshold: float, noise_scale: float, chains: int, steps: int, key: Tensor
) -> Variance:
    f = LINES[name]
    extent = 3 * f.extent
    law = limit_law(f, extent, threshold, noise_scale)
    start_key, chain_key = keys.split(key, 2)
    centre = law.mean(lambda z: z)
    sums = torch.zeros(chains, 2)

    def add(k: int, z: Tensor) -> None:
        if k >= steps // 2:
            apart = z - centre
            sums.add_(torch.cat([apart, apart.square()], dim=1))

    sampler = Stanley(threshold, STEP_SIZE, noise_scale)
    sample(f, law.sample(chains, start_key), sampler, steps, key=chain_key, callback=add)
    first, second = (sums.double() / (steps - steps // 2)).unbind(dim=1)
    return Variance(
        name,
        threshold,
        noise_scale,
        seen=float(second.mean() - first.mean().square()),
        error=float(second.std()) / math.sqrt(chains),
        closed_form=law.variance,
        tempered=limit_law(f, extent, noise_scale=noise_scale).variance,
        wanted=float(f.variance),
    )
