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
UPDATES, ROUNDINGS = ("paper", "script"), ("nearest", "stochastic")


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


def gamma(gamma: float | Tensor, z: Tensor, name: str = "gamma") -> None:
    if not isinstance(gamma, Tensor):
        positive(name, gamma, z.dtype)
        return
    wanted = compute_dtype(z.dtype)
    if gamma.dtype != wanted:
        raise RuntimeError(f"{name} must be {wanted} for a {z.dtype} z, got {gamma.dtype}")
    on_same_device(name, gamma, z)
    if not _broadcasts(gamma.shape, z.shape):
        raise RuntimeError(
            f"{name} must broadcast to z's shape {list(z.shape)}, got {list(gamma.shape)}"
        )


def _broadcasts(shape: torch.Size, to: torch.Size) -> bool:
    sizes = zip(reversed(shape), reversed(to), strict=False)
    return len(shape) <= len(to) and all(a in (1, b) for a, b in sizes)


def clamp(clamp: Any) -> None:
    pair = isinstance(clamp, Sequence) and len(clamp) == 2 and all(map(_is_number, clamp))
    if not (pair and clamp[0] <= clamp[1]):
        raise RuntimeError(f"clamp must be (lo, hi) with lo <= hi, got {clamp!r}")


def one_of(name: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise RuntimeError(f"{name} must be {' or '.join(map(repr, known))}, got {value!r}")


def rounding(rounding: str, dtype: torch.dtype) -> None:
    """A stochastically rounded state is a bfloat16 one."""
    one_of("rounding", rounding, ROUNDINGS)
    if rounding == "stochastic" and dtype != torch.bfloat16:
        raise RuntimeError(
            f"rounding must be 'nearest' for a {dtype} z, got 'stochastic', which needs "
            "torch.bfloat16"
        )


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
    rounding_: str,
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
    one_of("update", update, UPDATES)
    rounding(rounding_, z.dtype)
    return part(z.numel(), first, total)


# The Metropolis operations -----------------------------------------------------------------------


def chains(z: Tensor) -> None:
    """A state of several chains, in a dtype whose rounding an acceptance can bear."""
    tensor("z", z)
    if z.dtype not in (torch.float32, torch.float64):
        raise RuntimeError(f"z must be float32 or float64, got {z.dtype}")
    if z.dim() == 0:
        raise RuntimeError("z must be (B, ...), a chain in each row, got []")


def scalar_stepsize(step_size: float | Tensor, z: Tensor) -> None:
    """A number, or a tensor of one; its value is not looked at, since it may be on a GPU."""
    if not isinstance(step_size, Tensor):
        positive("step_size", step_size, z.dtype)
        return
    if step_size.dtype not in (torch.float32, torch.float64) or step_size.dim() != 0:
        raise RuntimeError(
            "step_size must be a number or a float32 or float64 tensor of shape (), got "
            f"{step_size.dtype} {list(step_size.shape)}"
        )
    on_same_device("step_size", step_size, z)


def proposal(
    z: Tensor,
    grad: Tensor,
    z_new: Tensor,
    grad_new: Tensor,
    gamma_: Tensor | None,
    gamma_new: Tensor | None,
    step_size: float | Tensor | None,
    threshold: float | None,
    noise_scale: float,
) -> None:
    """A threshold of None, or infinite, is one stepsize for all."""
    chains(z)
    for name, value in (("grad", grad), ("z_new", z_new), ("grad_new", grad_new)):
        same(name, value, z)
    one_stepsize = threshold is None or threshold == math.inf
    if gamma_ is None and gamma_new is None:
        if step_size is None:
            raise RuntimeError("step_size must be given where gamma and gamma_new are not")
        scalar_stepsize(step_size, z)
        if threshold is not None and not one_stepsize:
            positive("threshold", threshold, z.dtype)
    else:
        if step_size is not None or not one_stepsize:
            raise RuntimeError("step_size and threshold must be None where gamma is given")
        for name, given in (("gamma", gamma_), ("gamma_new", gamma_new)):
            if not isinstance(given, Tensor):
                raise RuntimeError(f"{name} must be a tensor, got {given!r}")
            gamma(given, z, name)
    positive("noise_scale", noise_scale, z.dtype)


def per_chain(name: str, value: Tensor, z: Tensor) -> None:
    tensor(name, value)
    if value.dtype not in (torch.float32, torch.float64) or value.shape != z.shape[:1]:
        raise RuntimeError(
            f"{name} must be float32 or float64 of shape {list(z.shape[:1])}, got "
            f"{value.dtype} {list(value.shape)}"
        )
    on_same_device(name, value, z)


def accept(
    z: Tensor,
    grad: Tensor | None,
    log_density: Tensor,
    z_new: Tensor,
    grad_new: Tensor | None,
    log_density_new: Tensor,
    log_ratio: Tensor,
    key_: Tensor,
    step: int,
    first: int,
    total: int | None,
) -> int:
    """Returns the total of chains."""
    chains(z)
    same("z_new", z_new, z)
    if grad is None or grad_new is None:
        if grad is not None or grad_new is not None:
            raise RuntimeError("grad and grad_new must be given both, or both be None")
    else:
        same("grad", grad, z)
        same("grad_new", grad_new, z)
    per_chain("log_density", log_density, z)
    per_chain("log_density_new", log_density_new, z)
    if log_density_new.dtype != log_density.dtype:
        raise RuntimeError(
            f"log_density_new must have log_density's dtype {log_density.dtype}, got "
            f"{log_density_new.dtype}"
        )
    per_chain("log_ratio", log_ratio, z)
    if log_ratio.dtype != torch.float64:
        raise RuntimeError(f"log_ratio must be float64, got {log_ratio.dtype}")
    key(key_)
    on_same_device("key", key_, z)
    integer("step", step)
    return part(z.shape[0], first, total)


def leapfrog(
    z: Tensor,
    momentum: Tensor,
    grad: Tensor,
    step_size: float | Tensor,
    kick: float,
    inverse_mass: Tensor | None,
) -> None:
    chains(z)
    same("momentum", momentum, z)
    same("grad", grad, z)
    scalar_stepsize(step_size, z)
    positive("kick", kick, z.dtype)
    if inverse_mass is None:
        return
    tensor("inverse_mass", inverse_mass)
    if inverse_mass.dtype != z.dtype:
        raise RuntimeError(f"inverse_mass must have z's dtype {z.dtype}, got {inverse_mass.dtype}")
    on_same_device("inverse_mass", inverse_mass, z)
    if not _broadcasts(inverse_mass.shape, z.shape[1:]):
        raise RuntimeError(
            f"inverse_mass must broadcast to a chain's shape {list(z.shape[1:])}, got "
            f"{list(inverse_mass.shape)}"
        )
