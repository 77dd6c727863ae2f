"""The GPU suite's calls: what one goes on from, the paper's runs, and dry runs on the CPU."""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gpu_suite
import numpy as np
import pytest
import torch
from gpu import conv, runs
from gpu.rows import FAIL, MISS, PASS, load
from gpu.state import State

from stanley_fast.bench import work
from stanley_fast.bench.ceilings import Peak
from stanley_fast.image_presets import preset
from stanley_fast.networks import ConvEnergy

# Several calls ------------------------------------------------------------------------------------

GRAPHS = gpu_suite.Process("graphs", "cpp", "all")
HERE = {"gpu": "one", "commit": "1234"}
ARGS = argparse.Namespace(device="cpu", only=["graphs"], steady=180.0)


@pytest.fixture
def state(tmp_path: Path) -> State:
    return State(tmp_path / "suite.json", HERE)


def test_a_finished_process_is_in_the_file_and_skipped(state: State) -> None:
    state.rows_of(GRAPHS).add("what", "pass")
    state.finish(GRAPHS)
    assert list(state.path.parent.iterdir()) == [state.path]
    again = State.load(state.path, HERE, ("gpu", "commit"))
    assert GRAPHS in again.done
    assert [row["what"] for row in again.rows] == ["what"]
    again.forget("graphs")
    assert (again.done, again.rows) == ([], [])


def test_an_interrupted_process_begins_anew(state: State) -> None:
    state.rows_of(GRAPHS).add("half of it", "pass")
    state.rows_of(GRAPHS).add("all of it", "pass")
    state.finish(GRAPHS)
    assert [row["what"] for row in state.rows] == ["all of it"]


def test_results_of_another_machine_are_not_gone_on_with(state: State) -> None:
    state.save()
    with pytest.raises(ValueError, match=r"suite.json is of gpu one, not two; commit 1234, not 5$"):
        State.load(state.path, {"gpu": "two", "commit": "5"}, ("gpu", "commit"))


LIMIT = gpu_suite.LIMITS["graphs"]


@pytest.mark.parametrize(("left", "status"), [(LIMIT - 1, 0), (LIMIT + 1, 1)])
def test_a_process_starts_if_it_can_end(
    state: State, monkeypatch: pytest.MonkeyPatch, left: int, status: int
) -> None:
    ran = []

    def run(command: list[str], **rest: object) -> subprocess.CompletedProcess[str]:
        ran.append(command)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(gpu_suite.subprocess, "run", run)
    started = gpu_suite.start(ARGS, GRAPHS, time.monotonic() + left, state)
    assert (started, len(ran), len(state.done)) == (bool(status), status, status)


def test_a_process_that_ends_badly_is_a_failing_row(
    state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    endings = [subprocess.CompletedProcess([], -11), subprocess.TimeoutExpired("", LIMIT)]

    def run(command: list[str], **rest: object) -> object:
        ending = endings.pop(0)
        if isinstance(ending, Exception):
            raise ending
        return ending

    monkeypatch.setattr(gpu_suite.subprocess, "run", run)
    for told in ("the process ended with -11", f"stopped after {LIMIT} s"):
        assert gpu_suite.start(ARGS, GRAPHS, time.monotonic() + LIMIT + 40, state)
        assert state.rows[-1]["verdict"] == FAIL
        assert state.rows[-1]["detail"].startswith(told)


def test_how_a_call_ends(state: State, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_suite.conclude(state, []) == 0
    assert "All is done." in capsys.readouterr().out
    assert gpu_suite.conclude(state, [GRAPHS]) == 2
    assert "The limit left graphs cpp all for the next call" in capsys.readouterr().out
    state.rows.append({"part": "p", "backend": "b", "what": "w", "verdict": FAIL})
    assert gpu_suite.conclude(state, [GRAPHS]) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--only toys", "--only must name some of correctness,"),
        ("--only cifar --limit 200", "--limit must be at least 240, a process's of these parts"),
        ("--data no/where", "--data must exist, got no/where"),
        ("--steady 0", "--steady positive, got 0, 0.0"),
    ],
)
def test_what_the_suite_refuses(
    options: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu_suite.py", *options.split()])
    with pytest.raises(SystemExit):
        gpu_suite.arguments()
    assert message in capsys.readouterr().err


# Verdicts -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "changed", "verdict"),
    [
        ("tf32", {}, PASS),
        ("tf32", {"compile": 0.09}, MISS),
        ("bfloat16", {}, PASS),
        ("bfloat16", {"common": 0.29}, MISS),
    ],
)
def test_targets_of_conv_chains(
    kind: str,
    changed: dict[str, float],
    verdict: str,
    state: State,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The graph takes 0.1 s: others must take longer, the common loop over three times as long."""
    monkeypatch.setattr(conv, "peaks", lambda device: {kind: Peak(1e12, "")})
    times = {"graph": 0.1, "step": 0.2, "grad": 0.2, "compile": 0.11, "common": 0.31} | changed
    loop = {"float32": times.pop("common"), kind: 0.2}
    f = ConvEnergy(3, 4, 2, 8)
    rows = state.rows_of(GRAPHS)
    label = {"dtype": kind, "steps": 3}
    conv.verdict(rows, f, torch.zeros(2, 3, 8, 8), times, label, loop)
    (row,) = load(rows.path)
    assert row["verdict"] == verdict
    assert row["grad_over_this"] == 2
    rate = work.chain(f, torch.zeros(2, 3, 8, 8), 3).flops / 0.1
    assert row["of_peak"] == pytest.approx(rate / 1e12, abs=1e-3)
    assert ("float32_loop_over_this>=3.0" in row["target"]) == (kind == "bfloat16")


# The paper's runs ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("most", "done", "seconds"), [(10_000, 240, 60.0), (100, 100, 25.0)])
def test_steady_iterations(
    monkeypatch: pytest.MonkeyPatch, most: int, done: int, seconds: float
) -> None:
    """A quarter of a second each once warm; the first three take ten, and are not counted."""
    now = [0.0]
    trainer = SimpleNamespace(iteration=0)

    def fit(iterations: int) -> None:
        for i in range(trainer.iteration, iterations):
            now[0] += 10.0 if i < 3 else 0.25
        trainer.iteration = iterations

    trainer.fit = fit
    monkeypatch.setattr(runs.time, "perf_counter", lambda: now[0])
    speeds, count, took = runs.steady(trainer, 60.0, most, "cpu")  # type: ignore[arg-type]
    assert (count, took) == (done, pytest.approx(seconds))
    assert speeds == pytest.approx([4.0] * math.ceil(done / 8))  # stretches of two seconds


def test_a_whole_run_is_extrapolated_and_says_so() -> None:
    here = runs.job("cifar", "cpu")
    here = replace(here, config=replace(here.config, iterations=100, evaluate_every=100))
    some, all_ = runs.whole(here, 50, 5.0), runs.whole(here, 100, 10.0)
    assert some == {"whole_run_iterations": 100, "whole_run_s": 10.0, "extrapolated": True}
    assert all_ == some | {"extrapolated": False}


def test_synthetic_images_are_the_same_every_time() -> None:
    one, two = runs.synthetic(5, 16), runs.synthetic(5, 16)
    assert one.shape == (3, 16, 16)
    assert one.fingerprint == two.fingerprint


def test_flops_of_an_iteration_of_the_papers_run() -> None:
    """3.9e17 FLOP for 10^5 iterations with K = 100 and batch 64, on two images here."""
    config = preset("cifar10", "paper", place=".")
    config = replace(config, batch_size=2, steps=3)
    images = runs.synthetic(2, 32)
    here = runs.Job(
        config,
        lambda: config.make_model(images.shape),
        images.minibatches(),
        config.make_start(),
        "cpu",
    )
    per_image = (runs._flops(here) - 2 * 3 * 3072 * 10) / 2  # without the steps
    forward = 611.3e6 / 2
    assert per_image == pytest.approx(3 * 2 * forward + 2 * 3 * forward, rel=0.02)


# Dry runs -----------------------------------------------------------------------------------------


def dry_run(folder: Path, *options: str) -> dict[str, Any]:
    command = [
        sys.executable,
        gpu_suite.__file__,
        "--device",
        "cpu",
        "--out",
        str(folder),
        *options,
    ]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    found: dict[str, Any] = json.loads((folder / "gpu_suite_cpu.json").read_text())
    return found


def test_dry_runs_of_some_parts(compiled: None, tmp_path: Path) -> None:
    """The second goes on from the first."""
    first = dry_run(tmp_path, "--only", "graphs")
    assert first["facts"]["torch"] == torch.__version__
    assert {r["what"] for r in first["rows"]} >= {"four threads at once", "CUDA graph"}
    assert list(tmp_path.iterdir()) == [tmp_path / "gpu_suite_cpu.json"]
    data = tmp_path / "images.npz"
    np.savez(data, images=np.zeros((9, 8, 8, 3), dtype=np.uint8))
    both = dry_run(
        tmp_path, "--only", "graphs,cifar", "--data", str(data), "--samples", "4", "--steady", "1"
    )
    assert [r for r in both["rows"] if r["part"] == "graphs"] == [
        r for r in first["rows"] if r["part"] == "graphs"
    ]
    ran = [r for r in both["rows"] if r["part"] == "cifar"]
    assert [r["dtype"] for r in ran] == ["float32", "tf32", "bfloat16"]
    assert {r["data"] for r in ran} == {"9 of images.npz"}
    samples = np.load(tmp_path / "cifar_tf32_samples.npy")
    assert (samples.dtype, samples.shape) == (np.uint8, (4, 8, 8, 3))
    assert len(both["facts"]["calls"]) == 2


@pytest.mark.slow
def test_dry_run(compiled: None, tmp_path: Path) -> None:
    parts = set(gpu_suite.LIMITS)
    found = dry_run(tmp_path, "--only", ",".join(parts), "--steady", "1", "--limit", "550")
    assert {r["part"] for r in found["rows"]} == parts
