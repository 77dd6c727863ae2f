"""Line 10 of Algorithm 1: the step of theta, its learning rate, and the average of theta."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

MakeOptimizer = Callable[[Iterator[nn.Parameter]], torch.optim.Optimizer]


class Updates:
    """What moves f's parameters once their gradient is known.

    Args: `f`, `optimizer`, `schedule` and `ema` as in `Trainer`.

    Attributes:
        optimizer: the one given or made.
        parameters: all that it moves.
        rates: the learning rate of each of its groups, which the schedule multiplies.
        average: of f's parameters, or None; until the first step a copy of f.

    Raises TypeError, ValueError: an argument that makes no sense.
    """

    def __init__(
        self,
        f: nn.Module,
        optimizer: torch.optim.Optimizer | MakeOptimizer,
        schedule: Callable[[int], float] | None = None,
        ema: float | None = None,
    ) -> None:
        if not (isinstance(optimizer, torch.optim.Optimizer) or callable(optimizer)):
            raise TypeError(
                "optimizer must be a torch.optim.Optimizer, or make one of parameters, got "
                f"{optimizer!r}"
            )
        if not (schedule is None or callable(schedule)):
            raise TypeError(f"schedule must be iteration -> factor, or None, got {schedule!r}")
        if not (ema is None or 0 < ema < 1):
            raise ValueError(f"ema must be in (0, 1) or None, got {ema}")
        self.f, self.schedule = f, schedule
        self.optimizer = (
            optimizer if isinstance(optimizer, torch.optim.Optimizer) else optimizer(f.parameters())
        )
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        self.average = (
            None if ema is None else AveragedModel(f, multi_avg_fn=get_ema_multi_avg_fn(ema))
        )

    @property
    def model(self) -> nn.Module:
        """f with the averaged weights, or f itself."""
        return self.f if self.average is None else self.average.module

    def step(self, iteration: int) -> None:
        """Line 10 for the iteration of this number, from 0."""
        if self.schedule is not None:
            factor = float(self.schedule(iteration))
            for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
                group["lr"] = rate * factor
        self.optimizer.step()
        if self.average is not None:
            self.average.update_parameters(self.f)

    def is_finite(self) -> bool:
        """Whether every parameter is."""
        return all(bool(p.isfinite().all()) for p in self.parameters)

    def slow_down(self, factor: float) -> None:
        """Multiplies the learning rates."""
        self.rates = [rate * factor for rate in self.rates]
        for group in self.optimizer.param_groups:
            group["lr"] *= factor

    def state_dict(self) -> dict[str, Any]:
        return {
            "f": self.f.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "rates": self.rates,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """ValueError: one has averaged weights that the other lacks."""
        if (self.average is None) != (state["average"] is None):
            raise ValueError("one has averaged weights (ema), the other has none")
        self.f.load_state_dict(state["f"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.rates = list(state["rates"])
