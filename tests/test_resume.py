"""A run that stops for any reason goes on as if it had not."""

from __future__ import annotations

import copy
import os
import random
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from child_runs import Runs
from torch import Tensor, nn
from training import ADAM, IN_13, ByStep, assert_equal, by_step, make, net, rows, weights

from stanley_fast import checkpoint
from stanley_fast.energies import MLPEnergy, Rings
from stanley_fast.starts import DataStart, NoiseStart, ReplayBuffer
from stanley_fast.trainer import Trainer

pytestmark = pytest.mark.usefixtures("one_thread")

# Resuming ------------------------------------------------------------------------------------


class Dropout(MLPEnergy):
    """Draws from torch's default generator in training."""

    def forward(self, z: Tensor) -> Tensor:
        return super().forward(nn.functional.dropout(z, 0.2, self.training))


def momentum(parameters: object) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, 1e-2, momentum=0.9)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("make_f", "start", "optimizer"),
    [
        (net, lambda: NoiseStart(2.0), ADAM),
        (net, lambda: ReplayBuffer(40, NoiseStart(2.0), 0.1), momentum),
        (lambda: Dropout((2, 8, 1)), DataStart, ADAM),
    ],
    ids=["noise", "persistent", "dropout"],
)
@pytest.mark.parametrize("stop", [7, 10, 17])
def test_a_resumed_run_is_the_whole_run(
    tmp_path: Path, make_f: Callable, start: Callable, optimizer: Callable, stop: int
) -> None:
    def run(folder: str, stop: int | None = None) -> Trainer:
        def data(n: int, key: Tensor) -> Tensor:
            if trainer.iteration == stop:
                raise InterruptedError
            return Rings().sample(n, key)

        torch.manual_seed(1)
        trainer = make(
            make_f(), data=data, start=start(), optimizer=optimizer, folder=tmp_path / folder,
            evaluate=lambda t: {"quality": float(weights(t.f).sum())}, evaluate_every=4,
        )  # fmt: skip
        return trainer

    whole = run("whole")
    whole.fit(24)
    first = run("parts", stop)
    with pytest.raises(InterruptedError):
        first.fit(24)
    first.save()
    torch.manual_seed(99)  # another process
    second = run("parts")
    second.resume()
    assert second.iteration == stop
    second.fit(24)
    assert torch.equal(weights(second.f), weights(whole.f))
    csvs = [(tmp_path / name / "metrics.csv").read_bytes() for name in ("whole", "parts")]
    assert csvs[0] == csvs[1]
    states = [checkpoint.load(tmp_path / name / "checkpoint.pt") for name in ("whole", "parts")]
    assert_equal(*states)


def test_resume_from_elsewhere(tmp_path: Path) -> None:
    make(folder=tmp_path / "one").fit(10)
    trainer = make(folder=tmp_path / "two")
    trainer.resume(tmp_path / "one" / "checkpoint.pt")
    trainer.fit(20)
    assert [r["iteration"] for r in rows(tmp_path / "two")] == ["15", "20"]
    assert [r["iteration"] for r in rows(tmp_path / "one")] == ["5", "10"]


def test_another_run_in_the_folder_is_not_overwritten(tmp_path: Path) -> None:
    make(folder=tmp_path).fit(10)
    before = {p: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()}
    with pytest.raises(FileExistsError, match="holds another run"):
        make(folder=tmp_path).fit(20)
    make(folder=tmp_path / "other").fit(5)
    stranger = make(folder=tmp_path)
    stranger.resume(tmp_path / "other" / "checkpoint.pt")
    with pytest.raises(FileExistsError, match="holds another run"):
        stranger.fit(20)
    assert {p: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()} == before


@pytest.mark.parametrize("broken", ["keys", "start", "optimizer", "iteration"])
def test_what_can_not_be_resumed_leaves_all_as_it_was(tmp_path: Path, broken: str) -> None:
    make(folder=tmp_path).fit(3)
    state = checkpoint.load(tmp_path / "checkpoint.pt")
    del state[broken]
    checkpoint.save(tmp_path / "checkpoint.pt", state)
    trainer = make(net(1))
    trainer.fit(2)
    before = copy.deepcopy(trainer.state_dict())
    with pytest.raises(checkpoint.CheckpointError, match="is of another run"):
        trainer.resume(tmp_path / "checkpoint.pt")
    assert_equal(trainer.state_dict(), before)


def test_fit_goes_on(tmp_path: Path) -> None:
    one, two = make(folder=tmp_path / "a"), make(folder=tmp_path / "b")
    one.fit(20)
    two.fit(8)
    two.fit(8)
    two.fit(20)
    assert torch.equal(weights(one.f), weights(two.f))
    assert rows(tmp_path / "a") == rows(tmp_path / "b")


def test_resume_errors(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="path must be given"):
        make().resume()
    with pytest.raises(FileNotFoundError, match="there is no checkpoint"):
        make(folder=tmp_path).resume()
    make(folder=tmp_path).fit(1)
    other = make(MLPEnergy((2, 8, 1)), folder=tmp_path)
    with pytest.raises(checkpoint.CheckpointError, match=r"of another run: .* MLPEnergy"):
        other.resume()


RUNS = """
    from stanley_fast.energies import MLPEnergy, Rings
    from stanley_fast.samplers import Stanley
    from stanley_fast.starts import NoiseStart, ReplayBuffer
    from stanley_fast.trainer import Trainer

    def run(folder, how):
        def data(n, key):
            tell("iteration", trainer.iteration)
            return Rings().sample(n, key)

        torch.manual_seed(0)
        trainer = Trainer(
            MLPEnergy((2, 16, 16, 1)), data, Stanley(0.1, noise_scale=0.15),
            start=ReplayBuffer(200, NoiseStart(2.0)), optimizer=torch.optim.Adam, steps=10,
            batch_size=20, key=sf.key(0), folder=folder, checkpoint_every=15, log_every=10,
            evaluate=lambda t: {"f_at_0": t.f(torch.zeros(1, 2)).item()}, evaluate_every=25,
            progress=False,
        )
        if how == "resume":
            trainer.resume()
        trainer.fit(200)
"""


@pytest.fixture
def runs() -> Iterator[Runs]:
    with Runs(RUNS) as runs:
        yield runs


def test_kill_9_at_five_random_moments(tmp_path: Path, runs: Runs) -> None:
    """One run, killed five times and resumed each time, ends as the one left alone, bit for bit."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    runs.start(whole, "anew")
    assert runs.wait_for("ended") == 0
    moments = random.Random(2)
    for n, iteration in enumerate(sorted(moments.sample(range(5, 195), 5))):
        pid = runs.start(killed, "anew" if n == 0 else "resume")
        runs.wait_for("iteration", iteration)
        threading.Event().wait(moments.uniform(0, 0.003))  # an iteration takes some 1 ms
        os.kill(pid, signal.SIGKILL)
        assert runs.wait_for("ended") == -signal.SIGKILL
        at = checkpoint.load(killed / "checkpoint.pt")["iteration"]
        assert iteration - 15 < at < 200
    runs.start(killed, "resume")
    assert runs.wait_for("ended") == 0
    assert_equal(*[checkpoint.load(folder / "checkpoint.pt") for folder in (whole, killed)])
    assert (whole / "metrics.csv").read_bytes() == (killed / "metrics.csv").read_bytes()
    assert [r["iteration"] for r in rows(killed)][-2:] == ["190", "200"]


# Interrupts ----------------------------------------------------------------------------------


@pytest.fixture
def default_handler() -> Iterator[None]:
    """Python's own, which a process started in the background does not have."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class Interrupted(ByStep):
    """Sends Ctrl-C to its own process, `times` times, at a forward pass in mid-iteration."""

    def __init__(self, call: int, times: int) -> None:
        super().__init__((2, 16, 16, 1))
        self.countdown, self.times = call, times

    def forward(self, z: Tensor) -> Tensor:
        self.countdown -= 1
        if self.countdown == 0:
            for _ in range(self.times):
                signal.raise_signal(signal.SIGINT)
        return super().forward(z)


@pytest.mark.usefixtures("default_handler")
def test_interrupt_writes_the_last_complete_iteration(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    trainer = make(Interrupted(IN_13, 1), folder=tmp_path, progress=True)
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(20)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert trainer.iteration == 13
    assert checkpoint.load(tmp_path / "checkpoint.pt")["iteration"] == 13
    assert capfd.readouterr().err.endswith("\n")  # the bar is closed
    resumed = make(by_step(), folder=tmp_path)
    resumed.resume()
    resumed.fit(20)
    whole = make(by_step())
    whole.fit(20)
    assert torch.equal(weights(resumed.f), weights(whole.f))


@pytest.mark.usefixtures("default_handler")
def test_a_second_interrupt_stops_at_once(tmp_path: Path) -> None:
    torch.manual_seed(0)
    trainer = make(Interrupted(IN_13, 2), folder=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(20)
    assert trainer.iteration == 12
    assert checkpoint.load(tmp_path / "checkpoint.pt")["iteration"] == 10
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_someone_elses_interrupt_handler_stays(tmp_path: Path) -> None:
    seen: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: seen.append(number))
    try:
        trainer = make(Interrupted(IN_13, 1))
        trainer.fit(15)
    finally:
        signal.signal(signal.SIGINT, before)
    assert seen == [signal.SIGINT]
    assert trainer.iteration == 15


def test_trains_outside_the_main_thread() -> None:
    trainer = make()
    thread = threading.Thread(target=trainer.fit, args=(3,))
    thread.start()
    thread.join()
    assert trainer.iteration == 3
