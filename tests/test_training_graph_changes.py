"""Training from CUDA graphs: what changes or fails in between, and what does not fit."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from fake_graph import FakeRecorder
from graph_training import ADAM, BUFFER, assert_same, run
from torch import Tensor, nn
from training import assert_equal, by_step, make, weights

import stanley_fast as sf
from stanley_fast import training_graph
from stanley_fast.chain import sample_without_waiting
from stanley_fast.energies import Rings
from stanley_fast.schedules import warm_up_and_decay
from stanley_fast.trainer import Trainer

pytestmark = pytest.mark.usefixtures("one_thread")


def test_what_changes_is_noticed(recorder: FakeRecorder, monkeypatch: pytest.MonkeyPatch) -> None:
    """f's numbers, at an evaluation; the optimizer's, by its user."""
    monkeypatch.setattr(training_graph, "WORTH_IT", 1)

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.by = by_step(), 1.0

        def forward(self, z: Tensor) -> Tensor:
            return self.by * self.net(z)

    def evaluate(trainer: Trainer) -> dict[str, float]:
        trainer.f.by = 1.0 + trainer.iteration  # type: ignore[assignment]
        trainer.optimizer.param_groups[0]["lr"] *= 0.5
        trainer.optimizer.param_groups[0]["betas"] = (0.9 - trainer.iteration / 100, 0.99)
        return {}

    settings = {"evaluate": evaluate, "evaluate_every": 4}
    assert_same(run(True, Scaled(), **settings), run(False, Scaled(), **settings))
    assert recorder.captures >= 5


@pytest.mark.parametrize("at", [6, 7, 12])
@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_data_that_fails_loses_nothing(
    recorder: FakeRecorder,
    monkeypatch: pytest.MonkeyPatch,
    at: int,
    error: type[BaseException],
) -> None:
    """The iterations before it count, as in a plain run; and it can go on from there."""
    monkeypatch.setattr(training_graph, "AT_ONCE", 1e9)
    ends = []
    for graph in (True, False):
        calls = []

        def data(n: int, key: Tensor, calls: list[int] = calls) -> Tensor:
            calls.append(n)
            if len(calls) == at:
                raise error
            return Rings().sample(n, key)

        schedule = warm_up_and_decay(50, warm_up=20)
        trainer = make(by_step(), optimizer=ADAM, graph=graph, data=data, ema=0.9, log_every=100,
                       schedule=schedule, start=BUFFER())  # fmt: skip
        with pytest.raises(error):
            trainer.fit(20)
        assert trainer.iteration == at - 1
        ends.append(copy.deepcopy(trainer.state_dict()))
        trainer.fit(20)
        ends.append(trainer.state_dict())
    assert_equal(ends[0], ends[2])
    assert_equal(ends[1], ends[3])


def freeze(trainer: Trainer) -> None:
    next(iter(trainer.f.parameters())).requires_grad_(False)


def refresh(trainer: Trainer) -> None:
    assert isinstance(trainer.start, sf.ReplayBuffer)
    trainer.start.fresh_share = 0.0


def hook(trainer: Trainer) -> None:
    next(iter(trainer.f.parameters())).register_hook(lambda grad: 2 * grad)


@pytest.mark.parametrize("change", [freeze, refresh, hook])
def test_changes_between_two_fits_are_noticed(
    recorder: FakeRecorder, change: Callable[[Trainer], None]
) -> None:
    ends = []
    for graph in ("auto", False):
        trainer = make(by_step(), optimizer=ADAM, graph=graph, start=BUFFER())
        trainer.fit(4)
        change(trainer)
        trainer.fit(17)
        ends.append(trainer)
    assert_same(*ends)
    assert ("a parameter has hooks" in ends[0].rung) == (change is hook)


def test_another_group_is_a_reason(recorder: FakeRecorder) -> None:
    trainer = run("auto", n=4)
    trainer.optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))]})
    trainer.updates.rates.append(1e-3)
    trainer.fit(6)
    assert trainer.rung.endswith("because the optimizer has got another group")


def test_resumed_with_an_optimizer_that_is_not_fused(recorder: FakeRecorder) -> None:
    """Which is a setting of the checkpoint's."""
    other = make(by_step(), optimizer=partial(torch.optim.Adam, lr=1e-3))
    other.fit(3)
    trainer = run("auto", n=4)
    trainer.load_state_dict(other.state_dict())
    trainer.fit(8)
    assert "none of Adam, AdamW, SGD with fused=True" in trainer.rung


def test_captures_that_do_not_pay_end_it(recorder: FakeRecorder) -> None:
    def evaluate(trainer: Trainer) -> dict[str, float]:
        trainer.f.seen = trainer.iteration  # type: ignore[assignment]
        return {}

    trainer = make(by_step(), optimizer=ADAM, evaluate=evaluate, evaluate_every=1, log_every=1000)
    trainer.fit(30)
    assert trainer.rung.endswith("because what it computes with changes again and again")
    assert trainer.iteration == 30


def test_chains_without_waiting_are_those_of_sample() -> None:
    """Where the chain is one kernel, too."""
    sampler, z0 = sf.Stanley(0.1, noise_scale=0.2), sf.normal((10, 2), sf.key(1))
    for f in (sf.MLPEnergy((2, 16, 1)), by_step()):
        rung = "chain" if isinstance(f, sf.MLPEnergy) and type(f) is sf.MLPEnergy else "step"
        want = sf.sample(f, z0, sampler, 5, key=sf.key(2), record=sampler.records)
        assert want.rung.startswith(rung)
        z, stats, finite = sample_without_waiting(
            f, z0, sampler, 5, key=sf.key(2), record=sampler.records
        )
        assert torch.equal(z, want.z)
        assert finite
        assert_equal(stats, want.stats)
        bad = torch.where(z0 > 0, torch.inf, z0)
        assert not sample_without_waiting(f, bad, sampler, 5, key=sf.key(2))[2]


# What does not fit --------------------------------------------------------------------------------


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net, self.calls = by_step(), 0

    def forward(self, z: Tensor) -> Tensor:
        self.calls += 1
        return self.net(z)


class Elsewhere(nn.Module):
    """With a buffer on another device."""

    def __init__(self) -> None:
        super().__init__()
        self.net = by_step()
        self.register_buffer("constants", torch.zeros(3, device="meta"))

    def forward(self, z: Tensor) -> Tensor:
        return self.net(z)


class Reading(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = by_step()

    def forward(self, z: Tensor) -> Tensor:
        return self.net(z) if float(z.sum()) < 1e9 else self.net(-z)


class OtherStart(sf.ReplayBuffer):
    pass


class OtherAdam(torch.optim.Adam):
    pass


MISFITS: dict[str, tuple[dict[str, Any], str]] = {
    "optimizer": ({"optimizer": torch.optim.Adam}, "none of Adam, AdamW, SGD with fused=True"),
    "other optimizer": (
        {"optimizer": partial(OtherAdam, lr=1e-3, fused=True)},
        "none of Adam, AdamW, SGD with fused=True",
    ),
    "start": ({"start": OtherStart(40)}, "the start is a OtherStart"),
    "steps": (
        {"steps": 251},
        "251 evaluations of f are too many for one, and not in one kernel: f is",
    ),
    "hmc": ({"sampler": sf.HMC(0.1, 26), "steps": 10}, "260 evaluations of f are too many"),
    "elsewhere": ({"f": Elsewhere()}, "not all of f is on cpu"),
    "keeps": ({"f": Counting()}, "it keeps something of each"),
    "reads": ({"f": Reading()}, "_local_scalar_dense waits for the device"),
}


@pytest.mark.parametrize("name", MISFITS)
def test_misfits_run_plainly_and_say_why(recorder: FakeRecorder, name: str) -> None:
    settings, why = MISFITS[name]
    trainer = make(**{"f": by_step(), "optimizer": ADAM, **settings})
    trainer.fit(4)
    assert trainer.iteration == 4
    assert re.search(re.escape(why), trainer.rung)
    with pytest.raises(ValueError, match=f"graph must be 'auto' or False here: .*{re.escape(why)}"):
        run(True, n=4, **settings)


def test_no_gpu() -> None:
    trainer = make()
    trainer.fit(2)
    assert trainer.rung.startswith(
        "step: call by call; iterations are not in a CUDA graph, because"
    )
    assert trainer.rung.endswith("the device is cpu, not a GPU")
    with pytest.raises(ValueError, match="graph must be 'auto' or False here: the device is cpu"):
        make(graph=True)
    with pytest.raises(ValueError, match="graph must be 'auto', True or False, got 'no'"):
        make(graph="no")


def test_a_failed_capture_changes_nothing(recorder: FakeRecorder) -> None:
    settings = {"start": BUFFER(), "ema": 0.9}
    got = make(Counting(), optimizer=ADAM, **settings)
    got.fit(9)
    want = make(Counting(), optimizer=ADAM, graph=False, **{**settings, "start": BUFFER()})
    want.fit(9)
    assert_same(got, want)
    assert torch.equal(weights(got.f), weights(want.f))
