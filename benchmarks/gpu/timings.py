"""Time of a step by CUDA events, beside a device copy of the same bytes, eager and Inductor.

Providers take turns; each call works on the next of several states, together larger than the L2
cache. A timed stretch of calls is queued behind a sleeping kernel, so that no launch is waited for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from providers import PROVIDERS, Provider, available, ours
from torch import Tensor

import stanley_fast as sf
from gpu import data, metropolis
from gpu.capture import captured
from gpu.data import DTYPES
from gpu.rows import FAIL, MISS, NOT_RUN, PASS, Rows, reason
from stanley_fast.bench.timing import Candidate, Run, beyond_cache, by_events, interleaved, rotating

SIZES = tuple(2**i for i in (16, 18, 20, 22, 24, 26, 28))
DRY_SIZES = (2**8, 2**10)
SMALL = 200
COPY_TARGET, INDUCTOR_TARGET, FROM_SIZE = 0.90, 1.5, 2**26


@torch.no_grad()
def run(rows: Rows, device: str) -> None:
    names = [*ours(device), *("copy", "noise", "naive", "tuned", "inductor")]
    if device == "cpu":
        names += ["triton", "triton, new"]  # through the interpreter: only that it runs
    for name in names:
        why = available(name, device)
        if why is not None:
            rows.add(name, NOT_RUN, detail=why)
    names = [name for name in names if available(name, device) is None]
    for dtype in DTYPES:
        some = [n for n in names if n not in ("tuned", "inductor") or dtype == torch.float32]
        if dtype == torch.bfloat16:
            some += [rounded for n in names if (rounded := f"{n}, stochastic") in PROVIDERS]
        for size in SIZES if device == "cuda" else DRY_SIZES:
            guarded(rows, f"{data.name(dtype)} {size}", steps, rows, some, size, dtype, device)
    guarded(rows, "latency", latency, rows, names, device)
    guarded(rows, "other operations", others, rows, device)
    guarded(rows, "metropolis", metropolis.timings, rows, device, measure)


def guarded(rows: Rows, what: str, part: Callable[..., None], *args: Any) -> None:
    """What fails here is a row, and the next part runs."""
    try:
        part(*args)
    except Exception as error:
        rows.add(what, FAIL, detail=reason(error))


# The step ----------------------------------------------------------------------------------------


def steps(rows: Rows, names: list[str], size: int, dtype: torch.dtype, device: str) -> None:
    """One row per provider, with its share of the copy and its target."""
    torch._dynamo.reset()  # compiled for each size, and compilations are limited
    label = {"dtype": data.name(dtype), "elements": size}
    if not data.fits(24 * size * dtype.itemsize, device):
        rows.add("step", NOT_RUN, detail="too little memory", **label)
        return
    pairs = states(size, dtype, device)
    candidates: dict[str, Candidate] = {}
    for name in names:
        try:
            candidates[name] = taking_turns(PROVIDERS[name], pairs)
        except Exception as error:
            rows.add(name, wrong(name), detail=reason(error), **label)
    times = measure(candidates, device)
    for name, seconds in times.items():
        row = {**label, "us": round(seconds * 1e6, 3)}
        if name != "noise":  # which reads nothing
            row |= rates(seconds, 3 * size * dtype.itemsize, times)
        if PROVIDERS[name].backend is None or dtype != torch.float32 or size < FROM_SIZE:
            rows.add(name, "", **row)
            continue
        reached, target = times["copy"] / seconds >= COPY_TARGET, f"of_copy>={COPY_TARGET}"
        if "inductor" in times:
            over = times["inductor"] / seconds
            reached = reached and over >= INDUCTOR_TARGET
            row["inductor_over_this"] = round(over, 2)
            target += f" inductor_over_this>={INDUCTOR_TARGET}"
        rows.add(name, PASS if reached else MISS, **row, target=target)


def wrong(name: str) -> str:
    """A baseline that does not run is not our failure."""
    return NOT_RUN if PROVIDERS[name].backend is None else FAIL


def rates(seconds: float, moved: int, times: dict[str, float]) -> dict[str, float]:
    """Of the bytes that a step must move: z and g read, z' written."""
    found = {"gb_per_s": round(moved / seconds / 1e9, 1)}
    return found | ({"of_copy": round(times["copy"] / seconds, 3)} if "copy" in times else {})


def states(size: int, dtype: torch.dtype, device: str) -> list[tuple[Tensor, Tensor]]:
    """Pairs of z and gradient, enough to push each other out of the cache."""
    count = max(2, beyond_cache(size * dtype.itemsize, device))

    def normals(scale: float) -> Tensor:
        return torch.randn(size, device=device).mul_(scale).to(dtype)

    return [(normals(1.0), normals(0.1)) for _ in range(count)]


def taking_turns(provider: Provider, pairs: list[tuple[Tensor, Tensor]]) -> Candidate:
    """Calls that go round the states."""
    key = sf.key(0, pairs[0][0].device)
    calls = [provider.make(z, grad, key) for z, grad in pairs]
    with provider.around():
        calls[0]()  # what compiles, compiles here, where its failure is its own
    return Candidate(rotating(calls), provider.around)


DRY: dict[str, Any] = {"rounds": (1, 1), "per_round": 0.0}


def measure(candidates: dict[str, Candidate], device: str) -> dict[str, float]:
    """Median seconds per call of kernels, by CUDA events."""
    return by_events(candidates) if device == "cuda" else interleaved(candidates, **DRY)


def made(
    rows: Rows, what: str, makers: dict[str, Callable[[], Run]], device: str, label: dict[str, Any]
) -> dict[str, Run]:
    """Baselines, called once; a row for each that does not run, which is no failure of ours."""
    runs = {}
    for name, make in makers.items():
        why = available(name, device) if name in PROVIDERS else None
        if why is None:
            try:
                runs[name] = make()
                runs[name]()
            except Exception as error:
                why = reason(error)
                runs.pop(name, None)
        if why is not None:
            rows.add(f"{what}: {name}", NOT_RUN, **label, detail=why)
    return runs


def clocked(runs: dict[str, Run], device: str) -> dict[str, float]:
    """Median seconds per call by the host's clock, the call and its synchronisation included."""
    candidates = {name: Candidate(run) for name, run in runs.items()}
    how = {"rounds": (7, 15), "per_round": 0.0} if device == "cuda" else DRY
    return interleaved(candidates, **how, device=device)


# Small states: the call is all the cost -----------------------------------------------------------


def latency(rows: Rows, names: list[str], device: str) -> None:
    """Microseconds per call at SMALL elements: as called, and within a CUDA graph."""
    for name in names:
        torch._dynamo.reset()
        label: dict[str, Any] = {"dtype": "float32", "elements": SMALL}
        provider = PROVIDERS[name]
        z = torch.randn(SMALL, device=device)
        call = provider.make(z, 0.1 * torch.randn_like(z), sf.key(0, device))
        with provider.around():
            label["us_called"] = round(called(call, device) * 1e6, 2)
            if device == "cuda":
                try:
                    label["us_in_graph"] = round(in_graph(call) * 1e6, 2)
                except Exception as error:
                    rows.add(f"{name}, small", wrong(name), **label, detail=reason(error))
                    continue
        rows.add(f"{name}, small", "", **label)


def called(call: Run, device: str) -> float:
    """Seconds per call by the host's clock, where calls follow each other."""
    how = {"rounds": (5, 5), "per_round": 0.02} if device == "cuda" else DRY
    return interleaved({"call": Candidate(call)}, **how, device=device)["call"]


def in_graph(call: Run, calls: int = 100) -> float:
    """Seconds per call when `calls` calls are one CUDA graph."""

    def several() -> None:
        for _ in range(calls):
            call()

    replay = captured(several, warm=call)
    return by_events({"graph": Candidate(replay)})["graph"] / calls


# The other operations ----------------------------------------------------------------------------


def others(rows: Rows, device: str) -> None:
    """Bandwidth of what is not the step: no target, but a kernel that fell behind shows."""
    size = 2**26 if device == "cuda" else 2**8
    z, grad, coming = (torch.randn(size, device=device) for _ in range(3))
    key, gamma = sf.key(0, device), torch.rand(size, device=device) + 0.1
    scale: dict[str, Any] = {"threshold": 0.3, "noise_scale": 0.1}
    leaves = z.clone().requires_grad_(), grad.clone().requires_grad_()
    strided = torch.randn(2 * size, device=device)[::2]

    def backward(out: Tensor) -> Run:
        return lambda: torch.autograd.grad(out, leaves, coming, retain_graph=True)

    for name in ours(device):
        if name.endswith("new") or available(name, device) is not None:
            continue
        around = PROVIDERS[name].around
        with around(), torch.enable_grad():
            free = sf.stanley_step(*leaves, key, **scale)
            bounded = sf.stanley_step(*leaves, key, clamp=(-1.0, 1.0), **scale)
        runs: dict[str, tuple[Run, int]] = {  # and how many tensors it reads or writes
            "langevin_step_": (lambda: sf.langevin_step_(z, grad, 0.1, key), 3),
            "langevin_step_ gamma": (lambda: sf.langevin_step_(z, grad, gamma, key), 4),
            "normal": (lambda: sf.normal((size,), key), 1),
            "stepsize": (lambda: sf.stepsize(grad, threshold=0.3), 2),
            "backward": (backward(free), 3),
            "backward, clamp": (backward(bounded), 5),
            "stanley_step_ strided z": (lambda: sf.stanley_step_(strided, grad, key, **scale), 3),
        }
        times = measure({what: Candidate(call, around) for what, (call, _) in runs.items()}, device)
        for what, seconds in times.items():
            speed = round(runs[what][1] * 4 * size / seconds / 1e9, 1)
            label = {"elements": size, "us": round(seconds * 1e6, 2), "gb_per_s": speed}
            rows.add(f"{name}: {what}", "", dtype="float32", **label)
