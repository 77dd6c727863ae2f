"""What it means that training diverged, and what to try then."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stanley_fast.samplers import Stanley
from stanley_fast.transition import Sampler


class DivergedError(RuntimeError):
    """Training left the finite numbers or its bound, at `iteration`.

    `last_good` is the checkpoint to go back to, if there is one.
    """

    def __init__(self, iteration: int, message: str, last_good: Path | None) -> None:
        super().__init__(message)
        self.iteration = iteration
        self.last_good = last_good

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.iteration, str(self), self.last_good)


def advice(sampler: Sampler, lagging: bool) -> str:
    """What to change about the chains: they lag behind the data, or they blow up."""
    length = getattr(sampler, "tuned", ("step_size",))[0]
    if not lagging:
        noise = " or noise_scale" if getattr(sampler, "noise_scale", 0) else ""
        return f"of the sampler a smaller {length}{noise}"
    if isinstance(sampler, Stanley):
        return (
            "more steps or a larger threshold or step_size, so that chains get as far as the "
            "data (a transition drifts by at most step_size * threshold / 2)"
        )
    return f"more steps or a larger {length}, so that chains get as far as the data"
