"""What the operations accept. Each check names the argument, what it got and what is wanted.

The compiled library makes the same checks in C++ (csrc/checks.h), where a call of a few hundred
elements can afford them; these serve the reference and shape inference under torch.compile.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.float64)


def key(key: Tensor) -> None:
    if not isinstance(key, Tensor) or key.dtype != torch.int64 or tuple(key.shape) != (2,):
        got = f"{key.dtype} {tuple(key.shape)}" if isinstance(key, Tensor) else repr(key)
        raise RuntimeError(
            f"key must be an int64 tensor of shape (2,), as stanley_fast.key makes it, got {got}"
        )


def positive(name: str, value: float) -> None:
    if not (value > 0 and math.isfinite(value)):
        raise RuntimeError(f"{name} must be positive and finite, got {value}")


def floating(name: str, tensor: Tensor) -> None:
    if tensor.dtype not in DTYPES:
        raise RuntimeError(f"{name} must be float32 or float64, got {tensor.dtype}")


def same(name: str, tensor: Tensor, like: Tensor) -> None:
    """`tensor` must agree with z in shape, dtype and device."""
    if tensor.shape != like.shape:
        raise RuntimeError(
            f"{name} must have z's shape {list(like.shape)}, got {list(tensor.shape)}"
        )
    if tensor.dtype != like.dtype:
        raise RuntimeError(f"{name} must have z's dtype {like.dtype}, got {tensor.dtype}")
    on_same_device(name, tensor, like)


def on_same_device(name: str, tensor: Tensor, like: Tensor) -> None:
    if tensor.device != like.device:
        raise RuntimeError(f"{name} must be on z's device {like.device}, got {tensor.device}")


def part(n: int, first: int, total: int | None) -> int:
    """Elements [first, first + n) of a state of `total`; returns the total."""
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
    positive("threshold", threshold)
    positive("step_size", step_size)


def gamma(gamma: float | Tensor, z: Tensor) -> None:
    if not isinstance(gamma, Tensor):
        positive("gamma", gamma)
        return
    if gamma.dtype != z.dtype:
        raise RuntimeError(f"gamma must have z's dtype {z.dtype}, got {gamma.dtype}")
    on_same_device("gamma", gamma, z)
    sizes = zip(reversed(gamma.shape), reversed(z.shape), strict=False)
    if gamma.dim() > z.dim() or any(a not in (1, b) for a, b in sizes):
        raise RuntimeError(
            f"gamma must broadcast to z's shape {list(z.shape)}, got {list(gamma.shape)}"
        )


def normal(
    n: int, key_: Tensor, stream: int, dtype: torch.dtype, first: int, total: int | None
) -> int:
    key(key_)
    if dtype not in DTYPES:
        raise RuntimeError(f"dtype must be float32 or float64, got {dtype}")
    if not 0 <= stream < 2**32:
        raise RuntimeError(f"stream must be in [0, 2^32), got {stream}")
    return part(n, first, total)


def step(
    z: Tensor,
    grad: Tensor,
    key_: Tensor,
    noise_scale: float,
    clamp: tuple[float, float] | None,
    update: str,
    first: int,
    total: int | None,
) -> int:
    """Everything the two steps share; returns the total."""
    floating("z", z)
    same("grad", grad, z)
    key(key_)
    on_same_device("key", key_, z)
    if not (noise_scale >= 0 and math.isfinite(noise_scale)):
        raise RuntimeError(f"noise_scale must be 0 or more and finite, got {noise_scale}")
    if clamp is not None and not clamp[0] <= clamp[1]:
        raise RuntimeError(f"clamp must be (lo, hi) with lo <= hi, got {clamp}")
    if update not in ("paper", "script"):
        raise RuntimeError(f"update must be 'paper' or 'script', got {update!r}")
    return part(z.numel(), first, total)
