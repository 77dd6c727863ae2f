"""The operation mlp_chain on Triton: validate, lay out, launch. Its schema is in `library`."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
import triton
import triton.language as tl
from torch import Tensor

from stanley_fast import checks
from stanley_fast.kernels.chain import mlp_chain_kernel
from stanley_fast.kernels.launch import Step, _arguments, _numbers, _validate

LAYERS, LARGEST_INPUT, LARGEST_WIDTH = (2, 8), 16, 128

CHAINS = 8  # in a program of WARPS: two sums for each thread of a layer 64 wide
WARPS = 8
INTERPRETED_CHAINS = 128  # a step takes the interpreter as long for many chains as for one


def mlp_chain(z: Tensor, weights: list[Tensor], biases: list[Tensor], activation: str,
              slope: float, gamma: Tensor | None, key: Tensor, step: int, steps: int,
              threshold: float, step_size: float, noise_scale: float, grad_clamp: float,
              lo: float, hi: float, script: bool, first: int, total: int | None,
              record: bool) -> tuple[Tensor, Tensor]:  # fmt: skip
    _check_net(z, weights, biases, activation, slope)
    s = Step(z, gamma, threshold, step_size, key, step, noise_scale, lo, hi, script, first, total)
    total = _validate(z, s)
    _check_chain(z, steps, threshold, step_size, grad_clamp)
    size = CHAINS
    if triton.knobs.runtime.interpret:
        size = min(INTERPRETED_CHAINS, triton.next_power_of_2(max(1, len(z))))
    programs = triton.cdiv(len(z), size)
    out = torch.empty_like(z, memory_format=torch.contiguous_format)
    sums = z.new_empty((4, steps, programs)) if record else None
    if programs:
        widths = (z.shape[1], *(len(bias) for bias in biases[:-1]))
        given = _arguments(z, s, total)
        given["z"] = given.pop("grad")  # z takes grad's place in the step, to be validated as it
        del given["PER_THREAD"]
        with torch.cuda.device_of(z):
            mlp_chain_kernel[(programs,)](
                out=out, sums=sums,
                transposed=tuple(weight.t().contiguous() for weight in weights[:-1]),
                weights=tuple(weight.contiguous() for weight in weights),
                biases=tuple(bias.contiguous() for bias in biases),
                chains=len(z), steps=steps, blocks_per_step=(total + 3) // 4,
                **given, **_numbers(z, slope=slope, grad_clamp=grad_clamp),
                T=tl.float64 if z.dtype == torch.float64 else tl.float32,
                WIDTHS=widths, PADDED=padded(widths), SILU=activation == "silu",
                CHAINS=size, num_warps=WARPS,
            )  # fmt: skip
    return out, z.new_empty((4, 0)) if sums is None else _means(sums, z)


def memory(widths: tuple[int, ...], dtype: torch.dtype) -> int:
    """Bytes of shared memory that a program takes: the weights, and the inputs of a layer.

    widths: of each layer's inputs. The weights are there once for each direction.
    """
    sizes = padded(widths)
    weights = sum(math.prod(pair) for pair in pairwise(sizes))
    return dtype.itemsize * (2 * weights + CHAINS * max(sizes))


def most_memory(device: torch.device) -> int:
    """Bytes of shared memory that a program may take on `device`."""
    if device.type == "cpu":
        return 227 * 2**10  # an H100's: the interpreter has no bound
    properties = torch.cuda.get_device_properties(device)
    most = getattr(properties, "shared_memory_per_block_optin", 0)  # 0 or absent on AMD
    return int(most or properties.shared_memory_per_block)


def padded(widths: tuple[int, ...]) -> tuple[int, ...]:
    """As tl.dot wants them."""
    return tuple(max(16, triton.next_power_of_2(width)) for width in widths)


def _means(sums: Tensor, z: Tensor) -> Tensor:
    """The programs' sums (4, steps, programs) to means (4, steps), always in the same order."""
    means = sums.sum(2, dtype=torch.float64) / z.numel()
    means[1] *= z.shape[1]  # f, of which there is one for each chain
    return means.to(z.dtype)


# Validation --------------------------------------------------------------------------------------


def _check_chain(
    z: Tensor, steps: int, threshold: float, step_size: float, grad_clamp: float
) -> None:
    checks.stepsize(z, threshold, step_size)
    if not grad_clamp > 0:
        raise RuntimeError(f"grad_clamp must be positive, got {grad_clamp}")
    if steps < 0:
        raise RuntimeError(f"steps must be 0 or more, got {steps}")


def _check_net(
    z: Tensor, weights: list[Tensor], biases: list[Tensor], activation: str, slope: float
) -> None:
    if z.dtype not in (torch.float32, torch.float64):
        raise RuntimeError(f"z must be float32 or float64, got {z.dtype}")
    if z.dim() != 2:
        raise RuntimeError(f"z must be (B, d), got {list(z.shape)}")
    _check_between("z's width", z.shape[1], 1, LARGEST_INPUT)
    if len(weights) != len(biases):
        raise RuntimeError(f"biases must be as many as weights, {len(weights)}, got {len(biases)}")
    _check_between("the number of layers", len(weights), *LAYERS)
    width = z.shape[1]
    for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        wanted = 1 if i + 1 == len(weights) else bias.numel()
        _check_parameter(f"biases[{i}]", bias, [wanted], z)
        _check_parameter(f"weights[{i}]", weight, [wanted, width], z)
        _check_between("the width of a layer", wanted, 1, LARGEST_WIDTH)
        width = wanted
    if activation not in ("leaky_relu", "silu"):
        raise RuntimeError(f"activation must be 'leaky_relu' or 'silu', got {activation!r}")
    if not 0 <= slope <= torch.finfo(z.dtype).max:
        raise RuntimeError(f"slope must be 0 or more and finite, got {slope}")


def _check_parameter(name: str, value: Tensor, shape: list[int], z: Tensor) -> None:
    if list(value.shape) != shape or value.dtype != z.dtype or value.device != z.device:
        raise RuntimeError(
            f"{name} must be {shape} and like z on {z.device} in {z.dtype}, got "
            f"{list(value.shape)} on {value.device} in {value.dtype}"
        )


def _check_between(what: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise RuntimeError(f"{what} must be from {least} to {most}, got {value}")
