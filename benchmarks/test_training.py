"""One iteration of training the paper's toy net on the CPU: K = 100, 100 chains, 100 observations.

    pytest benchmarks/test_training.py --benchmark-only

ours: `Trainer`, as it runs by itself. ours, by steps: the same with a net whose class the kernels
do not know, so f is called at every transition and the parameters' gradient is autograd's; our
noise and transition. linear, conv: plain torch as people write it, the net in nn.Linear or 1x1
nn.Conv2d, autograd.grad, the equations in eager torch, Adam. compile: linear's transition in
torch.compile. torchebm, where it is installed: its sampler in linear's place; its own trainer does
not start. The paper's 10 000 iterations take as many times an iteration, without evaluations and
pictures.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from providers import available
from torch import nn
from toy import (
    NOISE_SCALE,
    THRESHOLD,
    Chain,
    as_conv,
    by_autograd,
    by_compile,
    iteration,
    torchebm_chain,
)

import stanley_fast as sf
from stanley_fast.bench import work
from stanley_fast.bench.cases import Case
from stanley_fast.bench.timing import Candidate, Run
from stanley_fast.bench.work import Work

BATCH, STEPS = 100, 100
ADAM = partial(torch.optim.Adam, lr=1e-4)


class ByStep(sf.MLPEnergy):
    """Runs step by step: the kernels do not know its class."""


def ours(f: nn.Module, device: str = "cpu") -> Run:
    """An iteration of `Trainer`, which `fit` makes: with its checks and metrics, without a log."""
    trainer = sf.Trainer(
        f.to(device),
        sf.Rings().sample,
        sf.Stanley(THRESHOLD, noise_scale=NOISE_SCALE),
        start=sf.NoiseStart(2.0),
        optimizer=partial(ADAM, fused=True),
        steps=STEPS,
        batch_size=BATCH,
        key=sf.key(0),
        log_every=10,
        progress=False,
    )
    trainer.fit(1)
    return trainer._iteration


def plain(net: nn.Module, chain: Chain, shape: tuple[int, ...] = (BATCH, 2)) -> Run:
    """An iteration in plain torch; points are as `net` takes them, of `shape`."""
    rings, key = sf.Rings(), sf.key(0)
    return iteration(
        net,
        chain,
        start=lambda: 2 * torch.randn(shape),
        data=lambda: rings.sample(BATCH, sf.advance_(key, BATCH)).view(shape),
        optimizer=ADAM,
    )


def training() -> Case:
    torch.manual_seed(0)
    linear, conv = sf.MLPEnergy(), as_conv(sf.MLPEnergy()).requires_grad_()
    by_linear = partial(by_autograd, linear, steps=STEPS)
    runs: dict[str, Run] = {
        "ours": ours(sf.MLPEnergy()),
        "ours, by steps": ours(ByStep()),
        "linear": plain(linear, by_linear),
        "conv": plain(conv, partial(by_autograd, conv, steps=STEPS), (BATCH, 2, 1, 1)),
        "compile": plain(linear, by_compile(linear, STEPS)),
    }
    missing = available("torchebm", "cpu")
    if missing is None:
        chain = torchebm_chain(linear, STEPS, torch.device("cpu"))
        runs["torchebm"] = plain(linear, chain)
    return Case(
        "training",
        f"batch {BATCH}, K = {STEPS}",
        iteration_work(sf.MLPEnergy(), torch.zeros(BATCH, 2), STEPS),
        {name: Candidate(run) for name, run in runs.items()},
        {} if missing is None else {"torchebm": missing},
    )


def iteration_work(f: nn.Module, z: torch.Tensor, steps: int) -> Work:
    """The chain's, and f with its parameters' gradient at observations and chains."""
    learn = work.counted(lambda: f(torch.cat([z, z])).mean().backward())
    chain = work.chain(f, z, steps)
    return Work(chain.bytes, chain.flops + learn.flops)


def test_training(benchmark: Any, measure: Callable[..., None]) -> None:
    case = training()
    measure(case)
    benchmark(case.candidates["ours"].run)
