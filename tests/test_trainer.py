"""The trainer is Algorithm 1, and a run that stops for any reason goes on as if it had not."""

from __future__ import annotations

import csv
import math
import os
import random
import re
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import stanley_fast as sf
from stanley_fast import checkpoint
from stanley_fast.chain import sample
from stanley_fast.energies import MLPEnergy, Rings
from stanley_fast.samplers import Langevin, Stanley
from stanley_fast.starts import DataStart, NoiseStart, ReplayBuffer, Start
from stanley_fast.trainer import BLOCKS_PER_ITERATION, DivergedError, Trainer

BATCH, K = 16, 4
ADAM = lambda parameters: torch.optim.Adam(parameters, 1e-3)  # noqa: E731


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """On arrays this small a second thread only costs time, most of all on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def net(seed: int = 0) -> MLPEnergy:
    torch.manual_seed(seed)
    return MLPEnergy((2, 16, 16, 1))


def make(f: nn.Module | None = None, **settings: object) -> Trainer:
    """A quick run; settings override."""
    given = {
        "data": Rings().sample,
        "sampler": Stanley(0.1, noise_scale=0.15),
        "start": NoiseStart(2.0),
        "optimizer": ADAM,
        "steps": K,
        "batch_size": BATCH,
        "key": sf.key(5),
        "progress": False,
        "log_every": 5,
        "checkpoint_every": 10,
    }
    return Trainer(net() if f is None else f, **given | settings)  # type: ignore[arg-type]


def weights(f: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in f.parameters()])


def rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


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
    x = make(data=data, batch_size=batch)._observations()
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

    monkeypatch.setattr("stanley_fast.trainer.sample", spying)
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
    def run(folder: str) -> Trainer:
        torch.manual_seed(1)
        return make(
            make_f(), start=start(), optimizer=optimizer, folder=tmp_path / folder,
            evaluate=lambda t: {"quality": float(weights(t.f).sum())}, evaluate_every=4,
        )  # fmt: skip

    whole = run("whole")
    whole.fit(24)
    first = run("parts")
    first.fit(stop)
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


def assert_equal(a: object, b: object) -> None:
    if isinstance(a, Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_equal(a[key], b[key])
    elif isinstance(a, list):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_equal(x, y)
    else:
        assert a == b


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
    with pytest.raises(RuntimeError, match="size mismatch"):
        other.resume()


# A process per run would spend its time importing torch, so one process forks a child for each.
RUNS = """
    import importlib.util, os, sys, torch
    import torch._dynamo  # the first optimizer would, in every child
    torch.set_num_threads(1)
    import stanley_fast as sf
    from stanley_fast.energies import MLPEnergy, Rings
    from stanley_fast.samplers import Stanley
    from stanley_fast.starts import NoiseStart, ReplayBuffer
    from stanley_fast.trainer import Trainer
    if importlib.util.find_spec("tensorboard"):
        import torch.utils.tensorboard

    def tell(word, number):
        os.write(1, f"{word} {number}\\n".encode())  # whole or not at all

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

    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            run(*line.split())
            os._exit(0)
        tell("pid", child)
        tell("ended", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


class Runs:
    """The process above: starts runs, and tells what they print."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(RUNS)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def start(self, folder: Path, how: str) -> int:
        print(folder, how, file=self.process.stdin, flush=True)
        return self.wait_for("pid")

    def wait_for(self, word: str, value: int | None = None) -> int:
        for line in self.process.stdout or ():
            said, number = line.split()
            if said == word and value in (None, int(number)):
                return int(number)
            assert said != "ended", f"it ended without a word of {word}"
        raise AssertionError("there is no process to tell anything")


@pytest.fixture
def runs() -> Iterator[Runs]:
    runs = Runs()
    yield runs
    runs.process.kill()
    runs.process.communicate()


def test_kill_9_at_five_random_moments(tmp_path: Path, runs: Runs) -> None:
    """One run, killed five times and resumed each time, ends as the one left alone, bit for bit."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    runs.start(whole, "anew")
    assert runs.wait_for("ended") == 0
    moments = random.Random(2)
    for n, iteration in enumerate(sorted(moments.sample(range(5, 195), 5))):
        pid = runs.start(killed, "anew" if n == 0 else "resume")
        runs.wait_for("iteration", iteration)
        threading.Event().wait(moments.uniform(0, 0.01))  # an iteration takes some 2 ms
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


class Interrupted(MLPEnergy):
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


# Iteration t makes K + 1 forward passes: this one is in the middle of iteration 13's chain.
IN_13 = 12 * (K + 1) + 3


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
    resumed = make(folder=tmp_path)
    resumed.resume()
    resumed.fit(20)
    whole = make()
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


# Divergence ----------------------------------------------------------------------------------


class Breaks(MLPEnergy):
    """Right until a forward pass, when it gives `value`."""

    def __init__(self, call: int, value: float, data_only: bool) -> None:
        super().__init__((2, 16, 16, 1))
        self.countdown, self.value, self.data_only = call, value, data_only

    def forward(self, z: Tensor) -> Tensor:
        self.countdown -= 1
        if self.countdown > 0:
            return super().forward(z)
        share = torch.cat([torch.ones(len(z) // 2), torch.zeros(len(z) - len(z) // 2)])
        scale = share if self.data_only else torch.ones(len(z))
        return super().forward(z) + self.value * scale * z.sum(1).abs()


IN_LINE_9_OF_13 = 13 * (K + 1)


@pytest.mark.parametrize(
    ("f", "message"),
    [
        (lambda: Breaks(IN_13, math.nan, False), r"NaN or infinity at step 2 in chain 0"),
        (lambda: Breaks(IN_LINE_9_OF_13, math.inf, False), r"NaN or infinity among gap"),
        (lambda: Breaks(IN_LINE_9_OF_13, 1e4, True), r"the energy gap .* max_gap = 100"),
        (lambda: Breaks(IN_LINE_9_OF_13, -1e4, True), r"the energy gap -.* max_gap = 100"),
    ],
    ids=["chain", "values", "gap", "negative gap"],
)
def test_divergence_stops_with_the_last_good_state(
    tmp_path: Path, f: Callable, message: str
) -> None:
    torch.manual_seed(0)
    trainer = make(f(), folder=tmp_path, max_gap=100.0)
    with pytest.raises(DivergedError, match=message) as caught:
        trainer.fit(20)
    error = caught.value
    assert error.iteration == 13
    assert str(error).startswith("training diverged at iteration 13: ")
    assert "learning rate" in str(error)
    assert "larger threshold" in str(error)
    assert str(tmp_path / "last_good.pt") in str(error)
    assert error.last_good == tmp_path / "last_good.pt"
    assert checkpoint.load(tmp_path / "checkpoint.pt")["iteration"] == 10
    # The state before the failed iteration goes on as if nothing had failed.
    rescued = make(folder=tmp_path)
    rescued.resume(error.last_good)
    assert rescued.iteration == 12
    rescued.fit(20)
    whole = make()
    whole.fit(20)
    assert torch.equal(weights(rescued.f), weights(whole.f))


def test_a_gradient_that_is_not_finite_is_divergence() -> None:
    class Steep(MLPEnergy):
        def forward(self, z: Tensor) -> Tensor:
            f = super().forward(z)
            # sqrt(0) has an infinite derivative; the parameters see it, z does not.
            return f + (0 * self.net[0].weight.sum()).sqrt()

    trainer = make(Steep())
    before = weights(trainer.f)
    with pytest.raises(DivergedError, match=r"grad_norm (nan|inf)"):
        trainer.fit(3)
    assert torch.equal(weights(trainer.f), before)


def test_advice_for_langevin_and_without_a_folder() -> None:
    trainer = make(Breaks(1, math.nan, False), sampler=Langevin(0.1))
    with pytest.raises(DivergedError, match="step_size or noise_scale, or grad_clamp") as caught:
        trainer.fit(3)
    assert caught.value.last_good is None
    assert "last good" not in str(caught.value)


def test_a_step_that_ruins_the_parameters_writes_nothing(tmp_path: Path) -> None:
    """The update of iteration 10, a checkpoint's, overflows: the last good state is the old one."""
    trainer = make(folder=tmp_path, checkpoint_every=5)
    trainer.fit(9)
    for group in trainer.optimizer.param_groups:
        group["lr"] = math.inf
    with pytest.raises(DivergedError, match="at iteration 10: a parameter is NaN") as caught:
        trainer.fit(20)
    assert caught.value.last_good == tmp_path / "checkpoint.pt"
    assert checkpoint.load(tmp_path / "checkpoint.pt")["iteration"] == 9
    assert not (tmp_path / "last_good.pt").exists()


def test_a_step_that_ruins_the_parameters_between_checkpoints(tmp_path: Path) -> None:
    """Seen by the next iteration's chain, when the state before it is no good either."""
    trainer = make(folder=tmp_path, checkpoint_every=5)
    trainer.fit(6)
    for group in trainer.optimizer.param_groups:
        group["lr"] = math.inf
    with pytest.raises(DivergedError, match="at iteration 8: NaN or infinity at step 0") as caught:
        trainer.fit(20)
    assert caught.value.last_good == tmp_path / "checkpoint.pt"
    assert not (tmp_path / "last_good.pt").exists()


def test_an_evaluation_whose_chains_diverge(tmp_path: Path) -> None:
    def evaluate(trainer: Trainer) -> dict[str, float]:
        if trainer.iteration == 12:
            sample(lambda z: math.nan * z.sum(1), torch.zeros(3, 2), Stanley(0.1), 1)
        return {"quality": 1.0}

    trainer = make(folder=tmp_path, evaluate=evaluate, evaluate_every=6)
    with pytest.raises(DivergedError, match="at iteration 12: evaluation: NaN or inf") as caught:
        trainer.fit(20)
    assert caught.value.last_good == tmp_path / "checkpoint.pt"
    assert checkpoint.load(tmp_path / "checkpoint.pt")["iteration"] == 10


def test_data_that_are_not_finite() -> None:
    data = torch.zeros(4, 2)
    data[2, 1] = math.nan
    with pytest.raises(DivergedError, match="f_data nan"):
        make(data=data).fit(3)


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
