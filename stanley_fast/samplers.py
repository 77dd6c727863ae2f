"""Langevin samplers: `Stanley`, `Langevin`, `GradientAscent`. Frozen dataclasses of their settings.

transition.py says what a sampler is; metropolis.py and hmc.py have the others.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from stanley_fast import checks, metropolis, metropolis_ops, ops, settings
from stanley_fast.density import Density
from stanley_fast.transition import Info, Sampler, State

__all__ = ["GradientAscent", "Langevin", "Sampler", "Stanley"]


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
        rounding: "nearest", or "stochastic" for a bfloat16 state, which small transitions then move
            as they should on average: see `stanley_step`.
        adjusted: accept or reject each transition (Metropolis-Hastings), so that the chain's law is
            exp(f), whatever the settings above; they decide how often it accepts. It wants
            noise_scale > 0, update="paper", no clamp and a float32 or float64 state; step_size may
            be a 0-dim tensor, read on its device.

    Raises:
        ValueError: a setting out of its range.

    >>> Stanley(0.1, noise_scale=0.15)
    Stanley(threshold=0.1, step_size=1.0, noise_scale=0.15, stepsize='adaptive', norm='element', \
update='paper', clamp=None, rounding='nearest', adjusted=False)
    """

    threshold: float
    step_size: float | Tensor = 1.0
    noise_scale: float = 1.0
    _: KW_ONLY
    stepsize: Literal["adaptive", "frozen"] = "adaptive"
    norm: Literal["element", "channel", "sample"] = "element"
    update: Literal["paper", "script"] = "paper"
    clamp: tuple[float, float] | None = None
    rounding: Literal["nearest", "stochastic"] = "nearest"
    adjusted: bool = False

    tuned: ClassVar[tuple[str, float]] = ("step_size", 0.574)
    """The setting that `warm_up` tunes, and the acceptance it aims at."""

    def __post_init__(self) -> None:
        settings.positive("threshold", self.threshold)
        settings.one_of("stepsize", self.stepsize, ("adaptive", "frozen"))
        settings.one_of("norm", self.norm, ("element", "channel", "sample"))
        settings.one_of("update", self.update, checks.UPDATES)
        settings.one_of("rounding", self.rounding, checks.ROUNDINGS)
        settings.interval("clamp", self.clamp)
        if not self.adjusted:
            settings.positive("step_size", self.step_size)
            settings.not_negative("noise_scale", self.noise_scale)
            return
        settings.step_length("step_size", self.step_size)
        settings.positive("noise_scale", self.noise_scale)  # without noise nothing is reversible
        if self.update != "paper":
            raise ValueError(f"update must be 'paper' with adjusted=True, got {self.update!r}")
        if self.clamp is not None:
            raise ValueError(f"clamp must be None with adjusted=True, got {self.clamp}")
        if self.rounding != "nearest":
            raise ValueError(
                f"rounding must be 'nearest' with adjusted=True, got {self.rounding!r}"
            )

    @property
    def records(self) -> tuple[str, ...]:
        names = ("grad_abs", "log_density", "stepsize", "at_max_stepsize")
        return (*names, "acceptance") if self.adjusted else names

    def init(self, z: Tensor, f: Density) -> State:
        if self.norm == "channel" and z.dim() < 2:
            raise ValueError(f"norm='channel' needs a state (B, C, ...), got shape {list(z.shape)}")
        checks.rounding(self.rounding, z.dtype)
        state = metropolis.start(z, f) if self.adjusted else State(f.start(z))
        if self.stepsize == "adaptive":
            return state
        if state.grad is None:
            state = State(state.z, *f.finite_value_and_grad(state.z))
        assert state.grad is not None
        return state._replace(gamma=self._gamma(state.grad))

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
        if self.adjusted:
            return self._adjusted_step(state, f, key, k, first, total)
        z, value, grad, frozen = state
        if value is None or grad is None:
            value, grad = f.finite_value_and_grad(z)
        gamma = self._gamma_for_step(grad, frozen)
        z = self._move(z, grad, gamma, key, k, first, total, inplace=not f.differentiable)
        return State(z, gamma=frozen), Info(value, grad, gamma)

    def _adjusted_step(
        self, state: State, f: Density, key: Tensor, k: int, first: int, total: int | None
    ) -> tuple[State, Info]:
        """Metropolis-Hastings: the proposal's variances, eps^2 gamma, differ between its ends."""
        z, _, grad, frozen = state
        assert grad is not None
        gamma = self._gamma_for_step(grad, frozen)
        new = self._move(z, grad, gamma, key, k, first, total, inplace=False)
        value, new_grad = f.value_and_grad(new)
        log_ratio = metropolis_ops.proposal_log_ratio(
            z,
            grad,
            new,
            new_grad,
            gamma=gamma,
            gamma_new=self._gamma_for_step(new_grad, frozen),
            threshold=self.threshold if gamma is None else None,
            step_size=self.step_size if gamma is None else None,
            noise_scale=self.noise_scale,
        )
        proposal = State(new, value, new_grad)
        end, info = metropolis.accept(state, proposal, log_ratio, key, k, first=first, total=total)
        return end, info._replace(gamma=frozen)

    def _move(
        self,
        z: Tensor,
        grad: Tensor,
        gamma: Tensor | None,
        key: Tensor,
        k: int,
        first: int,
        total: int | None,
        inplace: bool,
    ) -> Tensor:
        """Eq. 5, by gamma or, if there is none, by Eq. 4 in the same pass."""
        if gamma is None:
            assert not isinstance(self.step_size, Tensor)
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
                rounding=self.rounding,
                first=first,
                total=total,
            )
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
            rounding=self.rounding,
            first=first,
            total=total,
        )

    def stats(self, info: Info) -> dict[str, Tensor]:
        assert info.grad is not None
        gamma = self._gamma(info.grad) if info.gamma is None else info.gamma
        at_max = (gamma >= self.step_size).to(gamma.dtype)
        return info.stats() | {"stepsize": gamma.mean(), "at_max_stepsize": at_max.mean()}

    def _gamma_for_step(self, grad: Tensor, frozen: Tensor | None) -> Tensor | None:
        """None where the operations compute Eq. 4 themselves, in the same pass."""
        if frozen is not None:
            return frozen
        fused = self.norm == "element" and not isinstance(self.step_size, Tensor)
        return None if fused else self._gamma(grad)

    def _gamma(self, grad: Tensor) -> Tensor:
        """Eq. 4: shape of grad, or with size 1 in the dims the norm is taken over."""
        size, dtype = grad, checks.compute_dtype(grad.dtype)
        if self.norm == "channel":
            size = torch.linalg.vector_norm(grad, dim=1, keepdim=True, dtype=dtype)
        elif self.norm == "sample" and grad.dim() > 1:
            dims = tuple(range(1, grad.dim()))
            size = torch.linalg.vector_norm(grad, dim=dims, keepdim=True, dtype=dtype)
        if isinstance(self.step_size, Tensor):
            return self.step_size * ops.stepsize(size, threshold=self.threshold)
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
        rounding: as in `Stanley`.

    Raises:
        ValueError: a setting out of its range.

    >>> Langevin(0.14, noise_scale=0.15)
    Langevin(step_size=0.14, noise_scale=0.15, grad_clamp=None, clamp=None, rounding='nearest')
    """

    step_size: float
    noise_scale: float = 1.0
    _: KW_ONLY
    grad_clamp: float | None = None
    clamp: tuple[float, float] | None = None
    rounding: Literal["nearest", "stochastic"] = "nearest"

    records: ClassVar[tuple[str, ...]] = (
        "grad_abs",
        "log_density",
        "stepsize",
        "at_max_stepsize",
    )

    def __post_init__(self) -> None:
        settings.positive("step_size", self.step_size)
        settings.not_negative("noise_scale", self.noise_scale)
        if self.grad_clamp is not None:
            settings.positive("grad_clamp", self.grad_clamp)
        settings.interval("clamp", self.clamp)
        settings.one_of("rounding", self.rounding, checks.ROUNDINGS)

    def init(self, z: Tensor, f: Density) -> State:
        checks.rounding(self.rounding, z.dtype)
        # A tensor, made once a chain: a number would be made into one at every transition.
        gamma = torch.full((), self.step_size, dtype=checks.compute_dtype(z.dtype), device=z.device)
        return State(f.start(z), gamma=gamma)

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
        z, gamma = state.z, state.gamma
        assert gamma is not None
        value, grad = f.finite_value_and_grad(z)
        drift = grad
        if self.grad_clamp is not None:
            drift = grad.clamp(-self.grad_clamp, self.grad_clamp)
        move = ops.langevin_step if f.differentiable else ops.langevin_step_
        z = move(
            z,
            drift,
            gamma,
            key,
            k,
            noise_scale=self.noise_scale,
            clamp=self.clamp,
            rounding=self.rounding,
            first=first,
            total=total,
        )
        return State(z, gamma=gamma), Info(value, grad, gamma)

    def stats(self, info: Info) -> dict[str, Tensor]:
        """Every element is at the largest stepsize: there is only one."""
        assert info.gamma is not None
        return info.stats() | {
            "stepsize": info.gamma,
            "at_max_stepsize": torch.ones_like(info.gamma),
        }


@dataclass(frozen=True)
class GradientAscent(Langevin):
    """Langevin without noise: z + step_size/2 * g. It climbs to a mode of f.

    The half is Langevin's, so that the two compare at the same step_size.

    Args:
        step_size: > 0.
        grad_clamp, clamp, rounding: as in `Langevin`.

    Raises:
        ValueError: a setting out of its range.

    >>> GradientAscent(0.14)
    GradientAscent(step_size=0.14, grad_clamp=None, clamp=None, rounding='nearest')
    """

    noise_scale: float = field(default=0.0, init=False, repr=False)
