"""Chains of convolutional nets: from a CUDA graph, step by step, and as people write them.

backward: the common loop, `f(z).sum().backward()` with the weights' gradients and eager equations,
in float32 as torch has it; grad: the same with torch.autograd.grad, in the row's precision;
compile: one transition under torch.compile(mode="reduce-overhead"), which uses CUDA graphs too. In
float32 convolutions are TF32 unless torch is told otherwise. Milliseconds a transition by the
host's clock.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from toy import NOISE_SCALE, THRESHOLD, by_autograd, by_backward, naive

import stanley_fast as sf
from gpu.rows import MISS, NOT_RUN, PASS, Rows, reason
from gpu.timings import clocked, guarded
from stanley_fast.bench import work
from stanley_fast.bench.timing import Run, synchronize
from stanley_fast.networks import StridedConvEnergy

NETS: dict[str, Callable[..., nn.Module]] = {"conv": sf.ConvEnergy, "strided": StridedConvEnergy}
PRECISIONS: dict[str, torch.dtype | None] = {"float32": None, "bfloat16": torch.bfloat16}
IMAGES, STEPS = 64, 100
SAMPLER = sf.Stanley(THRESHOLD, noise_scale=NOISE_SCALE)
OVER_LOOP = 3.0  # the common loop's time over the graph's, in bfloat16


def run(rows: Rows, device: str) -> None:
    for net, make in NETS.items():
        for precision in PRECISIONS:
            small = device == "cpu"
            f = (make(width=4, image_size=8) if small else make()).to(device)
            what = f"{net} {precision}"
            guarded(rows, what, compare, rows, net, precision, f, device)


def compare(rows: Rows, net: str, precision: str, f: nn.Module, device: str) -> None:
    images, steps = (IMAGES, STEPS) if device == "cuda" else (4, 2)
    size: Any = f.shape
    z = sf.normal((images, *size), sf.key(0, device))
    autocast = PRECISIONS[precision]
    label: dict[str, Any] = {"net": net, "dtype": precision, "images": images, "steps": steps}
    rest: dict[str, Any] = {"z0": z, "sampler": SAMPLER, "steps": steps, "autocast": autocast}
    ours = partial(sf.sample, key=sf.key(1, device), **rest)
    runs: dict[str, Run] = {"step": partial(ours, f, graph=False)}
    if device == "cuda":
        label["capture_ms"] = round(captured(partial(ours, f)) * 1e3, 1)
        runs["graph"] = partial(ours, f, graph=True)
        runs["graph, no copies"] = partial(ours, lambda z: f(z), graph=True)  # not seen as a module
    runs["backward"] = partial(by_backward, f, z, steps)
    runs["grad"] = partial(in_precision, autocast, device, partial(by_autograd, f, z, steps))
    if net == "conv" and device == "cuda":
        runs["compile"] = partial(in_precision, autocast, device, compiled(f, z, steps))
    medians = timed(rows, runs, label, device)
    if device == "cuda" and "graph" in medians:
        verdict(rows, f, z, steps, medians, label)
    elif device != "cuda":
        rows.add("conv chain from a graph", NOT_RUN, detail="needs CUDA", **label)


def timed(rows: Rows, runs: dict[str, Run], label: dict[str, Any], device: str) -> dict[str, float]:
    """Seconds; what does not run is a row of its own, and a failure if it is ours."""
    medians: dict[str, float] = {}
    for name, call in runs.items():
        try:
            medians |= clocked({name: call}, device)
        except Exception as error:
            if name.startswith(("step", "graph")):
                raise
            rows.add(f"conv chain, {name}", NOT_RUN, detail=reason(error), **label)
    each = {f"{name}_ms": round(s / label["steps"] * 1e3, 4) for name, s in medians.items()}
    rows.add("conv chain, a transition", "", **label, **each)
    return medians


def verdict(
    rows: Rows,
    f: nn.Module,
    z: Tensor,
    steps: int,
    medians: dict[str, float],
    label: dict[str, Any],
) -> None:
    """The graph is faster than each of the others, channels-last copies than f's own weights."""
    ours = medians["graph"]
    row = {**label, "tflops": round(work.gradient(f, z).flops * steps / ours / 1e12, 1)}
    row |= {f"{n}_over_this": round(s / ours, 2) for n, s in medians.items() if n != "graph"}
    others = [n for n in ("step", "grad", "compile") if n in medians]
    reached = all(medians[n] > ours for n in others)
    target = " ".join(f"{n}_over_this>1" for n in others)
    if label["dtype"] == "bfloat16":
        reached = reached and medians["backward"] >= OVER_LOOP * ours
        target += f" backward_over_this>={OVER_LOOP}"
    rows.add("conv chain from a graph", PASS if reached else MISS, **row, target=target)
    pays = medians["graph, no copies"] / ours
    label = {**label, "without_over_this": round(pays, 2), "target": "without_over_this>=1"}
    rows.add("copies of weights", PASS if pays >= 1 else MISS, **label)


def captured(ours: Callable[..., object]) -> float:
    """Seconds of the call that captures; the one before it has loaded and chosen the kernels."""
    ours(graph=False)
    synchronize("cuda")
    begin = time.perf_counter()
    ours(graph=True)
    synchronize("cuda")
    return time.perf_counter() - begin


def in_precision(autocast: torch.dtype | None, device: str, call: Run) -> object:
    with torch.autocast(device, autocast, enabled=autocast is not None):
        return call()


def compiled(f: nn.Module, z: Tensor, steps: int) -> Run:
    """One transition; parameters without a gradient, as no transition needs one."""

    @partial(torch.compile, mode="reduce-overhead", fullgraph=True, dynamic=False)
    def transition(z: Tensor) -> Tensor:
        return naive(z, torch.func.grad(lambda x: f(x).float().sum())(z))

    @torch.no_grad()
    def chain() -> Tensor:
        state = z
        for _ in range(steps):
            torch.compiler.cudagraph_mark_step_begin()
            state = transition(state).clone()
        return state

    return chain
