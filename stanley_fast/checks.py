"""What the operations accept. Each check names the argument, what it got and what is wanted.

The compiled library makes the same checks in C++ (csrc/checks.h), where a call of a few hundred
elements can afford them; these serve the reference and shape inference under torch.compile.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_NAMES = "float32, float64, float16 or bfloat16"


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype that a state of `dtype` is computed in, and that its stepsizes have."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def size(shape: Sequence[int]) -> int:
    """The number of elements of `shape`."""
    if not isinstance(shape, Sequence) or any(not _is_integer(n) or n < 0 for n in shape):
        raise RuntimeError(f"shape must be a sequence of integers, 0 or more, got {shape!r}")
    return math.prod(shape)


def tensor(name: str, value: Any) -> None:
    if not isinstance(value, Tensor):
        raise RuntimeError(f"{name} must be a tensor, got {value!r}")


def key(key: Tensor) -> None:
    tensor("key", key)
    if key.dtype != torch.int64 or tuple(key.shape) != (2,):
        raise RuntimeError(
            "key must be an int64 tensor of shape (2,), as stanley_fast.key makes it, got "
            f"{key.dtype} {list(key.shape)}"
        )


def positive(name: str, value: float, dtype: torch.dtype) -> None:
    """In the arithmetic of a state of `dtype`: in float32 1e-50 is 0 and 1e50 is infinite."""
    info = torch.finfo(compute_dtype(dtype))
    least = info.smallest_normal * info.eps
    if not (_is_number(value) and least <= value <= info.max):
        wanted = f"positive and finite in {compute_dtype(dtype)}"
        raise RuntimeError(f"{name} must be {wanted}, got {value!r}")


def _is_number(value: object) -> bool:
    return isinstance(value, (numbers.Real, torch.SymFloat))


def _is_integer(value: object) -> bool:
    return isinstance(value, (numbers.Integral, torch.SymInt))


def floating(name: str, value: Tensor) -> None:
    tensor(name, value)
    if value.dtype not in DTYPES:
        raise RuntimeError(f"{name} must be {_NAMES}, got {value.dtype}")


def same(name: str, value: Tensor, like: Tensor) -> None:
    """`value` must agree with z in shape, dtype and device."""
    tensor(name, value)
    if value.shape != like.shape:
        raise RuntimeError(
            f"{name} must have z's shape {list(like.shape)}, got {list(value.shape)}"
        )
    if value.dtype != like.dtype:
        raise RuntimeError(f"{name} must have z's dtype {like.dtype}, got {value.dtype}")
    on_same_device(name, value, like)


def on_same_device(name: str, value: Tensor, like: Tensor) -> None:
    if value.device != like.device:
        raise RuntimeError(f"{name} must be on z's device {like.device}, got {value.device}")


def part(n: int, first: int, total: int | None) -> int:
    """Elements [first, first + n) of a state of `total`; returns the total."""
    integer("first", first)
    if total is not None:
        integer("total", total)
    if first < 0:
        raise RuntimeError(f"first must be 0 or more, got {first}")
    if total is None:
        if first != 0:
            raise RuntimeError(f"total must be given when first is not 0, got first = {first}")
        return n
    if first + n > total:
        raise RuntimeError(
            f"first + the number of elements must be at most total, got {first} + {n} > {total}"
        )
    return total


def stepsize(grad: Tensor, threshold: float, step_size: float) -> None:
    floating("grad", grad)
    positive("threshold", threshold, grad.dtype)
    positive("step_size", step_size, grad.dtype)


def gamma(gamma: float | Tensor, z: Tensor) -> None:
    if not isinstance(gamma, Tensor):
        positive("gamma", gamma, z.dtype)
        return
    wanted = compute_dtype(z.dtype)
    if gamma.dtype != wanted:
        raise RuntimeError(f"gamma must be {wanted} for a {z.dtype} z, got {gamma.dtype}")
    on_same_device("gamma", gamma, z)
    sizes = zip(reversed(gamma.shape), reversed(z.shape), strict=False)
    if gamma.dim() > z.dim() or any(a not in (1, b) for a, b in sizes):
        raise RuntimeError(
            f"gamma must broadcast to z's shape {list(z.shape)}, got {list(gamma.shape)}"
        )


def clamp(clamp: Any) -> None:
    pair = isinstance(clamp, Sequence) and len(clamp) == 2 and all(map(_is_number, clamp))
    if not (pair and clamp[0] <= clamp[1]):
        raise RuntimeError(f"clamp must be (lo, hi) with lo <= hi, got {clamp!r}")


def normal(
    n: int,
    key_: Tensor,
    step: int,
    stream: int,
    dtype: torch.dtype,
    first: int,
    total: int | None,
) -> int:
    key(key_)
    integer("step", step)
    if dtype not in DTYPES:
        raise RuntimeError(f"dtype must be {_NAMES}, got {dtype}")
    integer("stream", stream)
    if not 0 <= stream < 2**32:
        raise RuntimeError(f"stream must be in [0, 2^32), got {stream}")
    return part(n, first, total)


def integer(name: str, value: Any) -> None:
    if not _is_integer(value):
        raise RuntimeError(f"{name} must be an integer, got {value!r}")


def step(
    z: Tensor,
    grad: Tensor,
    key_: Tensor,
    step: int,
    noise_scale: float,
    clamp_: tuple[float, float] | None,
    update: str,
    first: int,
    total: int | None,
) -> int:
    """Everything the two steps share; returns the total."""
    floating("z", z)
    same("grad", grad, z)
    key(key_)
    on_same_device("key", key_, z)
    integer("step", step)
    if not (
        _is_number(noise_scale) and 0 <= noise_scale <= torch.finfo(compute_dtype(z.dtype)).max
    ):
        raise RuntimeError(f"noise_scale must be 0 or more and finite, got {noise_scale!r}")
    if clamp_ is not None:
        clamp(clamp_)
    if update not in ("paper", "script"):
        raise RuntimeError(f"update must be 'paper' or 'script', got {update!r}")
    return part(z.numel(), first, total)
