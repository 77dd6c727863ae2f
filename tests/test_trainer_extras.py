"""Averaged weights, learning rates over the training, bfloat16; and resuming with all of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from training import BATCH, ByStep, K, assert_equal, by_step, make, net, weights

from stanley_fast import algorithm, checkpoint
from stanley_fast.algorithm import Algorithm
from stanley_fast.chain import Chain, sample
from stanley_fast.energies import MLPEnergy, Rings
from stanley_fast.metropolis import MALA
from stanley_fast.schedules import warm_up_and_decay
from stanley_fast.starts import NoiseStart, ReplayBuffer
from stanley_fast.trainer import Trainer

pytestmark = pytest.mark.usefixtures("one_thread")


def sgd(parameters: object) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, 0.1, momentum=0.5)  # type: ignore[arg-type]


# Averaged weights --------------------------------------------------------------------------------


def test_ema_is_the_recursion() -> None:
    averaged, plain = make(optimizer=sgd, ema=0.9), make(optimizer=sgd)
    assert torch.equal(weights(averaged.model), weights(net()))  # of f as it begins
    average = None
    for t in range(1, 8):
        averaged.fit(t)
        plain.fit(t)
        now = weights(averaged.f)
        assert torch.equal(now, weights(plain.f))  # it changes nothing about f
        average = now if average is None else 0.9 * average + 0.1 * now
        torch.testing.assert_close(weights(averaged.model), average, rtol=1e-6, atol=1e-7)
    assert not torch.allclose(weights(averaged.model), weights(averaged.f), atol=1e-4)


def test_without_ema_the_model_is_f() -> None:
    plain = make()
    assert plain.model is plain.f


def test_the_average_takes_buffers_as_they_are() -> None:
    class Scaled(ByStep):
        def __init__(self) -> None:
            super().__init__((2, 8, 1))
            self.register_buffer("calls", torch.tensor(0))

        def forward(self, z: Tensor) -> Tensor:
            self.calls += 1
            return super().forward(z)

    run = make(Scaled(), ema=0.5)
    run.fit(3)
    assert run.f.calls == 3 * (K + 1)
    assert run.model.calls == run.f.calls


def test_evaluate_sees_the_average() -> None:
    seen: list[Tensor] = []

    def evaluate(run: Trainer) -> dict[str, float]:
        seen.append(weights(run.model))
        return {}

    run = make(ema=0.5, evaluate=evaluate, evaluate_every=4)
    run.fit(4)
    assert torch.equal(seen[0], weights(net()))
    assert torch.equal(seen[1], weights(run.updates.average.module))
    assert not torch.equal(seen[1], weights(run.f))


# The schedule ------------------------------------------------------------------------------------

FACTORS = [0.5, 0.0, 1.0, 2.0, 0.25]


def test_a_factor_is_of_its_iteration() -> None:
    """As if the learning rate were set by hand before each."""
    scheduled = make(optimizer=sgd, schedule=lambda t: FACTORS[t])
    by_hand = make(optimizer=sgd)
    for t, factor in enumerate(FACTORS):
        scheduled.fit(t + 1)
        for group in by_hand.optimizer.param_groups:
            group["lr"] = 0.1 * factor
        by_hand.fit(t + 1)
        assert torch.equal(weights(scheduled.f), weights(by_hand.f)), t


def test_groups_keep_their_own_rates() -> None:
    def optimizer(parameters: object) -> torch.optim.Optimizer:
        first, *rest = parameters  # type: ignore[misc]
        return torch.optim.SGD([{"params": [first], "lr": 0.3}, {"params": rest}], 0.1)

    run = make(optimizer=optimizer, schedule=lambda t: FACTORS[t])
    run.fit(1)
    assert [group["lr"] for group in run.optimizer.param_groups] == [0.15, 0.05]


def test_a_longer_run_resumed_has_its_own_schedule(tmp_path: Path) -> None:
    """Its first rate too: not the last one of the shorter run."""

    def run(iterations: int) -> Trainer:
        schedule = warm_up_and_decay(iterations, decay=0.5, final=0.0)
        return make(optimizer=sgd, schedule=schedule, folder=tmp_path)

    run(10).fit(10)
    longer = run(40)
    longer.resume()
    longer.fit(11)
    assert longer.optimizer.param_groups[0]["lr"] == 0.1
    # and may have other rates
    longer.updates.rates = [0.2]
    longer.fit(12)
    assert longer.optimizer.param_groups[0]["lr"] == 0.2


# bfloat16 ----------------------------------------------------------------------------------------


class Dtypes(ByStep):
    """Keeps the dtypes that it meets, by batch size: a chain's, or twice that in line 9."""

    def __init__(self) -> None:
        super().__init__((2, 16, 16, 1))
        self.seen: dict[int, set[tuple[torch.dtype, ...]]] = {}

    def forward(self, z: Tensor) -> Tensor:
        hidden = self.net[0](z)
        f = super().forward(z)
        self.seen.setdefault(len(z), set()).add((z.dtype, hidden.dtype, f.dtype))
        return f


def test_autocast_is_of_f_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    backward, chains = Algorithm._backward, []

    def spying(self: Algorithm, loss: Tensor, values: Tensor, *rest: Any) -> Tensor:
        assert loss.dtype == values.dtype == torch.float32
        return backward(self, loss, values, *rest)

    def sampling(*args: object, **settings: object) -> Chain:
        chains.append(sample(*args, **settings))  # type: ignore[arg-type]
        return chains[-1]

    monkeypatch.setattr(Algorithm, "_backward", spying)
    monkeypatch.setattr(algorithm, "sample", sampling)
    f = Dtypes()
    buffer = ReplayBuffer(40, NoiseStart(2.0))
    make(f, autocast=True, energy_l2=0.1, start=buffer).fit(5)
    half = (torch.float32, torch.bfloat16, torch.bfloat16)
    assert f.seen == {BATCH: {half}, 2 * BATCH: {half}}
    assert buffer.chains is not None
    assert buffer.chains.dtype == torch.float32
    assert {chain.z.dtype for chain in chains} == {torch.float32}
    assert {p.dtype for p in f.parameters()} == {torch.float32}


def test_without_autocast_all_is_float32() -> None:
    f = Dtypes()
    make(f).fit(1)
    assert f.seen == {n: {(torch.float32,) * 3} for n in (BATCH, 2 * BATCH)}


@pytest.mark.parametrize("f", [net, by_step], ids=["a net that kernels know", "by step"])
def test_autocast_reaches_every_net(f: Callable[[], MLPEnergy]) -> None:
    half, full = make(f(), autocast=True), make(f())
    half.fit(1)
    full.fit(1)
    assert half.metrics["f_data"] != full.metrics["f_data"]
    # 8 bits of mantissa, in three layers and the mean.
    assert half.metrics["f_data"] == pytest.approx(full.metrics["f_data"], rel=0.02)


def test_autocast_is_not_for_samplers_that_compare_values() -> None:
    with pytest.raises(ValueError, match="autocast must be off for MALA"):
        make(sampler=MALA(0.1), autocast=True).fit(1)


# Resuming ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("stop", [3, 7, 10, 17])
def test_a_resumed_run_is_the_whole_run(tmp_path: Path, stop: int, autocast: bool) -> None:
    """Average, schedule and persistent chains included, bit for bit."""

    def run(folder: str, stop: int | None = None) -> Trainer:
        def data(n: int, key: Tensor) -> Tensor:
            if run.iteration == stop:
                raise InterruptedError
            return Rings().sample(n, key)

        torch.manual_seed(1)
        run = make(
            data=data, start=ReplayBuffer(40, NoiseStart(2.0), 0.1), folder=tmp_path / folder,
            ema=0.9, schedule=warm_up_and_decay(24, warm_up=5, decay=0.5, final=0.1),
            autocast=autocast, keep=2, best_by="size", evaluate_every=4,
            evaluate=lambda t: {"size": abs(float(weights(t.model).sum()))},
        )  # fmt: skip
        return run

    whole = run("whole")
    whole.fit(24)
    with pytest.raises(InterruptedError):
        run("parts", stop).fit(24)
    torch.manual_seed(99)  # another process
    second = run("parts")
    second.resume()
    assert second.iteration == stop // 10 * 10
    second.fit(24)
    assert torch.equal(weights(second.f), weights(whole.f))
    assert torch.equal(weights(second.model), weights(whole.model))
    folders = [tmp_path / "whole", tmp_path / "parts"]
    names = [sorted(p.relative_to(f) for p in f.rglob("*.pt")) for f in folders]
    assert names[0] == names[1]
    assert len(names[0]) == 4  # checkpoint.pt, best.pt and two in checkpoints/
    for name in names[0]:
        assert_equal(*(checkpoint.load(folder / name) for folder in folders))
    csvs = [(folder / "metrics.csv").read_bytes() for folder in folders]
    assert csvs[0] == csvs[1]


def test_one_with_an_average_does_not_resume_one_without(tmp_path: Path) -> None:
    make(folder=tmp_path).fit(1)
    before = weights(net(1))
    run = make(net(1), folder=tmp_path, ema=0.9)
    with pytest.raises(checkpoint.CheckpointError, match=r"another run: .* \(ema\), the other has"):
        run.resume()
    assert torch.equal(weights(run.f), before)


# Bad arguments -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"ema": 1.0}, ValueError, r"ema must be in \(0, 1\) or None, got 1.0"),
        ({"ema": 0}, ValueError, r"ema must be in \(0, 1\)"),
        ({"ema": math.nan}, ValueError, r"ema must be in \(0, 1\)"),
        ({"schedule": 0.5}, TypeError, "schedule must be iteration -> factor, or None, got 0.5"),
        ({"keep": 0}, ValueError, "keep must be 1 or more, got 0"),
        ({"rollbacks": -1}, ValueError, "rollbacks must be 0 or more, got -1"),
        ({"rollbacks": 1}, ValueError, "rollbacks must be 0 without a folder, got 1"),
        ({"best_by": "fid"}, ValueError, "best_by must be None without evaluate, got 'fid'"),
    ],
)
def test_bad_arguments(settings: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make(**settings)
