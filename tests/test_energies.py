"""Energies: shapes, exact densities and exact samples."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from stanley_fast import keys
from stanley_fast.energies import GaussianMixture, MLPEnergy, Rings, from_energy, gaussian_ring

N = 100_000
MIXTURE = GaussianMixture(
    means=torch.tensor([[-1.0, 0.0, 2.0], [1.5, 1.0, -1.0]]),
    scales=torch.tensor([0.5, 1.25]),
    weights=torch.tensor([3.0, 1.0]),
)


def grid_integral(f: nn.Module, half: float, size: int) -> float:
    """Of exp f over [-half, half]^2 by the midpoint rule, in float64."""
    centre = ((torch.arange(size, dtype=torch.float64) + 0.5) / size * 2 - 1) * half
    z = torch.cartesian_prod(centre, centre)
    return float(f(z).exp().sum()) * (2 * half / size) ** 2


def test_mlp_is_the_toy_net() -> None:
    f = MLPEnergy()
    assert sum(p.numel() for p in f.parameters()) == 10_593  # Nijkamp et al. 2020
    assert [m.negative_slope for m in f.net if isinstance(m, nn.LeakyReLU)] == [0.05] * 4
    assert isinstance(f.net[-1], nn.Linear)


def test_mlp_initialises_as_linear_layers_do() -> None:
    torch.manual_seed(3)
    first = nn.Linear(2, 32)
    torch.manual_seed(3)
    assert torch.equal(MLPEnergy().net[0].weight, first.weight)


def test_mlp_takes_points_and_one_pixel_images() -> None:
    f, z = MLPEnergy(), torch.randn(7, 2)
    assert f(z).shape == (7,)
    assert torch.equal(f(z[:, :, None, None]), f(z))
    assert f(z[:0]).shape == (0,)


@pytest.mark.parametrize("shape", [(2,), (7, 3), (7, 2, 2), ()])
def test_mlp_refuses_other_states(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"z must be \(B, 2\)"):
        MLPEnergy()(torch.zeros(shape))


@pytest.mark.parametrize("widths", [(2, 3), (1,), ()])
def test_mlp_refuses_other_widths(widths: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="widths must be at least two and end in 1"):
        MLPEnergy(widths)


def test_mixture_density_is_torch_distributions() -> None:
    z = torch.randn(50, 3, dtype=torch.float64) * 2
    parts = torch.distributions.Independent(
        torch.distributions.Normal(MIXTURE.means, MIXTURE.scales[:, None].expand(2, 3)), 1
    )
    mix = torch.distributions.Categorical(torch.tensor([0.75, 0.25], dtype=torch.float64))
    want = torch.distributions.MixtureSameFamily(mix, parts).log_prob(z)
    torch.testing.assert_close(MIXTURE(z), want, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(MIXTURE(z.float()), want.float(), rtol=1e-5, atol=1e-5)
    assert MIXTURE(z.float()).dtype == torch.float32


def test_mixture_samples_have_its_moments() -> None:
    z = MIXTURE.sample(N, keys.key(1))
    weights = torch.tensor([0.75, 0.25], dtype=torch.float64)
    mean = weights @ MIXTURE.means
    variance = weights @ (MIXTURE.means.square() + MIXTURE.scales.square()[:, None]) - mean**2
    # A mean of N draws is off by 5 sd / sqrt(N) once in 2 million; a variance by
    # 5 sqrt(kurtosis - 1) variance / sqrt(N), with kurtosis < 5 here.
    error = (z.double().mean(0) - mean).abs()
    assert (error < 5 * (variance / N).sqrt()).all()
    assert ((z.double().var(0) / variance - 1).abs() < 5 * math.sqrt(4 / N)).all()


def test_mixture_modes_hold_their_weights() -> None:
    z = GaussianMixture(torch.tensor([[-9.0], [9.0]]), 1.0, torch.tensor([1.0, 4.0]))
    share = float((z.sample(N, keys.key(2)) > 0).float().mean())
    assert abs(share - 0.8) < 5 * math.sqrt(0.8 * 0.2 / N)  # binomial, 5 sd


@pytest.mark.parametrize(
    ("means", "scales", "weights", "message"),
    [
        (torch.zeros(2), 1.0, None, r"means must be \(M, d\)"),
        (torch.zeros(0, 2), 1.0, None, r"means must be \(M, d\)"),
        (torch.zeros(2, 2), 0.0, None, "scales must be positive and finite, got 0.0"),
        (torch.zeros(2, 2), math.nan, None, "scales must be positive and finite, got nan"),
        (torch.zeros(2, 2), torch.ones(3), None, r"scales must be a number or \(2,\), got \[3\]"),
        (torch.zeros(2, 2), 1.0, torch.tensor([1.0, -1.0]), "weights must be positive"),
        (torch.zeros(2, 2), 1.0, torch.ones(1, 2), r"weights must be a number or \(2,\)"),
    ],
)
def test_mixture_refuses(
    means: Tensor, scales: Tensor | float, weights: Tensor | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        GaussianMixture(means, scales, weights)


def test_gaussian_ring_is_eight_modes_on_the_unit_circle() -> None:
    ring = gaussian_ring()
    assert ring.means.shape == (8, 2)
    torch.testing.assert_close(ring.means.norm(dim=1), torch.ones(8, dtype=torch.float64))
    neighbours = (ring.means - ring.means.roll(1, 0)).norm(dim=1)
    torch.testing.assert_close(neighbours, neighbours[:1].expand(8))
    assert ring.extent == pytest.approx(1.6)  # the range of Nijkamp et al.'s pictures
    assert grid_integral(ring, 2.5, 400) == pytest.approx(1, abs=1e-9)


def test_rings_density_integrates_to_one() -> None:
    # By hand in polar coordinates: exact but for the radii below 0, 6.7 sd away.
    assert grid_integral(Rings(), 5.5, 1500) == pytest.approx(1, abs=1e-6)
    assert Rings.extent == pytest.approx(4.6)


def test_rings_density_by_hand() -> None:
    at_three = 0.25 / (0.15 * math.sqrt(2 * math.pi)) / (2 * math.pi * 3)
    f = Rings()(torch.tensor([[3.0, 0.0], [0.0, -3.0], [1.8, 2.4]], dtype=torch.float64))
    torch.testing.assert_close(f, torch.full_like(f, math.log(at_three)))


def test_rings_density_and_gradient_are_finite_at_the_origin() -> None:
    z = torch.zeros(1, 2, requires_grad=True)
    (grad,) = torch.autograd.grad(Rings()(z).sum(), z)
    assert grad.isfinite().all()


def test_rings_samples() -> None:
    z = Rings().sample(N, keys.key(3)).double()
    radius = z.norm(dim=1)
    ring = radius.round().clamp(1, 4)
    # Four equal rings: binomial, 5 sd. A radius passes the middle between two rings (0.5 = 3.3 sd)
    # with probability 9e-4, which moves a ring's share by far less.
    for k in range(1, 5):
        share = float((ring == k).double().mean())
        assert abs(share - 0.25) < 5 * math.sqrt(0.25 * 0.75 / N) + 1e-3
    # Spread around the nearest ring: 0.15, of which the relative error is 1 / sqrt(2 N); the radii
    # counted to the wrong ring take away less than 1 %.
    assert float((radius - ring).std()) == pytest.approx(0.15, rel=5 / math.sqrt(2 * N) + 0.01)
    # Uniform angle: mean of cos and sin of the angle and of twice it, each with variance 1/2.
    angle = torch.atan2(z[:, 1], z[:, 0])
    for wave in (angle.cos(), angle.sin(), (2 * angle).cos(), (2 * angle).sin()):
        assert abs(float(wave.mean())) < 5 * math.sqrt(0.5 / N)


@pytest.mark.parametrize("target", [Rings(), gaussian_ring()], ids=["rings", "gmm"])
def test_samples_follow_the_key_alone(target: Rings | GaussianMixture) -> None:
    key = keys.key(4)
    z = target.sample(100, key)
    assert z.dtype == torch.float32
    assert torch.equal(z, target.sample(100, key))
    assert torch.equal(z[:40], target.sample(40, key))
    assert not torch.equal(z, target.sample(100, keys.key(5)))
    assert key.tolist() == [4, 0]


def test_from_energy_flips_a_callable() -> None:
    f = from_energy(lambda z: z.square().sum(dim=1))
    assert f(torch.full((2, 2), 3.0)).tolist() == [-18, -18]


def test_from_energy_keeps_a_module_a_module() -> None:
    energy = nn.Sequential(nn.Linear(2, 1), nn.Dropout(), nn.Flatten(0))
    f = from_energy(energy)
    assert list(f.parameters()) == list(energy.parameters())
    assert not f.eval().energy.training
    z = torch.randn(5, 2)
    assert torch.equal(f(z), -energy(z))
