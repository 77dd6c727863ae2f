"""An iteration of training: `Trainer` against plain torch, and against it as one CUDA graph.

ours: whole iterations from one graph; no graph: the same without any. toy: the paper's net for the
rings, K = 100, batch 100, in float32. cifar: its net for CIFAR-10, batch 64, in TF32. grad:
autograd.grad, the equations in eager torch, Adam; graphed: that iteration as one CUDA graph;
compile: its transition in torch.compile(mode="reduce-overhead"); torchebm: TorchEBM's sampler in
grad's place, as its own trainer does not start.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from toy import Chain, by_autograd, by_compile, iteration, torchebm_chain

from gpu import runs
from gpu.capture import captured
from gpu.conv import within
from gpu.rows import MISS, PASS, Rows
from gpu.timings import clocked, guarded, made
from stanley_fast.bench.ceilings import Precision
from stanley_fast.bench.timing import Run

TIMES = {"toy": 100, "cifar": 3}  # iterations of `fit` that are timed together


def run(rows: Rows, device: str) -> None:
    kinds: tuple[tuple[runs.Kind, Precision], ...] = (("toy", "float32"), ("cifar", "tf32"))
    for kind, precision in kinds:
        guarded(rows, f"training, {kind}", timings, rows, kind, precision, device)


def timings(rows: Rows, kind: runs.Kind, precision: Precision, device: str) -> None:
    """Milliseconds for an iteration by the host's clock."""
    here = runs.job(kind, device)
    chains, steps = here.config.batch_size, here.config.transitions
    label: dict[str, Any] = {"dtype": precision, "chains": chains, "steps": steps}
    net, x = here.net(), here.observations()
    trainer, by_launches = here.trainer(precision), here.trainer(precision, graph=False)

    def plain(chain: Chain) -> Run:
        adam = partial(torch.optim.Adam, lr=1e-4, capturable=device == "cuda")
        return iteration(net, chain, lambda: torch.randn_like(x), lambda: x, adam)

    by_grad = partial(by_autograd, net, steps=steps)
    others: dict[str, Callable[[], Run]] = {
        "grad": lambda: plain(by_grad),
        "torchebm": lambda: plain(torchebm_chain(net, steps, x.device)),
    }
    if device == "cuda":
        others["graphed"] = lambda: captured(plain(by_grad))
        others["compile"] = lambda: plain(by_compile(net, steps, "reduce-overhead"))
    torch._dynamo.reset()
    with within(precision, device):
        trainer.fit(TIMES[kind])
        by_launches.fit(1)
        ours: dict[str, Run] = {
            "ours": lambda: trainer.fit(trainer.iteration + TIMES[kind]),
            "no graph": by_launches._iteration,
        }
        medians = clocked(ours | made(rows, "training", others, device, label), device)
    seconds = medians.pop("ours") / TIMES[kind]
    row = {**label, "ms": seconds * 1e3, "iterations_per_s": 1 / seconds}
    row |= {f"{name}_over_this": round(s / seconds, 2) for name, s in medians.items()}
    row["rung"] = trainer.rung
    if "graphed" not in medians:
        rows.add(f"iteration, {kind}", "", **row)
        return
    others_best = min(medians.values())
    verdict = PASS if seconds <= others_best else MISS
    rows.add(f"iteration, {kind}", verdict, **row, target="ms<=any other way's")
