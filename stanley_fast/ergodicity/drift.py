"""The drift condition, Eq. 9, and the paper's assumption H1, by Monte Carlo on spheres.

Eq. 9 asks for lambda < 1 and a set O with E[V(z') | z] <= lambda V(z) outside O, where by Eq. 6
V = c exp(f)^-beta for some beta in (0, 1). On a sphere around the target's mean lambda is the
largest ratio E[V(z') | z] / V(z) of one transition; a ball serves as O if lambda < 1 on every
sphere outside it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from stanley_fast import keys
from stanley_fast.chain import NonFiniteError, sample
from stanley_fast.distances import directions
from stanley_fast.energies import Target
from stanley_fast.samplers import Sampler

INNERMOST = 4.0  # the first sphere's radius, in the largest standard deviations of the target
FACTOR = 4.0  # from one sphere to the next
SPHERES = 8
STATES = 64  # on a sphere, beside the two on each axis
DRAWS = 200  # of z' for each, to choose the worst state; then again, to estimate lambda there
H1_STATES = 10_000
ROUNDING = torch.finfo(torch.float64).eps


@dataclass(frozen=True)
class Shell:
    """Condition (9) on one sphere.

    Attributes:
        radius: of the sphere, in the units of z.
        ratio: lambda, the ratio E[V(z') | z] / V(z) at the worst of the states; may be infinite.
        error: its standard error. Where V has a heavy tail under the transition both are too low.
    """

    radius: float
    ratio: float
    error: float

    @property
    def holds(self) -> bool:
        """Whether lambda < 1 by two standard errors."""
        return self.ratio + 2 * self.error < 1


def shells(target: Target, sampler: Sampler, beta: float, key: Tensor) -> list[Shell]:
    """The ratio of condition (9) on spheres of growing radius, in float64, while f is resolved.

    Args:
        target: f.
        sampler: one transition of it is looked at.
        beta: of V, in (0, 1).
        key: int64 (2,), of states and noise.

    Raises ValueError: beta out of its range.

    >>> from stanley_fast.samplers import Langevin
    >>> from stanley_fast.targets import Gaussian
    >>> [each.holds for each in shells(Gaussian([1.0, 1.0]), Langevin(0.1), 0.1, keys.key(0))][-1]
    True
    """
    if not 0 < beta < 1:
        raise ValueError(f"beta must be in (0, 1), got {beta}")
    found = []
    for radius, each in zip(radii(target), keys.split(key, SPHERES), strict=True):
        state_key, run_key = keys.split(each, 2)
        states = _on_sphere(target, radius, STATES, state_key)
        if not beta * float(target(states).abs().max()) * ROUNDING < 0.01:
            break
        found.append(_shell(target, sampler, beta, radius, states, run_key))
    return found


def ball(found: list[Shell]) -> Shell | None:
    """The innermost sphere from which on condition (9) holds on all; None where it does not."""
    best = None
    for shell in reversed(found):
        if not shell.holds:
            break
        best = shell
    return best


def outward(target: Target, key: Tensor) -> float:
    """The largest cosine between z and grad f on a far sphere; H1 wants it below 0 out there."""
    z = _on_sphere(target, radii(target)[3], H1_STATES, key).requires_grad_()
    with torch.enable_grad():
        (grad,) = torch.autograd.grad(target(z).sum(), z)
    return float(torch.cosine_similarity(z.detach() - target.mean, grad).max())


def radii(target: Target) -> list[float]:
    """Of the spheres."""
    innermost = INNERMOST * math.sqrt(float(target.variance.max()))
    return [innermost * FACTOR**i for i in range(SPHERES)]


def _on_sphere(target: Target, radius: float, count: int, key: Tensor) -> Tensor:
    """States around the target's mean: `count` at random, and two on each axis; float64."""
    axes = torch.eye(len(target.mean), dtype=torch.float64)
    around = torch.cat([directions(count, len(axes), key).double(), axes, -axes])
    return target.mean + radius * around


def _shell(
    target: Target, sampler: Sampler, beta: float, radius: float, states: Tensor, key: Tensor
) -> Shell:
    choice_key, draw_key = keys.split(key, 2)
    try:
        ratios = _ratios(target, sampler, beta, states, choice_key)
        worst = states[ratios.mean(dim=1).argmax()]
        ratio = _ratios(target, sampler, beta, worst.expand(len(states), -1), draw_key).flatten()
    except NonFiniteError:  # the gradient or the next state overflows even float64
        return Shell(radius, math.inf, 0.0)
    mean = float(ratio.mean())
    if not math.isfinite(mean):
        return Shell(radius, math.inf, 0.0)
    return Shell(radius, mean, float(ratio.std()) / math.sqrt(len(ratio)))


def _ratios(target: Target, sampler: Sampler, beta: float, z: Tensor, key: Tensor) -> Tensor:
    """V(z') / V(z) of DRAWS transitions from each state: (S, DRAWS)."""
    before = z.repeat_interleave(DRAWS, dim=0)
    after = sample(target, before, sampler, 1, key=key).z
    with torch.no_grad():
        log_ratio = beta * (target(before) - target(after))
    return log_ratio.exp().reshape(len(z), DRAWS)
