"""Checks of samplers' settings: each names the setting, what it got and what is wanted."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from typing import Any

from torch import Tensor


def positive(name: str, value: float | Tensor) -> None:
    if isinstance(value, Tensor):
        raise ValueError(f"{name} must be a number, got a tensor")
    if not (_is_number(value) and value > 0 and math.isfinite(value)):
        raise ValueError(f"{name} must be positive and finite, got {value!r}")


def step_length(name: str, value: float | Tensor) -> None:
    """A number, or a 0-dim tensor, which is read on its device alone: nothing waits to look."""
    if not isinstance(value, Tensor):
        positive(name, value)
    elif value.dim() != 0 or not value.is_floating_point():
        raise ValueError(
            f"{name} must be a number or a 0-dim floating tensor, got {value.dtype} "
            f"{list(value.shape)}"
        )


def not_negative(name: str, value: float) -> None:
    if not (_is_number(value) and value >= 0 and math.isfinite(value)):
        raise ValueError(f"{name} must be 0 or more and finite, got {value!r}")


def one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, known))}, got {value!r}")


def interval(name: str, value: tuple[float, float] | None) -> None:
    if value is None:
        return
    pair = isinstance(value, Sequence) and len(value) == 2 and all(map(_is_number, value))
    if not (pair and value[0] <= value[1]):
        raise ValueError(f"{name} must be (lo, hi) with lo <= hi, or None, got {value!r}")


def count(name: str, value: int, least: int = 0) -> None:
    if not isinstance(value, numbers.Integral):
        raise ValueError(f"{name} must be an integer, got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be {least} or more, got {value}")


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real)
