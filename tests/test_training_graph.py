"""Whole iterations in a CUDA graph, captured by a stand-in on the CPU."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_graph import FakeRecorder
from gpu import trained
from torch import Tensor, nn
from training import BATCH, K, assert_equal, by_step, make, rows, weights

import stanley_fast as sf
from stanley_fast import checkpoint, cuda_graph, training_graph
from stanley_fast.chain import sample_without_waiting
from stanley_fast.energies import Rings
from stanley_fast.schedules import warm_up_and_decay
from stanley_fast.trainer import DivergedError, Trainer
from stanley_fast.updates import Updates

pytestmark = pytest.mark.usefixtures("one_thread")

ADAM = partial(torch.optim.Adam, lr=1e-3, fused=True)
POINTS = Rings().sample(50, sf.key(3))


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> FakeRecorder:
    fake = FakeRecorder()
    monkeypatch.setattr(cuda_graph, "recorder", lambda device: fake)
    return fake


def run(graph: bool | str, f: nn.Module | None = None, n: int = 17, **settings: Any) -> Trainer:
    given = {"optimizer": ADAM, "graph": graph} | settings
    torch.manual_seed(1)
    trainer = make(by_step() if f is None else f, **given)
    trainer.fit(n)
    assert trainer.rung.startswith("graph: " if graph is not False else "step: "), trainer.rung
    return trainer


def assert_same(got: Trainer, want: Trainer) -> None:
    assert_equal(got.state_dict(), want.state_dict())


class Normalised(nn.Module):
    """What training changes besides parameters: running means, a generator."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        layers = [nn.Linear(2, 8), nn.BatchNorm1d(8), nn.SiLU(), nn.Dropout(0.2), nn.Linear(8, 1)]
        self.net = nn.Sequential(*layers)

    def forward(self, z: Tensor) -> Tensor:
        return self.net(z).squeeze(1)


# An iteration in a graph is the plain one ---------------------------------------------------------

BUFFER = lambda: sf.ReplayBuffer(40, sf.NoiseStart(2.0), fresh_share=0.3)  # noqa: E731
CASES: dict[str, Callable[[], dict[str, Any]]] = {
    "plain": dict,
    "buffer": lambda: {"start": BUFFER()},
    "from data": lambda: {"start": sf.DataStart(), "data": POINTS, "data_noise": 0.1},
    "average": lambda: {"ema": 0.9},
    "schedule": lambda: {"schedule": warm_up_and_decay(20, warm_up=5, decay=True)},
    "terms": lambda: {"grad_clip": 0.5, "energy_l2": 0.1},
    "adamw": lambda: {"optimizer": partial(torch.optim.AdamW, lr=1e-3, fused=True)},
    "sgd": lambda: {"optimizer": partial(torch.optim.SGD, lr=1e-3, momentum=0.9, fused=True)},
    "mala": lambda: {"sampler": sf.MALA(0.1), "start": BUFFER()},
    "walk": lambda: {"sampler": sf.MetropolisHastings(0.3)},
    "batch norm, dropout": lambda: {"f": Normalised(), "ema": 0.9},
    "all": lambda: {
        "start": BUFFER(),
        "ema": 0.99,
        "schedule": warm_up_and_decay(20, warm_up=5, decay=True),
        "grad_clip": 0.5,
        "data_noise": 0.1,
    },
}


@pytest.mark.parametrize("name", CASES)
def test_is_the_plain_iteration(recorder: FakeRecorder, tmp_path: Path, name: str) -> None:
    """Bit for bit: weights, averages, the optimizer, the buffer, keys, generators, figures."""
    got = run(True, folder=tmp_path / "graph", **CASES[name]())
    assert recorder.captures == 2  # with statistics for metrics.csv, and without
    assert recorder.replays == 16  # all but the first
    want = run(False, folder=tmp_path / "plain", **CASES[name]())
    assert recorder.replays == 16
    assert_same(got, want)
    assert rows(tmp_path / "graph") == rows(tmp_path / "plain")


def test_two_replays_differ_and_a_saved_key_brings_one_back(recorder: FakeRecorder) -> None:
    trainer = run(True, n=2)
    before, ends = trainer.state_dict(), []
    saved = {**before, "keys": before["keys"].clone()}
    for _ in range(2):
        trainer.load_state_dict(saved)
        trainer.fit(5)
        ends.append(trainer.metrics["f_chain"])
        trainer.fit(6)
        assert trainer.metrics["f_chain"] != ends[-1]
    assert ends[0] != ends[1]  # the weights have moved on, in place
    assert recorder.replays > 4


def test_goes_on_over_calls_and_files(recorder: FakeRecorder, tmp_path: Path) -> None:
    """A run stopped anywhere, resumed in either way, ends the same."""
    whole = run(False, start=BUFFER(), ema=0.9)
    first = run(True, n=6, start=BUFFER(), ema=0.9, folder=tmp_path)
    first.fit(8)
    for graph in (True, False):
        again = make(by_step(1), optimizer=ADAM, graph=graph, start=BUFFER(), ema=0.9)
        again.resume(tmp_path / "checkpoint.pt")
        assert again.iteration == 8
        again.fit(17)
        assert_same(again, whole)


def test_one_read_for_many(recorder: FakeRecorder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are read where they are wanted; else as often as AT_ONCE says."""
    reads: list[int] = []
    original = training_graph.TrainingGraph.run

    def counting(*args: Any) -> Any:
        out = original(*args)
        reads.append(out[0])
        return out

    monkeypatch.setattr(training_graph.TrainingGraph, "run", counting)
    monkeypatch.setattr(training_graph, "AT_ONCE", 1e9)
    run(True, n=30, log_every=10, checkpoint_every=15)
    assert reads == [1, 7, 1, 5, 4, 1, 9, 1]  # up to 9, 10, 15, 19, 20, 29, 30


def test_other_minibatches(recorder: FakeRecorder) -> None:
    """A batch of another shape is another graph's."""

    def data(n: int, key: Tensor) -> Tensor:
        x = Rings().sample(n, key)
        return x.double() if int(key[1]) // 2**32 % 4 == 3 else x

    assert_same(run(True, Cast(), data=data, n=30), run(False, Cast(), data=data, n=30))
    assert recorder.captures == 4  # of each dtype, with statistics and without


class Cast(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = by_step()

    def forward(self, z: Tensor) -> Tensor:
        return self.net(z.float()).to(z.dtype)


# What goes wrong ----------------------------------------------------------------------------------


class Fragile(nn.Module):
    """Not finite once its weight has grown; it counts its calls in training, in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(1.0))
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, z: Tensor) -> Tensor:
        if self.training:
            self.calls += 1
        return self.slope * z.sum(1) + (0.02 - (self.slope - 1).abs()).sqrt()


@pytest.mark.parametrize("what", ["not finite", "the gap"])
def test_diverges_where_the_plain_one_does(
    recorder: FakeRecorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """With the same words, the same last good state, and none of the later replays' doing."""
    schedule = warm_up_and_decay(500, decay=1.0, final=0.1)
    monkeypatch.setattr(training_graph, "AT_ONCE", 1e9)
    settings = {"max_gap": 1e3} if what == "not finite" else {"max_gap": 0.5}
    ends, said = {}, {}
    for graph in (True, False):
        folder = tmp_path / str(graph)
        f = Fragile() if what == "not finite" else by_step()
        adam = partial(torch.optim.Adam, lr=2e-3 if what == "not finite" else 3e-2, fused=True)
        with pytest.raises(DivergedError) as caught:
            run(graph, f, 500, optimizer=adam, ema=0.9, start=BUFFER(), folder=folder,
                log_every=100, checkpoint_every=100, schedule=schedule, **settings)  # fmt: skip
        assert caught.value.last_good == folder / "last_good.pt"
        ends[graph] = checkpoint.load(folder / "last_good.pt")
        said[graph] = str(caught.value).replace(str(folder), "")
    assert said[True] == said[False]
    assert ends[True]["iteration"] > 5
    assert_equal(ends[True], ends[False])


def test_rolls_back(recorder: FakeRecorder, tmp_path: Path) -> None:
    adam = partial(torch.optim.Adam, lr=2e-3, fused=True)
    ends = []
    for graph in (True, False):
        trainer = make(Fragile(), optimizer=adam, graph=graph, folder=tmp_path / str(graph),
                       rollbacks=3, checkpoint_every=4)  # fmt: skip
        with pytest.raises(DivergedError):
            trainer.fit(200)
        ends.append(trainer.state_dict())
    assert_equal(*ends)
    assert ends[0]["rolled_back"] == 3


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
    assert BATCH > K


# What the GPU suite asks --------------------------------------------------------------------------


@pytest.mark.parametrize("name", trained.cases("cpu"))
def test_the_gpu_suites_cases(recorder: FakeRecorder, name: str) -> None:
    trained.cases("cpu")[name]()


STEP_IF = Updates.step_if


def ungated(self: Updates, good: Tensor, rates: list[Tensor]) -> None:
    STEP_IF(self, torch.ones_like(good), rates)


@pytest.mark.parametrize(
    ("where", "name", "broken", "case", "said"),
    [
        (training_graph, "BLOCKS_PER_ITERATION", 0, "sgd", "the keys have moved apart"),
        (Updates, "step_if", ungated, "diverges", "but plainly"),
    ],
    ids=["the key stays", "bad iterations count"],
)
def test_which_notice_what_is_wrong(
    recorder: FakeRecorder,
    monkeypatch: pytest.MonkeyPatch,
    where: Any,
    name: str,
    broken: object,
    case: str,
    said: str,
) -> None:
    monkeypatch.setattr(where, name, broken)
    with pytest.raises(AssertionError, match=said):
        trained.cases("cpu")[case]()
