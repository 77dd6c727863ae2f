"""`stanley-fast bench`: what it counts, how it times, what it leaves. Times are not asserted."""

from __future__ import annotations

import contextlib
import json
import math
import os
import subprocess
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import stanley_fast as sf
from stanley_fast import cli, metropolis_ops
from stanley_fast.bench import baselines, cases, ceilings, machine, results, timing, work
from stanley_fast.bench.cases import Sizes
from stanley_fast.bench.ceilings import Peak
from stanley_fast.bench.results import Result
from stanley_fast.bench.timing import Candidate, interleaved
from stanley_fast.bench.work import Work
from stanley_fast.networks import ConvEnergy, StridedConvEnergy

Patch = pytest.MonkeyPatch
Capture = pytest.CaptureFixture[str]

# Timing -------------------------------------------------------------------------------------------


class Clock:
    """Stands still but for what passes `spend`."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def spend(self, *seconds: float) -> Candidate:
        """A candidate whose calls take these times in turn."""
        turns = iter(seconds * 1000)

        def run() -> None:
            self.now += next(turns)

        return Candidate(run)


@pytest.fixture
def clock(monkeypatch: Patch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(timing, "perf_counter", clock)
    return clock


def test_candidates_take_turns_inside_their_context() -> None:
    seen: list[str] = []

    @contextlib.contextmanager
    def around() -> Iterator[None]:
        seen.append("in")
        yield
        seen.append("out")

    one = Candidate(lambda: seen.append("1"), around)
    two = Candidate(lambda: seen.append("2"))
    medians = interleaved({"one": one, "two": two}, rounds=(3, 3), per_round=0.0)
    assert seen == [*("in", *"1111", "out"), *"2222", *("in", "1", "out", "2") * 3]
    assert medians.keys() == {"one", "two"}


def test_medians(clock: Clock) -> None:
    """Four warm calls, then a call a round; the long ones are a minority."""
    ways = {"steady": clock.spend(0.5), "uneven": clock.spend(1, 1, 1, 1, 1, 9, 1, 9, 1)}
    medians = interleaved(ways, rounds=(5, 5), per_round=0.0)
    assert medians == pytest.approx({"steady": 0.5, "uneven": 1.0})


@pytest.mark.parametrize(("budget", "rounds"), [(1.0, 3), (8.0, 8), (1e3, 20)])
def test_as_many_rounds_as_the_budget_has(clock: Clock, budget: float, rounds: int) -> None:
    calls = []

    def run() -> None:
        calls.append(clock.now)
        clock.now += 0.5

    interleaved({"one": Candidate(run)}, (3, 20), per_round=1.0, budget=budget)
    assert len(calls) == 4 + 2 * rounds  # two calls make a round of a second


# What is counted ----------------------------------------------------------------------------------


def test_flops_and_bytes_of_a_net() -> None:
    """By hand: each convolution costs 2 * 9 * in * out FLOPs a pixel, forwards and backwards."""
    f, pixels = ConvEnergy(3, 8, 2, 6), 36
    products = 9 * 3 * 8 * pixels + 9 * 8 * 8 * pixels + 8 * pixels
    z = torch.zeros(5, 3, 6, 6)
    counted = work.gradient(f, z)
    assert counted.flops == 2 * 2 * 5 * products
    weights = 4 * sum(p.numel() for p in f.parameters())
    layers = 4 * 5 * (3 + 2 * 8) * pixels
    assert counted.bytes > 2 * (weights + layers)  # at least there and back
    chain = work.chain(f, z, 7)
    assert chain == (2 * 4 * z.numel() + weights, 7 * (counted.flops + 10 * z.numel()))


def test_a_view_moves_nothing_and_an_operation_in_place_reads_and_writes() -> None:
    x = torch.zeros(10, 10)
    assert work.counted(lambda: x.t()[2:].unsqueeze(0)) == (0, 0)
    assert work.counted(lambda: x.add_(1.0)) == (800, 0)


@pytest.mark.parametrize(
    ("name", "make", "shape"),
    [
        ("`ConvEnergy`, 64 CIFAR images", ConvEnergy, (64, 3, 32, 32)),
        ("`StridedConvEnergy`, 64 of them", StridedConvEnergy, (64, 3, 32, 32)),
        ("`MLPEnergy`, 100 points", sf.MLPEnergy, (100, 2)),
    ],
)
def test_counts_in_performance_md(
    name: str, make: Callable[[], torch.nn.Module], shape: tuple[int, ...]
) -> None:
    with torch.device("meta"):  # which computes nothing
        f, z = make(), torch.empty(shape)
    gradient, step = work.gradient(f, z), work.step(z.numel())
    text = (Path(__file__).parents[1] / "docs" / "performance.md").read_text()
    line = next(line for line in text.splitlines() if line.startswith(f"| {name} |"))
    told = [float(cell.strip(" %")) for cell in line.split("|")[2:-1]]
    assert told == pytest.approx(
        [
            *(gradient.flops / 1e9, gradient.bytes / 1e6, step.flops / 1e6, step.bytes / 1e6),
            *(100 * step.flops / gradient.flops, 100 * step.bytes / gradient.bytes),
        ],
        rel=0.2,  # some have one digit
    )


# The baselines do what ours does ------------------------------------------------------------------


def test_naive_and_tuned_are_eq_5_without_noise() -> None:
    z, grad = torch.randn(1000), 0.3 * torch.randn(1000)
    want = sf.reference.stanley_step(z, grad, sf.key(0), threshold=0.1, noise_scale=0.0)
    torch.testing.assert_close(baselines.naive(z, grad, 0.1, 0.0), want)
    torch.testing.assert_close(baselines.tuned(z, grad, 0.1, 0.0)(), want)


def test_a_chain_by_autograd_is_sample_without_noise() -> None:
    f, z = sf.MLPEnergy(), torch.randn(20, 2)
    want = sf.sample(f, z, sf.Stanley(0.1, noise_scale=0.0), 5, key=sf.key(0)).z
    torch.testing.assert_close(baselines.by_autograd(f, z, 5, 0.1, 0.0), want)


@pytest.mark.parametrize("gain", [-1e4, 1e4])
def test_accept_takes_and_leaves_as_ours_does(gain: float) -> None:
    """A proposal that is surely accepted, or surely rejected."""
    z, grad, grad_new = (torch.randn(6, 50) for _ in range(3))
    z_new, f, f_new = z + 0.1 * torch.randn(6, 50), torch.zeros(6), torch.full((6,), gain)
    state, proposal = (z, grad, f), (z_new, grad_new, f_new)
    ours, theirs = ([x.clone() for x in state] for _ in range(2))
    ratio = metropolis_ops.proposal_log_ratio(z, grad, z_new, grad_new, **cases.ADJUSTED)
    metropolis_ops.accept_(*ours, *proposal, ratio, sf.key(0))
    baselines.accept((theirs[0], theirs[1], theirs[2]), proposal, **cases.ADJUSTED)
    for mine, other in zip(ours, theirs, strict=True):
        assert torch.equal(mine, other)


# Ceilings and the machine -------------------------------------------------------------------------


def test_copy_moves_what_it_says() -> None:
    assert work.counted(ceilings.copy(4000, "cpu")).bytes == pytest.approx(4000, rel=0.5)
    target = ceilings.copy(4000, "cpu")()
    assert isinstance(target, torch.Tensor)
    assert 2 * target.numel() * target.element_size() == 4000


def test_without_a_compiler_the_peak_is_a_product(monkeypatch: Patch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    ceilings._compiled.cache_clear()
    ceilings.multiply_adds.cache_clear()
    try:
        peak = ceilings.peaks("cpu")["float32"]
    finally:
        ceilings._compiled.cache_clear()
        ceilings.multiply_adds.cache_clear()
    assert peak.how.endswith("as there is no C++ compiler (no-such-compiler)")
    assert peak.rate > 1e8


def test_precision_is_put_back() -> None:
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    for kind, asked in (("float32", ("highest", False)), ("tf32", ("high", True))):
        with ceilings.products(kind):  # type: ignore[arg-type]
            now = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
            assert now == asked
    assert before == (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32)


def test_facts_are_plain_values() -> None:
    facts = machine.facts()
    assert json.loads(json.dumps(facts)) == facts
    assert facts["torch"] == torch.__version__
    assert facts["version"] == metadata.version("stanley-fast")
    assert facts["threads"] == torch.get_num_threads()


def origin(monkeypatch: Patch, noted: str | None) -> None:
    found = SimpleNamespace(read_text=lambda name: noted)
    monkeypatch.setattr(metadata, "distribution", lambda name: found)


def test_commit_as_pip_noted_it(monkeypatch: Patch, tmp_path: Path) -> None:
    origin(monkeypatch, None)
    assert machine.commit() is None
    noted = {"url": "https://x/y.git", "vcs_info": {"vcs": "git", "commit_id": "0123456789abcdef"}}
    origin(monkeypatch, json.dumps(noted))
    assert machine.commit() == "0123456789ab"
    origin(monkeypatch, json.dumps({"url": (tmp_path / "gone.whl").as_uri()}))
    assert machine.commit() is None


def test_commit_of_the_folder_it_was_installed_from(monkeypatch: Patch, tmp_path: Path) -> None:
    who = {"GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@b", "GIT_COMMITTER_NAME": "a"}
    environment = {**os.environ, **who, "GIT_COMMITTER_EMAIL": "a@b"}
    for command in ("init -q", "commit -q --allow-empty -m first"):
        git = ["git", "-C", str(tmp_path), *command.split()]
        subprocess.run(git, check=True, env=environment)
    origin(monkeypatch, json.dumps({"url": tmp_path.as_uri(), "dir_info": {}}))
    head = subprocess.run(
        ["git", "-C", str(tmp_path), "rev-parse", "HEAD"], capture_output=True, text=True
    )
    assert machine.commit() == head.stdout[:12]
    inside = tmp_path / "unpacked"  # a folder of another project's repository
    inside.mkdir()
    origin(monkeypatch, json.dumps({"url": inside.as_uri(), "dir_info": {}}))
    assert machine.commit() is None


# Results ------------------------------------------------------------------------------------------

FACTS = {
    "cpu": "some CPU", "cores": 4, "threads": 2, "load": 0.5, "vector_level": "avx2",
    "torch": "2.13.0", "version": "0.1.0", "commit": "0123456789ab", "date": "2026-01-01",
}  # fmt: skip
PEAKS = {"float32": Peak(1e12, "multiply-adds on registers")}
STEP = Result(
    "step", "2,000,000 elements", work.step(2_000_000),
    {"ours, cpp": 2e-3, "naive": 2e-2}, 24e9, 1e12, {"ours, cuda": "no GPU"},
)  # fmt: skip
CHAIN = Result(
    "toy chain", "100 chains", Work(10**6, 10**10), {"ours": 0.02, "other": 0.1}, 1e10, 1e12,
    note="rung chain",
)  # fmt: skip


def test_shares_and_speeds() -> None:
    assert (STEP.bound, CHAIN.bound) == ("bytes", "FLOPs")
    assert STEP.share("ours, cpp") == pytest.approx(24e6 / 24e9 / 2e-3)
    assert CHAIN.share("other") == pytest.approx(0.1)
    ours, naive = STEP.rows()
    assert naive["over_ours"] == pytest.approx(10)
    assert ours["bytes_per_s"] == pytest.approx(12e9)
    assert naive["flops_per_s"] == pytest.approx(1e9)


def test_markdown() -> None:
    text = results.markdown(FACTS, PEAKS, [STEP, CHAIN])
    head, rule, *lines = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in (head, rule, *lines)} == {head.count("|")}
    cells = [cell.strip() for cell in lines[1].strip("|").split("|")]
    assert cells[:4] == ["step", "2,000,000 elements", "naive", "20 ms"]
    assert cells[4:] == ["10.0", "1.2", "1", "5.0%", "bytes"]
    assert len(lines) == 4
    for said in (
        "stanley-fast 0.1.0 (0123456789ab) on some CPU, 4 cores, 2 of them used; avx2; torch 2.13",
        "- float32: 1,000 GFLOP/s, multiply-adds on registers",
        "- copy of 24 MB: 24 GB/s",
        "- *step*: z and its gradient read",
        "- toy chain, 100 chains: rung chain",
        "- not run: ours, cuda: no GPU",
    ):
        assert said in text
    assert "*accept*" not in text


def test_files(tmp_path: Path) -> None:
    table, record, picture = results.write(tmp_path, FACTS, PEAKS, [STEP, CHAIN])
    assert table.read_text() == results.markdown(FACTS, PEAKS, [STEP, CHAIN])
    found = json.loads(record.read_text())
    assert found["facts"] == FACTS
    assert [row["way"] for row in found["rows"]] == ["ours, cpp", "naive", "ours", "other"]
    assert found["rows"][0]["share_of_ceiling"] == pytest.approx(0.5)
    assert found["missing"] == {"step, 2,000,000 elements": {"ours, cuda": "no GPU"}}
    assert found["peaks"]["float32"]["rate"] == 1e12
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_roofline_has_a_point_for_each_row(tmp_path: Path, monkeypatch: Patch) -> None:
    from matplotlib.figure import Figure

    figures: list[Any] = []
    monkeypatch.setattr(Figure, "savefig", lambda self, path, format: figures.append(self))
    results.roofline(tmp_path / "r.png", FACTS, PEAKS, [STEP, CHAIN])
    axis = figures[0].axes[0]
    points = [line.get_xydata()[0].tolist() for line in axis.lines if line.get_marker() in "osD^vP"]
    assert points == [
        pytest.approx([row["flops"] / row["bytes"], row["flops_per_s"]])
        for result in (STEP, CHAIN)
        for row in result.rows()
    ]
    assert (axis.get_xscale(), axis.get_yscale()) == ("log", "log")
    low, high = axis.get_ylim()
    assert low < min(y for _, y in points) < 1e12 < high


# The command --------------------------------------------------------------------------------------

TINY = Sizes(steps=(200,), toy=(5, 2), conv=(1, 1), accept=(2, 6), width=4)


@pytest.fixture
def tiny(monkeypatch: Patch, one_thread: None) -> None:
    """Each way is called a few times."""
    monkeypatch.setattr(cases, "ON_CPU", TINY)
    once = timing.interleaved

    def briefly(runs: dict[str, Candidate], budget: float, device: str) -> dict[str, float]:
        return once(runs, rounds=(1, 1), per_round=0.0, device=device)

    monkeypatch.setattr(cases, "interleaved", briefly)


def test_bench(tiny: None, compiled: None, tmp_path: Path, capsys: Capture) -> None:
    threads = torch.get_num_threads()
    command = ["bench", "--device", "cpu", "--threads", "1", "--folder", str(tmp_path / "b")]
    assert cli.main(command) == 0
    out = capsys.readouterr().out
    assert torch.get_num_threads() == threads
    names = ["bench.json", "bench.md", "roofline.png"]
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == names
    assert (tmp_path / "b" / "bench.md").read_text() in out
    found = json.loads((tmp_path / "b" / "bench.json").read_text())
    assert found["facts"]["threads"] == 1
    ways = [(row["what"], row["way"]) for row in found["rows"]]
    assert ways == [
        *(("step", way) for way in ("ours, cpp", "naive", "tuned")),
        ("toy chain", "ours: sample(), rung chain"),
        ("toy chain", cases.GRAD),
        ("conv chain", "ours: sample(), rung step"),
        ("conv chain", cases.GRAD),
        ("accept", "ours, cpp"),
        ("accept", "eager"),
    ]
    for row in found["rows"]:
        assert math.isfinite(row["share_of_ceiling"])
        assert row["share_of_ceiling"] > 0
    assert found["rows"][0]["bytes"] == 2400
    assert cli.main(command) == 1
    assert "already holds a benchmark: add --overwrite" in capsys.readouterr().err
    assert cli.main([*command, "--overwrite"]) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--threads 0", "threads must be 1 or more, got 0"),
        ("--device cuda", "device must be cpu here, got cuda: torch sees no GPU"),
    ],
)
def test_bad_options(options: str, message: str, monkeypatch: Patch, capsys: Capture) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cli.main(["bench", *options.split()]) == 2
    assert capsys.readouterr().err.strip() == f"stanley-fast: {message}"


def test_without_a_backend_it_is_the_reference(monkeypatch: Patch) -> None:
    missing = {"cpp": "not built", "cuda": "no GPU", "triton": "no GPU", "reference": None}
    monkeypatch.setattr(cases, "backends", lambda: missing)
    assert cases.ours("cpu") == (["reference"], {"cpp": "not built"})
    assert cases.ours("cuda")[1] == {"cuda": "no GPU", "triton": "no GPU"}
