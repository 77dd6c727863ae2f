"""CUDA graphs of steps, chains and training; streams, threads, several GPUs."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import torch
from torch import Tensor

import stanley_fast as sf
from gpu import data, sampled, trained
from gpu.capture import captured
from gpu.data import HYPER, NOISE_SCALE
from gpu.rows import MISS, NOT_RUN, PASS, Rows

STEPS, SIZE = 5, 10_007
STEP: dict[str, Any] = {**HYPER, "noise_scale": NOISE_SCALE}
LANGEVIN: dict[str, Any] = {"noise_scale": NOISE_SCALE, "clamp": (-2.0, 2.0)}


def run(rows: Rows, backend: str, device: str) -> None:
    if device == "cpu" and backend == "triton":
        rows.add("four threads at once", NOT_RUN, detail="Triton's interpreter has one thread")
    else:
        rows.check("four threads at once", {"steps": partial(threads, device)})
    if device != "cuda":
        for what in (
            "CUDA graph",
            "sampled from a graph",
            "trained from a graph",
            "another stream",
            "another GPU",
        ):
            rows.add(what, NOT_RUN, detail="needs CUDA")
        return
    for dtype in (torch.float32, torch.bfloat16):
        cases = {name: partial(graph, chain, dtype) for name, chain in CHAINS.items()}
        rows.check("CUDA graph", cases, dtype=data.name(dtype))
    rows.check("sampled from a graph", sampled.cases(device))
    once = sampled.waits(device)
    rows.add("a chain's waits", PASS if once <= 1 else MISS, waits=once, target="waits<=1")
    rows.check("trained from a graph", trained.cases(device))
    for where in ("device", "host"):
        found = trained.waits(device, host=where == "host")
        verdict = PASS if found <= 1 else MISS
        rows.add(
            f"20 iterations' waits, data on the {where}", verdict, waits=found, target="waits<=1"
        )
    rows.check("another stream", {"step": another_stream})
    if torch.cuda.device_count() > 1:
        rows.check("another GPU", {"step": another_gpu})
    else:
        rows.add("another GPU", NOT_RUN, detail="there is one")


# Chains of STEPS steps that move their key on, as a captured sampler does ------------------------


def _in_place(z: Tensor, key: Tensor) -> None:
    for k in range(STEPS):
        sf.stanley_step_(z, -z, key, k, **STEP)
    sf.advance_(key, STEPS * ((z.numel() + 3) // 4))


def _functional(z: Tensor, key: Tensor) -> None:
    x = z
    for k in range(STEPS):
        x = sf.stanley_step(x, -x, key, k, **STEP)
    z.copy_(x)
    sf.advance_(key, STEPS * ((z.numel() + 3) // 4))


def _langevin(z: Tensor, key: Tensor) -> None:
    gamma = sf.stepsize(-z, **HYPER)
    for k in range(STEPS):
        sf.langevin_step_(z, -z, gamma if k % 2 else 0.3, key, k, **LANGEVIN)
    sf.advance_(key, STEPS * ((z.numel() + 3) // 4))


def _noise(z: Tensor, key: Tensor) -> None:
    z.mul_(0.5).add_(sf.normal(z.shape, key, dtype=z.dtype))
    sf.advance_(key, (z.numel() + 3) // 4)


def _backprop(z: Tensor, key: Tensor) -> None:
    leaf = z.detach().requires_grad_()
    with torch.enable_grad():
        out = sf.stanley_step(leaf, -leaf, key, **STEP)
    (slope,) = torch.autograd.grad(out, leaf, torch.ones_like(out))
    z.add_(slope, alpha=-0.1)
    sf.advance_(key, (z.numel() + 3) // 4)


CHAINS: dict[str, Callable[[Tensor, Tensor], None]] = {
    "stanley_step_": _in_place,
    "stanley_step": _functional,
    "langevin_step_": _langevin,
    "normal": _noise,
    "backward": _backprop,
}


@torch.no_grad()
def graph(chain: Callable[[Tensor, Tensor], None], dtype: torch.dtype) -> float:
    """Two replays from one state differ, each equals eager, a saved key brings one back."""
    start = data.random((SIZE,), dtype).cuda()
    z, key, first_key = start.clone(), sf.key(21, "cuda"), sf.key(21, "cuda")
    play = captured(lambda: chain(z, key), warm=lambda: chain(z.clone(), key.clone()))

    def replay(from_key: Tensor) -> Tensor:
        z.copy_(start)
        key.copy_(from_key)
        play()
        return z.clone()

    def eager(from_key: Tensor) -> tuple[Tensor, Tensor]:
        x, k = start.clone(), from_key.clone()
        chain(x, k)
        return x, k

    one, moved = replay(first_key), key.clone()
    two = replay(moved)
    assert not torch.equal(one, two), "two replays drew the same noise"
    for got, from_key in ((one, first_key), (two, moved)):
        data.equal(got, eager(from_key)[0])
    assert torch.equal(moved, eager(first_key)[1]), "the key moved otherwise than in eager mode"
    return data.equal(replay(first_key), one)


# Streams, threads, devices -----------------------------------------------------------------------


@torch.no_grad()
def another_stream() -> float:
    """On a stream that is kept busy first, so that a launch anywhere else comes too early."""
    old, new, grad = (data.random((SIZE,), torch.float32).cuda() for _ in range(3))
    key = sf.key(2, "cuda")
    want = sf.stanley_step(new, grad, key, **STEP)
    sf.stanley_step_(old.clone(), grad, key, **STEP)  # compiled and loaded
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(100_000_000)  # cycles: about 50 ms
        old.copy_(new)
        got = sf.stanley_step(old, grad, key, **STEP)
        sf.stanley_step_(old, grad, key, **STEP)
    side.synchronize()
    data.equal(old, want)
    return data.equal(got, want)


@torch.no_grad()
def threads(device: str) -> float:
    """The same from four threads at once as from one after another."""
    states = [data.random((SIZE,), torch.float32).to(device) for _ in range(4)]
    if device == "cuda":
        torch.cuda.synchronize()

    def chain(z: Tensor) -> Tensor:
        with torch.no_grad():
            for k in range(STEPS):
                z = sf.stanley_step(z, -z, sf.key(6, device), k, **STEP)
            return z.cpu()

    wants = [chain(z) for z in states]
    with ThreadPoolExecutor(len(states)) as pool:
        for got, want in zip(pool.map(chain, states), wants, strict=True):
            data.equal(got, want)
    return 0.0


@torch.no_grad()
def another_gpu() -> float:
    """Tensors on the second GPU while the first is the current one."""
    z, grad = (data.random((SIZE,), torch.float32) for _ in range(2))
    want = sf.stanley_step(z.cuda(), grad.cuda(), sf.key(2, "cuda"), **STEP)
    got = sf.stanley_step(z.to("cuda:1"), grad.to("cuda:1"), sf.key(2, "cuda:1"), **STEP)
    assert got.device == torch.device("cuda:1")
    return data.equal(got.cpu(), want.cpu())
