"""A small run for the tests of the trainer."""

from __future__ import annotations

import csv
from pathlib import Path

import torch
from torch import Tensor, nn

import stanley_fast as sf
from stanley_fast.energies import MLPEnergy, Rings
from stanley_fast.samplers import Stanley
from stanley_fast.starts import NoiseStart
from stanley_fast.trainer import Trainer

BATCH, K = 16, 4
ADAM = lambda parameters: torch.optim.Adam(parameters, 1e-3)  # noqa: E731


def net(seed: int = 0) -> MLPEnergy:
    torch.manual_seed(seed)
    return MLPEnergy((2, 16, 16, 1))


class ByStep(MLPEnergy):
    """A net whose chains run step by step: the whole-chain kernel does not know its class."""


def by_step(seed: int = 0) -> ByStep:
    torch.manual_seed(seed)
    return ByStep((2, 16, 16, 1))


def make(f: nn.Module | None = None, **settings: object) -> Trainer:
    """A quick run; settings override."""
    given = {
        "data": Rings().sample,
        "sampler": Stanley(0.1, noise_scale=0.15),
        "start": NoiseStart(2.0),
        "optimizer": ADAM,
        "steps": K,
        "batch_size": BATCH,
        "key": sf.key(5),
        "progress": False,
        "log_every": 5,
        "checkpoint_every": 10,
    }
    return Trainer(net() if f is None else f, **given | settings)  # type: ignore[arg-type]


def weights(f: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in f.parameters()])


def rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def assert_equal(a: object, b: object) -> None:
    if isinstance(a, Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_equal(a[key], b[key])
    elif isinstance(a, list):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_equal(x, y)
    else:
        assert a == b


# Iteration t makes K + 1 forward passes: this one is in the middle of iteration 13's chain.
IN_13 = 12 * (K + 1) + 3
