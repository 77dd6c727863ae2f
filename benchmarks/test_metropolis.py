"""Proposal ratio with acceptance, and the leapfrog, against eager torch written well.

    pytest benchmarks/test_metropolis.py

Eager torch computes the ratio in float64 too: in float32 the terms cancel.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

import stanley_fast as sf
from stanley_fast import metropolis_ops
from stanley_fast.bench import cases
from stanley_fast.bench.cases import Case
from stanley_fast.bench.timing import Candidate
from stanley_fast.bench.work import Work

SHAPES = [(64, 3072), (100, 2), (1000, 2), (8, 200_000)]
LEAPFROG = 64, 3072

pytestmark = pytest.mark.skipif(
    sf.backends()["cpp"] is not None, reason=str(sf.backends()["cpp"])
)  # fmt: skip


def eager_leapfrog(z: Tensor, momentum: Tensor, grad: Tensor) -> None:
    momentum.add_(grad, alpha=1e-3)
    z.add_(momentum, alpha=1e-3)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@torch.no_grad()
def test_accept(benchmark: Any, shape: tuple[int, int], measure: Callable[..., None]) -> None:
    case = cases.accept(*shape, "cpu")
    measure(case, budget=4.0)
    benchmark(case.candidates["ours, cpp"].run)


@torch.no_grad()
def test_leapfrog(benchmark: Any, measure: Callable[..., None]) -> None:
    """A kick and a drift: five arrays go through memory, four FLOPs an element."""
    key = sf.key(0)
    z, momentum, grad = (1e-3 * sf.normal(LEAPFROG, key, step=i) for i in range(3))
    size = torch.tensor(1e-3, dtype=torch.float64)
    mine = partial(metropolis_ops.leapfrog_, z, momentum, grad, step_size=size)
    runs = {
        "ours": Candidate(mine),
        "eager": Candidate(lambda: eager_leapfrog(z, momentum, grad)),
    }
    work = Work(5 * 4 * z.numel(), 4 * z.numel())
    measure(Case("leapfrog", f"{z.numel():,} elements", work, runs), budget=4.0)
    benchmark(mine)
