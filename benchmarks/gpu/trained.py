"""`Trainer` from CUDA graphs: the plain iterations' weights, buffer, averages and figures.

Every case runs on any device that captures; the tests run them on the CPU with a stand-in.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import stanley_fast as sf
from gpu.sampled import IMAGE, Cases, raised
from stanley_fast import training_graph
from stanley_fast.schedules import warm_up_and_decay
from stanley_fast.trainer import DivergedError, Trainer

ITERATIONS, BATCH = 25, 16
# The same kernels on the same numbers, but convolutions' weight gradients may add up in another
# order, and Adam divides by their size.
APART = 1e-3
ADAM = partial(torch.optim.Adam, lr=1e-3, fused=True)
STANLEY = sf.Stanley(0.1, noise_scale=0.15)


class ByStep(sf.MLPEnergy):
    """Runs step by step: the kernels do not know its class."""


def toy(kind: type[sf.MLPEnergy] = sf.MLPEnergy, **settings: Any) -> dict[str, Any]:
    torch.manual_seed(0)
    given = {"f": kind((2, 32, 32, 1)), "data": sf.Rings().sample, "start": sf.NoiseStart(2.0)}
    return given | settings


def images(**settings: Any) -> dict[str, Any]:
    torch.manual_seed(0)
    net = [nn.Conv2d(3, 8, 3, padding=1), nn.SiLU(), nn.Flatten(), nn.Linear(512, 1), nn.Flatten(0)]
    given = {"f": nn.Sequential(*net), "data": pictures(), "start": buffer(), "ema": 0.99}
    return given | settings


def pictures() -> Tensor:
    return sf.normal((100, *IMAGE), sf.key(3), stream=2)


def buffer() -> sf.ReplayBuffer:
    return sf.ReplayBuffer(40, sf.NoiseStart(1.0), fresh_share=0.2)


def cases(device: str) -> Cases:
    whole: dict[str, Callable[[], dict[str, Any]]] = {
        "a chain in one kernel": toy,
        "step by step": partial(toy, ByStep),
        "convolutions, buffer, average": images,
        "schedule, clipping, decay": lambda: toy(
            schedule=warm_up_and_decay(ITERATIONS, warm_up=5, decay=True),
            optimizer=partial(torch.optim.AdamW, lr=1e-3, fused=True),
            grad_clip=0.5,
            energy_l2=0.1,
            data_noise=0.1,
        ),
        "sgd": lambda: toy(optimizer=partial(torch.optim.SGD, lr=1e-3, momentum=0.9, fused=True)),
        "from data": lambda: images(start=sf.DataStart()),
        "mala": lambda: toy(ByStep, sampler=sf.MALA(0.1)),
        "bfloat16 autocast": lambda: images(autocast=True),
    }
    each: Cases = {name: partial(plain_run, make, device) for name, make in whole.items()}
    return each | {
        "data on the host": partial(host_data, device),
        "diverges": partial(diverges, device),
        "goes back": partial(goes_back, device),
    }


def trainer(device: str, *, graph: bool, **settings: Any) -> Trainer:
    """On the device; its data too, unless they are the host's."""
    f, data = settings.pop("f").to(device), settings.pop("data")
    if isinstance(data, Tensor) and not settings.pop("host", False):
        data = data.to(device)
    given = {
        "optimizer": ADAM,
        "sampler": STANLEY,
        "steps": 10,
        "batch_size": BATCH,
        "log_every": 10,
    }
    return Trainer(f, data, key=sf.key(5), graph=graph, progress=False, **given | settings)


def plain_run(make: Callable[[], dict[str, Any]], device: str, **settings: Any) -> float:
    got = trainer(device, graph=True, **make(), **settings)
    want = trainer(device, graph=False, **make(), **settings)
    for run in (got, want):
        torch.manual_seed(1)
        run.fit(ITERATIONS)
    assert got.rung.startswith("graph: "), got.rung
    assert want.rung.startswith("step: "), want.rung
    return apart(got, want)


def apart(got: Trainer, want: Trainer) -> float:
    """The largest difference of two runs as a share of what is allowed; of keys there is none."""
    assert got.iteration == want.iteration
    assert torch.equal(got.keys, want.keys), "the keys have moved apart"
    pairs = list(zip(got.f.parameters(), want.f.parameters(), strict=True))
    pairs += zip(got.model.parameters(), want.model.parameters(), strict=True)
    if isinstance(got.start, sf.ReplayBuffer) and isinstance(want.start, sf.ReplayBuffer):
        assert got.start.chains is not None
        assert want.start.chains is not None
        pairs.append((got.start.chains, want.start.chains))  # type: ignore[arg-type]
    for name, value in want.metrics.items():
        pairs.append((torch.tensor(got.metrics[name]), torch.tensor(value)))  # type: ignore[arg-type]
    apart = [float((g - w).detach().abs().max() / (1 + w.detach().abs().max())) for g, w in pairs]
    worst = max(apart) / APART
    assert worst <= 1, f"{worst * APART:.1e} apart"
    return worst


def host_data(device: str) -> float:
    """Drawn on the host, through pinned memory, they are the device's."""
    got = trainer(device, graph=True, host=True, **images())
    want = trainer(device, graph=False, **images())
    for run in (got, want):
        run.fit(ITERATIONS)
    return apart(got, want)


def diverges(device: str) -> float:
    """At the plain run's iteration, with its weights: no later replay has changed them."""
    found, words = [], []
    for graph in (True, False):
        run = trainer(device, graph=graph, max_gap=0.5, **toy(ByStep),
                      optimizer=partial(torch.optim.Adam, lr=3e-2, fused=True))  # fmt: skip
        words.append(str(raised(DivergedError, partial(run.fit, 1_000))).partition(":")[0])
        found.append(run)
    assert words[0] == words[1], f"{words[0]}, but plainly {words[1]}"
    return apart(*found)


def goes_back(device: str) -> float:
    """Two replays differ, and a saved key brings one back."""
    run = trainer(device, graph=True, **toy(ByStep, optimizer=partial(ADAM, lr=0.0)))
    run.fit(3)
    key, ends = run.keys.clone(), []
    for _ in range(2):
        run.keys.copy_(key)
        for n in (1, 2):
            run.fit(run.iteration + 1)
            ends.append(run.metrics["f_chain"])
            assert run.rung.startswith("graph: "), f"{n}: {run.rung}"
    assert ends[0] != ends[1], "two replays drew the same noise"
    assert ends[:2] == ends[2:], "a saved key did not bring them back"
    return 0.0


def waits(device: str, **settings: Any) -> int:
    """How often so many iterations wait for the device, once they are captured."""
    run = trainer(device, graph=True, log_every=10**6, **images(**settings))
    run.fit(3)
    at_once = training_graph.AT_ONCE
    training_graph.AT_ONCE = 1e9
    try:
        run.fit(4)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                run._iterate(24)  # `fit` looks at the weights before it saves
            finally:
                torch.cuda.set_sync_debug_mode("default")
    finally:
        training_graph.AT_ONCE = at_once
    return sum("synchronizing" in str(warning.message) for warning in caught)
