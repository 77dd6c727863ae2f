"""Samplers whose transitions are accepted or rejected, so that exp(f) itself is their law.

A transition proposes z', evaluates f there, and takes z' with probability min(1, alpha), where
log alpha = f(z') - f(z) + log q(z | z') - log q(z' | z). A rejected chain keeps its state, gradient
and log-density; so does one whose proposal is not finite.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from stanley_fast import metropolis_ops, ops, settings
from stanley_fast.density import Density
from stanley_fast.transition import Info, State


def start(z0: Tensor, f: Density, *, gradient: bool = True) -> State:
    """A chain's first state, with f and its gradient there.

    Raises:
        ValueError: a half-precision state: its rounding would be part of the proposal.
        NonFiniteError: f or its gradient is not finite; names the chains.
    """
    if z0.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"z0 must be float32 or float64 for this sampler, got {z0.dtype}")
    if f.differentiable:
        raise ValueError("f.differentiable must be False: accepting has no derivative")
    z, grad = f.start(z0), None
    f.require_finite(z, "the state")
    if gradient:
        value, grad = f.value_and_grad(z)
        f.require_finite(grad, "the gradient of f")
        grad = grad.clone(memory_format=torch.contiguous_format)  # f's own may share memory
    else:
        value = f.value(z)
    f.require_finite(value, "f")
    return State(z, value.clone(memory_format=torch.contiguous_format), grad)


def accept(
    state: State,
    proposal: State,
    log_ratio: Tensor,
    key: Tensor,
    k: int,
    *,
    first: int = 0,
    total: int | None = None,
) -> tuple[State, Info]:
    """Takes each chain's proposal or leaves its state, in place.

    Args:
        state, proposal: with log-density; with gradient both or neither.
        log_ratio: float64 (B,), log q(z | z') - log q(z' | z).
        key, k, first, total: as in `sample`; `first` and `total` count elements.

    Raises:
        ValueError: first or total splits a chain.
    """
    z = state.z
    assert state.log_density is not None
    assert proposal.log_density is not None
    each = math.prod(z.shape[1:]) or 1  # elements of a chain
    for name, count in (("first", first), ("total", total)):
        if count is not None and count % each:
            raise ValueError(
                f"{name} must be a multiple of {each}, a chain's elements: a chain is accepted or "
                f"rejected as a whole; got {count}"
            )
    # Counted in elements, as the noise is: a chain that goes on with the key draws as the whole.
    total = z.numel() if total is None else total
    accepted, probability = metropolis_ops.accept_(
        z,
        state.grad,
        state.log_density,
        proposal.z,
        proposal.grad,
        proposal.log_density,
        log_ratio,
        key,
        k,
        first=first // each,
        total=max(total, len(z)),  # chains without elements
    )
    info = Info(state.log_density, state.grad, None, accepted, probability)
    return state, info


@dataclass(frozen=True)
class MALA:
    """The Metropolis-adjusted Langevin algorithm: Langevin's step with noise_scale 1, then accepted
    or rejected.

    Args:
        step_size: gamma of z + gamma/2 * g + sqrt(gamma) * noise, > 0; other texts write this as
            epsilon^2. A 0-dim tensor is read on its device.

    Raises:
        ValueError: step_size out of its range.

    Source: Roberts and Tweedie 1996.

    >>> MALA(0.1)
    MALA(step_size=0.1)
    """

    step_size: float | Tensor

    records: ClassVar[tuple[str, ...]] = ("grad_abs", "log_density", "acceptance")
    tuned: ClassVar[tuple[str, float]] = ("step_size", 0.574)
    """The setting that `warm_up` tunes, and the acceptance it aims at."""

    def __post_init__(self) -> None:
        settings.step_length("step_size", self.step_size)

    def init(self, z: Tensor, f: Density) -> State:
        return start(z, f)

    def step(
        self,
        state: State,
        f: Density,
        key: Tensor,
        k: int,
        *,
        first: int = 0,
        total: int | None = None,
    ) -> tuple[State, Info]:
        z, grad = state.z, state.grad
        assert grad is not None
        new = ops.langevin_step(z, grad, self.step_size, key, k, first=first, total=total)
        value, new_grad = f.value_and_grad(new)
        log_ratio = metropolis_ops.proposal_log_ratio(
            z, grad, new, new_grad, step_size=self.step_size
        )
        proposal = State(new, value, new_grad)
        return accept(state, proposal, log_ratio, key, k, first=first, total=total)

    def stats(self, info: Info) -> dict[str, Tensor]:
        return info.stats()


@dataclass(frozen=True)
class MetropolisHastings:
    """Random-walk Metropolis: proposes z + scale * noise. f need not be differentiable.

    Args:
        scale: standard deviation of the proposal in each element, > 0. A 0-dim tensor is read on
            its device.

    Raises:
        ValueError: scale out of its range.

    Source: Metropolis et al. 1953, Hastings 1970.

    >>> MetropolisHastings(0.5)
    MetropolisHastings(scale=0.5)
    """

    scale: float | Tensor

    records: ClassVar[tuple[str, ...]] = ("log_density", "acceptance")
    tuned: ClassVar[tuple[str, float]] = ("scale", 0.234)
    """The setting that `warm_up` tunes, and the acceptance it aims at."""

    def __post_init__(self) -> None:
        settings.step_length("scale", self.scale)

    def init(self, z: Tensor, f: Density) -> State:
        return start(z, f, gradient=False)

    def step(
        self,
        state: State,
        f: Density,
        key: Tensor,
        k: int,
        *,
        first: int = 0,
        total: int | None = None,
    ) -> tuple[State, Info]:
        z = state.z
        new = ops.normal(z.shape, key, k, dtype=z.dtype, first=first, total=total)
        new.mul_(self.scale).add_(z)
        symmetric = torch.zeros(len(z), dtype=torch.float64, device=z.device)
        proposal = State(new, f.value(new))
        return accept(state, proposal, symmetric, key, k, first=first, total=total)

    def stats(self, info: Info) -> dict[str, Tensor]:
        return info.stats()
