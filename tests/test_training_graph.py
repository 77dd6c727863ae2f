"""Whole iterations in a CUDA graph, captured by a stand-in on the CPU, are the plain ones."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_graph import FakeRecorder
from gpu import trained
from graph_training import ADAM, BUFFER, assert_same, run
from torch import Tensor, nn
from training import assert_equal, by_step, make, rows

import stanley_fast as sf
from stanley_fast import checkpoint, training_graph
from stanley_fast.energies import Rings
from stanley_fast.schedules import warm_up_and_decay
from stanley_fast.trainer import DivergedError
from stanley_fast.updates import Updates

pytestmark = pytest.mark.usefixtures("one_thread")

POINTS = Rings().sample(50, sf.key(3))


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
