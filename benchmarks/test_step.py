"""Throughput of one STANLEY step on the CPU against plain PyTorch and the machine's bounds.

    make bench                   # float32 and float64, up to 2^24 elements: a few minutes
    make bench BENCH=--full      # half precision and 2^26 elements as well

Each case times every provider in turns; pytest-benchmark then times our in-place step by itself.
conftest.py writes the results.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from providers import BASELINES, BOUNDS, PROVIDERS, available, ours
from report import Row

import stanley_fast as sf
from stanley_fast.bench.timing import Candidate, interleaved

SIZES, FULL_SIZES = (200, 10_000, 196_608, 2**22, 2**24), (2**26,)
DTYPES, FULL_DTYPES = ("float32", "float64"), ("float16", "bfloat16")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    full = metafunc.config.getoption("--full")
    metafunc.parametrize("size", SIZES + FULL_SIZES * full)
    metafunc.parametrize("dtype", DTYPES + FULL_DTYPES * full)


@torch.no_grad()
def test_stanley_step(benchmark: Any, size: int, threads: int, dtype: str) -> None:
    reason = sf.backends()["cpp"]
    if reason is not None:
        pytest.skip(reason)
    key = sf.key(0)
    z = sf.normal((size,), key).to(getattr(torch, dtype))
    grad = 0.1 * sf.normal((size,), key, step=1).to(z.dtype)
    mine = ours("cpu", dtype)
    names = [*BOUNDS, *(BASELINES if dtype == "float32" else ("naive",)), *mine]
    missing = {name: why for name in names if (why := available(name, "cpu"))}
    torch._dynamo.reset()  # the baseline is compiled for each case, and compilations are limited
    candidates = {
        name: Candidate(PROVIDERS[name].make(z, grad, key), PROVIDERS[name].around)
        for name in names
        if name not in missing
    }
    medians = interleaved(candidates)
    benchmark.extra_info["row"] = Row(size, threads, dtype, medians, missing)._asdict()
    calls = max(1, int(0.01 / medians[mine[0]]))
    benchmark.pedantic(candidates[mine[0]].run, rounds=7, iterations=calls)
