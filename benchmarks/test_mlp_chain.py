"""Whole chains of the paper's toy net on the CPU: ours against the ways people write them.

    pytest benchmarks/test_mlp_chain.py --benchmark-only

linear, conv: the net in nn.Linear, or in 1x1 nn.Conv2d as the paper has it, autograd.grad and the
equations in eager torch. compile: one transition in torch.compile. torchebm, where it is installed
(pip install torchebm): its LangevinDynamics.sample on the energy -f, f in nn.Linear, which is an
Euler-Maruyama step with one stepsize for all, so less work than STANLEY's.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from providers import available
from torch import Tensor
from toy import NOISE_SCALE, THRESHOLD, as_conv, by_autograd, by_compile, torchebm

import stanley_fast as sf
from stanley_fast.bench import work
from stanley_fast.bench.cases import Case
from stanley_fast.bench.timing import Candidate, Run

CASES = {100: 100, 1_000: 100, 10_000: 10}  # chains: steps


def toy_chain(chains: int, steps: int) -> Case:
    torch.manual_seed(0)
    f = sf.MLPEnergy().requires_grad_(False)
    z: Tensor = 2 * sf.normal((chains, 2), sf.key(0))
    sampler, key = sf.Stanley(THRESHOLD, noise_scale=NOISE_SCALE), sf.key(1)
    runs: dict[str, Run] = {
        "ours": partial(sf.sample, f, z, sampler, steps, key=key, fused=True),
        "linear": partial(by_autograd, f.net, z, steps),
        "conv": partial(by_autograd, as_conv(f), z[:, :, None, None], steps),
        "compile": partial(by_compile(f, steps), z),
    }
    missing = available("torchebm", "cpu")
    if missing is None:
        runs["torchebm"] = torchebm(f, z, steps)
    return Case(
        "toy chain",
        f"{chains:,} chains, K = {steps}",
        work.chain(f, z, steps),
        {name: Candidate(run) for name, run in runs.items()},
        {} if missing is None else {"torchebm": missing},
    )


@pytest.mark.parametrize("chains", CASES)
def test_mlp_chain(benchmark: Any, chains: int, measure: Callable[..., None]) -> None:
    case = toy_chain(chains, CASES[chains])
    measure(case)
    benchmark(case.candidates["ours"].run)
