"""Energies and targets. Each is f, the unnormalised log-density (B, ...) -> (B,); energy E = -f.

`MLPEnergy` is learned. The others are targets, exact log-densities with exact moments and exact
samples from a key; targets.py has more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Protocol, overload

import torch
from torch import Tensor, nn

from stanley_fast import ops
from stanley_fast.reference import STREAM_STARTS


class Target(Protocol):
    """A known distribution: exact log-density, exact samples, exact moments."""

    @property
    def extent(self) -> float:
        """Half the side of the square around 0 that holds all but 4-sigma tails."""
        ...

    @property
    def mean(self) -> Tensor:
        """Of each coordinate, float64 (d,)."""
        ...

    @property
    def variance(self) -> Tensor:
        """Of each coordinate, float64 (d,)."""
        ...

    def __call__(self, z: Tensor, /) -> Tensor: ...

    def sample(self, n: int, key: Tensor) -> Tensor: ...


def points(z: Tensor, dimension: int) -> Tensor:
    """z (B, d) or (B, d, 1, 1) as (B, d); ValueError if d is not `dimension`."""
    flat = z.flatten(1) if z.dim() > 1 else z
    if flat.dim() != 2 or flat.shape[1] != dimension:
        raise ValueError(
            f"z must be (B, {dimension}) or (B, {dimension}, 1, 1), got {list(z.shape)}"
        )
    return flat


class MLPEnergy(nn.Module):
    """f(z) by a fully connected net with LeakyReLU: the toy net, five 1x1 convolutions on a point.

    Args:
        widths: layer widths, from the state's dimension d to 1.
        negative_slope: of LeakyReLU.

    Calling it: z (B, d) or (B, d, 1, 1) -> f (B,), z's dtype.
    Raises ValueError: fewer than two widths, or the last is not 1; z of another dimension.
    Source: the rings and GMM net of Nijkamp et al. 2020, 10 593 parameters.

    >>> MLPEnergy()(torch.zeros(3, 2)).shape
    torch.Size([3])
    """

    def __init__(
        self, widths: Sequence[int] = (2, 32, 64, 64, 64, 1), negative_slope: float = 0.05
    ) -> None:
        super().__init__()
        if len(widths) < 2 or widths[-1] != 1:
            raise ValueError(f"widths must be at least two and end in 1, got {tuple(widths)}")
        layers: list[nn.Module] = []
        for n_in, n_out in pairwise(widths):
            layers += [nn.Linear(n_in, n_out), nn.LeakyReLU(negative_slope)]
        self.dimension = widths[0]
        self.net = nn.Sequential(*layers[:-1])  # the last layer is linear

    def forward(self, z: Tensor) -> Tensor:
        f: Tensor = self.net(points(z, self.dimension))
        return f.squeeze(1)


class GaussianMixture(nn.Module):
    """A mixture of isotropic Gaussians in any dimension.

    Args:
        means: (M, d).
        scales: standard deviations, (M,) or one number for all.
        weights: (M,), positive, made to sum to 1; equal unless told.

    Calling it: z (B, d) -> exact normalised log-density (B,), z's dtype.
    Raises ValueError: shapes that do not agree; scales or weights not positive and finite.

    >>> standard = GaussianMixture(means=torch.zeros(1, 2), scales=1.0)
    >>> standard(torch.zeros(1, 2))  # -log 2 pi
    tensor([-1.8379])
    """

    means: Tensor
    scales: Tensor
    weights: Tensor

    def __init__(
        self, means: Tensor, scales: Tensor | float, weights: Tensor | None = None
    ) -> None:
        super().__init__()
        if not isinstance(means, Tensor):
            raise ValueError(f"means must be a tensor (M, d), got {means!r}")
        if means.dim() != 2 or means.shape[0] == 0:
            raise ValueError(f"means must be (M, d) with M > 0, got {list(means.shape)}")
        modes = means.shape[0]
        weights = _per_mode("weights", 1.0 if weights is None else weights, modes)
        # Kept in float64, so that float64 states lose nothing; used in z's dtype.
        self.register_buffer("means", means.double())
        self.register_buffer("scales", _per_mode("scales", scales, modes))
        self.register_buffer("weights", weights / weights.sum())

    @property
    def extent(self) -> float:
        """Half the side of the square around 0 that holds every mode and 4 sd around it."""
        return float((self.means.abs().amax(dim=1) + 4 * self.scales).amax())

    @property
    def mean(self) -> Tensor:
        return self.weights @ self.means

    @property
    def variance(self) -> Tensor:
        second = self.means.square() + self.scales.square()[:, None]
        return self.weights @ second - self.mean.square()

    def forward(self, z: Tensor) -> Tensor:
        dimension = self.means.shape[1]
        means, scales = self.means.to(z.dtype), self.scales.to(z.dtype)
        apart = (points(z, dimension)[:, None] - means) / scales[:, None]
        constant = self.weights.log() - dimension * (
            self.scales.log() + 0.5 * math.log(2 * math.pi)
        )
        return torch.logsumexp(constant.to(z.dtype) - 0.5 * apart.square().sum(dim=2), dim=1)

    def sample(self, n: int, key: Tensor) -> Tensor:
        """n exact samples, float32 (n, d): d + 1 normals each, the first chooses the mode."""
        draws = ops.normal((n, self.means.shape[1] + 1), key, stream=STREAM_STARTS)
        edges = self.weights.cumsum(0)[:-1].to(draws.device, torch.float32)
        mode = torch.bucketize(torch.special.ndtr(draws[:, 0]), edges)
        means, scales = self.means.to(draws)[mode], self.scales.to(draws)[mode]
        return means + scales[:, None] * draws[:, 1:]


def _per_mode(name: str, value: Tensor | float, modes: int) -> Tensor:
    given = torch.as_tensor(value, dtype=torch.float64)
    if tuple(given.shape) not in ((), (modes,)):
        raise ValueError(f"{name} must be a number or ({modes},), got {list(given.shape)}")
    positive(name, given)
    return given.expand(modes).clone()


def positive(name: str, value: Tensor | float) -> None:
    """ValueError unless every number of `value` is positive and finite."""
    given = torch.as_tensor(value, dtype=torch.float64)
    if not bool(((given > 0) & (given < math.inf)).all()):
        raise ValueError(f"{name} must be positive and finite, got {given.tolist()}")


def gaussian_ring(modes: int = 8, radius: float = 1.0, sd: float = 0.15) -> GaussianMixture:
    """Equal Gaussians evenly spaced on a circle: the GMM toy of Nijkamp et al. 2020.

    Args:
        modes: how many. radius: of the circle. sd: of each Gaussian.

    >>> gaussian_ring().means[0]
    tensor([1., 0.], dtype=torch.float64)
    """
    angle = torch.arange(modes, dtype=torch.float64) * (2 * math.pi / modes)
    return GaussianMixture(radius * torch.stack([angle.cos(), angle.sin()], dim=1), sd)


def _constants(values: tuple[float, ...], like: Tensor) -> Tensor:
    """Without a copy from the host, for which it would wait on a GPU."""
    return torch.cat([like.new_full((1,), value) for value in values])


class _Concentric(nn.Module):
    """Equal rings around 0: radius radii[k] + N(0, sd^2), uniform angle.

    The log-density log 1/M sum_k N(r; radii[k], sd^2) / (2 pi r) leaves out the negative radii.
    """

    radii: tuple[float, ...]
    sd: float

    @property
    def mean(self) -> Tensor:
        return torch.zeros(2, dtype=torch.float64)

    @property
    def variance(self) -> Tensor:
        """Half of E r^2: the two coordinates are alike."""
        squares = [radius**2 + self.sd**2 for radius in self.radii]
        return torch.full((2,), sum(squares) / len(squares) / 2, dtype=torch.float64)

    def forward(self, z: Tensor) -> Tensor:
        radius = points(z, 2).norm(dim=1).clamp_min(torch.finfo(z.dtype).tiny)
        ring = _constants(self.radii, z)
        exponent = -0.5 * ((radius[:, None] - ring) / self.sd).square()
        scale = len(self.radii) * self.sd * (2 * math.pi) ** 1.5
        log_density: Tensor = exponent.logsumexp(dim=1) - radius.log() - math.log(scale)
        return log_density

    def sample(self, n: int, key: Tensor) -> Tensor:
        """n exact samples, float32 (n, 2): direction from two normals, ring and radius from two."""
        draws = ops.normal((n, 4), key, stream=STREAM_STARTS)
        direction = nn.functional.normalize(draws[:, :2], dim=1)
        ring = (len(self.radii) * torch.special.ndtr(draws[:, 2])).long()
        ring = ring.clamp_max(len(self.radii) - 1)  # the float32 cdf reaches 1 at 5.4 sd
        radius = _constants(self.radii, draws)[ring] + self.sd * draws[:, 3]
        return radius[:, None] * direction


class Rings(_Concentric):
    """The four rings of Nijkamp et al. 2020: radius k + N(0, 0.15^2), k = 1 ... 4, uniform angle.

    Calling it: z (B, 2) -> exact log-density (B,), z's dtype:
    log 1/4 sum_k N(r; k, 0.15^2) / (2 pi r).
    A negative radius would lie more than 6 sd from the innermost ring; it is left out of the sum.

    >>> Rings()(torch.tensor([[0.0, 2.0]]))  # 1/4 * 2.6596 / (4 pi)
    tensor([-2.9391])
    """

    radii = (1.0, 2.0, 3.0, 4.0)
    sd = 0.15
    extent = radii[-1] + 4 * sd


class Ring(_Concentric):
    """One ring: radius ~ N(radius, sd^2), uniform angle.

    Args:
        radius: of the ring, at least 5 sd: the negative radii are left out of the density.
        sd: of the radius.

    Calling it: z (B, 2) -> exact log-density (B,), z's dtype: log N(r; radius, sd^2) / (2 pi r).
    Raises ValueError: sd not positive and finite; radius below 5 sd or not finite.

    >>> Ring(1.0, 0.1)(torch.tensor([[0.0, 1.0]]))  # 3.9894 / (2 pi)
    tensor([-0.4542])
    """

    def __init__(self, radius: float = 1.0, sd: float = 0.15) -> None:
        super().__init__()
        positive("sd", sd)
        if not 5 * sd <= radius < math.inf:
            raise ValueError(f"radius must be finite and at least 5 sd = {5 * sd:g}, got {radius}")
        self.radii, self.sd = (float(radius),), float(sd)
        self.extent = self.radii[0] + 4 * self.sd


class _Negated(nn.Module):
    def __init__(self, energy: nn.Module) -> None:
        super().__init__()
        self.energy = energy

    def forward(self, z: Tensor) -> Tensor:
        negated: Tensor = -self.energy(z)
        return negated


@overload
def from_energy(energy: nn.Module) -> nn.Module: ...
@overload
def from_energy(energy: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]: ...
def from_energy(
    energy: nn.Module | Callable[[Tensor], Tensor],
) -> nn.Module | Callable[[Tensor], Tensor]:
    """f = -E, for a model written as an energy (lower is more probable).

    Args:
        energy: E, a callable or nn.Module (B, ...) -> (B,). A module stays one, with E as its
            submodule `energy`, so that eval(), parameters() and state_dict() reach it.

    >>> f = from_energy(lambda z: z.square().sum(dim=1) / 2)
    >>> f(torch.ones(1, 2))
    tensor([-1.])
    """
    if isinstance(energy, nn.Module):
        return _Negated(energy)
    return lambda z: -energy(z)
