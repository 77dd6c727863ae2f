"""Chains of convolutional nets on the CPU: ours against the ways people write them.

    pytest benchmarks/test_conv_chain.py --benchmark-only

backward: `f(z).sum().backward()`, which computes the weights' gradients too, and the equations in
eager torch; grad: the same with torch.autograd.grad, which does not. compile: one transition in
torch.compile. torchebm, where it is installed (pip install torchebm): its LangevinDynamics.sample
on the energy -f, with one stepsize for all, so less work than STANLEY's. The nets are the paper's
for CIFAR-10 and a sixth of its work (`StridedConvEnergy`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from providers import available
from torch import nn
from toy import NOISE_SCALE, THRESHOLD, by_autograd, by_backward, by_compile, torchebm

import stanley_fast as sf
from stanley_fast.bench import work
from stanley_fast.bench.cases import Case
from stanley_fast.bench.timing import Candidate, Run
from stanley_fast.networks import StridedConvEnergy

NETS: dict[str, Callable[[], nn.Module]] = {"conv": sf.ConvEnergy, "strided": StridedConvEnergy}
BATCHES = {16: 10, 64: 4}  # images: steps


def conv_chain(net: str, images: int, steps: int) -> Case:
    torch.manual_seed(0)
    f = NETS[net]()
    z = sf.normal((images, 3, 32, 32), sf.key(0))
    sampler, key = sf.Stanley(THRESHOLD, noise_scale=NOISE_SCALE), sf.key(1)
    runs: dict[str, Run] = {
        "ours": partial(sf.sample, f, z, sampler, steps, key=key),
        "backward": partial(by_backward, f, z, steps),
        "grad": partial(by_autograd, f, z, steps),
        "compile": partial(by_compile(f, steps), z),
    }
    missing = available("torchebm", "cpu")
    if missing is None:
        runs["torchebm"] = torchebm(f, z, steps)
    return Case(
        "conv chain",
        f"{net} net, {images} images, K = {steps}",
        work.chain(f, z, steps),
        {name: Candidate(run) for name, run in runs.items()},
        {} if missing is None else {"torchebm": missing},
    )


@pytest.mark.parametrize("images", BATCHES)
@pytest.mark.parametrize("net", NETS)
def test_conv_chain(benchmark: Any, net: str, images: int, measure: Callable[..., None]) -> None:
    case = conv_chain(net, images, BATCHES[images])
    measure(case)
    benchmark.pedantic(case.candidates["ours"].run, rounds=3)
