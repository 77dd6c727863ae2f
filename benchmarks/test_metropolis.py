"""Proposal ratio with acceptance, and the leapfrog, against eager torch written well.

    pytest benchmarks/test_metropolis.py

Eager torch computes in float64 too: in float32 the terms cancel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from timing import Candidate, interleaved
from torch import Tensor

import stanley_fast as sf
from stanley_fast import metropolis_ops

THRESHOLD, STEP_SIZE, NOISE_SCALE = 0.1, 0.5, 0.8
SHAPES = [(64, 3072), (100, 2), (1000, 2), (8, 200_000)]
LEAPFROG = 196_608

pytestmark = pytest.mark.skipif(
    sf.backends()["cpp"] is not None, reason=str(sf.backends()["cpp"])
)  # fmt: skip


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def eager_accept(z: Tensor, grad: Tensor, f: Tensor, z_new: Tensor, grad_new: Tensor,
                 f_new: Tensor) -> None:  # fmt: skip
    """In place where it can be; the two logarithms of an element are one."""
    g, g_new = grad.double(), grad_new.double()
    size, size_new = (x.abs().clamp_(min=THRESHOLD) for x in (g, g_new))
    moved = z_new.double().sub_(z)
    scale = STEP_SIZE * THRESHOLD
    terms = moved.addcdiv(g, size, value=-scale / 2).square_().mul_(size)
    back = moved.addcdiv_(g_new, size_new, value=scale / 2).square_().mul_(size_new)
    terms.sub_(back).mul_(1 / (scale * NOISE_SCALE**2)).add_(size_new.div_(size).log_())
    log_alpha = terms.sum(1).mul_(0.5).add_(f_new).sub_(f)
    accepted = torch.rand_like(log_alpha).log_() <= log_alpha
    rows = accepted[:, None]
    torch.where(rows, z_new, z, out=z)
    torch.where(rows, grad_new, grad, out=grad)
    torch.where(accepted, f_new, f, out=f)
    log_alpha.clamp_(max=0.0).exp_()


def accept(z: Tensor, grad: Tensor, f: Tensor, z_new: Tensor, grad_new: Tensor, f_new: Tensor,
           key: Tensor) -> None:  # fmt: skip
    ratio = metropolis_ops.proposal_log_ratio(
        z, grad, z_new, grad_new, threshold=THRESHOLD, step_size=STEP_SIZE, noise_scale=NOISE_SCALE
    )
    metropolis_ops.accept_(z, grad, f, z_new, grad_new, f_new, ratio, key)


def eager_leapfrog(z: Tensor, momentum: Tensor, grad: Tensor) -> None:
    momentum.add_(grad, alpha=1e-3)
    z.add_(momentum, alpha=1e-3)


def report(
    benchmark: Any, what: str, runs: dict[str, Callable[[], None]], capsys: Any, **facts: int
) -> None:
    medians = interleaved({name: Candidate(run) for name, run in runs.items()})
    benchmark.extra_info.update(seconds=medians, **facts)
    with capsys.disabled():
        print(
            f"\n{what}, {facts['threads']} threads: {medians['ours'] * 1e6:.1f} us, "
            f"eager {medians['eager'] * 1e6:.1f} us, {medians['eager'] / medians['ours']:.1f}x"
        )
    benchmark(runs["ours"])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@torch.no_grad()
def test_accept(
    benchmark: Any, shape: tuple[int, int], threads: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """After a few calls a state is its proposal and always accepted: its rows are copied."""
    key = sf.key(0)
    z, grad, grad_new = (sf.normal(shape, key, step=i) for i in range(3))
    z_new = sf.stanley_step(
        z, grad, key, threshold=THRESHOLD, step_size=STEP_SIZE, noise_scale=NOISE_SCALE
    )
    f, f_new = torch.zeros(shape[0]), torch.randn(shape[0])
    state = [z, grad, f, z_new, grad_new, f_new]
    runs = {"ours": lambda: accept(*state, key), "eager": lambda: eager_accept(*state)}
    report(benchmark, f"accept {shape}", runs, capsys, chains=shape[0], threads=threads)


@torch.no_grad()
def test_leapfrog(benchmark: Any, threads: int, capsys: pytest.CaptureFixture[str]) -> None:
    key = sf.key(0)
    z, momentum, grad = (1e-3 * sf.normal((64, LEAPFROG // 64), key, step=i) for i in range(3))
    size = torch.tensor(1e-3, dtype=torch.float64)
    runs = {
        "ours": lambda: metropolis_ops.leapfrog_(z, momentum, grad, step_size=size),
        "eager": lambda: eager_leapfrog(z, momentum, grad),
    }
    report(benchmark, f"leapfrog {LEAPFROG}", runs, capsys, threads=threads)
