"""Quality of 2-D toy samples, each figure beside its noise floor.

The energy distance, the usual choice, does not tell good from bad here: the Gaussian start already
scores well. These do: the share of samples on a ring or mode, how the samples spread over them, and
the distance to the true density on a histogram.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from stanley_fast import keys
from stanley_fast.energies import GaussianMixture, Rings, Target

BINS = 40  # 0.23 wide on the rings: about 1.5 sd of a ring, and 10 000 samples fill them
FINE = 8  # points per bin and axis, over which the true density is averaged
FLOOR_PAIRS = 8  # pairs of true sets over which a floor is averaged


def grid_log_density(
    f: Callable[[Tensor], Tensor], extent: float, size: int = 200, device: str = "cpu"
) -> Tensor:
    """f at the centres of size x size cells of the square [-extent, extent]^2.

    Args:
        f: (B, 2) -> (B,).
        extent: half the square's side.
        size: cells per axis.

    Returns:
        float32 (size, size); rows are y from low to high, columns x.

    >>> grid_log_density(lambda z: z[:, 0], extent=1.0, size=2)
    tensor([[-0.5000,  0.5000],
            [-0.5000,  0.5000]])
    """
    centre = ((torch.arange(size, device=device) + 0.5) / size * 2 - 1) * extent
    y, x = torch.meshgrid(centre, centre, indexing="ij")
    with torch.no_grad():
        return f(torch.stack([x.flatten(), y.flatten()], dim=1)).reshape(size, size)


def grid_density(f: Callable[[Tensor], Tensor], extent: float, size: int = 200) -> Tensor:
    """exp f on the grid of `grid_log_density`, normalised there to integrate to 1.

    So a learned f, known up to a constant, can be laid beside a true density.

    >>> grid_density(lambda z: torch.zeros(len(z)), extent=1.0, size=2)
    tensor([[0.2500, 0.2500],
            [0.2500, 0.2500]])
    """
    log_density = grid_log_density(f, extent, size)
    return log_density.flatten().softmax(dim=0).reshape(size, size) * (size / (2 * extent)) ** 2


def histogram(samples: Tensor, extent: float, size: int) -> Tensor:
    """Shares of the samples (n, 2) in the cells of `grid_log_density`'s grid; the rest lie outside.

    >>> histogram(torch.tensor([[0.5, -0.5], [9.0, 0.0]]), extent=1.0, size=2)
    tensor([[0.0000, 0.5000],
            [0.0000, 0.0000]])
    """
    cell = ((samples + extent) / (2 * extent) * size).floor()
    inside = ((cell >= 0) & (cell < size)).all(dim=1)
    column, row = cell[inside].long().unbind(dim=1)
    counts = torch.bincount(row * size + column, minlength=size * size)
    return counts.reshape(size, size) / len(samples)


def ring_share(samples: Tensor, width: float = 3 * Rings.sd) -> float:
    """Share of the samples (n, 2) within `width` of a ring; of true samples 0.9973 at 3 sd.

    >>> ring_share(torch.tensor([[0.0, 2.1], [0.0, 2.5]]))
    0.5
    """
    rings = torch.tensor(Rings.radii, device=samples.device)
    away = (samples.norm(dim=1)[:, None] - rings).abs().amin(dim=1)
    return float((away <= width).float().mean())


def radius_wasserstein(samples: Tensor, truth: Tensor) -> float:
    """Wasserstein-1 distance between the radii of two equally large sets (n, 2).

    Raises ValueError: the sets differ in size.

    >>> radius_wasserstein(torch.tensor([[0.0, 2.0]]), torch.tensor([[3.0, 0.0]]))
    1.0
    """
    if samples.shape != truth.shape:
        raise ValueError(
            f"samples must have truth's shape {list(truth.shape)}, got {list(samples.shape)}"
        )
    # In one dimension the best transport pairs the sorted values.
    radii, wanted = samples.norm(dim=1).sort().values, truth.norm(dim=1).sort().values
    return float((radii - wanted).abs().mean())


def mode_share(samples: Tensor, mixture: GaussianMixture, sds: float = 3.0) -> float:
    """Share of the samples (n, d) within `sds` standard deviations of a mode's mean.

    >>> mixture = GaussianMixture(torch.zeros(1, 2), 1.0)
    >>> mode_share(torch.tensor([[0.0, 2.0], [0.0, 4.0]]), mixture)
    0.5
    """
    return float((_distances(samples, mixture) <= sds).any(dim=1).float().mean())


def mode_imbalance(samples: Tensor, mixture: GaussianMixture) -> float:
    """Total-variation distance between the nearest modes of the samples (n, d) and the weights.

    0 when every mode holds its weight, 1 - 1/M when one of M equal modes holds everything.

    >>> mixture = GaussianMixture(torch.tensor([[-1.0, 0.0], [1.0, 0.0]]), 0.1)
    >>> mode_imbalance(torch.ones(5, 2), mixture)
    0.5
    """
    nearest = _distances(samples, mixture).argmin(dim=1)
    held = torch.bincount(nearest, minlength=len(mixture.means)) / len(samples)
    return float((held - mixture.weights.to(held)).abs().sum() / 2)


def _distances(samples: Tensor, mixture: GaussianMixture) -> Tensor:
    """Distance of each sample to each mode in its standard deviations, (n, M)."""
    means, scales = mixture.means.to(samples), mixture.scales.to(samples)
    return torch.cdist(samples, means) / scales


def histogram_tv(samples: Tensor, shares: Tensor, extent: float) -> float:
    """Total-variation distance between the samples' histogram and the true shares of its cells.

    Args:
        samples: (n, 2).
        shares: (size, size), the true share of each cell, as `true_shares` gives it.
        extent: half the square's side. What lies outside counts as one more cell.

    >>> histogram_tv(torch.tensor([[0.5, 0.5]]), torch.full((2, 2), 0.25), extent=1.0)
    0.75
    """
    found = histogram(samples, extent, len(shares)).to(shares)
    outside = (found.sum() - shares.sum()).abs()
    return float(((found - shares).abs().sum() + outside) / 2)


def true_shares(target: Target, bins: int = BINS) -> Tensor:
    """The share of a 2-D target in each cell of a bins x bins histogram: float32 (bins, bins)."""
    density = grid_log_density(target, target.extent, bins * FINE).exp()
    mean = density.reshape(bins, FINE, bins, FINE).mean(dim=(1, 3))
    return mean * (2 * target.extent / bins) ** 2


class Quality:
    """The figures of sample sets of one size against one target, with their noise floors.

    A floor is the figure a set of true samples of that size gets, averaged over several; no sampler
    can do better than that by more than luck.

    Args:
        target: `Rings` or a two-dimensional `GaussianMixture`.
        n: the size of the sets.
        key: int64 (2,), of the true sets.

    Calling it: samples (n, 2) -> {figure: value, figure + "_floor": value}. Rings: `ring_share`,
    `radius_w1`, `histogram_tv`; mixtures: `mode_share`, `mode_imbalance`, `histogram_tv`.
    Raises ValueError: another target; samples of another shape.

    >>> quality = Quality(Rings(), 1000, keys.key(0))
    >>> figures = quality(2 * torch.randn(1000, 2))  # the Gaussian start
    >>> figures["ring_share"] < 0.9 < 0.99 < figures["ring_share_floor"]
    True
    """

    def __init__(self, target: Target, n: int, key: Tensor) -> None:
        if not isinstance(target, Rings) and not (
            isinstance(target, GaussianMixture) and target.means.shape[1] == 2
        ):
            raise ValueError(f"target must be Rings or a 2-D GaussianMixture, got {target!r}")
        self.target = target
        self.shares = true_shares(target)
        sets = [target.sample(n, each).cpu() for each in keys.split(key, FLOOR_PAIRS + 1)]
        self.truth = sets[0]
        figures = [self._figures(other) for other in sets[1:]]
        self.floors = {
            name: math.fsum(each[name] for each in figures) / FLOOR_PAIRS for name in figures[0]
        }

    def __call__(self, samples: Tensor) -> dict[str, float]:
        if samples.shape != self.truth.shape:
            raise ValueError(f"samples must be {list(self.truth.shape)}, got {list(samples.shape)}")
        beside = {}
        for name, value in self._figures(samples.detach().cpu().float()).items():
            beside[name] = value
            beside[f"{name}_floor"] = self.floors[name]
        return beside

    def _figures(self, samples: Tensor) -> dict[str, float]:
        tv = histogram_tv(samples, self.shares, self.target.extent)
        if isinstance(self.target, Rings):
            return {
                "ring_share": ring_share(samples),
                "radius_w1": radius_wasserstein(samples, self.truth),
                "histogram_tv": tv,
            }
        assert isinstance(self.target, GaussianMixture)
        return {
            "mode_share": mode_share(samples, self.target),
            "mode_imbalance": mode_imbalance(samples, self.target),
            "histogram_tv": tv,
        }


def quality(target: Target, samples: Tensor, key: Tensor) -> dict[str, float]:
    """`Quality` for one set of samples (n, 2); use the class for many, it keeps the floors."""
    return Quality(target, len(samples), key)(samples)
