"""The trainer is Algorithm 1, and writes what it says."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from training import ADAM, BATCH, K, make, net, rows, weights

import stanley_fast as sf
from stanley_fast import checkpoint
from stanley_fast.chain import sample
from stanley_fast.energies import MLPEnergy, Rings
from stanley_fast.samplers import Stanley
from stanley_fast.starts import DataStart, NoiseStart, ReplayBuffer, Start
from stanley_fast.trainer import BLOCKS_PER_ITERATION, Trainer

pytestmark = pytest.mark.usefixtures("one_thread")

# Algorithm 1 ---------------------------------------------------------------------------------


def by_hand(iterations: int, learning_rate: float, weigh: Callable = lambda f: 0.0) -> MLPEnergy:
    """Algorithm 1 with line 10's plain ascent, from the paper and the keys' contract alone."""
    f, rings = net(), Rings()
    chain_key, data_key, start_key = sf.split(sf.key(5), 3)
    for t in range(iterations):
        moved = torch.tensor([0, t * BLOCKS_PER_ITERATION])
        x = rings.sample(BATCH, data_key + moved)  # line 8
        z = 2 * sf.normal((BATCH, 2), start_key + moved, stream=2)  # z_0
        for k in range(K):  # lines 3 to 7
            z.requires_grad_()
            (grad,) = torch.autograd.grad(f(z).sum(), z)
            z = sf.stanley_step(
                z.detach(), grad, chain_key + moved, k, threshold=0.1, noise_scale=0.15
            )
        values = f(torch.cat([x, z]))
        log_likelihood = values[:BATCH].mean() - values[BATCH:].mean() - weigh(values)
        grads = torch.autograd.grad(log_likelihood, list(f.parameters()))  # line 9
        with torch.no_grad():
            for p, g in zip(f.parameters(), grads, strict=True):
                p += learning_rate * g  # line 10
    return f


def sgd(parameters: object) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, 0.1)  # type: ignore[arg-type]


def test_is_algorithm_1() -> None:
    trainer = make(optimizer=sgd)
    trainer.fit(5)
    # The sign is turned twice and sums are the same: equal, but for the order of one addition.
    torch.testing.assert_close(weights(trainer.f), weights(by_hand(5, 0.1)), rtol=1e-5, atol=1e-7)
    assert not torch.allclose(weights(trainer.f), weights(net()), atol=1e-3)


def test_energy_l2() -> None:
    trainer = make(optimizer=sgd, energy_l2=2.0)
    trainer.fit(5)
    wanted = weights(by_hand(5, 0.1, lambda values: 2.0 * values.square().mean()))
    torch.testing.assert_close(weights(trainer.f), wanted, rtol=1e-5, atol=1e-7)
    assert not torch.allclose(wanted, weights(by_hand(5, 0.1)), atol=1e-4)


def test_grad_clip() -> None:
    free, clipped = make(optimizer=sgd), make(optimizer=sgd, grad_clip=0.01)
    free.fit(1)
    clipped.fit(1)
    start = weights(net())
    # An SGD step is the learning rate times the gradient.
    assert (weights(free.f) - start).norm() > 0.1 * 0.011
    assert float((weights(clipped.f) - start).norm()) == pytest.approx(0.1 * 0.01, rel=1e-3)
    assert clipped.metrics["grad_norm"] == free.metrics["grad_norm"]  # before clipping


def test_metrics_of_an_iteration() -> None:
    trainer = make(log_every=3)
    trainer.fit(2)
    f = net()
    f.load_state_dict(trainer.f.state_dict())
    keys = trainer.keys.clone()
    trainer.fit(3)
    x = Rings().sample(BATCH, keys[1])
    f.requires_grad_(False)
    z0 = NoiseStart(2.0).start(BATCH, keys[2], x)
    names = ("grad_abs", "stepsize", "at_max_stepsize")
    chain = sample(f, z0, trainer.sampler, K, key=keys[0], record=names)
    wanted = {
        "gap": float(f(x).mean() - f(chain.z).mean()),
        "loss": float(f(chain.z).mean() - f(x).mean()),
        "f_data": float(f(x).mean()),
        "f_chain": float(f(chain.z).mean()),
        **{name: float(chain.stats[name].mean()) for name in names},
    }
    assert trainer.metrics.pop("grad_norm") > 0
    assert trainer.metrics == pytest.approx(wanted, rel=1e-5, abs=1e-7)


class Spy:
    """Data that are kept as they were drawn; f sees them through the trainer."""

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def __call__(self, n: int, key: Tensor) -> Tensor:
        self.seen.append(Rings().sample(n, key))
        return self.seen[-1]


def test_data_noise() -> None:
    class Keep(MLPEnergy):
        first: Tensor

        def forward(self, z: Tensor) -> Tensor:
            if len(z) == 2 * 2_000:
                self.first = z[:2_000].detach()
            return super().forward(z)

    seen: list[Tensor] = []

    def data(n: int, key: Tensor) -> Tensor:
        seen.append(sf.normal((n, 2), key, stream=2))  # the stream that is data's
        return seen[-1]

    f = Keep((2, 4, 1))
    make(f, data=data, data_noise=0.5, batch_size=2_000).fit(1)
    noise = f.first - seen[0]
    # 4 000 normals: the mean's error is 0.5 / sqrt(n), the standard deviation's 0.5 / sqrt(2 n).
    assert abs(noise.mean()) < 4 * 0.5 / math.sqrt(4_000)
    assert abs(noise.std() - 0.5) < 4 * 0.5 / math.sqrt(8_000)
    correlation = float((noise * seen[0]).mean() / noise.std() / seen[0].std())
    assert abs(correlation) < 4 / math.sqrt(4_000)  # it uses noise of its own


def test_every_iteration_draws_anew() -> None:
    spy = Spy()
    make(data=spy).fit(4)
    assert len(torch.cat(spy.seen).unique(dim=0)) == 4 * BATCH


def test_minibatches_of_a_tensor_are_uniform_with_replacement() -> None:
    n, batch = 50, 10_000
    data = torch.arange(float(n))[:, None].repeat(1, 2)
    x = make(data=data, batch_size=batch).feed.draw(batch, iteration=0)
    assert x.shape == (batch, 2)
    counts = torch.bincount(x[:, 0].long(), minlength=n)
    # Chi-square with n - 1 = 49 degrees of freedom: mean 49, standard deviation 9.9.
    statistic = float(((counts - batch / n).square() / (batch / n)).sum())
    assert abs(statistic - (n - 1)) < 4 * math.sqrt(2 * (n - 1))


def test_the_key_decides_and_stays() -> None:
    key = sf.key(5)
    one, two, other = make(key=key), make(key=key), make(key=sf.key(6))
    for trainer in (one, two, other):
        trainer.fit(3)
    assert torch.equal(weights(one.f), weights(two.f))
    assert not torch.equal(weights(one.f), weights(other.f))
    assert key.tolist() == [5, 0]


@pytest.mark.parametrize("start", [DataStart(), ReplayBuffer(40)], ids=["data", "persistent"])
def test_chains_start_where_told(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """And persistent chains hear where they ended."""
    seen: list[tuple[Tensor, Tensor]] = []

    def spying(f: nn.Module, z0: Tensor, *args: object, **settings: object) -> object:
        out = sample(f, z0, *args, **settings)  # type: ignore[arg-type]
        seen.append((z0, out.z))
        return out

    monkeypatch.setattr("stanley_fast.algorithm.sample", spying)
    spy = Spy()
    make(data=spy, start=start).fit(3)
    if isinstance(start, DataStart):
        assert all(torch.equal(z0, x) for (z0, _), x in zip(seen, spy.seen, strict=True))
    else:
        assert torch.isin(seen[-1][1], start.chains).all()


def test_it_learns() -> None:
    """A Gaussian away from where the chains start: they are at the data in the end."""
    mean = torch.tensor([1.5, -0.5])
    data = mean + 0.3 * sf.normal((2_000, 2), sf.key(9), stream=2)
    settings = {"steps": 30, "batch_size": 64, "sampler": Stanley(0.1, noise_scale=0.1)}
    trainer = make(data=data, start=NoiseStart(), **settings)

    def chain_mean() -> Tensor:
        z0 = NoiseStart().start(500, sf.key(10), data)
        return sample(trainer.f, z0, trainer.sampler, 30, key=sf.key(11)).z.mean(0)

    assert (chain_mean() - mean).norm() > 1
    trainer.fit(300)
    assert (chain_mean() - mean).norm() < 0.25


@pytest.mark.parametrize("given", [ADAM, lambda p: torch.optim.AdamW(p, 1e-3), torch.optim.RMSprop])
def test_any_optimizer_made_or_to_make(given: Callable) -> None:
    one = make(optimizer=given)
    f = net()
    two = make(f, optimizer=given(f.parameters()))
    for trainer in (one, two):
        trainer.fit(3)
    assert torch.equal(weights(one.f), weights(two.f))
    assert not torch.equal(weights(f), weights(net()))


# What it writes ------------------------------------------------------------------------------


def test_metrics_csv(tmp_path: Path) -> None:
    calls: list[int] = []

    def evaluate(trainer: Trainer) -> dict[str, float]:
        calls.append(trainer.iteration)
        return {"quality": trainer.iteration / 10}

    trainer = make(folder=tmp_path, evaluate=evaluate, evaluate_every=6, log_every=4)
    trainer.fit(14)
    assert calls == [0, 6, 12]
    table = rows(tmp_path)
    assert [r["iteration"] for r in table] == ["0", "4", "6", "8", "12"]
    assert [r["quality"] for r in table] == ["0.0", "", "0.6", "", "1.2"]
    assert [bool(r["gap"]) for r in table] == [False, True, True, True, True]
    assert [bool(r["stepsize"]) for r in table] == [False, True, False, True, True]
    assert list(table[0]) == [
        "iteration", "gap", "loss", "f_data", "f_chain", "grad_norm", "grad_abs", "stepsize",
        "at_max_stepsize", "quality",
    ]  # fmt: skip


def test_no_folder_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make().fit(12)
    assert os.listdir(tmp_path) == []


def test_checkpoints_come_when_due(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[int] = []
    save = checkpoint.save

    def spying(path: Path, state: dict) -> None:
        written.append(state["iteration"])
        save(path, state)

    monkeypatch.setattr(checkpoint, "save", spying)
    make(folder=tmp_path, notes={"preset": "rings"}).fit(25)
    assert written == [0, 10, 20, 25]
    assert checkpoint.load(tmp_path / "checkpoint.pt")["notes"] == {"preset": "rings"}


def test_progress_bar(capfd: pytest.CaptureFixture[str]) -> None:
    make(progress=True).fit(12)
    out, err = capfd.readouterr()
    assert out == ""
    assert re.search(r"12/12.*it/s.*gap [+-]\d+\.\d{3}", err)
    make(progress=False).fit(2)
    assert capfd.readouterr() == ("", "")


# Bad arguments -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"f": lambda z: z}, TypeError, "f must be an nn.Module"),
        ({"data": [1, 2]}, TypeError, "data must be a tensor"),
        ({"data": torch.zeros(0, 2)}, ValueError, "data must hold at least one observation"),
        ({"sampler": 0.1}, TypeError, "sampler must be a Sampler"),
        ({"start": "noise"}, TypeError, "start must be a Start"),
        ({"steps": 0}, ValueError, "steps must be 1 or more, got 0"),
        ({"batch_size": 0}, ValueError, "batch_size must be 1 or more"),
        ({"batch_size": 2.5}, ValueError, "batch_size must be an integer, got 2.5"),
        ({"optimizer": "adam"}, TypeError, "optimizer must be .* got 'adam'"),
        ({"checkpoint_every": 0}, ValueError, "checkpoint_every must be 1 or more"),
        ({"log_every": -1}, ValueError, "log_every must be 1 or more"),
        ({"evaluate_every": 0}, ValueError, "evaluate_every must be 1 or more"),
        ({"data_noise": -0.1}, ValueError, "data_noise must be 0 or more"),
        ({"energy_l2": math.nan}, ValueError, "energy_l2 must be 0 or more"),
        ({"grad_clip": 0.0}, ValueError, "grad_clip must be positive, got 0.0"),
        ({"max_gap": math.nan}, ValueError, "max_gap must be positive"),
        ({"key": torch.zeros(2)}, RuntimeError, "key must be an int64 tensor"),
    ],
)
def test_bad_arguments(settings: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make(**settings)


def test_data_that_give_too_few() -> None:
    with pytest.raises(ValueError, match=r"data\(16, key\) must return \(16, ...\), got \[15, 2\]"):
        make(data=lambda n, key: Rings().sample(n - 1, key)).fit(1)
