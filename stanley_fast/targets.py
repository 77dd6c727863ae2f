"""Targets that are hard to sample, each in its way; exact samples from a key, exact moments.

A Gaussian of any condition, a banana and a funnel. Each is f, the log-density (B, d) -> (B,).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from stanley_fast import ops
from stanley_fast.energies import points, positive
from stanley_fast.reference import STREAM_STARTS


class Gaussian(nn.Module):
    """A Gaussian around 0 with independent coordinates, ill-conditioned where their scales differ.

    Args:
        scales: standard deviations, (d,). The covariance's condition is (largest / smallest)^2.

    Calling it: z (B, d) -> exact log-density (B,), z's dtype.
    Raises ValueError: scales of another shape, empty, or not positive and finite.

    >>> Gaussian([1.0, 0.01])(torch.zeros(1, 2))  # -log 2 pi + log 100
    tensor([2.7673])
    """

    scales: Tensor

    def __init__(self, scales: Tensor | Sequence[float]) -> None:
        super().__init__()
        scales = torch.as_tensor(scales, dtype=torch.float64)
        if scales.dim() != 1 or len(scales) == 0:
            raise ValueError(f"scales must be (d,) with d > 0, got {list(scales.shape)}")
        positive("scales", scales)
        self.register_buffer("scales", scales.clone())

    @property
    def extent(self) -> float:
        return 4 * float(self.scales.max())

    @property
    def mean(self) -> Tensor:
        return torch.zeros_like(self.scales)

    @property
    def variance(self) -> Tensor:
        return self.scales.square()

    def forward(self, z: Tensor) -> Tensor:
        white = points(z, len(self.scales)) / self.scales.to(z.dtype)
        constant = float(self.scales.log().sum()) + 0.5 * len(self.scales) * math.log(2 * math.pi)
        return -0.5 * white.square().sum(dim=1) - constant

    def sample(self, n: int, key: Tensor) -> Tensor:
        """n exact samples, float32 (n, d)."""
        return ops.normal((n, len(self.scales)), key, stream=STREAM_STARTS) * self.scales.to(
            key.device, torch.float32
        )


class Banana(nn.Module):
    """A bent Gaussian in the plane: x ~ N(0, length^2), y ~ N(bend (x^2 - length^2), width^2).

    Args:
        length: standard deviation of x, along the banana.
        width: standard deviation of y across it.
        bend: how far it is bent; 0 is a Gaussian.

    Calling it: z (B, 2), columns x and y -> exact log-density (B,), z's dtype.
    Raises ValueError: length or width not positive and finite; bend not finite.
    Source: Haario, Saksman and Tamminen 1999, twisted by a map that keeps volume.

    >>> Banana(2.0, 1.0, 0.25)(torch.tensor([[0.0, -1.0]]))  # -log 2 pi - log 2
    tensor([-2.5310])
    """

    def __init__(self, length: float = 2.0, width: float = 0.5, bend: float = 0.25) -> None:
        super().__init__()
        positive("length", length)
        positive("width", width)
        if not math.isfinite(bend):
            raise ValueError(f"bend must be finite, got {bend}")
        self.length, self.width, self.bend = float(length), float(width), float(bend)

    @property
    def extent(self) -> float:
        return max(4 * self.length, 15 * abs(self.bend) * self.length**2 + 4 * self.width)

    @property
    def mean(self) -> Tensor:
        return torch.zeros(2, dtype=torch.float64)

    @property
    def variance(self) -> Tensor:
        across = self.width**2 + 2 * (self.bend * self.length**2) ** 2
        return torch.tensor([self.length**2, across], dtype=torch.float64)

    def forward(self, z: Tensor) -> Tensor:
        x, y = points(z, 2).unbind(dim=1)
        along = x / self.length
        across = (y - self.bend * (x.square() - self.length**2)) / self.width
        constant = math.log(2 * math.pi * self.length * self.width)
        return -0.5 * (along.square() + across.square()) - constant

    def sample(self, n: int, key: Tensor) -> Tensor:
        """n exact samples, float32 (n, 2)."""
        along, across = ops.normal((n, 2), key, stream=STREAM_STARTS).unbind(dim=1)
        x = self.length * along
        bent = self.bend * (x.square() - self.length**2)
        return torch.stack([x, bent + self.width * across], dim=1)


class Funnel(nn.Module):
    """Neal's funnel: v ~ N(0, sd^2), and given v every other coordinate ~ N(0, e^v).

    Args:
        dimension: at least 2; v is the first coordinate.
        sd: of v. Each other coordinate has variance e^(sd^2 / 2) and very heavy tails.

    Calling it: z (B, d) -> exact log-density (B,), z's dtype.
    Raises ValueError: dimension below 2; sd not positive and finite.
    Source: Neal 2003, Slice sampling, section 8.

    >>> Funnel(2, 3.0)(torch.zeros(1, 2))  # -log 2 pi - log 3
    tensor([-2.9365])
    """

    def __init__(self, dimension: int = 10, sd: float = 3.0) -> None:
        super().__init__()
        if dimension < 2:
            raise ValueError(f"dimension must be 2 or more, got {dimension}")
        positive("sd", sd)
        self.dimension, self.sd = dimension, float(sd)

    @property
    def extent(self) -> float:
        """4 sd of v, and 4 sd of the others there."""
        return max(4 * self.sd, 4 * math.exp(2 * self.sd))

    @property
    def mean(self) -> Tensor:
        return torch.zeros(self.dimension, dtype=torch.float64)

    @property
    def variance(self) -> Tensor:
        variance = torch.full((self.dimension,), math.exp(self.sd**2 / 2), dtype=torch.float64)
        variance[0] = self.sd**2
        return variance

    def forward(self, z: Tensor) -> Tensor:
        z = points(z, self.dimension)
        v, others = z[:, 0], z[:, 1:]
        within = others.square().sum(dim=1) * torch.exp(-v)
        constant = math.log(self.sd) + 0.5 * self.dimension * math.log(2 * math.pi)
        spread = (v / self.sd).square() + (self.dimension - 1) * v
        return -0.5 * (spread + within) - constant

    def sample(self, n: int, key: Tensor) -> Tensor:
        """n exact samples, float32 (n, d)."""
        draws = ops.normal((n, self.dimension), key, stream=STREAM_STARTS)
        v = self.sd * draws[:, :1]
        return torch.cat([v, torch.exp(v / 2) * draws[:, 1:]], dim=1)
