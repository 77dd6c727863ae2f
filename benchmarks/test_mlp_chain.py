"""Whole chains of the paper's toy net on the CPU: ours against the ways people write them.

    pytest benchmarks/test_mlp_chain.py --benchmark-only

linear, conv: the net in nn.Linear, or in 1x1 nn.Conv2d as the paper has it, autograd.grad and the
equations in eager torch. compile: one transition in torch.compile. torchebm, where it is installed
(pip install torchebm): its LangevinDynamics.sample on the energy -f, f in nn.Linear, which is an
Euler-Maruyama step with one stepsize for all, so less work than STANLEY's. Interleaved medians;
FLOP count the net's products forward and backward to its input.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peak import peak
from providers import available
from timing import Candidate, interleaved
from torch import Tensor
from toy import NOISE_SCALE, THRESHOLD, as_conv, by_autograd, naive, torchebm

import stanley_fast as sf

CASES = {100: 100, 1_000: 100, 10_000: 10}  # chains: steps
FLOP = 4 * (2 * 32 + 32 * 64 + 2 * 64 * 64) + 2 * 64  # of a chain's step


def candidates(chains: int, steps: int) -> dict[str, Callable[[], object]]:
    torch.manual_seed(0)
    f = sf.MLPEnergy().requires_grad_(False)
    conv = as_conv(f)
    z = 2 * sf.normal((chains, 2), sf.key(0))
    point = z[:, :, None, None]
    sampler, key = sf.Stanley(THRESHOLD, noise_scale=NOISE_SCALE), sf.key(1)

    @torch.compile
    def transition(z: Tensor) -> Tensor:
        return naive(z, torch.func.grad(lambda x: f.net(x).sum())(z))

    def compiled() -> Tensor:
        state = z
        for _ in range(steps):
            state = transition(state)
        return state

    runs: dict[str, Callable[[], object]] = {
        "ours": lambda: sf.sample(f, z, sampler, steps, key=key, fused=True),
        "linear": lambda: by_autograd(f.net, z, steps),
        "conv": lambda: by_autograd(conv, point, steps),
        "compile": compiled,
    }
    if available("torchebm", "cpu") is None:
        runs["torchebm"] = torchebm(f, z, steps)
    return runs


@pytest.mark.parametrize("chains", CASES)
def test_mlp_chain(
    benchmark: Any, chains: int, threads: int, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = CASES[chains]
    runs = candidates(chains, steps)
    turns = {name: Candidate(run) for name, run in runs.items()}
    medians = interleaved(turns, rounds=(9, 31), budget=20.0)
    rate = FLOP * chains * steps / medians["ours"]
    share = rate / threads / peak()
    benchmark.extra_info.update(
        chains=chains, steps=steps, threads=threads, seconds=medians, flops=rate, peak=peak()
    )
    ratios = ", ".join(f"{medians[n] / medians['ours']:.1f}x {n}" for n in medians if n != "ours")
    with capsys.disabled():
        print(
            f"\n{chains:,} chains, {steps} steps, {threads} threads: {medians['ours'] * 1e3:.2f} "
            f"ms, {rate / 1e9:.0f} GFLOP/s, {share:.0%} of {threads} x {peak() / 1e9:.0f}; {ratios}"
        )
    benchmark(runs["ours"])
