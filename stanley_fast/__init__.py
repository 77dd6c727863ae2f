"""Fused Langevin sampling for energy-based models, with STANLEY's per-element stepsize."""

from stanley_fast import reference
from stanley_fast.backends import backends, use_backend
from stanley_fast.keys import advance_, key, split
from stanley_fast.ops import (
    langevin_step,
    langevin_step_,
    normal,
    stanley_step,
    stanley_step_,
    stepsize,
)

__all__ = [
    "advance_",
    "backends",
    "key",
    "langevin_step",
    "langevin_step_",
    "normal",
    "reference",
    "split",
    "stanley_step",
    "stanley_step_",
    "stepsize",
    "use_backend",
]
