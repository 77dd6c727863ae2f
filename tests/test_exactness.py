"""The adjusted samplers have the law exp(f): moments, marginals, modes, ranks, balance; and where a
term of the acceptance is left out, they do not.

Bounds follow from the number of independent draws. Each check is passed by a right sampler with
probability above 1 - 1e-5, so that with fixed seeds a failure is an error.
"""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

import stanley_fast as sf
from stanley_fast import metropolis_ops
from stanley_fast.energies import Ring
from stanley_fast.targets import Banana, Funnel, Gaussian

pytestmark = pytest.mark.usefixtures("one_thread")

SIGMA = 4.5  # a normal is beyond it with probability 7e-6
ALPHA = 1e-5

# Gaussians of condition 16 and 10^4; unequal modes; a ring; the banana and a mild funnel.
SCALES = torch.logspace(0, -2, 4)
ANGLE = torch.arange(8) * (math.pi / 4)
MODES = sf.GaussianMixture(
    torch.stack([ANGLE.cos(), ANGLE.sin()], dim=1), 0.15, weights=torch.arange(1.0, 9.0)
)
TARGETS: dict[str, nn.Module] = {
    "gaussian": Gaussian([1.0, 0.5, 0.25]),
    "condition": Gaussian(SCALES),
    "modes": MODES,
    "ring": Ring(),
    "banana": Banana(),
    "funnel": Funnel(3, 1.5),
}

# Step sizes that accept between a third and nine in ten; lengths of MALA and STANLEY are squares.
LENGTH = {
    "gaussian": 0.35, "condition": 0.014, "modes": 0.18, "ring": 0.18, "banana": 0.5, "funnel": 0.5,
}  # fmt: skip


def make(name: str, target: str) -> sf.Sampler:
    length = LENGTH[target]
    gradient = 1.0 / length  # the size of a gradient that matters at this length
    return {
        "mala": lambda: sf.MALA(length**2),
        "mh": lambda: sf.MetropolisHastings(1.3 * length),
        "hmc": lambda: sf.HMC(0.7 * length, 5),
        "mass": lambda: sf.HMC(0.7, 3, mass=TARGETS[target].variance.reciprocal().float()),
        "stanley": lambda: sf.Stanley(gradient / 2, length**2, adjusted=True),
        "small noise": lambda: sf.Stanley(gradient, 2 * length**2, 0.8, adjusted=True),
        "channel": lambda: sf.Stanley(gradient, length**2, adjusted=True, norm="channel"),
        "sample": lambda: sf.Stanley(gradient, length**2, adjusted=True, norm="sample"),
    }[name]()


EVERY = ("mala", "mh", "hmc", "stanley", "small noise", "channel", "sample")


def statistics(target: str, z: Tensor) -> dict[str, Tensor]:
    """What is compared with exact draws: each coordinate, and what makes the target itself."""
    found = {f"coordinate {i}": z[:, i] for i in range(z.shape[1])}
    found["log-density"] = TARGETS[target](z)
    if target in ("ring", "modes"):
        found["radius"] = z.norm(dim=1)
        found["angle"] = torch.atan2(z[:, 1], z[:, 0])
    return found


def ks_bound(n: float, m: float = math.inf) -> float:
    """Kolmogorov and Smirnov's distance of n draws from m stays below, but with chance ALPHA."""
    return math.sqrt(math.log(2 / ALPHA) / 2 * (1 / n + 1 / m))


def ks_distance(x: Tensor, y: Tensor) -> float:
    return float(stats.ks_2samp(x.double().numpy(), y.double().numpy()).statistic)


def after(sampler: sf.Sampler, target: str, chains: int, steps: int) -> tuple[Tensor, sf.Chain]:
    """The states that `steps` transitions make of independent exact draws."""
    start = TARGETS[target].sample(chains, sf.key(11))
    chain = sf.sample(TARGETS[target], start, sampler, steps, key=sf.key(12))
    return start, chain


# Exact draws stay exact draws --------------------------------------------------------------------


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", EVERY)
def test_the_target_is_invariant(name: str, target: str) -> None:
    """Chains that start as independent exact draws end as such, whether or not they mix."""
    chains = 4000
    start, chain = after(make(name, target), target, chains, 25)
    assert 0.25 < chain.acceptance.mean() < 0.97
    truth = TARGETS[target].sample(100_000, sf.key(13))
    bound = ks_bound(chains, len(truth))  # 0.040
    wanted = statistics(target, truth)
    for what, values in statistics(target, chain.z).items():
        assert ks_distance(values, wanted[what]) < bound, what
    assert (chain.z != start).any(dim=1).float().mean() > 0.95


@pytest.mark.parametrize("name", EVERY)
def test_moments_stay(name: str) -> None:
    """Second and fourth moments of a Gaussian, whose sampling errors are known."""
    chains = 20_000
    _, chain = after(make(name, "gaussian"), "gaussian", chains, 25)
    x = chain.z.double() / TARGETS["gaussian"].scales
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        error = (x**power).mean(dim=0) - moment
        assert error.abs().max() < SIGMA * math.sqrt(variance / chains), power


@pytest.mark.parametrize("name", ["mala", "stanley"])
def test_unadjusted_chains_fail(name: str) -> None:
    """So the checks can: the same proposals, all taken."""
    length, target = LENGTH["gaussian"], "gaussian"
    unadjusted = {"mala": sf.Langevin(length**2), "stanley": sf.Stanley(0.5 / length, length**2)}
    _, chain = after(unadjusted[name], target, 4000, 25)
    truth = statistics(target, TARGETS[target].sample(100_000, sf.key(13)))
    distances = [ks_distance(v, truth[n]) for n, v in statistics(target, chain.z).items()]
    assert max(distances) > ks_bound(4000, 100_000)


# Every term of the acceptance is needed ----------------------------------------------------------


def ratio(
    drop: str, z: Tensor, grad: Tensor, new: Tensor, new_grad: Tensor, *, threshold: float | None,
    step_size: float, noise_scale: float = 1.0, gamma: None = None, gamma_new: None = None,
) -> Tensor:  # fmt: skip
    """log q(z | z') - log q(z' | z) by its formula, without the term `drop` names."""
    z, grad, new, new_grad = (t.double() for t in (z, grad, new, new_grad))

    def at(grad: Tensor) -> Tensor:
        size = grad.abs().clamp_min(threshold)
        return step_size * threshold / size

    here, there = at(grad), at(new_grad)
    if drop == "the stepsize at z'":
        there = here
    if drop == "the drift":
        grad, new_grad = 0 * grad, 0 * new_grad
    forward = (new - z - here / 2 * grad).square() / (2 * here * noise_scale**2)
    back = (z - new - there / 2 * new_grad).square() / (2 * there * noise_scale**2)
    log = (here.log() - there.log()) / 2
    terms = {"log q(z | z')": -back, "log q(z' | z)": forward, "the log of the stepsizes": log}
    if drop == "all of q":
        terms = {"nothing": torch.zeros_like(z)}
    terms.pop(drop, None)
    return torch.stack(list(terms.values())).sum(dim=(0, 2))


DROPPED = [
    "log q(z | z')", "log q(z' | z)", "the log of the stepsizes", "the stepsize at z'", "the drift",
    "all of q",
]  # fmt: skip


@pytest.mark.parametrize("drop", ["nothing", *DROPPED])
def test_every_term_of_q_is_needed(monkeypatch: pytest.MonkeyPatch, drop: str) -> None:
    def wrong(*args: Tensor, **settings: float) -> Tensor:
        return ratio(drop, *args, **settings)

    monkeypatch.setattr(metropolis_ops, "proposal_log_ratio", wrong)
    z = Gaussian([1.0]).sample(20_000, sf.key(11))
    chain = sf.sample(Gaussian([1.0]), z, sf.Stanley(0.5, 1.0, adjusted=True), 25, key=sf.key(12))
    distance = stats.kstest(chain.z[:, 0].double().numpy(), "norm").statistic
    assert (distance > ks_bound(len(z))) == (drop != "nothing")


# Detailed balance --------------------------------------------------------------------------------


def imbalance(start: Tensor, end: Tensor, edges: Tensor) -> float:
    """p-value of the symmetry of a transition's pairs of cells (Bowker 1948)."""
    cells = len(edges) + 1
    pair = torch.bucketize(start, edges) * cells + torch.bucketize(end, edges)
    counts = torch.bincount(pair.flatten(), minlength=cells**2).reshape(cells, cells).double()
    both = counts + counts.T
    enough = (both > 10) & torch.ones_like(both, dtype=torch.bool).triu(1)
    statistic = ((counts - counts.T).square() / both)[enough].sum()
    assert enough.sum() > 10
    return float(stats.chi2.sf(float(statistic), int(enough.sum())))


SKEWED = sf.GaussianMixture(torch.tensor([[-1.0], [1.0]]), torch.tensor([0.3, 0.9]))


def pairs(sampler: sf.Sampler) -> float:
    start = SKEWED.sample(200_000, sf.key(21))
    end = sf.sample(SKEWED, start, sampler, 1, key=sf.key(22)).z
    return imbalance(start[:, 0], end[:, 0], torch.linspace(-1.8, 2.2, 9))


@pytest.mark.parametrize(
    "sampler",
    [
        sf.MALA(0.3),
        sf.MetropolisHastings(0.8),
        sf.HMC(0.4, 4),
        sf.Stanley(1.0, 0.5, adjusted=True),
        sf.Stanley(1.0, 0.5, 0.6, adjusted=True, norm="sample"),
    ],
    ids=repr,
)
def test_one_transition_is_reversible(sampler: sf.Sampler) -> None:
    """As often from cell i to cell j as from j to i."""
    assert pairs(sampler) > ALPHA


@pytest.mark.parametrize("drop", DROPPED)
def test_without_a_term_it_is_not_reversible(monkeypatch: pytest.MonkeyPatch, drop: str) -> None:
    wrong = lambda *args, **settings: ratio(drop, *args, **settings)  # noqa: E731
    monkeypatch.setattr(metropolis_ops, "proposal_log_ratio", wrong)
    assert pairs(sf.Stanley(1.0, 0.5, adjusted=True)) < ALPHA


# Chains that start elsewhere come to the target --------------------------------------------------

# Pairs that mix in a few hundred transitions. docs/samplers.md says which do not.
MIXING = [
    *((name, "gaussian") for name in EVERY),
    ("mass", "condition"),
    ("mh", "modes"), ("hmc", "modes"),
    ("mala", "ring"), ("mh", "ring"), ("hmc", "ring"), ("stanley", "ring"),
    ("hmc", "banana"), ("mh", "banana"),
    ("hmc", "funnel"),
]  # fmt: skip
MIX_LENGTH = {"mh": {"modes": 2.5, "ring": 2.0, "banana": 2.0}}


def effective(values: Tensor) -> float:
    """How many independent draws know the mean of values (steps, chains) as well.

    Chains are independent, so the variance of their means says it.
    """
    return float(values.var() / values.mean(dim=0).var() * values.shape[1])


def check_marginal(values: Tensor, truth: Tensor, what: str) -> None:
    """values (steps, chains) against draws: mean, and the Kolmogorov-Smirnov distance.

    The effective number is the smallest of the indicators of the deciles', which are what that
    distance is made of.
    """
    deciles = truth.quantile(torch.linspace(0.1, 0.9, 9))
    n = min(effective((values <= decile).double()) for decile in deciles)
    n = min(n, values.numel())
    assert n > 500, f"{what}: {n:.0f} effective draws tell nothing"
    assert ks_distance(values.flatten(), truth) < ks_bound(n, len(truth)), what
    chain_means = values.double().mean(dim=0)
    error = chain_means.std() / math.sqrt(len(chain_means))
    error = math.hypot(float(error), float(truth.double().std()) / math.sqrt(len(truth)))
    assert abs(float(chain_means.mean() - truth.double().mean())) < SIGMA * error, what


@pytest.mark.parametrize(("name", "target"), MIXING)
def test_chains_come_to_the_target(name: str, target: str) -> None:
    f, chains = TARGETS[target], 500
    sampler = make(name, target)
    if name in MIX_LENGTH and target in MIX_LENGTH[name]:
        sampler = sf.MetropolisHastings(MIX_LENGTH[name][target] * LENGTH[target])
    start = 0.5 + 0.5 * sf.normal((chains, len(f.mean)), sf.key(31), stream=2)
    burnt = sf.sample(f, start, sampler, 250, key=sf.key(32))
    chain = sf.sample(f, burnt.z, sampler, 240, key=burnt.key, keep_every=4)
    truth = statistics(target, f.sample(100_000, sf.key(33)))
    kept = chain.trace.flatten(0, 1)
    for what, values in statistics(target, kept).items():
        check_marginal(values.reshape(60, chains), truth[what], what)


@pytest.mark.parametrize("name", ["mh", "hmc"])
def test_modes_have_their_weights(name: str) -> None:
    """From one mode alone to all eight: chi^2 of the last states of independent chains."""
    sampler = sf.MetropolisHastings(0.6) if name == "mh" else sf.HMC(0.14, 6)
    start = torch.tensor([[1.0, 0.0]]).expand(1500, 2)
    z = sf.sample(MODES, start, sampler, 300, key=sf.key(41)).z
    held = torch.bincount(torch.cdist(z, MODES.means.float()).argmin(dim=1), minlength=8)
    expected = stats.chisquare(held.numpy(), (MODES.weights * len(z)).numpy())
    assert expected.pvalue > ALPHA


# Simulation-based calibration --------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mala", "mh", "hmc", "stanley", "sample"])
def test_ranks_are_uniform(name: str) -> None:
    """Talts et al. 2018: the prior's draw ranks uniformly among the posterior's given its data.

    mu ~ N(0, 1) in two dimensions, three observations N(mu, 1) each; the posterior of each of 4 000
    data sets is a chain of the batch. It starts at another draw of the prior.
    """
    sets, observations, draws = 4000, 3, 15
    mu, start = sf.normal((2, sets, 2), sf.key(51), stream=2)
    y = mu[:, None] + sf.normal((sets, observations, 2), sf.key(52), stream=2)

    def posterior(z: Tensor) -> Tensor:
        return -(z.square() + (y - z[:, None]).square().sum(dim=1)).sum(dim=1) / 2

    sampler = {
        "mala": sf.MALA(0.5),
        "mh": sf.MetropolisHastings(0.8),
        "hmc": sf.HMC(0.4, 3),
        "stanley": sf.Stanley(1.0, 0.6, adjusted=True),
        "sample": sf.Stanley(1.5, 0.6, adjusted=True, norm="sample"),
    }[name]
    thin = 12  # draws are nearly independent
    burnt = sf.sample(posterior, start, sampler, 60, key=sf.key(53))
    chain = sf.sample(posterior, burnt.z, sampler, thin * draws, key=burnt.key, keep_every=thin)
    for i in range(2):
        rank = (chain.trace[:, :, i] < mu[:, i]).sum(dim=0)
        counts = torch.bincount(rank, minlength=draws + 1)
        assert stats.chisquare(counts.numpy()).pvalue > ALPHA
