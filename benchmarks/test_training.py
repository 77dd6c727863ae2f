"""One iteration of training the paper's toy net on the CPU: K = 100, 100 chains, 100 observations.

    pytest benchmarks/test_training.py --benchmark-only

fused: `Trainer`, as it runs by itself. steps: the same with a net whose class the kernels do not
know, so f is called at every transition and the parameters' gradient is autograd's; our noise and
transition. conv: plain torch as people write it, the net in 1x1 nn.Conv2d, autograd.grad, the
equations in eager torch, Adam. Interleaved medians, and the time of the paper's 10 000 iterations
that follows from them, without evaluations and pictures.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from timing import Candidate, interleaved
from torch import nn
from toy import NOISE_SCALE, THRESHOLD, as_conv, by_autograd

import stanley_fast as sf

BATCH, STEPS, ITERATIONS = 100, 100, 10_000
ADAM = partial(torch.optim.Adam, lr=1e-4)


class ByStep(sf.MLPEnergy):
    """Runs step by step: the kernels do not know its class."""


def ours(f: nn.Module) -> Callable[[], object]:
    """An iteration of `Trainer`, which `fit` makes: with its checks and metrics, without a log."""
    trainer = sf.Trainer(
        f,
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


def conv(f: sf.MLPEnergy) -> Callable[[], object]:
    net = as_conv(f).requires_grad_()
    optimizer = ADAM(net.parameters())
    rings, key = sf.Rings(), sf.key(0)

    def iteration() -> float:
        x = rings.sample(BATCH, sf.advance_(key, BATCH))[:, :, None, None]
        z = by_autograd(net, 2 * torch.randn(BATCH, 2, 1, 1), STEPS)
        loss = net(z).mean() - net(x).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return iteration


def test_training(benchmark: Any, threads: int, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    runs = {"fused": ours(sf.MLPEnergy()), "steps": ours(ByStep()), "conv": conv(sf.MLPEnergy())}
    turns = {name: Candidate(run) for name, run in runs.items()}
    medians = interleaved(turns, rounds=(9, 31), budget=20.0)
    benchmark.extra_info.update(threads=threads, seconds=medians)
    each = ", ".join(
        f"{name} {seconds * 1e3:.2f} ms ({ITERATIONS:,} in {seconds * ITERATIONS:,.0f} s)"
        for name, seconds in medians.items()
    )
    with capsys.disabled():
        print(f"\nan iteration, {threads} threads: {each}")
    benchmark(runs["fused"])
