"""Hamiltonian Monte Carlo: a leapfrog trajectory with fresh momentum, accepted or rejected."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import torch
from torch import Tensor

from stanley_fast import metropolis, metropolis_ops, ops, settings
from stanley_fast.density import Density
from stanley_fast.transition import Info, State


@dataclass(frozen=True)
class HMC:
    """Hamiltonian Monte Carlo with a fixed number of leapfrog steps and a diagonal mass.

    Args:
        step_size: of the leapfrog, h > 0: the trajectory is h * leapfrog_steps long, and h is a
            length where Langevin's step_size is a length squared. A 0-dim tensor is read on its
            device.
        leapfrog_steps: gradients per transition, 1 or more. One is MALA at step_size h^2.
        mass: variances of the momenta, > 0, broadcast to a chain's shape z.shape[1:]; the inverse
            of f's variances is best. None is 1.

    Raises:
        ValueError: a setting out of its range.

    Source: Duane et al. 1987; Neal 2011, MCMC using Hamiltonian dynamics, figure 2.

    >>> HMC(0.1, 10)
    HMC(step_size=0.1, leapfrog_steps=10, mass=None)
    """

    step_size: float | Tensor
    leapfrog_steps: int
    _: KW_ONLY
    mass: Tensor | None = None

    records: ClassVar[tuple[str, ...]] = ("grad_abs", "log_density", "acceptance")
    tuned: ClassVar[tuple[str, float]] = ("step_size", 0.65)
    """The setting that `warm_up` tunes, and the acceptance it aims at."""

    def __post_init__(self) -> None:
        settings.step_length("step_size", self.step_size)
        settings.count("leapfrog_steps", self.leapfrog_steps, 1)
        if self.mass is None:
            return
        if not isinstance(self.mass, Tensor):
            raise ValueError(f"mass must be a tensor or None, got {self.mass!r}")
        if not bool((self.mass.isfinite() & (self.mass > 0)).all()):
            raise ValueError(f"mass must be positive and finite, got {self.mass.tolist()}")

    def init(self, z: Tensor, f: Density) -> State:
        shape, mass = z.shape[1:], self.mass
        if mass is not None and not _broadcasts(mass.shape, shape):
            raise ValueError(
                f"mass must broadcast to a chain's shape {list(shape)}, got {list(mass.shape)}"
            )
        return metropolis.start(z, f)

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
        mass = None if self.mass is None else self.mass.to(z)
        inverse = None if mass is None else mass.reciprocal()
        momentum = ops.normal(z.shape, key, k, dtype=z.dtype, first=first, total=total)
        if mass is not None:
            momentum *= mass.sqrt()
        before = kinetic_energy(momentum, inverse)
        proposal = State(z.clone(), state.log_density, state.grad)
        proposal = leapfrog(
            proposal, momentum, f, self.step_size, self.leapfrog_steps, inverse_mass=inverse
        )
        log_ratio = before - kinetic_energy(momentum, inverse)
        return metropolis.accept(state, proposal, log_ratio, key, k, first=first, total=total)

    def stats(self, info: Info) -> dict[str, Tensor]:
        return info.stats()


def leapfrog(
    state: State,
    momentum: Tensor,
    f: Density,
    step_size: float | Tensor,
    steps: int,
    *,
    inverse_mass: Tensor | None = None,
) -> State:
    """`steps` leapfrog steps from z with its gradient; moves z and momentum in place.

    Each is half a kick by the gradient, a drift, half a kick; the halves between two steps are one.
    """
    z, value, grad = state.z, state.log_density, state.grad
    assert grad is not None
    for i in range(steps):
        metropolis_ops.leapfrog_(
            z, momentum, grad, step_size=step_size, kick=0.5 if i == 0 else 1.0,
            inverse_mass=inverse_mass,
        )  # fmt: skip
        value, grad = f.value_and_grad(z)
    momentum += step_size / 2 * grad
    return State(z, value, grad)


def kinetic_energy(momentum: Tensor, inverse_mass: Tensor | None = None) -> Tensor:
    """p . p / 2m of each chain, float64 (B,)."""
    squares = momentum.double().square()
    if inverse_mass is not None:
        squares *= inverse_mass
    return squares.unsqueeze(-1).flatten(1).sum(1) / 2


def _broadcasts(small: torch.Size, large: torch.Size) -> bool:
    sizes = zip(reversed(small), reversed(large), strict=False)
    return len(small) <= len(large) and all(a in (1, b) for a, b in sizes)
