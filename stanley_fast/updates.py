"""Line 10 of Algorithm 1: the step of theta, its learning rate, and the average of theta."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

# Known to leave a step out by themselves, as under torch.amp.GradScaler.
_LEAVING_OUT = (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD)

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
        self.f, self.schedule, self.ema = f, schedule, ema
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
        rates = self.rates_at(iteration)
        self.set_rates(rates)
        with self._settings(rates if self.needs_host() else map(_rounded, rates)):
            self.optimizer.step()
        if self.average is not None:
            self.average.update_parameters(self.f)

    def rates_at(self, iteration: int) -> list[float]:
        """Each group's learning rate for the iteration."""
        if self.schedule is None:
            return [group["lr"] for group in self.optimizer.param_groups]
        factor = float(self.schedule(iteration))
        return [rate * factor for rate in self.rates]

    def set_rates(self, rates: list[float]) -> None:
        """As they show in the optimizer's groups."""
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate

    def needs_host(self) -> str:
        """Why `step_if` can't be; "" if it can."""
        optimizer, groups = self.optimizer, self.optimizer.param_groups
        if type(optimizer) not in _LEAVING_OUT or not all(group.get("fused") for group in groups):
            names = ", ".join(kind.__name__ for kind in _LEAVING_OUT)
            return f"the optimizer is none of {names} with fused=True, which leave out steps"
        if optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks:
            return "the optimizer has hooks"
        if any(isinstance(group["lr"], Tensor) for group in groups):
            return "a learning rate is a tensor"
        return ""

    def step_if(self, good: Tensor, rates: list[Tensor]) -> None:
        """`step`, for a CUDA graph: once `step` was called, and only where `good` is 1, not 0.

        rates: float32, 0-dim: `rates_at`, to be written before every replay.
        `count` takes note of those that were made.
        """
        with self._settings(rates, capturable=True):
            self.optimizer.found_inf = 1.0 - good.float()  # type: ignore[attr-defined]
            try:
                self.optimizer.step()
            finally:
                del self.optimizer.found_inf  # type: ignore[attr-defined]
        if self.average is not None and self.ema is not None:
            averages, share = self.average.module, (1 - self.ema) * good.double()
            shares = {p.dtype: share.to(p.dtype) for p in self.f.parameters()}
            for mine, p in zip(averages.parameters(), self.f.parameters(), strict=True):
                mine.detach().lerp_(p.detach(), shares[p.dtype])
            for kept, b in zip(averages.buffers(), self.f.buffers(), strict=True):
                kept.copy_(b)

    def count(self, steps: int) -> None:
        """So many were made by `step_if`."""
        if self.average is not None:
            self.average.n_averaged += steps

    @contextmanager
    def _settings(self, rates: Iterable[float | Tensor], **more: object) -> Iterator[None]:
        """The optimizer's groups with these learning rates and settings."""
        groups = self.optimizer.param_groups
        before = [dict(group) for group in groups]
        for group, rate in zip(groups, rates, strict=True):
            group |= {"lr": rate, **more}
        try:
            yield
        finally:
            for group, own in zip(groups, before, strict=True):
                group.clear()
                group |= own

    def is_finite(self) -> bool:
        """Whether every parameter is."""
        return bool(torch.stack([p.isfinite().all() for p in self.parameters]).all())

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


def _rounded(rate: float) -> float:
    """As a float32, which `step_if` takes: so that both do the same."""
    return ctypes.c_float(rate).value
