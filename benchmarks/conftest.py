"""Options of the benchmarks, and what becomes of their results."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stanley_fast.bench import results
from stanley_fast.bench.cases import Case
from stanley_fast.bench.ceilings import Peak, peaks
from stanley_fast.bench.machine import cores, facts
from stanley_fast.bench.results import Result
from stanley_fast.threads import use_threads

RESULTS = Path(__file__).parent / "results"
LEFT = ("jobs_cpu.md", "jobs_cpu.json", "jobs_cpu.png")
FACTS = pytest.StashKey[dict[str, Any]]()
JOBS = pytest.StashKey[list[Result]]()
PEAKS = pytest.StashKey[dict[str, Peak]]()

Measure = Callable[..., None]


@pytest.fixture(params=sorted({1, cores()}))
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    with use_threads(request.param):
        yield request.param


@pytest.fixture
def measure(
    request: pytest.FixtureRequest, threads: int, capsys: pytest.CaptureFixture[str]
) -> Measure:
    """measure(case, budget): times all ways in turns, prints the rows, keeps them for the files."""

    def run(case: Case, budget: float = 20.0) -> None:
        ceilings, by = peaks("cpu"), f"{threads} thread{'s'[: threads - 1]}"
        result = case.measure("cpu", ceilings, budget)
        result = replace(result, size=f"{result.size}, {by}")
        request.config.stash[JOBS].append(result)
        request.config.stash[PEAKS][f"float32, {by}"] = ceilings["float32"]
        with capsys.disabled():
            print(f"\n{results.table([result])}")

    return run


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="also half precision and 2^26 elements")
    parser.addoption(
        "--results", type=Path, default=RESULTS, help="the folder of cpu.* and jobs_cpu.*"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.stash[FACTS] = facts()  # before anything runs: the load is other people's
    config.stash[JOBS], config.stash[PEAKS] = [], {}


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Writes the results and prints the table of steps."""
    from providers import ours
    from report import Row, write

    session, folder = getattr(config, "_benchmarksession", None), config.getoption("--results")
    infos = [b.extra_info for b in session.benchmarks] if session else []
    rows = [Row(**info["row"]) for info in infos if "row" in info]
    if rows:
        text = write(folder, "cpu", config.stash[FACTS], rows, ours("cpu")[0])
        terminalreporter.write_line(f"\n{text}\nwritten to {folder}")
    if config.stash[JOBS]:
        left = results.write(
            folder, config.stash[FACTS], config.stash[PEAKS], config.stash[JOBS], LEFT
        )
        terminalreporter.write_line(f"\nwritten: {', '.join(map(str, left))}")
