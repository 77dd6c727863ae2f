"""Targets: normalised densities, gradients, exact samples with the exact moments and marginals."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor

from stanley_fast import keys
from stanley_fast.energies import GaussianMixture, Ring, Rings, Target, gaussian_ring
from stanley_fast.targets import Banana, Funnel, Gaussian

N = 100_000
MIXTURE = GaussianMixture(
    means=torch.tensor([[-1.0, 0.5], [1.5, -2.0]]),
    scales=torch.tensor([0.5, 1.25]),
    weights=torch.tensor([3.0, 1.0]),
)
PLANE: dict[str, Target] = {
    "gaussian": Gaussian([1.0, 0.01]),
    "ring": Ring(1.0, 0.15),
    "banana": Banana(2.0, 0.5, 0.25),
    "funnel": Funnel(2, 1.0),
    "mixture": MIXTURE,
}
EVERY = PLANE | {
    "gaussian in 10": Gaussian(torch.logspace(-2, 0, 10)),
    "funnel in 5": Funnel(5, 0.8),
    "rings": Rings(),
    "8 modes": gaussian_ring(),
}
every = pytest.mark.parametrize("name", EVERY)


def draw(name: str, n: int = N) -> Tensor:
    return EVERY[name].sample(n, keys.key(7)).double()


# Where each target's mass lies: x from, to; y from, to for that x.
REACH = {
    "gaussian": (9, lambda x: (-0.09, 0.09)),
    "ring": (2.2, lambda x: (-2.2, 2.2)),
    "banana": (16, lambda x: (0.25 * (x * x - 4) - 4.5, 0.25 * (x * x - 4) + 4.5)),
    "funnel": (8, lambda x: (-9 * math.exp(x / 2), 9 * math.exp(x / 2))),
    "mixture": (12, lambda x: (-12, 12)),
}


@pytest.mark.parametrize("name", PLANE)
def test_density_integrates_to_one(name: str) -> None:
    reach, between = REACH[name]
    nodes, weights = map(torch.from_numpy, np.polynomial.legendre.leggauss(400))
    total = 0.0
    for node, weight in zip(nodes.tolist(), weights.tolist(), strict=True):
        low, high = between(reach * node)
        y = (low + high) / 2 + (high - low) / 2 * nodes
        density = PLANE[name](torch.stack([torch.full_like(y, reach * node), y], dim=1)).exp()
        total += reach * weight * (high - low) / 2 * float(weights @ density)
    assert total == pytest.approx(1, abs=1e-6)


@every
def test_gradient_is_the_density_s(name: str) -> None:
    z = draw(name, 20).requires_grad_()
    assert torch.autograd.gradcheck(EVERY[name], z, eps=1e-7, rtol=1e-4)


@every
def test_float32_is_float64_rounded(name: str) -> None:
    z = draw(name, 500)
    value = EVERY[name](z.float())
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, EVERY[name](z.float().double()).float(), rtol=1e-4, atol=1e-4)


@every
def test_samples_have_the_exact_moments(name: str) -> None:
    z, mean, variance = draw(name), EVERY[name].mean, EVERY[name].variance
    # 5 sd of the mean of N draws, and of their mean square, whose variance is their kurtosis'.
    assert ((z.mean(0) - mean).abs() <= 5 * (variance / N).sqrt()).all()
    squares = (z - mean).square()
    assert ((squares.mean(0) - variance).abs() <= 5 * squares.std(0) / math.sqrt(N)).all()


@every
def test_samples_belong_to_the_density(name: str) -> None:
    """Stein's identities: E grad f = 0 and E z_i d_i f = -1, whatever the distribution."""
    z = draw(name).requires_grad_()
    (grad,) = torch.autograd.grad(EVERY[name](z).sum(), z)
    for found, wanted in ((grad, 0.0), (z.detach() * grad, -1.0)):
        assert ((found.mean(0) - wanted).abs() <= 5 * found.std(0) / math.sqrt(N)).all()


def whitened(name: str) -> list[Tensor]:
    """The samples, turned into independent standard normals by the target's definition."""
    z = draw(name)
    if name == "ring":
        angle = torch.atan2(z[:, 1], z[:, 0]) / (2 * math.pi) + 0.5
        return [(z.norm(dim=1) - 1) / 0.15, torch.special.ndtri(angle)]
    if name == "banana":
        return [z[:, 0] / 2, (z[:, 1] - 0.25 * (z[:, 0].square() - 4)) / 0.5]
    if name == "funnel in 5":
        return [z[:, 0] / 0.8, *(z[:, 1:] * torch.exp(-z[:, :1] / 2)).unbind(1)]
    return list((z / torch.logspace(-2, 0, 10, dtype=torch.float64)).unbind(1))


@pytest.mark.parametrize("name", ["ring", "banana", "funnel in 5", "gaussian in 10"])
def test_samples_follow_the_definition(name: str) -> None:
    white = whitened(name)
    for each in white:  # at most 10 of them: a p-value below 1e-5 once in 10 000 seeds
        assert scipy.stats.kstest(each.numpy(), "norm").pvalue > 1e-5
    together = torch.corrcoef(torch.stack(white)) - torch.eye(len(white))
    assert together.abs().max() < 5 / math.sqrt(N)


@every
def test_extent_holds_all_but_the_tails(name: str) -> None:
    # A coordinate leaves it beyond 4 sd, with probability 6e-5; the funnel's where v or x does.
    outside = (draw(name).abs() > EVERY[name].extent).any(dim=1).double().mean()
    assert outside < 1e-3


@every
def test_samples_follow_the_key_alone(name: str) -> None:
    target = EVERY[name]
    z = target.sample(100, keys.key(4))
    assert z.dtype == torch.float32
    assert torch.equal(z[:40], target.sample(40, keys.key(4)))
    assert not torch.equal(z, target.sample(100, keys.key(5)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Gaussian([]), r"scales must be \(d,\) with d > 0, got \[0\]"),
        (lambda: Gaussian([[1.0]]), r"scales must be \(d,\) with d > 0, got \[1, 1\]"),
        (lambda: Gaussian([1.0, 0.0]), r"scales must be positive and finite, got \[1.0, 0.0\]"),
        (lambda: Ring(1.0, -1.0), "sd must be positive and finite, got -1.0"),
        (lambda: Ring(1.0, 0.3), "radius must be finite and at least 5 sd = 1.5, got 1.0"),
        (lambda: Banana(length=0.0), "length must be positive and finite, got 0.0"),
        (lambda: Banana(width=math.inf), "width must be positive and finite, got inf"),
        (lambda: Banana(bend=math.nan), "bend must be finite, got nan"),
        (lambda: Funnel(1), "dimension must be 2 or more, got 1"),
        (lambda: Funnel(2, 0.0), "sd must be positive and finite, got 0.0"),
        (lambda: Funnel(3)(torch.zeros(5, 2)), r"z must be \(B, 3\)"),
        (lambda: Gaussian([1.0])(torch.zeros(5, 2)), r"z must be \(B, 1\)"),
        (lambda: Banana()(torch.zeros(2)), r"z must be \(B, 2\)"),
    ],
)
def test_targets_refuse(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]
