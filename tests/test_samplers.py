"""Each sampler's settings do what they say, and the chains have the law the equations give them."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

import stanley_fast as sf
from stanley_fast import reference
from stanley_fast.chain import sample
from stanley_fast.density import Density
from stanley_fast.samplers import GradientAscent, Langevin, Sampler, Stanley
from stanley_fast.transition import Info

SHAPE = (5, 3, 2, 2)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def z() -> Tensor:
    return sf.normal(SHAPE, sf.key(1), stream=2)


@pytest.fixture
def grad() -> Tensor:
    """Sizes from far below to far above the threshold used here, 0.3."""
    return 0.5 * sf.normal(SHAPE, sf.key(2), stream=2)


KEY = sf.key(7)


def linear(grad: Tensor) -> Density:
    """A density with this gradient, wherever."""
    return Density(lambda z: (grad * z).unsqueeze(-1).flatten(1).sum(1))


def step(sampler: Sampler, z: Tensor, grad: Tensor, first_grad: Tensor | None = None) -> Tensor:
    state = sampler.init(z, linear(grad if first_grad is None else first_grad))
    later = state._replace(log_density=None, grad=None)  # not evaluated at its state yet
    return sampler.step(later, linear(grad), KEY, 3)[0].z


def close(got: Tensor, wanted: Tensor) -> bool:
    """The tolerance between backends, with room for gamma's own rounding."""
    return torch.allclose(got, wanted, rtol=1e-5, atol=1e-5)


def eq5(z: Tensor, grad: Tensor, gamma: Tensor | float, noise_scale: float) -> Tensor:
    """Eq. 5, written out."""
    gamma = torch.as_tensor(gamma)
    xi = reference.normal(z.shape, KEY, 3, dtype=z.dtype)
    return z + gamma / 2 * grad + gamma.sqrt() * noise_scale * xi


def eq4(size: Tensor, threshold: float, step_size: float) -> Tensor:
    """Eq. 4, written out."""
    return step_size * threshold / size.clamp_min(threshold)


def test_stanley_is_eqs_4_and_5(z: Tensor, grad: Tensor) -> None:
    got = step(Stanley(0.3, 0.7, 0.2), z, grad)
    assert close(got, eq5(z, grad, eq4(grad.abs(), 0.3, 0.7), 0.2))


@pytest.mark.parametrize(("norm", "dims"), [("channel", (1,)), ("sample", (1, 2, 3))])
def test_norms(z: Tensor, grad: Tensor, norm: str, dims: tuple[int, ...]) -> None:
    got = step(Stanley(0.3, 0.7, 0.2, norm=norm), z, grad)
    size = grad.square().sum(dims, keepdim=True).sqrt()
    assert size.shape == ((5, 1, 2, 2) if norm == "channel" else (5, 1, 1, 1))
    assert close(got, eq5(z, grad, eq4(size, 0.3, 0.7), 0.2))


def test_sample_norm_of_one_dimensional_states_is_the_element() -> None:
    z, grad = torch.zeros(4), torch.tensor([0.1, -0.5, 2.0, 0.0])
    assert close(step(Stanley(0.3, norm="sample"), z, grad), step(Stanley(0.3), z, grad))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "sampler",
    [
        *(
            Stanley(0.3, 0.7, 0.2, stepsize=stepsize, norm=norm)
            for stepsize, norm in itertools.product(
                ("adaptive", "frozen"), ("element", "channel", "sample")
            )
        ),
        Langevin(0.14, 0.2),
        Langevin(0.14, 0.2, grad_clamp=0.5, clamp=(-1.0, 1.0)),
    ],
    ids=repr,
)
def test_chains_of_halves(z: Tensor, sampler: Sampler, dtype: torch.dtype) -> None:
    """Those of float32 but for a rounding a step, which this target shrinks."""
    rest = {"key": KEY, "record": sampler.records, "keep_every": 1}
    half, single = (
        sample(standard_normal, start, sampler, 5, **rest) for start in (z.to(dtype), z)
    )
    assert half.z.dtype == half.trace.dtype == dtype
    tolerance = {"rtol": 8 * torch.finfo(dtype).eps, "atol": 8 * torch.finfo(dtype).eps}
    torch.testing.assert_close(half.z.float(), single.z, **tolerance)
    for name in sampler.records:
        torch.testing.assert_close(half.stats[name].float(), single.stats[name], **tolerance)


@pytest.mark.parametrize("norm", ["element", "channel", "sample"])
def test_frozen_takes_the_first_gradient(z: Tensor, grad: Tensor, norm: str) -> None:
    first = grad.flip(0) * 3
    got = step(Stanley(0.3, 0.7, 0.2, norm=norm, stepsize="frozen"), z, grad, first)
    dims = {"element": (), "channel": (1,), "sample": (1, 2, 3)}[norm]
    size = first.square().sum(dims, keepdim=True).sqrt() if dims else first.abs()
    assert close(got, eq5(z, grad, eq4(size, 0.3, 0.7), 0.2))
    adaptive = step(Stanley(0.3, 0.7, 0.2, norm=norm), z, grad)
    assert not close(got, adaptive)


@pytest.mark.parametrize("settings", [{}, {"norm": "channel"}, {"stepsize": "frozen"}])
def test_script_update(z: Tensor, grad: Tensor, settings: dict[str, str]) -> None:
    got = step(Stanley(0.3, 0.7, 0.2, update="script", **settings), z, grad)
    size = (
        grad.square().sum(1, keepdim=True).sqrt()
        if settings.get("norm") == "channel"
        else grad.abs()
    )
    gamma = eq4(size, 0.3, 0.7)
    xi = reference.normal(z.shape, KEY, 3)
    assert close(got, z + gamma * grad + gamma * 0.2 * xi)


def test_langevin_is_eq_5_with_one_stepsize(z: Tensor, grad: Tensor) -> None:
    assert close(step(Langevin(0.14, 0.2), z, grad), eq5(z, grad, 0.14, 0.2))


def test_langevin_grad_clamp(z: Tensor, grad: Tensor) -> None:
    got = step(Langevin(0.5, 0.2, grad_clamp=0.1), z, grad)
    assert close(got, eq5(z, grad.clamp(-0.1, 0.1), 0.5, 0.2))
    assert not close(got, eq5(z, grad, 0.5, 0.2))


SAMPLERS = [
    Stanley(0.3, 0.7, 0.2),
    Stanley(0.3, 0.7, 0.2, stepsize="frozen", norm="sample"),
    Stanley(0.3, norm="channel", update="script"),
    Langevin(0.14, 0.2, grad_clamp=0.4),
]


@pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)
def test_a_step_is_in_place_unless_it_is_differentiable(
    sampler: Sampler, z: Tensor, grad: Tensor
) -> None:
    f, kept = linear(grad), z.clone()
    state = sampler.init(z, f)
    moved, _ = sampler.step(state, f, KEY, 3)
    assert moved.z.data_ptr() == state.z.data_ptr() != z.data_ptr()
    assert torch.equal(z, kept)
    f.differentiable = True
    state = sampler.init(z, f)
    apart, _ = sampler.step(state, f, KEY, 3)
    assert torch.equal(state.z, z)
    assert torch.equal(apart.z, moved.z)


@pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)
def test_clamp(sampler: Stanley | Langevin, z: Tensor, grad: Tensor) -> None:
    free = step(sampler, z, grad)
    assert free.min() < -0.5
    assert free.max() > 0.25
    bounded = step(dataclasses.replace(sampler, clamp=(-0.5, 0.25)), z, grad)
    assert torch.equal(bounded, free.clamp(-0.5, 0.25))


@pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)
def test_parts_have_the_noise_of_the_whole(sampler: Sampler, z: Tensor, grad: Tensor) -> None:
    whole = step(sampler, z, grad)
    n = z[:2].numel()
    for rows, first in ((slice(0, 2), 0), (slice(2, 5), n)):
        f = linear(grad[rows])
        part, _ = sampler.step(sampler.init(z[rows], f), f, KEY, 3, first=first, total=z.numel())
        assert torch.equal(part.z, whole[rows])


def test_stats_of_stanley(grad: Tensor) -> None:
    stats = Stanley(0.3, 0.7).stats(Info(torch.tensor([1.0, 2.0]), grad))
    assert float(stats["log_density"]) == 1.5
    assert float(stats["grad_abs"]) == pytest.approx(grad.abs().mean().item())
    assert float(stats["at_max_stepsize"]) == pytest.approx(
        (grad.abs() <= 0.3).float().mean().item()
    )
    assert float(stats["stepsize"]) == pytest.approx(
        eq4(grad.abs(), 0.3, 0.7).mean().item(), rel=1e-5
    )


def test_stats_of_frozen_stanley_are_of_the_first_gradient(z: Tensor, grad: Tensor) -> None:
    sampler = Stanley(0.3, 0.7, norm="sample", stepsize="frozen")
    first = torch.cat([grad[:1] * 1e-3, grad[1:] * 1e3])  # one chain in five below the threshold
    state, info = sampler.step(sampler.init(z, linear(first)), linear(grad), KEY, 3)
    assert torch.equal(info.grad, first)  # evaluated once, when it was frozen
    _, info = sampler.step(state, linear(grad), KEY, 4)
    assert torch.equal(info.grad, grad)
    stats = sampler.stats(info)
    assert float(stats["at_max_stepsize"]) == pytest.approx(0.2)
    size = first.square().sum((1, 2, 3)).sqrt()
    assert float(stats["stepsize"]) == pytest.approx(eq4(size, 0.3, 0.7).mean().item(), rel=1e-5)


def test_stats_of_langevin(z: Tensor, grad: Tensor) -> None:
    f, sampler = linear(grad), Langevin(0.14)
    stats = sampler.stats(sampler.step(sampler.init(z, f), f, KEY, 0)[1])
    assert set(stats) == set(sampler.records)
    assert float(stats["stepsize"]) == pytest.approx(0.14)
    assert float(stats["at_max_stepsize"]) == 1.0


def test_gradient_ascent_is_langevin_without_noise(z: Tensor, grad: Tensor) -> None:
    assert torch.equal(step(GradientAscent(0.2), z, grad), step(Langevin(0.2, 0.0), z, grad))
    assert close(step(GradientAscent(0.2), z, grad), z + 0.1 * grad)
    out = sample(standard_normal, z, GradientAscent(0.5), 100, key=KEY)
    assert out.z.abs().max() < 1e-6  # at the mode


def test_gradient_ascent_runs_whole_chains_too(compiled: None) -> None:
    start = sf.normal((10, 2), sf.key(1), stream=2)
    whole = sample(sf.MLPEnergy(), start, GradientAscent(0.2), 10, key=KEY, fused=True)
    assert whole.rung.startswith("chain: ")


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: Stanley(0.0), "threshold"),
        (lambda: Stanley(-1.0), "threshold"),
        (lambda: Stanley(math.nan), "threshold"),
        (lambda: Stanley(math.inf), "threshold"),
        (lambda: Stanley(0.1, 0.0), "step_size"),
        (lambda: Stanley(0.1, -1.0), "step_size"),
        (lambda: Stanley(0.1, 1.0, -0.1), "noise_scale"),
        (lambda: Stanley(0.1, 1.0, math.nan), "noise_scale"),
        (lambda: Stanley(0.1, stepsize="fixed"), "stepsize"),
        (lambda: Stanley(0.1, norm="pixel"), "norm"),
        (lambda: Stanley(0.1, update="author"), "update"),
        (lambda: Stanley(0.1, clamp=(1.0, -1.0)), "clamp"),
        (lambda: Stanley(0.1, clamp=(math.nan, 1.0)), "clamp"),
        (lambda: Langevin(0.0), "step_size"),
        (lambda: Langevin(math.nan), "step_size"),
        (lambda: Langevin(0.1, -1.0), "noise_scale"),
        (lambda: Langevin(0.1, grad_clamp=0.0), "grad_clamp"),
        (lambda: Langevin(0.1, clamp=(1.0, 0.0)), "clamp"),
    ],
)
def test_bad_settings(make: object, name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name} must be .*got"):
        make()


def test_channel_norm_needs_channels() -> None:
    with pytest.raises(ValueError, match=r"norm='channel' needs .*\[4\]"):
        Stanley(0.1, norm="channel").init(torch.zeros(4), linear(torch.zeros(4)))


def test_samplers_are_values() -> None:
    assert Stanley(0.1) == Stanley(0.1, 1.0, 1.0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        Stanley(0.1).threshold = 1.0


# The law of the chains, for f = log N(0, 1).


def standard_normal(z: Tensor) -> Tensor:
    return -z.flatten(1).square().sum(1) / 2


def variance_after(sampler: Sampler, steps: int, chains: int) -> tuple[float, float]:
    """Of the last states of independent chains, and its standard error."""
    start = sf.normal((chains, 1), sf.key(3), stream=2)
    z = sample(standard_normal, start, sampler, steps, key=sf.key(4)).z.double()
    squares = z.square()
    return squares.mean().item(), squares.std().item() / math.sqrt(chains)


def stanley_limit_variance(threshold: float) -> float:
    """Of exp(f) * max(th, |f'|), the law for small steps: Eq. 5 lacks a div(gamma) term."""
    z = torch.linspace(-12, 12, 24_001, dtype=torch.float64)
    density = torch.exp(-z.square() / 2) * z.abs().clamp_min(threshold)
    return float((density * z.square()).sum() / density.sum())


def stanley_variance(threshold: float, step_size: float) -> float:
    """Of Eq. 5's stationary law at a finite step size: its kernel on a grid, to a high power."""
    z = torch.linspace(-8, 8, 801, dtype=torch.float64)
    gamma = step_size * threshold / z.abs().clamp_min(threshold)
    mean = z - gamma / 2 * z
    kernel = torch.exp(-(z - mean[:, None]).square() / (2 * gamma[:, None]))
    kernel /= kernel.sum(1, keepdim=True)
    for _ in range(14):
        kernel = kernel @ kernel
    return float((kernel[400] * z.square()).sum())


def test_stanley_samples_its_closed_form_limit_law() -> None:
    limit = stanley_limit_variance(0.5)
    assert limit == pytest.approx(1.786, abs=1e-3)  # and not 1, the variance under exp(f)
    bias = []
    for step_size in (0.2, 0.05):
        exact = stanley_variance(0.5, step_size)
        # 100 units of time, some 20 relaxation times: the start is forgotten.
        got, error = variance_after(Stanley(0.5, step_size), int(100 / step_size), 100_000)
        assert abs(got - exact) < 4 * error  # error: about 0.0065
        bias.append(exact - limit)
    # First order: a step a quarter as large, a bias a quarter as large.
    assert bias[0] == pytest.approx(0.060, abs=2e-3)
    assert bias[1] == pytest.approx(bias[0] / 4, rel=0.05)


@pytest.mark.parametrize("gamma", [0.2, 1.0])
def test_langevin_bias_at_a_fixed_stepsize(gamma: float) -> None:
    """z' = (1 - gamma/2) z + sqrt(gamma) xi has variance 1 / (1 - gamma/4)."""
    wanted, chains = 1 / (1 - gamma / 4), 200_000
    got, _ = variance_after(Langevin(gamma), int(30 / gamma), chains)
    # The variance of a Gaussian's sample variance is 2 / n. The start's share of it is e^-30.
    assert abs(got - wanted) < 4 * wanted * math.sqrt(2 / chains)  # 0.013 of wanted


def test_noise_scale_is_a_temperature() -> None:
    """With noise_scale e, Langevin's law is exp(f / e^2): variance e^2 / (1 - gamma/4)."""
    wanted, chains = 0.25 / (1 - 0.2 / 4), 100_000
    got, _ = variance_after(Langevin(0.2, 0.5), 150, chains)
    assert abs(got - wanted) < 4 * wanted * math.sqrt(2 / chains)


# Half precision ----------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["channel", "sample"])
def test_norms_of_half_gradients_do_not_overflow(norm: str) -> None:
    """2 000 sqrt(3 072) is beyond float16: such a chain would stand still."""
    sampler = Stanley(0.1, norm=norm, stepsize="frozen")  # type: ignore[arg-type]
    grad = torch.full((1, 3072), 2000.0, dtype=torch.float16)
    gamma = sampler.init(torch.zeros_like(grad), linear(grad)).gamma
    assert gamma is not None
    single = sampler.init(torch.zeros(1, 3072), linear(grad.float())).gamma
    torch.testing.assert_close(gamma, single)
    assert (gamma > 0).all()


def test_a_large_but_finite_half_state_is_no_error() -> None:
    """z . g is 10^8 here, beyond float16."""
    z = torch.full((1, 10_000), 100.0, dtype=torch.float16)
    out = sf.sample(lambda x: -100 * x.sum(1), z, sf.Langevin(1e-4, 0.0), 2, key=sf.key(0))
    assert out.z.isfinite().all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Stanley("a"), "threshold must be positive and finite, got 'a'"),
        (lambda: Langevin(0.1, None), "noise_scale must be 0 or more and finite, got None"),
        (lambda: Stanley(0.1, clamp=3.0), r"clamp must be \(lo, hi\) .*, got 3.0"),
        (lambda: sf.MALA(None), "step_size must be positive and finite, got None"),
        (lambda: sf.HMC(0.1, 2.5), "leapfrog_steps must be an integer, got 2.5"),
        (lambda: sf.HMC(0.1, 2, mass=[1.0]), r"mass must be a tensor or None, got \[1.0\]"),
        (lambda: sf.GaussianMixture([[0.0]], 1.0), "means must be a tensor"),
    ],
)
def test_settings_of_another_type_are_named(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 2.0}, "steps must be an integer, got 2.0"),
        ({"keep_every": 1.5}, "keep_every must be an integer, got 1.5"),
        ({"sampler": sf.MALA}, "sampler must be a Sampler"),
        ({"f": 3}, "f must be callable, .* got 3"),
        ({"f": lambda z: (z > 0).sum(1)}, "f must return floating-point .* got torch.int64"),
    ],
)
def test_sample_names_arguments_of_another_type(change: dict[str, Any], message: str) -> None:
    arguments = {"f": lambda z: -z.square().sum(1), "z0": torch.zeros(2, 2), "steps": 2}
    with pytest.raises((ValueError, TypeError, RuntimeError), match=message):
        sample(**{**arguments, "sampler": sf.MetropolisHastings(0.5), **change})  # type: ignore[arg-type]
