"""States of more than 2^31 elements, and what a chain and torch.compile make of the steps."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

import stanley_fast as sf
from gpu import data
from gpu.data import CLAMP, HYPER, NOISE_SCALE
from gpu.rows import NOT_RUN, Rows

STEP: dict[str, Any] = {**HYPER, "noise_scale": NOISE_SCALE}
WINDOW = 1024  # elements that are compared with the reference


def run(rows: Rows, backend: str, device: str) -> None:
    rows.check("50 steps against cpp", {"gaussian": partial(chain_like_cpp, backend, device)})
    rows.check("torch.compile", {op: partial(compiled, op, device) for op in COMPILED})
    rows.check("under autocast", {"bfloat16": partial(under_autocast, device)})
    n, chunk = (2**31 + 2**20 + 3, 2**28) if device == "cuda" else (2**14 + 3, 2**12)
    for dtype in (torch.bfloat16, torch.float32):
        label = {"dtype": data.name(dtype), "elements": n}
        if not data.fits(8 * n * dtype.itemsize, device):
            rows.add("more than 2^31 elements", NOT_RUN, detail="too little memory", **label)
            continue
        checks = {
            check.__name__: partial(check, n, chunk, dtype, device)
            for check in (large_in_place, large_gradient, large_normal, wide_strides)
        }
        rows.check("more than 2^31 elements", checks, **label)


def chain_like_cpp(backend: str, device: str) -> float:
    """The same chain on the CPU's kernels; its target is a contraction, so errors do not grow."""
    if sf.backends()["cpp"] is not None:
        raise RuntimeError(f"backend cpp is not available: {sf.backends()['cpp']}")

    def chain(name: str, on: str) -> Tensor:
        z, key = start.to(on, copy=True), sf.key(31, on)
        with sf.use_backend(name):
            for k in range(50):
                sf.stanley_step_(z, -z, key, k, **STEP)
        return z

    start = data.random((4099,), torch.float32)
    return data.excess(chain(backend, device), chain("cpp", "cpu"), 2e-5)


# torch.compile -----------------------------------------------------------------------------------


def _in_place(z: Tensor, key: Tensor) -> Tensor:
    z = z.detach().clone()
    for k in range(3):
        sf.stanley_step_(z, -z, key, k, clamp=CLAMP, **STEP)
    return z


def _functional(z: Tensor, key: Tensor) -> Tensor:
    for k in range(3):
        z = sf.langevin_step(z, -z, sf.stepsize(-z, **HYPER), key, k, noise_scale=NOISE_SCALE)
    return sf.stanley_step(z, -z, key, 3, **STEP) + sf.normal(z.shape, key, 4, dtype=z.dtype)


COMPILED = {"in place": _in_place, "functional": _functional}


def compiled(name: str, device: str) -> float:
    """Steps in one graph without breaks give eager's values, and its gradient, on two sizes."""
    torch._dynamo.reset()
    loop, compiler = COMPILED[name], "inductor" if device == "cuda" else "aot_eager"
    fast = torch.compile(loop, fullgraph=True, backend=compiler)
    worst = 0.0
    for n in (1000, 1003):
        z, key = data.random((n,), torch.float32).to(device).requires_grad_(), sf.key(3, device)
        got, want = fast(z, key), loop(z, key)
        pairs = [(got, want)]
        if want.requires_grad:
            (slope,), (want_slope,) = (torch.autograd.grad(x.sum(), z) for x in (got, want))
            pairs.append((slope, want_slope))
        worst = max(worst, *(data.excess(a, b, 1e-4) for a, b in pairs))
    return worst


def under_autocast(device: str) -> float:
    """Autocast changes neither dtype nor values."""
    z, grad = (data.random((1000,), torch.float32).to(device) for _ in range(2))
    key = sf.key(3, device)
    want = sf.stanley_step(z, grad, key, **STEP)
    with torch.autocast(device, torch.bfloat16):
        return data.equal(sf.stanley_step(z, grad, key, **STEP), want)


# More than 2^31 elements -------------------------------------------------------------------------
# All of it against the same operation on chunks, which the other rows check, and windows at the
# start, in the middle, around 2^31 and at the end against the reference.


def fill(n: int, chunk: int, dtype: torch.dtype, device: str, scale: float = 1.0) -> Tensor:
    """Normals by torch, chunk by chunk."""
    x = torch.empty(n, dtype=dtype, device=device)
    for part in x.split(chunk):
        part.normal_(std=scale)
    return x


def chunks(n: int, chunk: int) -> Iterator[slice]:
    return (slice(i, min(i + chunk, n)) for i in range(0, n, chunk))


def windows(n: int) -> list[slice]:
    edge = 2**31 if n > 2**31 else n // 2
    starts = (0, n // 2 + 1, edge - WINDOW // 2, n - WINDOW)
    return [slice(start, start + WINDOW) for start in starts]


def large_in_place(n: int, chunk: int, dtype: torch.dtype, device: str) -> float:
    z, grad = fill(n, chunk, dtype, device), fill(n, chunk, dtype, device, 0.45)
    before, key = z.clone(), sf.key(8, device)
    sf.stanley_step_(z, grad, key, 2, **STEP)
    for at in chunks(n, chunk):
        want = sf.stanley_step(before[at], grad[at], key, 2, first=at.start, total=n, **STEP)
        data.equal(z[at], want)
    worst = 0.0
    for at in windows(n):
        old, slope = before[at].cpu(), grad[at].cpu()
        part = {"first": at.start, "total": n}
        want = data.reference_step("stanley_step", old, slope, old, key.cpu(), 2, **part)
        gamma = sf.reference.stepsize(slope.to(want.dtype), **HYPER)
        bound = data.step_bound(want, old, slope, gamma, "paper", dtype)
        worst = max(worst, data.excess(z[at], want, bound))
    return worst


def large_gradient(n: int, chunk: int, dtype: torch.dtype, device: str) -> float:
    key = sf.key(8, device)

    def by_grad(z: Tensor, grad: Tensor, coming: Tensor, **part: int) -> tuple[Tensor, ...]:
        z, grad = z.detach().requires_grad_(), grad.detach().requires_grad_()
        with torch.enable_grad():
            out = sf.stanley_step(z, grad, key, clamp=CLAMP, **STEP, **part)  # type: ignore[arg-type]
        return torch.autograd.grad(out, (z, grad), coming)

    tensors = [fill(n, chunk, dtype, device, scale) for scale in (1.0, 0.45, 1.0)]
    whole = by_grad(*tensors)
    for at in chunks(n, chunk):
        parts = by_grad(*(x[at] for x in tensors), first=at.start, total=n)
        for got, want in zip(whole, parts, strict=True):
            data.equal(got[at], want)
    return 0.0


def large_normal(n: int, chunk: int, dtype: torch.dtype, device: str) -> float:
    key = sf.key(9, device)
    whole = sf.normal((n,), key, 1, dtype=dtype)
    for at in chunks(n, chunk):
        size, part = (at.stop - at.start,), {"first": at.start, "total": n}
        data.equal(whole[at], sf.normal(size, key, 1, dtype=dtype, **part))
    for at in windows(n):
        part = {"first": at.start, "total": n}
        want = sf.reference.normal((WINDOW,), key.cpu(), 1, **part)
        bound = 1e-5 * want.double().abs().clamp(min=0.5) + data.rounding(want, dtype)
        data.excess(whole[at], want, bound)
    return 0.0


def wide_strides(n: int, chunk: int, dtype: torch.dtype, device: str) -> float:
    """Few elements, far apart: their offsets pass 2^31, the rest of memory stays as it is."""
    rows = 1025
    stride = n // rows
    memory = fill(n, chunk, dtype, device)
    z, before = memory[: rows * stride].view(rows, stride)[:, :3], memory.clone()
    grad, key = data.gradient((rows, 3), dtype).to(device), sf.key(4, device)
    want = sf.stanley_step(z.contiguous(), grad, key, **STEP)
    sf.stanley_step_(z, grad, key, **STEP)
    got = z.contiguous()
    z.copy_(before[: rows * stride].view(rows, stride)[:, :3])
    for at in chunks(n, chunk):
        data.equal(memory[at], before[at])
    return data.equal(got, want)
