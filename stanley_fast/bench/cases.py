"""What `stanley-fast bench` measures: a step, chains of two nets, accepting a proposal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from stanley_fast import keys, metropolis_ops, ops
from stanley_fast.backends import FASTEST, backends, use_backend
from stanley_fast.bench import baselines, ceilings, work
from stanley_fast.bench.ceilings import Precision
from stanley_fast.bench.results import COPY, Result
from stanley_fast.bench.timing import Candidate, Run, beyond_cache, by_events, interleaved, rotating
from stanley_fast.bench.work import Work
from stanley_fast.chain import sample
from stanley_fast.energies import MLPEnergy
from stanley_fast.networks import ConvEnergy
from stanley_fast.samplers import Stanley

THRESHOLD, NOISE_SCALE = 0.1, 0.15
ADJUSTED: dict[str, Any] = {"threshold": 0.1, "step_size": 0.5, "noise_scale": 0.8}
LARGEST_COPY = 2**28  # bytes of its source and target
GRAD = "autograd.grad, naive step"


@dataclass(frozen=True)
class Sizes:
    """How much of each case there is."""

    steps: tuple[int, ...] = (200, 196_608, 2**24)  # elements: the call, 64 CIFAR images, memory
    toy: tuple[int, int] = (100, 100)  # chains and transitions, as in the paper
    conv: tuple[int, int] = (8, 4)
    accept: tuple[int, int] = (64, 3072)  # chains and elements of each
    width: int = 64  # of the conv net's layers


ON_CPU, ON_GPU = Sizes(), Sizes(conv=(64, 100), accept=(4096, 3072))


@dataclass(frozen=True)
class Case:
    """A job that several ways of doing it are timed at.

    Attributes:
        what, size: the job, for people.
        work: what it takes at least.
        candidates: by the name of the way, ours first.
        missing: ways that can't run here, and why.
        precision: what its products are computed in.
        note: more about ours.
        kernels: timed by CUDA events on a GPU, in place of the host's clock.
    """

    what: str
    size: str
    work: Work
    candidates: dict[str, Candidate]
    missing: dict[str, str] = field(default_factory=dict)
    precision: Precision = "float32"
    note: str = ""
    kernels: bool = False

    def measure(self, device: str, peaks: dict[str, ceilings.Peak], budget: float = 4.0) -> Result:
        """All ways in turns, and a copy of as many bytes, for about `budget` seconds."""
        moved = min(self.work.bytes, LARGEST_COPY)
        copies = [ceilings.copy(moved, device) for _ in range(beyond_cache(moved, device))]
        runs = self.candidates | {COPY: Candidate(rotating(copies))}
        if self.kernels and device == "cuda":
            seconds = by_events(runs)
        else:
            seconds = interleaved(runs, budget=budget, device=device)
        bandwidth = moved / seconds.pop(COPY)
        peak = peaks[self.precision].rate
        return Result(
            self.what, self.size, self.work, seconds, bandwidth, peak, self.missing, self.note
        )


def cases(device: str) -> Iterator[Callable[[], Case]]:
    """Each makes a case, whose tensors are gone when it is."""
    sizes = ON_GPU if device == "cuda" else ON_CPU
    for elements in sizes.steps:
        yield partial(_step, elements, device)
    yield partial(_toy, *sizes.toy, device)
    yield partial(_conv, *sizes.conv, sizes.width, device)
    yield partial(accept, *sizes.accept, device)


def ours(device: str) -> tuple[list[str], dict[str, str]]:
    """The backends for tensors on `device` that can run, and why others can't.

    Without any it is the reference.
    """
    reasons = backends()
    missing = {name: why for name in FASTEST[device] if (why := reasons[name]) is not None}
    return [name for name in FASTEST[device] if name not in missing] or ["reference"], missing


def _on_each(names: list[str], run: Run) -> dict[str, Candidate]:
    """The same call on each of these backends."""
    return {f"ours, {name}": Candidate(run, partial(use_backend, name)) for name in names}


def _step(elements: int, device: str) -> Case:
    """In place; on a GPU round states that together exceed its cache."""
    key, (names, missing) = keys.key(0, device), ours(device)
    states = [
        (torch.randn(elements, device=device), 0.1 * torch.randn(elements, device=device))
        for _ in range(beyond_cache(2 * 4 * elements, device))
    ]
    scales: dict[str, Any] = {"threshold": THRESHOLD, "noise_scale": NOISE_SCALE}

    def each(make: Callable[[Tensor, Tensor], Run]) -> Run:
        return rotating([make(z, grad) for z, grad in states])

    mine = each(lambda z, grad: partial(ops.stanley_step_, z, grad, key, **scales))
    naive = each(lambda z, grad: partial(baselines.naive, z, grad, **scales))
    tuned = each(lambda z, grad: baselines.tuned(z, grad, **scales))
    plain = {"naive": Candidate(naive), "tuned": Candidate(tuned)}
    size, runs = f"{elements:,} elements", _on_each(names, mine) | plain
    return Case("step", size, work.step(elements), runs, missing, kernels=True)


def _toy(chains: int, steps: int, device: str) -> Case:
    """The paper's toy net."""
    z = 2 * torch.randn(chains, 2, device=device)
    return _chain("toy chain", _seeded(MLPEnergy).to(device), z, steps, "float32")


def _conv(images: int, steps: int, width: int, device: str) -> Case:
    """The paper's net for CIFAR-10."""
    f = _seeded(partial(ConvEnergy, width=width)).to(device)
    z = torch.randn(images, 3, 32, 32, device=device)
    in_tf32 = device == "cuda" and torch.backends.cudnn.allow_tf32
    return _chain("conv chain", f, z, steps, "tf32" if in_tf32 else "float32")


def _chain(what: str, f: nn.Module, z: Tensor, steps: int, precision: Precision) -> Case:
    sampler, key = Stanley(THRESHOLD, noise_scale=NOISE_SCALE), keys.key(1, z.device)
    mine = partial(sample, f, z, sampler, steps, key=key)
    theirs = partial(baselines.by_autograd, f, z, steps, THRESHOLD, NOISE_SCALE)
    mine()  # after which a graph may be captured
    rung = mine().rung
    name = f"ours: sample(), rung {rung.partition(':')[0]}"
    one, update = work.gradient(f, z), work.step(z.numel())
    note = (
        f"rung {rung}. In eager torch a gradient is {one.flops / 1e6:,.4g} MFLOP and "
        f"{one.bytes / 1e6:,.4g} MB, a step {update.flops / 1e6:.2g} and {update.bytes / 1e6:.2g}"
    )
    size = f"{len(z):,} chains, K = {steps}"
    runs = {name: Candidate(mine), GRAD: Candidate(theirs)}
    return Case(what, size, work.chain(f, z, steps), runs, precision=precision, note=note)


def _seeded(make: Callable[[], nn.Module]) -> nn.Module:
    """The same weights every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make().requires_grad_(False)


def accept(chains: int, width: int, device: str) -> Case:
    """Every proposal is accepted, since it is the state itself, and copied."""
    key, (names, missing) = keys.key(0, device), ours(device)
    z, grad = (torch.randn(chains, width, device=device) for _ in range(2))
    f = torch.zeros(chains, device=device)
    z_new, grad_new, f_new = z.clone(), grad.clone(), f.clone()

    def mine() -> None:
        ratio = metropolis_ops.proposal_log_ratio(z, grad, z_new, grad_new, **ADJUSTED)
        metropolis_ops.accept_(z, grad, f, z_new, grad_new, f_new, ratio, key)

    theirs = partial(baselines.accept, (z, grad, f), (z_new, grad_new, f_new), **ADJUSTED)
    size, runs = f"{chains:,} chains of {width:,}", _on_each(names, mine)
    runs["eager"] = Candidate(theirs)
    return Case("accept", size, work.accept(chains * width), runs, missing, kernels=True)
