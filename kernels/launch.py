"""The operations on Triton: validate, lay out, launch. One function per schema of `library`.

Nothing here waits for the device: the key and a one-element gamma are read there, so that every
operation can be captured in a CUDA graph.
"""

from __future__ import annotations

import math
import struct
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from stanley_fast import checks
from stanley_fast.kernels.metropolis import accept_kernel, leapfrog_kernel, log_ratio_kernel
from stanley_fast.kernels.step import (
    normal_kernel,
    step_backward_kernel,
    step_kernel,
    stepsize_kernel,
)

# Elements per program, half as many of float64: 8 for each thread, two 128-bit accesses of float32.
# The interpreter takes as long for a program of a few elements as for one of many thousand.
BLOCK = 2**17 if triton.knobs.runtime.interpret else 1024
WARPS = 4


class Step(NamedTuple):
    """What a step takes besides the state."""

    grad: Tensor
    gamma: Tensor | None  # none: Eq. 4
    threshold: float
    step_size: float
    key: Tensor
    step: int
    noise_scale: float
    lo: float
    hi: float
    script: bool
    first: int
    total: int | None
    stochastic: bool = False


# The schemas -------------------------------------------------------------------------------------


def stanley_step(z: Tensor, grad: Tensor, key: Tensor, step: int, threshold: float,
                 step_size: float, *rest: Any) -> Tensor:  # fmt: skip
    return _functional(z, Step(grad, None, threshold, step_size, key, step, *rest))


def stanley_step_(z: Tensor, grad: Tensor, key: Tensor, step: int, threshold: float,
                  step_size: float, *rest: Any) -> None:  # fmt: skip
    _in_place(z, Step(grad, None, threshold, step_size, key, step, *rest))


def stanley_step_backward(grad_out: Tensor, z: Tensor | None, grad: Tensor, key: Tensor, step: int,
                          threshold: float, step_size: float, *rest: Any
                          ) -> tuple[Tensor, Tensor]:  # fmt: skip
    step_ = Step(grad, None, threshold, step_size, key, step, *rest)
    return _backward(grad_out, z, step_)[:2]


def langevin_step(z: Tensor, grad: Tensor, gamma: Tensor, key: Tensor, step: int,
                  *rest: Any) -> Tensor:  # fmt: skip
    return _functional(z, Step(grad, gamma, 1.0, 1.0, key, step, *rest))


def langevin_step_(z: Tensor, grad: Tensor, gamma: Tensor, key: Tensor, step: int,
                   *rest: Any) -> None:  # fmt: skip
    _in_place(z, Step(grad, gamma, 1.0, 1.0, key, step, *rest))


def langevin_step_backward(grad_out: Tensor, z: Tensor | None, grad: Tensor, gamma: Tensor,
                           key: Tensor, step: int, *rest: Any
                           ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return _backward(grad_out, z, Step(grad, gamma, 1.0, 1.0, key, step, *rest))


def normal_(out: Tensor, key: Tensor, step: int, stream: int, first: int,
            total: int | None) -> None:  # fmt: skip
    total = checks.normal(out.numel(), key, step, stream, out.dtype, first, total)
    checks.on_same_device("key", key, out)
    _check_no_overlap(out)
    dense = out.contiguous()
    noise = _noise(dense, key, step, first, total)
    _launch(normal_kernel, dense, first % 4, out=dense, c2=stream, **noise)
    if dense is not out:
        out.copy_(dense)


def stepsize(grad: Tensor, threshold: float, step_size: float) -> Tensor:
    checks.stepsize(grad, threshold, step_size)
    dense = grad.contiguous()
    gamma = torch.empty_like(dense, dtype=checks.compute_dtype(grad.dtype))
    numbers = _numbers(grad, threshold=threshold, step_size=step_size)
    _launch(stepsize_kernel, dense, 0, out=gamma, grad=dense, **numbers)
    return gamma if dense is grad else torch.empty_like(grad, dtype=gamma.dtype).copy_(gamma)


def proposal_log_ratio(z: Tensor, grad: Tensor, z_new: Tensor, grad_new: Tensor,
                       gamma: Tensor | None, gamma_new: Tensor | None, step_size: Tensor | None,
                       threshold: float, noise_scale: float) -> Tensor:  # fmt: skip
    checks.proposal(
        z, grad, z_new, grad_new, gamma, gamma_new, step_size, threshold, noise_scale
    )  # fmt: skip
    out = z.new_empty(z.shape[0], dtype=torch.float64)
    numbers: dict[str, float | None] = {
        **_numbers(out, threshold=threshold, noise_scale=noise_scale)
    }
    if math.isinf(threshold):
        numbers["threshold"] = None
    rates = [None if g is None else g.expand(z.shape).contiguous() for g in (gamma, gamma_new)]
    _launch_chains(
        log_ratio_kernel, z, out=out, z=z.contiguous(), grad=grad.contiguous(),
        z_new=z_new.contiguous(), grad_new=grad_new.contiguous(), gamma=rates[0],
        gamma_new=rates[1], step_size=None if step_size is None else step_size.double(), **numbers,
    )  # fmt: skip
    return out


def accept_(z: Tensor, grad: Tensor | None, log_density: Tensor, z_new: Tensor,
            grad_new: Tensor | None, log_density_new: Tensor, log_ratio: Tensor, key: Tensor,
            step: int, first: int, total: int | None) -> tuple[Tensor, Tensor]:  # fmt: skip
    total = checks.accept(
        z, grad, log_density, z_new, grad_new, log_density_new, log_ratio, key, step, first, total
    )
    written = {"z": z, "grad": grad, "log_density": log_density}
    new = {"z_new": z_new, "grad_new": grad_new, "log_density_new": log_density_new}
    for (name, tensor), (new_name, tensor_new) in zip(written.items(), new.items(), strict=True):
        if tensor is not None and tensor_new is not None:
            _check_no_overlap(tensor, name)
            _check_same_or_apart(new_name, tensor_new, tensor, name)
    if grad is not None and grad_new is not None:
        _check_apart("grad", grad, z)
        _check_apart("grad_new", grad_new, z)
        _check_apart("z_new", z_new, grad, "grad")
    dense = {name: None if t is None else t.contiguous() for name, t in (written | new).items()}
    accepted = z.new_empty(z.shape[0], dtype=torch.uint8)
    probability = z.new_empty(z.shape[0], dtype=torch.float64)
    block = (step * ((total + 3) // 4) + 2**63) % 2**64 - 2**63
    _launch_chains(
        accept_kernel, z, accepted=accepted, probability=probability, key=key.contiguous(),
        block=block, first=first, log_ratio=log_ratio.contiguous(), **dense,
    )  # fmt: skip
    _copy_back(written, dense)
    return accepted.view(torch.bool), probability


def leapfrog_(z: Tensor, momentum: Tensor, grad: Tensor, step_size: Tensor, kick: float,
              inverse_mass: Tensor | None) -> None:  # fmt: skip
    checks.leapfrog(z, momentum, grad, step_size, kick, inverse_mass)
    written = {"z": z, "momentum": momentum}
    for name, tensor in written.items():
        _check_no_overlap(tensor, name)
        _check_same_or_apart("grad", grad, tensor, name)
    _check_apart("momentum", momentum, z)
    dense = {name: tensor.contiguous() for name, tensor in written.items()}
    if inverse_mass is not None:
        inverse_mass = inverse_mass.expand(z.shape[1:]).contiguous()
    kick = _numbers(torch.empty(0, dtype=torch.float64), kick=kick)["kick"]
    _launch(
        leapfrog_kernel, z, 0, grad=grad.contiguous(), step_size=step_size.double(), kick=kick,
        inverse_mass=inverse_mass, width=_width(z), **dense,
    )  # fmt: skip
    _copy_back(written, dense)


def _width(z: Tensor) -> int:
    return z.numel() // max(1, z.shape[0])


def _copy_back(written: dict[str, Any], dense: dict[str, Any]) -> None:
    for name, tensor in written.items():
        if tensor is not None and dense[name] is not tensor:
            tensor.copy_(dense[name])


# Forward and backward ----------------------------------------------------------------------------


def _functional(z: Tensor, s: Step) -> Tensor:
    total = _validate(z, s)
    dense = z.contiguous()
    out = torch.empty_like(dense)
    _forward(dense, s, total, out)
    return out if dense is z else torch.empty_like(z).copy_(out)


def _in_place(z: Tensor, s: Step) -> None:
    total = _validate(z, s)
    _check_no_overlap(z)
    _check_same_or_apart("grad", s.grad, z)
    if s.gamma is not None and s.gamma.shape == z.shape:
        _check_same_or_apart("gamma", s.gamma, z)
    elif s.gamma is not None and s.gamma.numel() == 1 and _share_memory(s.gamma, z):
        s = s._replace(gamma=s.gamma.clone())  # some programs write z before others read gamma
    dense = z.contiguous()
    _forward(dense, s, total, dense)
    if dense is not z:
        z.copy_(dense)


def _forward(z: Tensor, s: Step, total: int, out: Tensor) -> None:
    """z and out are contiguous, and may be the same."""
    _launch(
        step_kernel, z, s.first % 4, out=out, z=z, STOCHASTIC=s.stochastic,
        **_arguments(z, s, total),
    )  # fmt: skip


def _backward(grad_out: Tensor, z: Tensor | None, s: Step) -> tuple[Tensor, Tensor, Tensor]:
    total = _validate(grad_out, s)
    if z is not None:
        checks.same("z", z, grad_out)
    incoming = grad_out.contiguous()
    shape, none = grad_out.shape, (0,)
    grad_z = incoming.new_empty(none if z is None else shape)
    grad_grad = incoming.new_empty(shape)
    dtype = checks.compute_dtype(grad_out.dtype)
    grad_gamma = incoming.new_empty(none if s.gamma is None else shape, dtype=dtype)
    _launch(
        step_backward_kernel, incoming, s.first % 4,
        grad_z=grad_z, grad_grad=grad_grad, grad_gamma=grad_gamma, grad_out=incoming,
        z=None if z is None else z.contiguous(), **_arguments(incoming, s, total),
    )  # fmt: skip
    return grad_z, grad_grad, grad_gamma


# Validation --------------------------------------------------------------------------------------


def _validate(like: Tensor, s: Step) -> int:
    """`like` is z, or in a backward pass what stands for its shape and dtype. The state's total."""
    if s.gamma is None:
        checks.stepsize(s.grad, s.threshold, s.step_size)
    else:
        checks.gamma(s.gamma, like)
    update, rounding = checks.UPDATES[s.script], checks.ROUNDINGS[s.stochastic]
    return checks.step(
        like, s.grad, s.key, s.step, s.noise_scale, (s.lo, s.hi), update, rounding, s.first, s.total
    )


def _check_no_overlap(z: Tensor, name: str = "z") -> None:
    for dimension, (size, stride) in enumerate(zip(z.shape, z.stride(), strict=True)):
        if size > 1 and stride == 0:
            raise RuntimeError(
                f"{name} must not be an expanded tensor where it is written in place: dimension "
                f"{dimension} has stride 0"
            )


def _share_memory(a: Tensor, b: Tensor) -> bool:
    """Whether two contiguous tensors do. Of others a copy is made before anything is written."""
    if not (a.is_contiguous() and b.is_contiguous()):
        return False
    ends = [t.data_ptr() + t.numel() * t.itemsize for t in (a, b)]
    return a.data_ptr() < ends[1] and b.data_ptr() < ends[0]


def _check_same_or_apart(name: str, tensor: Tensor, z: Tensor, written: str = "z") -> None:
    same = tensor.data_ptr() == z.data_ptr() and tensor.itemsize == z.itemsize
    if not same and _share_memory(tensor, z):
        raise RuntimeError(
            f"{name} must not share a part of {written}'s memory where {written} is written in "
            "place"
        )


def _check_apart(name: str, tensor: Tensor, z: Tensor, written: str = "z") -> None:
    if _share_memory(tensor, z):
        raise RuntimeError(
            f"{name} must not share {written}'s memory where {written} is written in place"
        )


# Arguments ---------------------------------------------------------------------------------------


def _arguments(z: Tensor, s: Step, total: int) -> dict[str, Any]:
    """What forward and backward share; gamma laid out as one element or as many as z has."""
    gamma = s.gamma
    if gamma is not None and gamma.numel() != 1:
        gamma = gamma.expand(z.shape).contiguous()
    numbers = _numbers(
        z, threshold=s.threshold, step_size=s.step_size, noise_scale=s.noise_scale, lo=s.lo, hi=s.hi
    )
    return {
        "grad": s.grad.contiguous(),
        "gamma": gamma,
        "SCALAR_GAMMA": gamma is not None and gamma.numel() == 1,
        "SCRIPT": s.script,
        **numbers,
        **_noise(z, s.key, s.step, s.first, total),
    }


def _noise(z: Tensor, key: Tensor, step: int, first: int, total: int) -> dict[str, Any]:
    """Where a state's noise lies in the key's sequence; block numbers wrap modulo 2^64."""
    block = step * ((total + 3) // 4) + first // 4
    return {
        "key": key.contiguous(),
        "block": (block + 2**63) % 2**64 - 2**63,
        "SHIFT": first % 4,
        "PER_THREAD": 8 if z.itemsize == 2 else 4,  # 128 bits of half precision
    }


def _numbers(z: Tensor, **values: float) -> dict[str, float]:
    """As the kernels take them: see `step.number`. A bound beyond T's range bounds nothing."""
    if z.dtype == torch.float64:
        return {name: struct.unpack("q", struct.pack("d", x))[0] for name, x in values.items()}
    most = torch.finfo(torch.float32).max
    return {name: x if abs(x) <= most else math.copysign(math.inf, x) for name, x in values.items()}


def _launch(kernel: Any, elements: Tensor, shift: int, **arguments: Any) -> None:
    n = elements.numel()
    if n == 0:
        return
    dtype, block = tl.float32, BLOCK
    if elements.dtype == torch.float64:
        dtype, block = tl.float64, BLOCK // 2
    if triton.knobs.runtime.interpret:
        block = min(block, max(8, triton.next_power_of_2(n + shift)))
    with torch.cuda.device_of(elements):
        kernel[(triton.cdiv(n + shift, block),)](
            n=n, T=dtype, BLOCK=block, num_warps=WARPS, **arguments
        )


def _launch_chains(kernel: Any, state: Tensor, **arguments: Any) -> None:
    """A program for each chain; its blocks, for float64 arithmetic, depend on its length alone."""
    chains, width = state.shape[0], _width(state)
    if chains == 0:
        return
    block = min(BLOCK // 2, max(WARPS * 32, triton.next_power_of_2(width)))
    with torch.cuda.device_of(state):
        kernel[(chains,)](width=width, BLOCK=block, num_warps=WARPS, **arguments)
