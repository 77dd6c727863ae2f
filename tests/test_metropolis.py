"""Accepting and rejecting: the right probability, the right rows, whatever the batch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

import stanley_fast as sf
from stanley_fast.density import Density
from stanley_fast.energies import Ring
from stanley_fast.targets import Banana

pytestmark = pytest.mark.usefixtures("one_thread")

KEY = sf.key(7)
SAMPLERS = [
    sf.MALA(0.3),
    sf.MetropolisHastings(0.7),
    sf.HMC(0.3, 3),
    sf.HMC(0.3, 3, mass=torch.tensor([0.5, 2.0])),
    sf.Stanley(0.4, 0.3, 0.8, adjusted=True),
    sf.Stanley(0.4, 0.3, 0.8, adjusted=True, norm="channel"),
    sf.Stanley(0.4, 0.3, 0.8, adjusted=True, norm="sample"),
    sf.Stanley(0.4, 0.3, 0.8, adjusted=True, stepsize="frozen"),
]
LANGEVIN = [s for s in SAMPLERS if isinstance(s, (sf.MALA, sf.Stanley))]
ADAPTIVE = [s for s in SAMPLERS if getattr(s, "stepsize", "adaptive") == "adaptive"]
GRADIENT = [s for s in SAMPLERS if not isinstance(s, sf.MetropolisHastings)]
every_sampler = pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)


def quartic(z: Tensor) -> Tensor:
    """Row by row: a batch split rounds alike."""
    z = z.unsqueeze(-1).flatten(1)
    return -(z.square() + 0.3 * z**4 - 0.5 * z).sum(1)


def start(n: int = 200, dtype: torch.dtype = torch.float64) -> Tensor:
    return sf.normal((n, 2), sf.key(1), stream=2, dtype=dtype)


def one_step(sampler: sf.Sampler, z: Tensor, f: Callable = quartic) -> tuple[sf.State, sf.Info]:
    density = Density(f)
    return sampler.step(sampler.init(z, density), density, KEY, 0)


# The probability, from the definition ------------------------------------------------------------


def gradient(z: Tensor) -> Tensor:
    return -(2 * z + 1.2 * z**3 - 0.5)


def stepsize(sampler: sf.MALA | sf.Stanley, z: Tensor) -> Tensor:
    if isinstance(sampler, sf.MALA):
        return torch.full_like(z, sampler.step_size)
    grad = gradient(z)
    size = grad.abs() if sampler.norm == "element" else grad.norm(dim=1, keepdim=True)
    return sampler.step_size * (sampler.threshold / size.clamp_min(sampler.threshold)).expand_as(z)


def log_q(z: Tensor, new: Tensor, gamma: Tensor, noise_scale: float) -> Tensor:
    mean, scale = z + gamma / 2 * gradient(z), gamma.sqrt() * noise_scale
    return torch.from_numpy(stats.norm.logpdf(new, mean, scale)).sum(1)


@pytest.mark.parametrize("sampler", LANGEVIN, ids=repr)
def test_langevin_proposals_are_accepted_with_the_probability_of_hastings(
    sampler: sf.MALA | sf.Stanley,
) -> None:
    z = start()
    gamma, eps = stepsize(sampler, z), getattr(sampler, "noise_scale", 1.0)
    new = z + gamma / 2 * gradient(z) + gamma.sqrt() * eps * sf.normal(z.shape, KEY, dtype=z.dtype)
    frozen = getattr(sampler, "stepsize", "") == "frozen"
    back = log_q(new, z, gamma if frozen else stepsize(sampler, new), eps)
    alpha = quartic(new) - quartic(z) + back - log_q(z, new, gamma, eps)
    state, info = one_step(sampler, z)
    torch.testing.assert_close(info.probability, alpha.exp().clamp_max(1), rtol=1e-9, atol=0)
    assert 0.2 < info.accepted.double().mean() < 0.98
    torch.testing.assert_close(state.z, torch.where(info.accepted[:, None], new, z))


def test_a_random_walk_is_accepted_by_f_alone() -> None:
    z = start()
    new = z + 0.7 * sf.normal(z.shape, KEY, dtype=z.dtype)
    state, info = one_step(sf.MetropolisHastings(0.7), z)
    wanted = (quartic(new) - quartic(z)).exp().clamp_max(1)
    torch.testing.assert_close(info.probability, wanted)
    torch.testing.assert_close(state.z, torch.where(info.accepted[:, None], new, z))


def test_hmc_is_accepted_by_the_energy() -> None:
    """Ordinary leapfrog steps with mass, written out."""
    mass, h = torch.tensor([0.5, 2.0], dtype=torch.float64), 0.3
    z = start()
    momentum = mass.sqrt() * sf.normal(z.shape, KEY, dtype=z.dtype)
    energy = lambda z, p: -quartic(z) + (p.square() / (2 * mass)).sum(1)  # noqa: E731
    new, p = z, momentum
    for _ in range(3):
        p = p + h / 2 * gradient(new)
        new = new + h * p / mass
        p = p + h / 2 * gradient(new)
    state, info = one_step(sf.HMC(h, 3, mass=mass.float()), z)
    wanted = (energy(z, momentum) - energy(new, p)).exp().clamp_max(1)
    torch.testing.assert_close(info.probability, wanted)
    torch.testing.assert_close(state.z, torch.where(info.accepted[:, None], new, z))


def test_one_leapfrog_step_is_mala() -> None:
    """At step_size h^2: the same noise, so the same proposals, probabilities and draws."""
    hmc, mala = one_step(sf.HMC(0.4, 1), start()), one_step(sf.MALA(0.16), start())
    torch.testing.assert_close(hmc[0].z, mala[0].z)
    torch.testing.assert_close(hmc[1].probability, mala[1].probability)


def test_below_the_threshold_adjusted_stanley_is_mala() -> None:
    stanley = one_step(sf.Stanley(1e3, 0.3, adjusted=True), start())
    mala = one_step(sf.MALA(0.3), start())
    torch.testing.assert_close(stanley[0].z, mala[0].z)
    torch.testing.assert_close(stanley[1].probability, mala[1].probability)


@pytest.mark.parametrize("sampler", ADAPTIVE, ids=repr)
def test_a_step_size_on_the_device_is_the_number(sampler: sf.Sampler) -> None:
    name = sampler.tuned[0]
    number = getattr(sampler, name)
    as_tensor = dataclasses.replace(sampler, **{name: torch.tensor(number, dtype=torch.float64)})
    wanted, got = one_step(sampler, start()), one_step(as_tensor, start())
    torch.testing.assert_close(got[0].z, wanted[0].z)
    torch.testing.assert_close(got[1].probability, wanted[1].probability)


def test_stanley_with_noise_scale_proposes_for_a_sharper_density() -> None:
    """Stanley(th, s, eps) on f moves as Stanley(th / eps^2, s eps^2) on f / eps^2."""
    eps = 0.2
    sharper = lambda z: quartic(z) / eps**2  # noqa: E731
    wanted = sf.sample(quartic, start(), sf.Stanley(0.4, 0.3, eps), 10, key=KEY)
    got = sf.sample(sharper, start(), sf.Stanley(0.4 / eps**2, 0.3 * eps**2), 10, key=KEY)
    torch.testing.assert_close(got.z, wanted.z)
    alone = one_step(sf.Stanley(0.4, 0.3, eps, adjusted=True), start())[1]
    meant = one_step(sf.Stanley(0.4 / eps**2, 0.3 * eps**2, adjusted=True), start(), sharper)[1]
    assert meant.probability.mean() > 2 * alone.probability.mean()


# What is kept ------------------------------------------------------------------------------------


@every_sampler
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rejected_chains_keep_everything(sampler: sf.Sampler, dtype: torch.dtype) -> None:
    density, z = Density(quartic), start(dtype=dtype)
    state = sampler.init(z, density)
    moved = False
    for k in range(5):
        before = [None if t is None else t.clone() for t in state]
        state, info = sampler.step(state, density, KEY, k)
        for old, now in zip(before[:3], state[:3], strict=True):
            if old is not None:
                assert torch.equal(now[~info.accepted], old[~info.accepted])
                moved |= bool((now != old).any())
        value = density.value(state.z)
        assert torch.equal(state.log_density, value)  # of the state it keeps
        if state.grad is not None:
            torch.testing.assert_close(state.grad, gradient(state.z), rtol=1e-5, atol=1e-5)
    assert moved


@every_sampler
def test_parts_of_the_batch_are_the_whole(sampler: sf.Sampler) -> None:
    z = start(11, torch.float32)
    whole = sf.sample(quartic, z, sampler, 8, key=KEY)
    for rows in (slice(0, 3), slice(3, 4), slice(4, 11)):
        part = sf.sample(
            quartic, z[rows], sampler, 8, key=KEY, first=2 * rows.start, total=z.numel()
        )
        assert torch.equal(part.z, whole.z[rows])
        assert torch.equal(part.acceptance, whole.acceptance[rows])
        assert torch.equal(part.key, whole.key)


@every_sampler
@pytest.mark.parametrize("arguments", [{"first": 3, "total": 40}, {"total": 41}])
def test_a_part_must_not_split_a_chain(sampler: sf.Sampler, arguments: dict[str, int]) -> None:
    got = arguments.get("first", 41)
    with pytest.raises(ValueError, match=f"must be a multiple of 2, .*; got {got}"):
        sf.sample(quartic, start(10), sampler, 1, key=KEY, **arguments)


@pytest.mark.parametrize("sampler", ADAPTIVE, ids=repr)  # a new chain freezes anew
def test_two_chains_in_a_row_are_one(sampler: sf.Sampler) -> None:
    z = start(10)
    whole = sf.sample(quartic, z, sampler, 7, key=KEY)
    first = sf.sample(quartic, z, sampler, 3, key=KEY)
    second = sf.sample(quartic, first.z, sampler, 4, key=first.key)
    assert torch.equal(second.z, whole.z)


SHAPES = [
    (sampler, shape)
    for sampler in SAMPLERS
    for shape in ((0, 2), (3, 0), (5,), (4, 2, 1, 2))
    if (getattr(sampler, "mass", None) is None or shape[-1] == 2)  # the mass has two elements
    and (getattr(sampler, "norm", "") != "channel" or len(shape) > 1)
]


@pytest.mark.parametrize(("sampler", "shape"), SHAPES, ids=repr)
def test_shapes(sampler: sf.Sampler, shape: tuple[int, ...]) -> None:
    z = sf.normal(shape, sf.key(1), stream=2)
    out = sf.sample(quartic, z, sampler, 3, key=KEY)
    assert out.z.shape == shape
    assert out.acceptance.shape == shape[:1]


@every_sampler
def test_acceptance_is_recorded(sampler: sf.Sampler) -> None:
    z, density = start(50), Density(quartic)
    out = sf.sample(quartic, z, sampler, 6, key=KEY, record=sampler.records)
    state, infos = sampler.init(z, density), []
    for k in range(6):
        state, info = sampler.step(state, density, KEY, k)
        infos.append(info.probability)
        torch.testing.assert_close(out.stats["log_density"][k], quartic(state.z).mean())
        if "grad_abs" in sampler.records:
            torch.testing.assert_close(out.stats["grad_abs"][k], gradient(state.z).abs().mean())
    probability = torch.stack(infos)
    torch.testing.assert_close(out.stats["acceptance"], probability.mean(1))
    torch.testing.assert_close(out.acceptance, probability.mean(0))
    assert out.rung.startswith("step: ")


def test_unadjusted_chains_have_no_acceptance() -> None:
    assert sf.sample(quartic, start(), sf.Langevin(0.1), 2, key=KEY).acceptance is None
    with pytest.raises(ValueError, match=r"record knows .*; got 'acceptance'"):
        sf.sample(quartic, start(), sf.Stanley(0.1), 2, record=["acceptance"])
    with pytest.raises(ValueError, match="record knows log_density, acceptance; got 'grad_abs'"):
        sf.sample(quartic, start(), sf.MetropolisHastings(0.1), 2, record=["grad_abs"])


def test_adjusted_stanley_is_not_fused_and_says_why() -> None:
    out = sf.sample(sf.MLPEnergy(), start(4, torch.float32), sf.Stanley(0.1, adjusted=True), 1)
    assert "because every transition is accepted or rejected" in out.rung


@every_sampler
def test_gradients_that_share_memory(sampler: sf.Sampler) -> None:
    """autograd's gradient of a sum is one number, expanded; rows are copied into it."""
    out = sf.sample(lambda z: z.sum(1), start(6, torch.float32), sampler, 4, key=KEY)
    assert out.z.isfinite().all()


def test_values_that_f_keeps_are_not_written() -> None:
    z0 = start(50)
    known = quartic(z0)

    def remembers(z: Tensor) -> Tensor:
        return known if torch.equal(z, z0) else quartic(z)

    before = known.clone()
    out = sf.sample(remembers, z0, sf.MetropolisHastings(0.5), 4, key=KEY)
    assert (out.z != z0).any()
    assert torch.equal(known, before)


def test_a_random_walk_needs_no_gradient() -> None:
    def steps(z: Tensor) -> Tensor:
        """The log-density of a staircase, uniform on [0, 1): detached from z."""
        return torch.where((z >= 0) & (z < 1), 0.0, -math.inf).detach().sum(1)

    start = torch.full((4000, 1), 0.5)
    out = sf.sample(steps, start, sf.MetropolisHastings(0.4), 60, key=KEY)
    assert stats.kstest(out.z[:, 0].numpy(), "uniform").pvalue > 1e-4


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@every_sampler
def test_works_where_gradients_are_off(sampler: sf.Sampler, mode: Callable) -> None:
    wanted = sf.sample(quartic, start(), sampler, 3, key=KEY).z
    with mode():
        assert torch.equal(sf.sample(quartic, start(), sampler, 3, key=KEY).z, wanted)


@pytest.mark.parametrize("sampler", [sf.MALA(0.3), sf.MetropolisHastings(0.7)], ids=repr)
def test_compiled_f_gives_the_same_chain(sampler: sf.Sampler) -> None:
    wanted = sf.sample(quartic, start(20), sampler, 3, key=KEY).z
    got = sf.sample(quartic, start(20), sampler, 3, key=KEY, compile=True).z
    torch.testing.assert_close(got, wanted)


# Values that are not finite ----------------------------------------------------------------------


class Cliff(nn.Module):
    """Standard normal; beyond `edge` its value or its gradient is what `bad` says."""

    def __init__(self, bad: float, where: str) -> None:
        super().__init__()
        self.bad, self.where = bad, where

    def forward(self, z: Tensor) -> Tensor:
        beyond = z > 0.5
        value = -z.square() / 2
        if self.where == "value":
            return torch.where(beyond, self.bad, value).sum(1)
        return (value + torch.where(beyond, self.bad, 0.0) * (z - z.detach())).sum(1)


WHERE = [(s, "value") for s in SAMPLERS] + [(s, "gradient") for s in GRADIENT]


@pytest.mark.parametrize(("sampler", "where"), WHERE, ids=repr)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_proposals_that_are_not_finite_are_rejected(
    sampler: sf.Sampler, where: str, bad: float
) -> None:
    z = -start(300).abs()
    out = sf.sample(Cliff(bad, where), z, sampler, 20, key=KEY)
    assert (out.z <= 0.5).all()
    assert (out.z != z).any(dim=1).float().mean() > 0.8
    assert out.acceptance.isfinite().all()


@pytest.mark.parametrize(("sampler", "what"), [(s, "state") for s in SAMPLERS] + WHERE, ids=repr)
def test_a_start_that_is_not_finite_is_an_error(sampler: sf.Sampler, what: str) -> None:
    z = torch.zeros(4, 2)
    z[2] = math.nan if what == "state" else 1.0
    f: Callable = Cliff(math.inf, "gradient") if what == "gradient" else Cliff(-math.inf, "value")
    with pytest.raises(sf.NonFiniteError, match=rf"step 0 in chain 2: the {what}|chain 2: f is"):
        sf.sample(f, z, sampler, 3, key=KEY)


# Bad arguments -----------------------------------------------------------------------------------


@every_sampler
def test_half_precision_is_refused(sampler: sf.Sampler) -> None:
    for dtype in (torch.float16, torch.bfloat16):
        with pytest.raises(ValueError, match=f"z0 must be float32 or float64.*got {dtype}"):
            sf.sample(quartic, start().to(dtype), sampler, 1, key=KEY)


@every_sampler
def test_backprop_is_refused(sampler: sf.Sampler) -> None:
    name = type(sampler).__name__
    with pytest.raises(ValueError, match=f"backprop_steps must be 0 for {name}.*got 2"):
        sf.sample(quartic, start(), sampler, 3, backprop_steps=2)
    density = Density(quartic)
    density.differentiable = True
    with pytest.raises(ValueError, match=r"f.differentiable must be False"):
        sampler.init(start(), density)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: sf.MALA(0.0), "step_size must be positive and finite, got 0.0"),
        (lambda: sf.MALA(math.nan), "step_size must be positive"),
        (lambda: sf.MALA(torch.ones(2)), r"step_size must be .*0-dim .*float32 \[2\]"),
        (lambda: sf.MALA(torch.tensor(1)), r"step_size must be .*int64"),
        (lambda: sf.MetropolisHastings(-1.0), "scale must be positive and finite, got -1.0"),
        (lambda: sf.HMC(math.inf, 3), "step_size must be positive and finite, got inf"),
        (lambda: sf.HMC(0.1, 0), "leapfrog_steps must be 1 or more, got 0"),
        (lambda: sf.HMC(0.1, 2, mass=torch.tensor([1.0, 0.0])), r"mass must be positive.*0.0\]"),
        (lambda: sf.HMC(0.1, 2, mass=torch.tensor(math.nan)), "mass must be positive"),
        (lambda: sf.Stanley(0.1, 1.0, 0.0, adjusted=True), "noise_scale must be positive"),
        (lambda: sf.Stanley(0.1, clamp=(0, 1), adjusted=True), r"clamp must be None.*\(0, 1\)"),
        (lambda: sf.Stanley(0.1, update="script", adjusted=True), "update must be 'paper'.*script"),
        (lambda: sf.Stanley(0.1, torch.tensor(1.0)), "step_size must be a number, got a tensor"),
    ],
)
def test_bad_settings(make: Callable, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_a_mass_of_another_shape() -> None:
    for mass in (torch.ones(3), torch.ones(2, 1)):
        with pytest.raises(ValueError, match=r"mass must broadcast to a chain's shape \[2\]"):
            sf.sample(quartic, start(), sf.HMC(0.1, 2, mass=mass), 1)


@pytest.mark.parametrize("f", [Banana(), Ring()], ids=["banana", "ring"])
def test_a_loop_of_one_s_own_is_sample(f: nn.Module) -> None:
    """The protocol as the docs show it, without no_grad and with parameters that ask."""
    z0, sampler, density = f.sample(20, sf.key(3)).requires_grad_(), sf.MALA(0.05), Density(f)
    with density.eval_mode(), density.frozen_parameters():
        state = sampler.init(z0, density)
        for k in range(4):
            state, _ = sampler.step(state, density, KEY, k)
    assert torch.equal(state.z, sf.sample(f, z0, sampler, 4, key=KEY).z)
