"""Chains of convolutional nets on the CPU: ours against the ways people write them.

    pytest benchmarks/test_conv_chain.py --benchmark-only

backward: `f(z).sum().backward()`, which computes the weights' gradients too, and the equations in
eager torch; grad: the same with torch.autograd.grad, which does not. compile: one transition in
torch.compile. torchebm, where it is installed (pip install torchebm): its LangevinDynamics.sample
on the energy -f, with one stepsize for all, so less work than STANLEY's. The nets are the paper's
for CIFAR-10 and a sixth of its work (`StridedConvEnergy`). Interleaved medians; FLOP are those of
the products, forward and back to the net's input.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peak import peak
from providers import available
from timing import Candidate, interleaved
from torch import Tensor, nn
from toy import NOISE_SCALE, THRESHOLD, by_autograd, by_backward, flop, naive, torchebm

import stanley_fast as sf
from stanley_fast.networks import StridedConvEnergy

NETS: dict[str, Callable[[], nn.Module]] = {"conv": sf.ConvEnergy, "strided": StridedConvEnergy}
BATCHES = {16: 10, 64: 4}  # images: steps


def candidates(f: nn.Module, z: Tensor, steps: int) -> dict[str, Callable[[], object]]:
    sampler, key = sf.Stanley(THRESHOLD, noise_scale=NOISE_SCALE), sf.key(1)

    @torch.compile
    def transition(z: Tensor) -> Tensor:
        return naive(z, torch.func.grad(lambda x: f(x).sum())(z))

    @torch.no_grad()  # or it would keep what the parameters' gradients need
    def compiled() -> Tensor:
        state = z
        for _ in range(steps):
            state = transition(state)
        return state

    runs: dict[str, Callable[[], object]] = {
        "ours": lambda: sf.sample(f, z, sampler, steps, key=key),
        "backward": lambda: by_backward(f, z, steps),
        "grad": lambda: by_autograd(f, z, steps),
        "compile": compiled,
    }
    if available("torchebm", "cpu") is None:
        runs["torchebm"] = torchebm(f, z, steps)
    return runs


@pytest.mark.parametrize("images", BATCHES)
@pytest.mark.parametrize("net", NETS)
def test_conv_chain(
    benchmark: Any, net: str, images: int, threads: int, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    f, steps = NETS[net](), BATCHES[images]
    z = sf.normal((images, 3, 32, 32), sf.key(0))
    runs = candidates(f, z, steps)
    turns = {name: Candidate(run) for name, run in runs.items()}
    medians = interleaved(turns, rounds=(7, 31), budget=20.0)
    rate = flop(f, z) * steps / medians["ours"]
    share = rate / threads / peak()
    benchmark.extra_info.update(
        net=net, images=images, steps=steps, threads=threads, seconds=medians, flops=rate,
        peak=peak(),
    )  # fmt: skip
    ratios = ", ".join(f"{medians[n] / medians['ours']:.2f}x {n}" for n in medians if n != "ours")
    with capsys.disabled():
        print(
            f"\n{net}, {images} images, {threads} threads: {medians['ours'] / steps * 1e3:.1f} ms "
            f"a step, {rate / 1e9:.0f} GFLOP/s, {share:.0%} of {threads} x {peak() / 1e9:.0f}; "
            f"{ratios}"
        )
    benchmark.pedantic(runs["ours"], rounds=3)
