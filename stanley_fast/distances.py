"""Distances between two sets of samples, each beside its floor: what two sets of one law get.

The sliced Wasserstein distance is in the samples' own units. The energy distance is the squared MMD
for the kernel -|x - y| (Sejdinovic et al. 2013): it metrises weak convergence, needs no bandwidth,
which would blind it to the scales of a funnel or of an ill-conditioned Gaussian, and its unbiased
estimate has mean 0 for equal laws, so that a decay can be followed into the noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from stanley_fast import ops

QUANTILE = 0.95  # of a floor's upper end


def directions(count: int, dimension: int, key: Tensor) -> Tensor:
    """`count` directions uniform on the sphere, float32 (count, d), to project samples on.

    >>> from stanley_fast.keys import key
    >>> directions(3, 2, key(0)).norm(dim=1)
    tensor([1., 1., 1.])
    """
    return torch.nn.functional.normalize(ops.normal((count, dimension), key), dim=1)


def sliced_wasserstein(x: Tensor, y: Tensor, along: Tensor) -> float:
    """Wasserstein-1 distance of two sets' projections, averaged over directions.

    Args:
        x, y: (n, d), equally large.
        along: (L, d), the `directions`.

    Raises ValueError: the sets differ in shape.
    Source: Rabin et al. 2011; Bonneel et al. 2015.

    >>> sliced_wasserstein(torch.zeros(4, 2), torch.ones(4, 2), torch.eye(2))
    1.0
    """
    if x.shape != y.shape:
        raise ValueError(f"x must have y's shape {list(y.shape)}, got {list(x.shape)}")
    return _apart_sorted(_projected(x, along), _projected(y, along))


def _projected(x: Tensor, along: Tensor) -> Tensor:
    """Along each direction, sorted: (L, n). In one dimension the best transport pairs those."""
    return (along @ x.T).sort(dim=1).values


def _apart_sorted(x: Tensor, y: Tensor) -> float:
    return float((x - y).abs().mean())


def energy_distance(x: Tensor, y: Tensor) -> float:
    """2 E|X - Y| - E|X - X'| - E|Y - Y'|, the unbiased estimate: below 0 by chance for equal laws.

    Args:
        x: (n, d), n > 1.
        y: (m, d), m > 1.

    Raises ValueError: fewer than two samples in a set, or sets of another dimension.
    Source: Székely and Rizzo 2013; the squared MMD for the kernel -|x - y|.

    >>> energy_distance(torch.zeros(4, 1), torch.ones(4, 1))
    2.0
    """
    return float(Law(y).against(x).estimate())


class Law:
    """A law by its samples y (m, d), for energy distances to many other sets."""

    def __init__(self, y: Tensor) -> None:
        self.y, self.within = y, _apart(y, y)

    def against(self, x: Tensor) -> EnergyDistance:
        """The energy distance of x (n, d) to the law, and of their resamples."""
        for name, each in (("x", x), ("y", self.y)):
            if each.dim() != 2 or len(each) < 2:
                raise ValueError(f"{name} must be (n, d) with n > 1, got {list(each.shape)}")
        if x.shape[1] != self.y.shape[1]:
            raise ValueError(f"x must have y's dimension {self.y.shape[1]}, got {x.shape[1]}")
        return EnergyDistance(_apart(x, self.y), _apart(x, x), self.within)


@dataclass(frozen=True)
class EnergyDistance:
    """Of two sets, from the distances between their samples.

    Attributes:
        across: (n, m). within_x: (n, n). within_y: (m, m).
    """

    across: Tensor
    within_x: Tensor
    within_y: Tensor

    def estimate(self) -> Tensor:
        """0-dim."""
        return 2 * self.across.mean() - _off_diagonal(self.within_x) - _off_diagonal(self.within_y)

    def bootstrap(self, of_x: Tensor, of_y: Tensor) -> Tensor:
        """The estimates for R resamples, (R,); their mean is the estimate itself.

        Args:
            of_x, of_y: (R, n) and (R, m), how often each resample has each sample, as `resamples`.
        """
        across = ((of_x @ self.across) * of_y).sum(dim=1) / self.across.numel()
        parts = []
        for within, times in ((self.within_x, of_x), (self.within_y, of_y)):
            n = len(within)
            # Two draws are the same sample, 0 apart, once in n: hence not n (n - 1) but (n - 1)^2.
            parts.append(((times @ within) * times).sum(dim=1) / (n - 1) ** 2)
        return 2 * across - parts[0] - parts[1]


def _apart(x: Tensor, y: Tensor) -> Tensor:
    # By differences: through a matrix product, equal points would lie 1e-3 apart.
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")


def _off_diagonal(within: Tensor) -> Tensor:
    return within.sum() / (len(within) * (len(within) - 1))


def resamples(n: int, count: int, generator: torch.Generator) -> Tensor:
    """`count` bootstrap resamples of n samples, as how often each is drawn: float32 (count, n)."""
    drawn = torch.randint(n, (count, n), generator=generator)
    return torch.zeros(count, n).scatter_add_(1, drawn, torch.ones(count, n))


@dataclass(frozen=True)
class Floor:
    """What a distance is between two sets of one law.

    Attributes:
        mean: over pairs of sets.
        upper: their 0.95 quantile.
    """

    mean: float
    upper: float


def wasserstein_floor(sets: Tensor, along: Tensor) -> Floor:
    """Of `sliced_wasserstein`, over every two of the independent sets (S, n, d) of a law."""
    ordered = [_projected(each, along) for each in sets]
    return _floor([_apart_sorted(x, y) for x, y in combinations(ordered, 2)])


def energy_floor(sets: Tensor) -> Floor:
    """Of `energy_distance`, over every two of the independent sets (S, n, d) of a law.

    >>> energy_floor(torch.randn(5, 200, 1)).upper < 0.1
    True
    """
    spreads = [_off_diagonal(_apart(each, each)) for each in sets]
    return _floor(
        [
            float(2 * _apart(sets[i], sets[j]).mean() - spreads[i] - spreads[j])
            for i, j in combinations(range(len(sets)), 2)
        ]
    )


def _floor(found: list[float]) -> Floor:
    values = torch.tensor(found, dtype=torch.float64)
    return Floor(float(values.mean()), float(values.quantile(QUANTILE)))
