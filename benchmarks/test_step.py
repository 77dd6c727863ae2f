"""Throughput of one STANLEY step on the CPU against plain PyTorch.

    make bench

Each test times our step with pytest-benchmark and stores the ratios to the baselines, from
interleaved runs, beside it; conftest.py prints them as one table.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from baselines import Tuned, naive
from timing import interleaved

import stanley_fast as sf

THRESHOLD, NOISE_SCALE = 0.05, 0.1
SIZES = (200, 10_000, 196_608, 2**22)


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@torch.no_grad()
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("form", ["in place", "functional"])
def test_stanley_step(benchmark: Any, size: int, threads: int, form: str) -> None:
    key = sf.key(0)
    z, grad = sf.normal((size,), key), 0.1 * sf.normal((size,), key, step=1)
    step = sf.stanley_step_ if form == "in place" else sf.stanley_step
    tuned = Tuned(z)

    def ours() -> object:
        return step(z, grad, key, threshold=THRESHOLD, noise_scale=NOISE_SCALE)

    medians = interleaved(
        {
            "ours": ours,
            "naive": lambda: naive(z, grad, THRESHOLD, NOISE_SCALE),
            "tuned": lambda: tuned(z, grad, THRESHOLD, NOISE_SCALE),
        }
    )
    benchmark.extra_info.update(size=size, threads=threads, form=form, medians=medians)
    benchmark(ours)
