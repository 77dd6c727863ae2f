"""Whole chains in one kernel: which f, sampler and requests they fit, and why not.

The kernel knows fully connected nets small enough to stay on chip, so f is read, not called.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from stanley_fast import plain
from stanley_fast.backends import backends, select
from stanley_fast.energies import MLPEnergy
from stanley_fast.library import COMPILED, TRITON
from stanley_fast.samplers import GradientAscent, Langevin, Sampler, Stanley

LARGEST_INPUT, LARGEST_WIDTH, LAYERS = 16, 128, range(2, 9)

STATS = ("grad_abs", "log_density", "stepsize", "at_max_stepsize")
"""Rows of the kernel's statistics."""

# Multiplications that one call does at most on the CPU, a fraction of a second: Ctrl-C is heard in
# between. On a GPU the call returns at once.
_WORK_PER_CALL = 5 * 10**9


class Misfit(Exception):
    """Why a chain can't run in a faster way."""


class Net(NamedTuple):
    """A fully connected net, linear in its last layer, of width 1."""

    weights: list[Tensor]
    biases: list[Tensor]
    activation: str
    slope: float


def fit(f: object, z0: Tensor, sampler: Sampler, per_step: dict[str, bool]) -> Net:
    """f as the kernel reads it. `per_step` says what is asked of each transition, by argument.

    Raises:
        Misfit: why the kernel can't run this chain.

    >>> len(fit(MLPEnergy(), torch.zeros(100, 2), Stanley(0.1), {}).weights)
    5
    """
    for name, asked in per_step.items():
        _require(not asked, f"{name} asks for something at every transition")
    _check_sampler(sampler)
    return read(f, z0)


def read(f: object, z0: Tensor) -> Net:
    """f as the kernels for states like z0 read it. Raises Misfit: why they can't."""
    _check_surroundings(z0)
    net = _read(f, z0)
    widths = [len(bias) for bias in net.biases]
    if not (len(widths) in LAYERS and min(widths) >= 1 and max(widths) <= LARGEST_WIDTH):
        size = f"{len(widths)} layers, up to {max(widths)} wide"
        raise Misfit(f"a net of {size}, is too big or empty")
    if namespace(z0) == TRITON:
        _check_memory((z0.shape[1], *widths[:-1]), z0)
    return net


def namespace(z0: Tensor) -> str:
    """Whose mlp_chain serves z0: the compiled library's on the CPU, Triton's on a GPU.

    Raises:
        Misfit: the backend in use has none.
    """
    backend = select(z0.device.type)
    if backend == "cuda":  # which has steps; whole chains are Triton's on every GPU
        reason = backends()["triton"]
        _require(reason is None, f"whole chains on a GPU need Triton: {reason}")
        backend = "triton"
    _require(backend != "reference", "the backend is reference")
    return TRITON if backend == "triton" else COMPILED


def run(
    net: Net,
    z0: Tensor,
    sampler: Sampler,
    gamma: Tensor | None,
    steps: int,
    key: Tensor,
    first: int,
    total: int,
    record: bool,
) -> tuple[Tensor, dict[str, Tensor]]:
    """All transitions: the last state like z0, NaN in chains that left the finite numbers; STATS.

    gamma is what the sampler's `init` gave: the stepsize, or None for Eq. 4 at every transition.
    """
    z, stats = z0.flatten(1), []
    if gamma is not None and gamma.dim() > 2:
        gamma = gamma.flatten(1)  # as z is
    op = getattr(torch.ops, namespace(z0)).mlp_chain.default
    # Each weight is used forward and backward; 100 for the noise and the transition.
    work = 2 * len(z) * (sum(w.numel() for w in net.weights) + 100)
    at_once = max(1, _WORK_PER_CALL // max(1, work)) if z.is_cpu else max(1, steps)
    for k in range(0, max(1, steps), at_once):
        with torch._C._AutoDispatchBelowAutograd():
            z, some = op(
                z, *net, gamma, key, k, min(at_once, steps - k), *_settings(sampler), first, total,
                record,
            )  # fmt: skip
        stats.append(some)
    rows = torch.cat(stats, dim=1).unbind() if record else ()
    return z.view(z0.shape), dict(zip(STATS, rows, strict=False))


def _settings(sampler: Sampler) -> tuple[float | Tensor | bool, ...]:
    """threshold, step_size, noise_scale, grad_clamp, clamp_min, clamp_max, script."""
    if isinstance(sampler, Stanley):
        th, grad_clamp, script = sampler.threshold, math.inf, sampler.update == "script"
    elif isinstance(sampler, Langevin):
        th, grad_clamp, script = 1.0, sampler.grad_clamp or math.inf, False  # th: not used
    else:
        raise TypeError(f"sampler must be Stanley or Langevin, got {sampler!r}")
    lo, hi = sampler.clamp or (-math.inf, math.inf)
    return th, sampler.step_size, sampler.noise_scale, grad_clamp, lo, hi, script


def _require(fits: bool, reason: str) -> None:
    if not fits:
        raise Misfit(reason)


def _check_surroundings(z0: Tensor) -> None:
    usual = type(z0) in (Tensor, nn.Parameter) and (z0.is_cpu or z0.is_cuda)
    _require(usual, "z0 is not a plain tensor on the CPU or a GPU")
    _require(z0.dtype in (torch.float32, torch.float64), f"z0 is {z0.dtype}")
    namespace(z0)
    fine = plain.undisturbed() and not torch.is_autocast_enabled(z0.device.type)
    _require(fine, "torch.func, autocast, torch.compile or a dispatch mode is at work")


def _check_memory(widths: tuple[int, ...], z0: Tensor) -> None:
    """That the weights fit into a GPU's shared memory."""
    from stanley_fast.kernels import launch_chain  # imports Triton

    needed = launch_chain.memory(widths, z0.dtype)
    most = launch_chain.most_memory(z0.device)
    _require(
        needed <= most,
        f"its weights need {needed / 1024:.0f} KB of shared memory, of which there are "
        f"{most / 1024:.0f}",
    )


def _check_sampler(sampler: Sampler) -> None:
    known = type(sampler) in (Stanley, Langevin, GradientAscent)
    _require(known, "the sampler is neither Stanley nor Langevin")
    adjusted = isinstance(sampler, Stanley) and sampler.adjusted
    _require(not adjusted, "every transition is accepted or rejected")
    if isinstance(sampler, Stanley) and sampler.stepsize == "adaptive":
        _require(sampler.norm == "element", f"the stepsize has norm={sampler.norm!r}")


def _read(f: object, z0: Tensor) -> Net:
    """f's layers, if f is nothing but they."""
    if isinstance(f, MLPEnergy) and type(f) is MLPEnergy and type(f.net) is nn.Sequential:
        layers, others = list(f.net), [f, f.net]
        if not _is_point(z0):
            raise Misfit(f"z0 is {list(z0.shape)}")
    elif isinstance(f, nn.Sequential) and type(f) is nn.Sequential:
        layers, others = _between_flattens(list(f), z0), [f, *f]
    else:
        raise Misfit("f is neither an MLPEnergy nor an nn.Sequential")
    _check_calls([*others, *layers])
    products, activations = layers[::2], layers[1::2]
    _require(len(products) == len(activations) + 1 >= 2, "its layers do not alternate")
    activation, slope = _activation(activations)
    pairs = [_weight_and_bias(layer, z0) for layer in products]
    weights, biases = [w for w, _ in pairs], [b for _, b in pairs]
    widths = [z0.shape[1], *map(len, biases)]
    agree = all(w.shape[1] == n for w, n in zip(weights, widths, strict=False))
    if not (agree and widths[-1] == 1):
        raise Misfit(f"its widths are {widths}, not from z0's to 1")
    if not 1 <= widths[0] <= LARGEST_INPUT:
        raise Misfit(f"z0 is {widths[0]} wide, not 1 to {LARGEST_INPUT}")
    return Net(weights, biases, activation, slope)


def _between_flattens(layers: list[nn.Module], z0: Tensor) -> list[nn.Module]:
    """An nn.Sequential's layers where it maps z0 (B, d) or (B, d, 1, 1) to (B,)."""
    _require(
        len(layers) > 2 and plain.flattens(layers[-1], 0), "it does not end with nn.Flatten(0)"
    )
    layers = layers[:-1]
    if plain.flattens(layers[0], 1):
        layers, dim = layers[1:], 2
    else:
        dim = z0.dim()
    wanted = 4 if type(layers[0]) is nn.Conv2d else 2
    _require(_is_point(z0) and dim == wanted, f"z0 is {list(z0.shape)}")
    return layers


def _is_point(z0: Tensor) -> bool:
    """(B, d) or (B, d, 1, ...)."""
    return z0.dim() > 1 and all(size == 1 for size in z0.shape[2:])


def _activation(layers: list[nn.Module]) -> tuple[str, float]:
    kinds = set()
    for layer in layers:
        if type(layer) is nn.LeakyReLU:
            kinds.add(("leaky_relu", float(layer.negative_slope)))
        elif type(layer) is nn.ReLU:
            kinds.add(("leaky_relu", 0.0))
        else:
            kinds.add(("silu" if type(layer) is nn.SiLU else "", 0.0))
    name, slope = kinds.pop()
    _require(
        name != "" and not kinds, "its activations are not all the same LeakyReLU, ReLU or SiLU"
    )
    _require(0 <= slope < math.inf, f"its activation's slope is {slope}")
    return name, slope


def _weight_and_bias(layer: nn.Module, z0: Tensor) -> tuple[Tensor, Tensor]:
    if type(layer) is nn.Conv2d:
        single = layer.kernel_size == layer.stride == (1, 1) and layer.groups == 1
        _require(single and layer.padding in ((0, 0), "valid", "same"), "a convolution is not 1x1")
    elif type(layer) is not nn.Linear:
        raise Misfit(f"{type(layer).__name__} is not nn.Linear or nn.Conv2d")
    own = plain.weight_and_bias(layer, z0)
    if own is None:
        raise Misfit("its parameters are not plain tensors like z0")
    weight, bias = own
    return weight if weight.dim() == 2 else weight.flatten(1), bias


def _check_calls(modules: list[nn.Module]) -> None:
    """That calling a module is calling its class's forward and nothing else."""
    _require(not plain.hooked(modules), "f has hooks")
    _require(not plain.replaced(modules), "f's forward is replaced")
