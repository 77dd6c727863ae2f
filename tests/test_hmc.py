"""Leapfrog: second order, reversible, volume-preserving; and HMC on top of it."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

import stanley_fast as sf
from stanley_fast.density import Density
from stanley_fast.hmc import kinetic_energy, leapfrog
from stanley_fast.transition import State

pytestmark = pytest.mark.usefixtures("one_thread")

MASS = torch.tensor([0.5, 2.0, 1.0], dtype=torch.float64)


def quartic(z: Tensor) -> Tensor:
    return -(z.square() / 2 + z**4 / 8).sum(1)


def start(n: int = 100, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    z, momentum = sf.normal((2, n, 3), sf.key(1), stream=2, dtype=dtype)
    return z, momentum


def run(
    z: Tensor, momentum: Tensor, h: float, steps: int, inverse_mass: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Where a trajectory ends, its momentum there, and its log-density."""
    f = Density(quartic)
    value, grad = f.value_and_grad(z)
    momentum = momentum.clone()
    end = leapfrog(State(z.clone(), value, grad), momentum, f, h, steps, inverse_mass=inverse_mass)
    assert end.log_density is not None
    return end.z, momentum, end.log_density


def energy_error(h: float, time: float = 1.2) -> float:
    """Largest over chains, of a trajectory `time` long."""
    z, momentum = start()
    _, end, value = run(z, momentum, h, round(time / h), 1 / MASS)
    before = kinetic_energy(momentum, 1 / MASS) - quartic(z)
    return float((kinetic_energy(end, 1 / MASS) - value - before).abs().max())


def test_the_energy_error_is_of_second_order() -> None:
    errors = [energy_error(h) for h in (0.1, 0.05, 0.025, 0.0125)]
    ratios = [a / b for a, b in itertools.pairwise(errors)]
    assert all(abs(r - 4) < 0.3 for r in ratios[1:]), ratios
    assert errors[-1] < 2e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("mass", [None, MASS])
def test_it_is_reversible_to_rounding(dtype: torch.dtype, mass: Tensor | None) -> None:
    z, momentum = start(dtype=dtype)
    inverse = None if mass is None else mass.reciprocal().to(dtype)
    there, p, _ = run(z, momentum, 0.1, 20, inverse)
    assert (there - z).abs().mean() > 0.5
    back, p, _ = run(there, -p, 0.1, 20, inverse)
    eps = torch.finfo(dtype).eps  # of states near 1, which 40 steps of a stable flow round
    assert (back - z).abs().max() < 500 * eps
    assert (p + momentum).abs().max() < 500 * eps


def test_it_preserves_volume() -> None:
    """The Jacobian of (z, p), by central differences, has determinant 1."""
    z, momentum = start(1)
    columns = []
    for i in range(6):
        bump = torch.zeros(6, dtype=torch.float64)
        bump[i] = 1e-5
        ends = [
            torch.cat(run(z + s * bump[:3], momentum + s * bump[3:], 0.2, 5)[:2], dim=1)
            for s in (1, -1)
        ]
        columns.append((ends[0] - ends[1])[0] / 2e-5)
    assert float(torch.linalg.det(torch.stack(columns))) == pytest.approx(1, abs=1e-7)


def test_it_turns_as_the_harmonic_oscillator() -> None:
    """f = -z^2/2 turns (z, p) by the angle acos(1 - h^2/2) a step, on an ellipse."""
    f, h = Density(lambda z: -z.square().sum(1) / 2), 0.3
    z, momentum = (t.clone() for t in start())
    z0, p0 = z.clone(), momentum.clone()
    value, grad = f.value_and_grad(z)
    end = leapfrog(State(z, value, grad), momentum, f, h, 7)
    turned, axis = 7 * math.acos(1 - h**2 / 2), math.sqrt(1 - h**2 / 4)
    torch.testing.assert_close(end.z, math.cos(turned) * z0 + math.sin(turned) / axis * p0)
    torch.testing.assert_close(momentum, math.cos(turned) * p0 - math.sin(turned) * axis * z0)


def test_small_steps_are_accepted() -> None:
    """1 - acceptance falls with h^2, at a fixed length of trajectory."""
    z, _ = start(2000)
    rejected = []
    for h in (0.2, 0.1, 0.05):
        hmc = sf.HMC(h, round(1 / h))
        out = sf.sample(quartic, z, hmc, 3, key=sf.key(2))
        assert out.acceptance is not None
        rejected.append(1 - float(out.acceptance.mean()))
    assert rejected[0] / rejected[1] == pytest.approx(4, rel=0.15)
    assert rejected[1] / rejected[2] == pytest.approx(4, rel=0.15)
    assert rejected[2] < 3e-3


def test_gradients_are_as_many_as_leapfrog_steps() -> None:
    calls: list[int] = []

    def counted(z: Tensor) -> Tensor:
        calls.append(1)
        return quartic(z)

    sf.sample(counted, start()[0], sf.HMC(0.1, 4), 5, key=sf.key(2))
    assert len(calls) == 1 + 4 * 5


def test_the_best_mass_is_the_inverse_of_the_variances() -> None:
    """A Gaussian of any scales under it is the standard one, step for step."""
    scales = torch.tensor([1.0, 0.1, 0.01], dtype=torch.float64)
    f = lambda z: -(z / scales).square().sum(1) / 2  # noqa: E731
    standard = lambda z: -z.square().sum(1) / 2  # noqa: E731
    z, _ = start()
    hmc = sf.HMC(0.5, 3, mass=scales**-2)
    scaled = sf.sample(f, z * scales, hmc, 10, key=sf.key(3))
    plain = sf.sample(standard, z, sf.HMC(0.5, 3), 10, key=sf.key(3))
    torch.testing.assert_close(scaled.z / scales, plain.z)
    torch.testing.assert_close(scaled.acceptance, plain.acceptance)
