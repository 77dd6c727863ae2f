"""Whole chains of a small net in one kernel: values against the reference, time against others.

linear, conv: the paper's toy net in nn.Linear, or in 1x1 nn.Conv2d as the paper has it, with
autograd.grad and Eqs. 4 and 5 in eager torch; graphed: the loop over linear as one CUDA graph;
compile: its transition in torch.compile(mode="reduce-overhead"); torchebm: TorchEBM's sampler.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from toy import NOISE_SCALE, THRESHOLD, as_conv, by_autograd, by_compile, torchebm

import stanley_fast as sf
from gpu.capture import captured
from gpu.rows import MISS, PASS, Rows
from gpu.timings import clocked, guarded, made
from stanley_fast import fusion
from stanley_fast.bench import work
from stanley_fast.bench.ceilings import peaks
from stanley_fast.bench.timing import Run

TOY = (2, 32, 64, 64, 64, 1)
NETS = {"toy": TOY, "narrow": (3, 5, 1), "deep": (5, *[20] * 7, 1), "wide": (16, 128, 128, 1)}
ACTIVATIONS = {"leaky": partial(nn.LeakyReLU, 0.05), "silu": nn.SiLU}
SAMPLERS: dict[str, sf.Stanley | sf.Langevin] = {
    "adaptive": sf.Stanley(0.1, 0.7, 0.15, clamp=(-2.0, 2.0)),
    "script": sf.Stanley(0.1, 0.7, 0.15, update="script"),
    "frozen": sf.Stanley(0.1, 0.7, 0.15, stepsize="frozen"),
    "langevin": sf.Langevin(0.14, 0.15, grad_clamp=0.05),
}
CHAINS, STEPS, TARGET_CHAINS, TARGET = (100, 1_000, 10_000), 100, 100, 100.0


def run(rows: Rows, backend: str, device: str) -> None:
    for dtype in (torch.float32, torch.float64):
        label = str(dtype).removeprefix("torch.")
        rows.check("whole chains", values(dtype, device), dtype=label)
        rows.check("whole chains in parts", {"parts": partial(parts, dtype, device)}, dtype=label)
    sizes, steps = (CHAINS, STEPS) if device == "cuda" else ((8,), 2)
    for chains in sizes:
        guarded(rows, f"{chains} chains", timings, rows, chains, steps, device)


# Values ------------------------------------------------------------------------------------------


def mlp(widths: tuple[int, ...], activation: Callable[[], nn.Module]) -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise(widths):
        layers += [nn.Linear(n_in, n_out), activation()]
    return nn.Sequential(*layers[:-1], nn.Flatten(0))


def values(dtype: torch.dtype, device: str) -> dict[str, Callable[[], float]]:
    """Every net with every sampler; on the CPU each sampler with one."""
    cases = {}
    for i, (name, widths) in enumerate(NETS.items()):
        for j, sampler in enumerate(SAMPLERS):
            if device == "cuda" or i == j:
                kind = list(ACTIVATIONS)[(i + j) % 2]
                case = partial(agree, widths, kind, SAMPLERS[sampler], dtype, device)
                cases[f"{name} {kind} {sampler}"] = case
    return cases


def agree(
    widths: tuple[int, ...],
    activation: str,
    sampler: sf.Stanley | sf.Langevin,
    dtype: torch.dtype,
    device: str,
) -> float:
    """State and statistics, of the chain step by step on the CPU in the reference."""
    chains, steps = (1003, 20) if device == "cuda" else (11, 2)
    f = mlp(widths, ACTIVATIONS[activation]).to(dtype)
    z0 = 1.5 * sf.reference.normal((chains, widths[0]), sf.key(1), stream=2, dtype=dtype)
    with sf.use_backend("reference"):
        want = sf.sample(f, z0, sampler, steps, key=sf.key(7), record=fusion.STATS)
    f, z0 = f.to(device), z0.to(device)
    if dtype == torch.float64 and max(widths) == 128:  # 296 KB of shared memory
        out = sf.sample(f, z0, sampler, 1, key=sf.key(7, device))
        assert "shared memory" in out.rung, out.rung
        return 0.0
    out = sf.sample(f, z0, sampler, steps, key=sf.key(7, device), record=fusion.STATS, fused=True)
    atol = 1e-5 if dtype == torch.float32 else 1e-10
    off = (out.z.cpu() - want.z).abs().max() / atol
    for name in fusion.STATS:
        if name != "at_max_stepsize":  # a gradient at the threshold may fall on either side
            off = max(off, (out.stats[name].cpu() - want.stats[name]).abs().max() / atol)
    assert off <= 1, f"{float(off) * atol:.2e} off, more than {atol}"
    return float(off)


def parts(dtype: torch.dtype, device: str) -> float:
    """The same bits in parts as whole, wherever they begin."""
    n, steps = (203, 10) if device == "cuda" else (9, 1)
    f, sampler = sf.MLPEnergy().to(device, dtype), SAMPLERS["adaptive"]
    z0 = sf.normal((n, 2), sf.key(1, device), dtype=dtype)
    go = partial(sf.sample, f, sampler=sampler, steps=steps, key=sf.key(7, device), fused=True)
    whole = go(z0).z
    for cut in (1, n // 2):
        got = torch.cat([go(z0[:cut], total=2 * n).z, go(z0[cut:], first=2 * cut, total=2 * n).z])
        if device == "cuda":
            assert torch.equal(got, whole), "other bits in parts"
        torch.testing.assert_close(got, whole)  # the interpreter's products are NumPy's
    return 0.0


# Time --------------------------------------------------------------------------------------------


def timings(rows: Rows, chains: int, steps: int, device: str) -> None:
    """Milliseconds for a chain by the host's clock, the call and its synchronisation included."""
    f = sf.MLPEnergy(TOY).requires_grad_(False).to(device)
    conv = as_conv(f).to(device)
    z = 2 * sf.normal((chains, 2), sf.key(0, device))
    sampler = sf.Stanley(THRESHOLD, noise_scale=NOISE_SCALE)
    one_kernel = partial(sf.sample, f, z, sampler, steps, key=sf.key(1, device), fused=True)
    runs: dict[str, Run] = {
        "one kernel": one_kernel,
        "linear": partial(by_autograd, f.net, z, steps),
        "conv": partial(by_autograd, conv, z[:, :, None, None], steps),
    }
    label = {"dtype": "float32", "chains": chains, "steps": steps}
    at_target = device == "cuda" and chains == TARGET_CHAINS
    others: dict[str, Callable[[], Run]] = {"torchebm": lambda: torchebm(f, z, steps)}
    if device == "cuda":
        others["graphed"] = lambda: captured(partial(by_autograd, f.net, z, steps))
    if at_target:  # which takes a while to compile
        others["compile"] = lambda: partial(by_compile(f, steps, "reduce-overhead"), z)
    runs |= made(rows, "chain", others, device, label)
    medians = clocked(runs, device)
    ours = medians.pop("one kernel")
    flops = work.chain(f, z, steps).flops
    row: dict[str, Any] = {**label, "ms": ours * 1e3, "gflop_per_s": flops / ours / 1e9}
    row |= {f"{name}_over_this": round(s / ours, 1) for name, s in medians.items()}
    if device == "cuda":
        row["of_peak"] = flops / ours / peaks(device)["float32"].rate
    if at_target:
        reached = min(row["linear_over_this"], row["conv_over_this"]) >= TARGET
        target = f"linear_over_this>={TARGET} conv_over_this>={TARGET}"
        rows.add("chain in one kernel", PASS if reached else MISS, **row, target=target)
    else:
        rows.add("chain in one kernel", "", **row)
    if device == "cuda":
        tile_sizes(rows, one_kernel, label)


def tile_sizes(rows: Rows, call: Run, label: dict[str, Any]) -> None:
    """Whether CHAINS and WARPS are what this GPU wants."""
    from stanley_fast.kernels import launch_chain

    chosen = launch_chain.CHAINS, launch_chain.WARPS
    try:
        for pair in ((4, 4), (4, 8), (8, 4), (8, 8), (16, 8), (16, 16)):
            launch_chain.CHAINS, launch_chain.WARPS = pair
            ms = clocked({"tile": call}, "cuda")["tile"] * 1e3
            rows.add("chain in one kernel, tiles", "", **label, tile=pair, ms=ms)
    finally:
        launch_chain.CHAINS, launch_chain.WARPS = chosen
