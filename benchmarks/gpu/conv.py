"""Chains of convolutional nets: from a CUDA graph, step by step, and as people write them.

At each precision: backward, the common loop, `f(z).sum().backward()` with the weights' gradients
and eager equations; grad, the same with torch.autograd.grad; graphed, grad's loop as one CUDA
graph; compile, its transition under torch.compile(mode="reduce-overhead"), which uses CUDA graphs
too; torchebm, TorchEBM's sampler. float32 is IEEE's; tf32 what torch does convolutions in unless
told; bfloat16 is autocast's. Milliseconds a transition by the host's clock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from toy import NOISE_SCALE, THRESHOLD, by_autograd, by_backward, by_compile, torchebm

import stanley_fast as sf
from gpu.capture import captured
from gpu.rows import MISS, NOT_RUN, PASS, Rows
from gpu.timings import clocked, guarded, made
from stanley_fast.bench import work
from stanley_fast.bench.ceilings import Precision, peaks, products
from stanley_fast.bench.timing import Run, synchronize
from stanley_fast.networks import StridedConvEnergy

NETS: dict[str, Callable[..., nn.Module]] = {"conv": sf.ConvEnergy, "strided": StridedConvEnergy}
PRECISIONS: tuple[Precision, ...] = ("float32", "tf32", "bfloat16")
IMAGES, STEPS, DRY = 64, 100, (4, 2)  # the paper's batch and K
SAMPLER = sf.Stanley(THRESHOLD, noise_scale=NOISE_SCALE)
OVER_LOOP = 3.0  # the common float32 loop's time over the graph's, in bfloat16


def run(rows: Rows, device: str) -> None:
    for net, make in NETS.items():
        torch.manual_seed(0)
        f = (make() if device == "cuda" else make(width=4, image_size=8)).to(device)
        common: dict[str, float] = {}
        for kind in PRECISIONS if device == "cuda" else ("float32", "bfloat16"):
            guarded(rows, f"{net} {kind}", compare, rows, net, kind, f, device, common)


@contextmanager
def within(kind: Precision, device: str) -> Iterator[None]:
    """Everything computed in a precision, bfloat16 by autocast; a CPU's float32 is one of them."""
    with products(kind), torch.autocast(device, torch.bfloat16, enabled=kind == "bfloat16"):
        yield


def compare(
    rows: Rows, net: str, kind: Precision, f: nn.Module, device: str, common: dict[str, float]
) -> None:
    """`common` keeps the common loop's seconds, by precision."""
    images, steps = (IMAGES, STEPS) if device == "cuda" else DRY
    size: Any = f.shape
    z = sf.normal((images, *size), sf.key(0, device))
    label: dict[str, Any] = {"net": net, "dtype": kind, "images": images, "steps": steps}
    torch._dynamo.reset()  # compiled for each precision, and compilations are limited
    with products(kind):
        runs = ours(f, z, steps, kind, device)
        if device == "cuda":
            label["capture_ms"] = round(capture(runs) * 1e3, 1)
    with within(kind, device):
        others = made(rows, "conv chain", baselines(f, z, steps, net, device), device, label)
    everything = runs | {name: partial(_in, kind, device, run) for name, run in others.items()}
    with products(kind):
        medians = clocked(everything, device)
    if "backward" in medians:
        common[kind] = medians["backward"]
    each = {f"{name}_ms": round(s / steps * 1e3, 4) for name, s in medians.items()}
    rows.add("conv chain, a transition", "", **label, **each)
    if device == "cuda":
        verdict(rows, f, z, medians, label, common)
    else:
        rows.add("conv chain from a graph", NOT_RUN, detail="needs CUDA", **label)


def ours(f: nn.Module, z: Tensor, steps: int, kind: Precision, device: str) -> dict[str, Run]:
    autocast = torch.bfloat16 if kind == "bfloat16" else None
    rest: dict[str, Any] = {"z0": z, "sampler": SAMPLER, "steps": steps, "autocast": autocast}
    go = partial(sf.sample, key=sf.key(1, device), **rest)
    runs: dict[str, Run] = {"step": partial(go, f, graph=False)}
    if device == "cuda":
        runs["graph"] = partial(go, f, graph=True)
        if kind != "float32":  # which gets no copies of weights
            runs["graph, no copies"] = partial(go, lambda z: f(z), graph=True)  # seen as no module
    return runs


def baselines(
    f: nn.Module, z: Tensor, steps: int, net: str, device: str
) -> dict[str, Callable[[], Run]]:
    found: dict[str, Callable[[], Run]] = {
        "backward": lambda: partial(by_backward, f, z, steps),
        "grad": lambda: partial(by_autograd, f, z, steps),
        "torchebm": lambda: torchebm(f, z, steps),
    }
    if device == "cuda":
        found["graphed"] = lambda: captured(partial(by_autograd, f, z, steps))
    if device == "cuda" and net == "conv":  # which takes a while to compile
        found["compile"] = lambda: partial(by_compile(f, steps, "reduce-overhead"), z)
    return found


def _in(kind: Precision, device: str, run: Run) -> object:
    with within(kind, device):
        return run()


def capture(runs: dict[str, Run]) -> float:
    """Seconds of the call that captures; the one before it has loaded and chosen the kernels."""
    runs["step"]()
    synchronize("cuda")
    begin = perf_counter()
    runs["graph"]()
    synchronize("cuda")
    return perf_counter() - begin


def verdict(
    rows: Rows,
    f: nn.Module,
    z: Tensor,
    medians: dict[str, float],
    label: dict[str, Any],
    common: dict[str, float],
) -> None:
    """The graph is faster than each of the others, channels-last copies than f's own weights."""
    graph, kind = medians["graph"], label["dtype"]
    rate = work.chain(f, z, label["steps"]).flops / graph
    row = {**label, "tflop_per_s": round(rate / 1e12, 1)}
    row["of_peak"] = round(rate / peaks("cuda")[kind].rate, 3)
    row |= {f"{n}_over_this": round(s / graph, 2) for n, s in medians.items() if n != "graph"}
    beaten = [name for name in ("step", "grad", "compile") if name in medians]
    reached = all(medians[name] > graph for name in beaten)
    target = " ".join(f"{name}_over_this>1" for name in beaten)
    if kind == "bfloat16":
        row |= {f"{n}_loop_over_this": round(s / graph, 2) for n, s in common.items()}
        reached = reached and common.get("float32", 0.0) >= OVER_LOOP * graph
        target += f" float32_loop_over_this>={OVER_LOOP}"
    rows.add("conv chain from a graph", PASS if reached else MISS, **row, target=target)
    if "graph, no copies" in medians:
        pays = medians["graph, no copies"] / graph
        more = {**label, "without_over_this": round(pays, 2), "target": "without_over_this>=1"}
        rows.add("copies of weights", PASS if pays >= 1 else MISS, **more)
