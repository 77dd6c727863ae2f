"""Options of the benchmarks, and what becomes of their results."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

RESULTS = Path(__file__).parent / "results"


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="also half precision and 2^26 elements")
    parser.addoption(
        "--results", type=Path, default=RESULTS, help="the folder of cpu.{json,md,png}"
    )


def pytest_configure(config: pytest.Config) -> None:
    from machine import facts

    config.stash[FACTS] = facts()  # before anything runs: the load is other people's


FACTS = pytest.StashKey[dict[str, object]]()


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Writes the results and prints the table."""
    from providers import ours
    from report import Row, write

    session = getattr(config, "_benchmarksession", None)
    infos = [b.extra_info for b in session.benchmarks] if session else []
    rows = [Row(**info["row"]) for info in infos if "row" in info]
    if rows:
        folder = config.getoption("--results")
        text = write(folder, "cpu", config.stash[FACTS], rows, ours("cpu")[0])
        terminalreporter.write_line(f"\n{text}\nwritten to {folder}")
