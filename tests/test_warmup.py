"""warm_up(): it ends at the acceptance asked for, with a number, and changes nothing else."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import stanley_fast as sf
from stanley_fast.targets import Gaussian
from stanley_fast.warmup import _DualAveraging

pytestmark = pytest.mark.usefixtures("one_thread")

F = Gaussian(torch.logspace(0, -1, 10))
KEY = sf.key(3)


def start(dtype: torch.dtype = torch.float32) -> Tensor:
    return F.sample(100, sf.key(1)).to(dtype)


# First guesses far too large and far too small.
SAMPLERS = [
    sf.MALA(30.0),
    sf.MALA(1e-6),
    sf.MetropolisHastings(1e-4),
    sf.MetropolisHastings(10.0),
    sf.Stanley(5.0, 10.0, adjusted=True),
    sf.Stanley(5.0, 1e-4, adjusted=True, norm="sample"),
]


@pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_meets_its_target(sampler: Any, dtype: torch.dtype) -> None:
    name, target = sampler.tuned
    tuned, warm = sf.warm_up(F, start(dtype), sampler, 250, key=KEY)
    assert type(getattr(tuned, name)) is float
    assert dataclasses.replace(tuned, **{name: getattr(sampler, name)}) == sampler
    out = sf.sample(F, warm.z, tuned, 100, key=warm.key)
    # The mean of 10 000 dependent probabilities wanders by about 0.01.
    assert float(out.acceptance.mean()) == pytest.approx(target, abs=0.03)


def test_the_target_may_be_told() -> None:
    for target in (0.4, 0.9):
        tuned, warm = sf.warm_up(F, start(), sf.MALA(0.1), 250, key=KEY, target=target)
        out = sf.sample(F, warm.z, tuned, 100, key=warm.key)
        assert float(out.acceptance.mean()) == pytest.approx(target, abs=0.03)


def test_hmc() -> None:
    """Near the limit of stability acceptance falls steeply: what is found is above the target."""
    tuned, warm = sf.warm_up(F, start(), sf.HMC(2.0, 5), 250, key=KEY)
    out = sf.sample(F, warm.z, tuned, 100, key=warm.key)
    assert 0.55 < float(out.acceptance.mean()) < 0.95
    assert 0.1 < tuned.step_size < 0.2  # the leapfrog is stable below 2 * 0.1


def test_what_it_finds_does_not_depend_on_the_first_guess() -> None:
    found = [sf.warm_up(F, start(), sf.MALA(g), 400, key=KEY)[0].step_size for g in (1e-3, 1.0)]
    assert found[0] == pytest.approx(found[1], rel=0.1)


def test_the_chain_it_returns() -> None:
    z0 = start()
    before = z0.clone()
    _, warm = sf.warm_up(F, z0, sf.MALA(0.5), 50, key=KEY)
    assert torch.equal(z0, before)
    assert warm.key.tolist() == [3, 50 * 250]
    assert set(warm.stats) == {"acceptance", "step_size"}
    assert warm.stats["step_size"].shape == warm.stats["acceptance"].shape == (50,)
    assert float(warm.stats["step_size"][0]) == 0.5
    assert float(warm.stats["step_size"][-1]) < 0.1
    assert warm.acceptance.shape == (100,)
    assert float(warm.acceptance.mean()) == pytest.approx(float(warm.stats["acceptance"].mean()))
    again = sf.warm_up(F, z0, sf.MALA(0.5), 50, key=KEY)[1]
    assert torch.equal(again.z, warm.z)


def test_the_first_transition_is_the_first_guess_s() -> None:
    _, warm = sf.warm_up(F, start(), sf.MALA(0.02), 1, key=KEY)
    assert torch.equal(warm.z, sf.sample(F, start(), sf.MALA(0.02), 1, key=KEY).z)


def test_dual_averaging_by_its_formulas() -> None:
    """Hoffman and Gelman 2014, Eq. 6 and below it, with their constants."""
    averaging = _DualAveraging(0.3, 0.6, torch.zeros(1))
    mu, h, log_mean = torch.tensor(3.0).double().log(), 0.0, 0.0
    for t in range(1, 30):
        accepted = torch.tensor(0.5 + 0.4 * (-1) ** t, dtype=torch.float64)
        h = (1 - 1 / (t + 10)) * h + (0.6 - accepted) / (t + 10)
        log_step = mu - t**0.5 / 0.05 * h
        log_mean = t**-0.75 * log_step + (1 - t**-0.75) * log_mean
        torch.testing.assert_close(averaging.update(t, accepted), log_step.exp())
    torch.testing.assert_close(averaging.mean, log_mean)


class Net(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(10, 1), nn.Dropout(0.5), nn.Flatten(0))

    def forward(self, z: Tensor) -> Tensor:
        return super().forward(z) - z.square().sum(1)


def test_a_module_is_put_back() -> None:
    f = Net()
    seen = []
    f[0].register_forward_hook(lambda m, *_: seen.append((m.training, m.weight.requires_grad)))
    sf.warm_up(f, start(), sf.MALA(0.1), 3, key=KEY)
    assert set(seen) == {(False, False)}
    assert f.training
    assert f[0].weight.requires_grad


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"sampler": sf.Langevin(0.1)}, TypeError, "sampler must accept or reject.*Langevin"),
        ({"sampler": sf.Stanley(0.1)}, TypeError, "sampler must accept or reject.*Stanley"),
        ({"sampler": 0.1}, TypeError, "sampler must accept or reject.*0.1"),
        (
            {"sampler": sf.Stanley(0.1, adjusted=True, stepsize="frozen")},
            ValueError,
            "stepsize must be 'adaptive'.*'frozen'",
        ),
        ({"steps": 0}, ValueError, "steps must be 1 or more, got 0"),
        ({"target": 1.0}, ValueError, r"target must be in \(0, 1\), got 1.0"),
        ({"z0": torch.zeros(0, 10)}, ValueError, r"at least one chain.*\[0, 10\]"),
        ({"z0": torch.zeros(4, 10).long()}, RuntimeError, "z0 must be float32"),
        ({"z0": torch.zeros(4, 10).half()}, ValueError, "z0 must be float32 or float64"),
        ({"key": torch.zeros(2)}, RuntimeError, "key must be an int64 tensor"),
    ],
)
def test_bad_arguments(changed: dict[str, Any], error: type[Exception], message: str) -> None:
    good = {"f": F, "z0": start(), "sampler": sf.MALA(0.1), "steps": 3, "key": KEY}
    with pytest.raises(error, match=message):
        sf.warm_up(**good | changed)
