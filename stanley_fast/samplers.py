"""Samplers: how a chain moves, given the gradient. Each is a frozen dataclass of its settings.

The chain (chain.py) asks `init` once, at its first state, for what stays fixed over its
transitions, then `step` once per transition.
"""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from stanley_fast import ops
from stanley_fast.checks import compute_dtype


@runtime_checkable
class Sampler(Protocol):
    """What a chain needs of a sampler."""

    records: ClassVar[tuple[str, ...]]
    """The names `stats` knows, which `sample(record=...)` may ask for."""

    def init(self, z: Tensor, grad: Tensor) -> Tensor | None:
        """What stays fixed over a chain, from its first state and the gradient there."""
        ...

    def step(
        self,
        z: Tensor,
        grad: Tensor,
        state: Tensor | None,
        key: Tensor,
        k: int,
        *,
        first: int = 0,
        total: int | None = None,
        inplace: bool = False,
    ) -> Tensor:
        """Transition k of the chain; `state` is what `init` gave."""
        ...

    def stats(self, grad: Tensor, state: Tensor | None) -> dict[str, Tensor]:
        """0-dim tensors by name, for the transition that `grad` leads to."""
        ...


@dataclass(frozen=True)
class Stanley:
    """STANLEY: a stepsize per element, from the gradient there (Eq. 4), then Langevin (Eq. 5).

    Args:
        threshold: th > 0, in the gradient's units. Where |g| <= th the stepsize is the largest;
            above, the drift's length is step_size * th / 2, whatever the gradient.
        step_size: the largest stepsize, > 0; 1 in the paper.
        noise_scale: multiplies the Brownian term, >= 0; 0 is ascent without noise.
        stepsize: "adaptive" computes the stepsize at every transition, as the paper's text reads;
            "frozen" once, at the chain's first state (Algorithm 1 line 3, literally).
        norm: whose size Eq. 4 takes: each "element"'s; the Euclidean norm over dim 1, "channel", as
            in the author's CIFAR script; or over a whole "sample", as in his toy script.
        update: "paper" is Eq. 5; "script" is z + stepsize * g + stepsize * noise, as his code
            has it.
        clamp: (lo, hi) bounds the state after each transition.

    Raises:
        ValueError: a setting out of its range.

    >>> Stanley(0.1, noise_scale=0.15)
    Stanley(threshold=0.1, step_size=1.0, noise_scale=0.15, stepsize='adaptive', norm='element', \
update='paper', clamp=None)
    """

    threshold: float
    step_size: float = 1.0
    noise_scale: float = 1.0
    _: KW_ONLY
    stepsize: Literal["adaptive", "frozen"] = "adaptive"
    norm: Literal["element", "channel", "sample"] = "element"
    update: Literal["paper", "script"] = "paper"
    clamp: tuple[float, float] | None = None

    records: ClassVar[tuple[str, ...]] = ("stepsize", "at_max_stepsize")

    def __post_init__(self) -> None:
        _positive("threshold", self.threshold)
        _positive("step_size", self.step_size)
        _not_negative("noise_scale", self.noise_scale)
        _one_of("stepsize", self.stepsize, ("adaptive", "frozen"))
        _one_of("norm", self.norm, ("element", "channel", "sample"))
        _one_of("update", self.update, ("paper", "script"))
        _interval("clamp", self.clamp)

    def init(self, z: Tensor, grad: Tensor) -> Tensor | None:
        if self.norm == "channel" and z.dim() < 2:
            raise ValueError(f"norm='channel' needs a state (B, C, ...), got shape {list(z.shape)}")
        return self._gamma(grad) if self.stepsize == "frozen" else None

    def step(
        self,
        z: Tensor,
        grad: Tensor,
        state: Tensor | None,
        key: Tensor,
        k: int,
        *,
        first: int = 0,
        total: int | None = None,
        inplace: bool = False,
    ) -> Tensor:
        if state is None and self.norm == "element":
            move = ops.stanley_step_ if inplace else ops.stanley_step
            return move(
                z,
                grad,
                key,
                k,
                threshold=self.threshold,
                step_size=self.step_size,
                noise_scale=self.noise_scale,
                clamp=self.clamp,
                update=self.update,
                first=first,
                total=total,
            )
        gamma = self._gamma(grad) if state is None else state
        move_by = ops.langevin_step_ if inplace else ops.langevin_step
        return move_by(
            z,
            grad,
            gamma,
            key,
            k,
            noise_scale=self.noise_scale,
            clamp=self.clamp,
            update=self.update,
            first=first,
            total=total,
        )

    def stats(self, grad: Tensor, state: Tensor | None) -> dict[str, Tensor]:
        gamma = self._gamma(grad) if state is None else state
        at_max = (gamma >= self.step_size).to(gamma.dtype)
        return {"stepsize": gamma.mean(), "at_max_stepsize": at_max.mean()}

    def _gamma(self, grad: Tensor) -> Tensor:
        """Eq. 4: shape of grad, or with size 1 in the dims the norm is taken over."""
        size, dtype = grad, compute_dtype(grad.dtype)
        if self.norm == "channel":
            size = torch.linalg.vector_norm(grad, dim=1, keepdim=True, dtype=dtype)
        elif self.norm == "sample" and grad.dim() > 1:
            dims = tuple(range(1, grad.dim()))
            size = torch.linalg.vector_norm(grad, dim=dims, keepdim=True, dtype=dtype)
        return ops.stepsize(size, threshold=self.threshold, step_size=self.step_size)


@dataclass(frozen=True)
class Langevin:
    """Unadjusted Langevin: z + step_size/2 * g + sqrt(step_size) * noise_scale * noise.

    The paper's ablation: Eq. 5 with one stepsize for every element.

    Args:
        step_size: > 0.
        noise_scale: multiplies the Brownian term, >= 0; 0 is ascent without noise.
        grad_clamp: c > 0 clamps every element of the gradient to [-c, c] first.
        clamp: (lo, hi) bounds the state after each transition.

    Raises:
        ValueError: a setting out of its range.

    >>> Langevin(0.14, noise_scale=0.15)
    Langevin(step_size=0.14, noise_scale=0.15, grad_clamp=None, clamp=None)
    """

    step_size: float
    noise_scale: float = 1.0
    _: KW_ONLY
    grad_clamp: float | None = None
    clamp: tuple[float, float] | None = None

    records: ClassVar[tuple[str, ...]] = ("stepsize", "at_max_stepsize")

    def __post_init__(self) -> None:
        _positive("step_size", self.step_size)
        _not_negative("noise_scale", self.noise_scale)
        if self.grad_clamp is not None:
            _positive("grad_clamp", self.grad_clamp)
        _interval("clamp", self.clamp)

    def init(self, z: Tensor, grad: Tensor) -> Tensor | None:
        # A tensor, made once a chain: a number would be made into one at every transition.
        return torch.full((), self.step_size, dtype=compute_dtype(z.dtype), device=z.device)

    def step(
        self,
        z: Tensor,
        grad: Tensor,
        state: Tensor | None,
        key: Tensor,
        k: int,
        *,
        first: int = 0,
        total: int | None = None,
        inplace: bool = False,
    ) -> Tensor:
        if self.grad_clamp is not None:
            grad = grad.clamp(-self.grad_clamp, self.grad_clamp)
        move = ops.langevin_step_ if inplace else ops.langevin_step
        return move(
            z,
            grad,
            self.step_size if state is None else state,
            key,
            k,
            noise_scale=self.noise_scale,
            clamp=self.clamp,
            first=first,
            total=total,
        )

    def stats(self, grad: Tensor, state: Tensor | None) -> dict[str, Tensor]:
        """Every element is at the largest stepsize: there is only one."""
        gamma = grad.new_full((), self.step_size, dtype=compute_dtype(grad.dtype))
        return {"stepsize": gamma, "at_max_stepsize": torch.ones_like(gamma)}


def _positive(name: str, value: float) -> None:
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f"{name} must be positive and finite, got {value}")


def _not_negative(name: str, value: float) -> None:
    if not (value >= 0 and math.isfinite(value)):
        raise ValueError(f"{name} must be 0 or more and finite, got {value}")


def _one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, known))}, got {value!r}")


def _interval(name: str, value: tuple[float, float] | None) -> None:
    if value is not None and not (len(value) == 2 and value[0] <= value[1]):
        raise ValueError(f"{name} must be (lo, hi) with lo <= hi, or None, got {value}")
