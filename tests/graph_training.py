"""Small runs for the tests of training from CUDA graphs."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn
from training import assert_equal, by_step, make

import stanley_fast as sf
from stanley_fast.trainer import Trainer

ADAM = partial(torch.optim.Adam, lr=1e-3, fused=True)
BUFFER = lambda: sf.ReplayBuffer(40, sf.NoiseStart(2.0), fresh_share=0.3)  # noqa: E731


def run(graph: bool | str, f: nn.Module | None = None, n: int = 17, **settings: Any) -> Trainer:
    given = {"optimizer": ADAM, "graph": graph} | settings
    torch.manual_seed(1)
    trainer = make(by_step() if f is None else f, **given)
    trainer.fit(n)
    assert trainer.rung.startswith("graph: " if graph is not False else "step: "), trainer.rung
    return trainer


def assert_same(got: Trainer, want: Trainer) -> None:
    assert_equal(got.state_dict(), want.state_dict())
