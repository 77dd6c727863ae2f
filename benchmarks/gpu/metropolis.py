"""Proposal ratio, acceptance and leapfrog: against the reference, and their bandwidth."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from providers import PROVIDERS, available, ours
from torch import Tensor

import stanley_fast as sf
from gpu import data
from gpu.rows import Rows
from stanley_fast import metropolis_ops
from stanley_fast.bench.timing import Candidate

SHAPES = ((0, 3), (3, 0), (1, 1), (5, 7), (3, 4, 15, 17), (33, 3072), (2, 200_003), (1000, 2))
DRY_SHAPES = ((0, 3), (3, 0), (1, 1), (3, 4, 5, 7))
KINDS = ("adaptive", "one", "given")

Cases = dict[str, Callable[[], float]]


def correctness(rows: Rows, dtype: torch.dtype, device: str) -> None:
    label = {"dtype": data.name(dtype)}
    shapes = SHAPES if device == "cuda" else DRY_SHAPES
    ratios: Cases = {
        f"{shape} {kind}": partial(check_ratio, shape, kind, dtype, device)
        for shape in shapes
        for kind in KINDS
    }
    accepts: Cases = {str(s): partial(check_accept, s, dtype, device) for s in shapes}
    leapfrogs: Cases = {
        f"{shape} mass {mass}": partial(check_leapfrog, shape, mass, dtype, device)
        for shape in shapes
        for mass in (False, True)
    }
    for what, cases in (("ratio", ratios), ("accept", accepts), ("leapfrog", leapfrogs)):
        rows.check(f"metropolis {what}", cases, **label)


def drawn(shape: tuple[int, ...], dtype: torch.dtype, n: int) -> list[Tensor]:
    return [data.random(shape, dtype) for _ in range(n)]


def odd(x: Tensor, device: str) -> Tensor:
    """A copy on the device, 4-dimensional states in another order of memory."""
    copy = x.to(device, copy=True)
    return copy.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else copy


def check_ratio(shape: tuple[int, ...], kind: str, dtype: torch.dtype, device: str) -> float:
    """1e-14 of what the terms of a chain sum to in size, 100 for an element."""
    where = drawn(shape, dtype, 4)
    given: dict[str, Any] = {"step_size": 0.7, "threshold": 0.3 if kind == "adaptive" else None}
    if kind == "given":
        given = {
            name: x.abs() + 0.1 for name, x in zip(("gamma", "gamma_new"), where, strict=False)
        }
    want = sf.reference.proposal_log_ratio(*where, **given)
    on = {n: v.to(device) if isinstance(v, Tensor) else v for n, v in given.items()}
    placed = [odd(x, device) for x in where]
    got = metropolis_ops.proposal_log_ratio(*placed, **on)
    one = [x[-1:] for x in placed]  # a chain's bits are its own
    if kind != "given" and len(got):
        assert torch.equal(metropolis_ops.proposal_log_ratio(*one, **on), got[-1:])
    terms = max(1, math.prod(shape[1:])) * 100.0
    return data.excess(got, want, torch.full_like(want, 1e-14 * terms))


def check_accept(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> float:
    z, grad, z_new, grad_new = drawn(shape, dtype, 4)
    f, f_new = drawn(shape[:1], torch.float32, 2)
    args = [z, grad, f, z_new, grad_new, f_new, data.random(shape[:1], torch.float64)]
    placed = [odd(x, device) for x in args]
    want = sf.reference.accept_(*args, sf.key(7), 3, first=2, total=5000)
    got = metropolis_ops.accept_(*placed, sf.key(7, device), 3, first=2, total=5000)
    assert torch.equal(got[0].cpu(), want[0])
    for ours_, theirs in zip(placed, args, strict=True):
        assert torch.equal(ours_.cpu(), theirs)
    return data.excess(got[1], want[1], torch.full_like(want[1], 1e-14))


def check_leapfrog(shape: tuple[int, ...], mass: bool, dtype: torch.dtype, device: str) -> float:
    args = drawn(shape, dtype, 3)
    inverse = data.random(shape[1:], dtype).abs() + 0.5 if mass else None
    placed = [odd(x, device) for x in args]
    on = None if inverse is None else inverse.to(device)
    sf.reference.leapfrog_(*args, step_size=0.1, kick=0.5, inverse_mass=inverse)
    size = torch.tensor(0.1, dtype=torch.float64, device=device)
    metropolis_ops.leapfrog_(*placed, step_size=size, kick=0.5, inverse_mass=on)
    tol = 1e-14 if dtype == torch.float64 else 1e-5
    return max(
        data.excess(x, want, tol * (1 + want.abs().double()))
        for x, want in zip(placed[:2], args[:2], strict=True)
    )


Measure = Callable[[dict[str, Candidate], str], dict[str, float]]


def timings(rows: Rows, device: str, measure: Measure) -> None:
    """Bandwidth at a large batch of images and at a small one; no targets."""
    for chains, width in ((8192, 3072), (64, 3072), (1000, 2)) if device == "cuda" else ((2, 8),):
        z, grad, z_new, grad_new = (torch.randn(chains, width, device=device) for _ in range(4))
        f, f_new = torch.zeros(chains, device=device), torch.ones(chains, device=device)
        ratio = torch.zeros(chains, device=device, dtype=torch.float64)
        key = sf.key(0, device)
        size = torch.tensor(1e-3, dtype=torch.float64, device=device)
        where = z, grad, z_new, grad_new
        # Each with how many arrays like z it reads or writes; all chains are accepted.
        runs: dict[str, tuple[Callable[[], object], int]] = {
            "proposal_log_ratio": (
                partial(metropolis_ops.proposal_log_ratio, *where, threshold=0.3, step_size=size),
                4,
            ),
            "accept_": (
                partial(metropolis_ops.accept_, z, grad, f, z_new, grad_new, f_new, ratio, key),
                4,
            ),
            "leapfrog_": (partial(metropolis_ops.leapfrog_, z, z_new, grad, step_size=size), 5),
        }
        for name in ours(device):
            if name.endswith("new") or available(name, device) is not None:
                continue
            around = PROVIDERS[name].around
            times = measure({w: Candidate(call, around) for w, (call, _) in runs.items()}, device)
            for what, seconds in times.items():
                speed = round(runs[what][1] * 4 * z.numel() / seconds / 1e9, 1)
                label = {"shape": [chains, width], "us": round(seconds * 1e6, 2)}
                rows.add(f"{name}: {what}", "", dtype="float32", gb_per_s=speed, **label)
