"""The operations people call: the two steps, the noise and the stepsize.

Each function picks a backend by the tensor's device. At a few hundred elements the call is all the
cost. So where no gradient is wanted it enters torch's dispatcher below Python's autograd layer, and
the kernel does the validation; and a small step on the CPU goes without the dispatcher (direct.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.compiler import is_compiling

from stanley_fast import checks, direct, reference
from stanley_fast.backends import select
from stanley_fast.library import (
    COMPILED,
    TRITON,
    below_autograd,
    refuse_grad,
)

Clamp = tuple[float, float] | None

_compiled, _triton = getattr(torch.ops, COMPILED), getattr(torch.ops, TRITON)
_NO_CLAMP = (-math.inf, math.inf)


def stanley_step(
    z: Tensor,
    grad: Tensor,
    key: Tensor,
    step: int = 0,
    *,
    threshold: float,
    step_size: float = 1.0,
    noise_scale: float = 1.0,
    clamp: Clamp = None,
    update: str = "paper",
    rounding: str = "nearest",
    first: int = 0,
    total: int | None = None,
) -> Tensor:
    """One STANLEY transition: a Langevin step whose stepsize is set per element from the gradient.

        gamma = step_size * threshold / max(threshold, |grad|)            Eq. 4
        z'    = z + gamma / 2 * grad + sqrt(gamma) * noise_scale * xi     Eq. 5

    Differentiable once in z and grad; the backward pass makes xi again from the key. Where
    |grad| <= threshold the stepsize is flat, and where clamp cuts all gradients are 0.

    Args:
        z: chain state, any shape and strides; float32, float64, float16 or bfloat16. The last two
            are computed in float32 and rounded once, as `rounding` says.
        grad: gradient of the log-density at z; z's shape, dtype and device.
        key: int64 (2,), from `key`; read on the device, not changed.
        step: which transition of the chain; each has its own noise.
        threshold: th of Eq. 4, in units of grad; positive.
        step_size: the stepsize where |grad| <= threshold; positive.
        noise_scale: epsilon of Eq. 5; 0 is gradient ascent without noise.
        clamp: (lo, hi) bounds for z', in the same pass.
        update: "paper" is Eq. 5; "script" is z + gamma * grad + gamma * noise_scale * xi, as the
            first author's code has it.
        rounding: of a bfloat16 z'. "stochastic" takes one of the two bfloat16 around it by 16 bits
            of the key's stream 3, so that z' is the mean, and steps too small to be seen add up.
            It adds a variance of at most a quarter of their gap squared. Beyond 3.39e38 one of the
            two is infinity; a bound of clamp that bfloat16 lacks is kept but for this rounding;
            derivatives are those without it.
        first, total: z holds elements [first, first + z.numel()) of a state of `total` elements
            that several processes share.

    Returns:
        z', with z's shape and dtype, strides as torch.empty_like(z).

    Raises:
        RuntimeError: names the argument, what it got and what is wanted.

    Source: the paper's Eqs. 4 and 5 (Algorithm 1, lines 3 and 6).

    >>> import stanley_fast as sf
    >>> z = torch.zeros(100, 2)
    >>> for k in range(10):
    ...     z = sf.stanley_step(z, -z, sf.key(0), k, threshold=0.1)
    """
    ops = ops_for(z)
    if ops is None:
        return reference.stanley_step(
            z, grad, key, step, threshold=threshold, step_size=step_size, noise_scale=noise_scale,
            clamp=clamp, update=update, rounding=rounding, first=first, total=total,
        )  # fmt: skip
    if ops is _compiled and not is_compiling():
        moved = direct.step(
            z, grad, None, key, step, threshold, step_size, noise_scale, clamp, update, rounding,
            first, total, False,
        )  # fmt: skip
        if moved is not None:
            return moved
    return _call(
        ops.stanley_step.default, _any_requires_grad(z, grad), (z, grad, key, step, threshold,
        step_size, noise_scale, *_bounds(clamp), _is_script(update), first, total,
        _is_stochastic(rounding)),
    )  # fmt: skip


def stanley_step_(
    z: Tensor,
    grad: Tensor,
    key: Tensor,
    step: int = 0,
    *,
    threshold: float,
    step_size: float = 1.0,
    noise_scale: float = 1.0,
    clamp: Clamp = None,
    update: str = "paper",
    rounding: str = "nearest",
    first: int = 0,
    total: int | None = None,
) -> Tensor:
    """`stanley_step` in place: writes z and returns it. Refuses z or grad that want a gradient.

    >>> import stanley_fast as sf
    >>> z = torch.zeros(100, 2)
    >>> z = sf.stanley_step_(z, -z, sf.key(0), threshold=0.1, clamp=(-1.0, 1.0))
    """
    ops = ops_for(z)
    if ops is None:
        if _any_requires_grad(z, grad):
            refuse_grad()
        return z.copy_(reference.stanley_step(
            z, grad, key, step, threshold=threshold, step_size=step_size, noise_scale=noise_scale,
            clamp=clamp, update=update, rounding=rounding, first=first, total=total,
        ))  # fmt: skip
    if ops is _compiled and not is_compiling():
        moved = direct.step(
            z, grad, None, key, step, threshold, step_size, noise_scale, clamp, update, rounding,
            first, total, True,
        )  # fmt: skip
        if moved is not None:
            return moved
    return _call_in_place(
        ops.stanley_step_.default, _any_requires_grad(z, grad), (z, grad, key, step, threshold,
        step_size, noise_scale, *_bounds(clamp), _is_script(update), first, total,
        _is_stochastic(rounding)),
    )  # fmt: skip


def langevin_step(
    z: Tensor,
    grad: Tensor,
    gamma: float | Tensor,
    key: Tensor,
    step: int = 0,
    *,
    noise_scale: float = 1.0,
    clamp: Clamp = None,
    update: str = "paper",
    rounding: str = "nearest",
    first: int = 0,
    total: int | None = None,
) -> Tensor:
    """One Langevin transition with a given stepsize: Eq. 5 alone.

        z' = z + gamma / 2 * grad + sqrt(gamma) * noise_scale * xi

    A number for gamma is vanilla Langevin dynamics, the paper's ablation; a tensor is
    anything else: frozen over a chain (Algorithm 1 line 3 taken literally), per chain, per channel.
    Differentiable once in z, grad and a gamma tensor.

    Args:
        gamma: the stepsize, positive; a number, or a tensor that broadcasts to z, float64 for a
            float64 z and float32 for all others.
        z, grad, key, step, noise_scale, clamp, update, rounding, first, total: as in
            `stanley_step`.

    Returns:
        z', with z's shape and dtype, strides as torch.empty_like(z).

    Raises:
        RuntimeError: names the argument, what it got and what is wanted. The values of a gamma
            tensor are not looked at; a negative one gives NaN.

    Source: the paper's Eq. 5.

    >>> import stanley_fast as sf
    >>> z = torch.zeros(100, 2)
    >>> z = sf.langevin_step(z, -z, 0.01, sf.key(0))
    """
    ops = ops_for(z)
    if ops is None:
        return reference.langevin_step(
            z, grad, gamma, key, step, noise_scale=noise_scale, clamp=clamp, update=update,
            rounding=rounding, first=first, total=total,
        )  # fmt: skip
    if ops is _compiled and not is_compiling():
        moved = direct.step(
            z, grad, gamma, key, step, None, None, noise_scale, clamp, update, rounding, first,
            total, False,
        )  # fmt: skip
        if moved is not None:
            return moved
    gamma = _gamma(gamma, z)
    return _call(
        ops.langevin_step.default, _any_requires_grad(z, grad, gamma), (z, grad, gamma, key, step,
        noise_scale, *_bounds(clamp), _is_script(update), first, total,
        _is_stochastic(rounding)),
    )  # fmt: skip


def langevin_step_(
    z: Tensor,
    grad: Tensor,
    gamma: float | Tensor,
    key: Tensor,
    step: int = 0,
    *,
    noise_scale: float = 1.0,
    clamp: Clamp = None,
    update: str = "paper",
    rounding: str = "nearest",
    first: int = 0,
    total: int | None = None,
) -> Tensor:
    """`langevin_step` in place: writes z and returns it. Refuses tensors that want a gradient.

    >>> import stanley_fast as sf
    >>> z = torch.zeros(100, 2)
    >>> z = sf.langevin_step_(z, -z, torch.tensor(0.01), sf.key(0))
    """
    ops = ops_for(z)
    if ops is None:
        if _any_requires_grad(z, grad, gamma):
            refuse_grad()
        return z.copy_(reference.langevin_step(
            z, grad, gamma, key, step, noise_scale=noise_scale, clamp=clamp, update=update,
            rounding=rounding, first=first, total=total,
        ))  # fmt: skip
    if ops is _compiled and not is_compiling():
        moved = direct.step(
            z, grad, gamma, key, step, None, None, noise_scale, clamp, update, rounding, first,
            total, True,
        )  # fmt: skip
        if moved is not None:
            return moved
    gamma = _gamma(gamma, z)
    return _call_in_place(
        ops.langevin_step_.default, _any_requires_grad(z, grad, gamma), (z, grad, gamma, key, step,
        noise_scale, *_bounds(clamp), _is_script(update), first, total,
        _is_stochastic(rounding)),
    )  # fmt: skip


def normal(
    shape: Sequence[int],
    key: Tensor,
    step: int = 0,
    *,
    stream: int = 0,
    dtype: torch.dtype = torch.float32,
    first: int = 0,
    total: int | None = None,
) -> Tensor:
    """Standard normals from a key: with stream 0, the very xi that the steps use.

    Philox4x32-10 and Box-Muller. A value depends on key, step, stream, its index and `total` alone:
    not on thread count or strides; between backends and CPUs it differs by rounding.

    Args:
        shape: the result's shape.
        key: int64 (2,), from `key`; the result is on its device.
        step: which draw of those that use blocks step * ceil(total / 4) and on.
        stream: 0 chain noise, 1 accept draws, 2 starts and data, 3 rounding.
        dtype: float32, float64, float16 or bfloat16; all use the same random words, and the last
            two are float32's normals, rounded.
        first, total: as in `stanley_step`.

    Returns:
        A contiguous tensor of `shape`.

    Raises:
        RuntimeError: names the argument, what it got and what is wanted.

    Source: Salmon et al. 2011, Box and Muller 1958.

    >>> import stanley_fast as sf
    >>> sf.normal((2, 3), sf.key(0)).shape
    torch.Size([2, 3])
    """
    checks.key(key)
    checks.size(shape)
    ops = ops_for(key)
    if ops is None:
        return reference.normal(
            tuple(shape), key, step, stream=stream, dtype=dtype, first=first, total=total
        )
    out = torch.empty(tuple(shape), dtype=dtype, device=key.device)
    return _call_in_place(ops.normal_.default, False, (out, key, step, stream, first, total))


def stepsize(grad: Tensor, *, threshold: float, step_size: float = 1.0) -> Tensor:
    """The anisotropic stepsize alone: gamma = step_size * threshold / max(threshold, |grad|).

    Args:
        grad: gradient of the log-density, any shape, float32, float64, float16 or bfloat16.
        threshold, step_size: as in `stanley_step`.

    Returns:
        gamma, in [0, step_size], with grad's shape, strides as torch.empty_like(grad); float64 for
        a float64 grad and float32 for all others, as `langevin_step` wants it.

    Raises:
        RuntimeError: names the argument, what it got and what is wanted.

    Source: the paper's Eq. 4.

    >>> stepsize(torch.tensor([0.0, 0.1, -1.0]), threshold=0.1)
    tensor([1.0000, 1.0000, 0.1000])
    """
    ops = ops_for(grad)
    if ops is None:
        return reference.stepsize(grad, threshold=threshold, step_size=step_size)
    return _call(ops.stepsize.default, grad.requires_grad, (grad, threshold, step_size))


def ops_for(tensor: Tensor) -> Any:
    """The registered operations of the backend for `tensor`; None means the reference."""
    try:
        name = select("cpu" if tensor.is_cpu else tensor.device.type)
    except AttributeError:
        checks.tensor("z", tensor)
        raise
    if name == "triton":
        return _triton
    return None if name == "reference" else _compiled


def _bounds(clamp: Clamp) -> tuple[float, float]:
    if clamp is None:
        return _NO_CLAMP
    checks.clamp(clamp)
    return clamp


def _is_script(update: str) -> bool:
    checks.one_of("update", update, checks.UPDATES)
    return update == "script"


def _is_stochastic(rounding: str) -> bool:
    checks.one_of("rounding", rounding, checks.ROUNDINGS)
    return rounding == "stochastic"


def _any_requires_grad(*tensors: object) -> bool:
    for tensor in tensors:  # noqa: SIM110, a small call would feel a generator
        if isinstance(tensor, Tensor) and tensor.requires_grad:
            return True
    return False


def _gamma(gamma: float | Tensor, z: Tensor) -> Tensor:
    if isinstance(gamma, Tensor):
        return gamma
    checks.gamma(gamma, z)
    return torch.full((), gamma, dtype=checks.compute_dtype(z.dtype), device=z.device)


def _call(op: Any, requires_grad: bool, args: tuple[Any, ...]) -> Any:
    if is_compiling() or (requires_grad and torch.is_grad_enabled()):
        return op(*args)
    if forward_ad._current_level >= 0:
        refuse_tangents(args)
    if torch._C._functorch.maybe_current_level() is not None:
        return op(*args)  # a batched tensor of torch.func hides that it requires grad
    with torch._C._AutoDispatchBelowAutograd():
        return op(*args)


def _call_in_place(op: Any, requires_grad: bool, args: tuple[Any, ...]) -> Any:
    if is_compiling():
        op(*args)
        return args[0]
    if requires_grad:
        refuse_grad()
    if forward_ad._current_level >= 0:
        refuse_tangents(args)
    below_autograd(op, args)
    return args[0]


def refuse_tangents(args: tuple[Any, ...]) -> None:
    """The dispatcher would drop them below autograd, and so answer that the derivative is 0."""
    for arg in args:
        if isinstance(arg, Tensor) and forward_ad.unpack_dual(arg).tangent is not None:
            raise RuntimeError(
                "this operation has no forward-mode derivative (torch.func.jvp); "
                "stanley_fast.reference, which is plain torch, has one"
            )
