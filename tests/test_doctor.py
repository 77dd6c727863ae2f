"""`stanley-fast doctor`: what runs here, why not, and whether it computes what it should."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import metadata
from typing import Any

import pytest
import torch

import stanley_fast as sf
from stanley_fast import cli, doctor
from stanley_fast.backends import select, vector_level

Capture = pytest.CaptureFixture[str]
Patch = pytest.MonkeyPatch


@pytest.fixture(scope="module")
def report() -> doctor.Report:
    return doctor.examine()


def test_every_backend_with_its_reason(report: doctor.Report) -> None:
    for name, why_not in sf.backends().items():
        assert report["backends"][name] == (why_not or "available")
        checked = why_not is None and name != "reference"
        assert (f"step on {name}" in report["self-check"]) == checked


def test_all_is_well_here(report: doctor.Report) -> None:
    assert doctor.failed(report) == []
    assert report["self-check"]["Philox"] == "ok"


def test_facts(report: doctor.Report, compiled: None) -> None:
    assert report["versions"]["torch"].startswith(torch.__version__)
    assert report["build"]["compiler"].startswith(("g++ ", "clang++ "))
    assert report["CPU"]["vectors"] == vector_level()
    assert report["in use for"]["cpu"] == select("cpu")


def test_it_prints_aligned_lines_or_json(capsys: Capture) -> None:
    assert cli.main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert cli.main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    column = lines[1].index(report["versions"]["stanley-fast"])
    told = [(line[2:column].rstrip(), line[column:]) for line in lines if line.startswith("  ")]
    assert told == [fact for facts in report.values() for fact in facts.items()]
    assert all(line[column - 2 : column] == "  " for line in lines if line.startswith("  "))


def test_a_wrong_backend_fails(compiled: None, monkeypatch: Patch, capsys: Capture) -> None:
    right = sf.stanley_step
    monkeypatch.setattr(doctor.ops, "stanley_step", lambda *a, **k: right(*a, **k) + 1e-3)
    assert cli.main(["doctor"]) == 1
    out, err = capsys.readouterr()
    line = next(line for line in out.splitlines() if "step on cpp" in line)
    assert "FAILED: differs from the reference by up to 0.001 in 999 of 999 elements" in line
    assert "step on cpp" in err
    assert err.startswith("stanley-fast: self-check failed: ")


def test_a_crash_and_a_wrong_word_fail(monkeypatch: Patch) -> None:
    def crash(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("out of order")

    monkeypatch.setattr(doctor.ops, "stanley_step", crash)
    monkeypatch.setitem(doctor.PHILOX, (42, 0), (0, 0, 0, 0))
    report = doctor.examine()
    assert set(doctor.failed(report)) == set(report["self-check"])
    assert report["self-check"].pop("Philox").startswith("FAILED: seed 42, block 0 gives [26326")
    assert set(report["self-check"].values()) <= {"FAILED: out of order"}


def test_what_is_missing_comes_with_the_command(monkeypatch: Patch) -> None:
    known = metadata.version

    def version(package: str) -> str:
        if package == "tensorboard":
            raise metadata.PackageNotFoundError
        return known(package)

    monkeypatch.setattr(metadata, "version", version)
    extras = doctor.examine()["extras"]
    assert extras["tensorboard"] == "not installed: pip install 'stanley-fast[tensorboard]'"
    assert extras["tqdm"] == known("tqdm")


def test_environment(monkeypatch: Patch) -> None:
    monkeypatch.setenv("STANLEY_FAST_VECTOR", "baseline")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    environment = doctor.examine()["environment"]
    assert environment["STANLEY_FAST_VECTOR"] == "baseline"
    assert environment["CUDA_VISIBLE_DEVICES"] == "0"


@pytest.mark.parametrize(
    ("built_for", "capability", "serves"),
    [
        ("8.0", (8, 0), True),
        ("8.0", (8, 6), True),
        ("8.6", (8, 0), False),
        ("8.0", (9, 0), False),
        ("8.0+PTX", (9, 0), True),
        ("9.0+PTX", (8, 9), False),
        ("9.0+PTX", (12, 0), True),
        ("9.0a", (9, 0), False),
    ],
)
def test_which_gpus_code_serves(
    built_for: str, capability: tuple[int, int], serves: bool, monkeypatch: Patch
) -> None:
    stubs: dict[str, Callable[..., Any]] = {
        "device_count": lambda: 1,
        "get_device_capability": lambda i: capability,
        "get_device_name": lambda i: "Some GPU",
    }
    for name, stub in stubs.items():
        monkeypatch.setattr(torch.cuda, name, stub)
    monkeypatch.setattr(doctor, "_architectures", lambda: ["7.5", built_for])
    code = "code" if serves else "no code"
    number = f"{capability[0]}.{capability[1]}"
    told = f"Some GPU, capability {number}: the library has {code} for it"
    assert doctor._gpus() == {"cuda:0": told}
