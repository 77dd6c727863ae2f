"""warm_up(): a step size that accepts as often as is best, by dual averaging."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor

from stanley_fast import checks, keys, settings
from stanley_fast.chain import Chain
from stanley_fast.density import Density, LogDensity
from stanley_fast.transition import Sampler

# Hoffman and Gelman 2014, section 3.2.1: how strongly, from when and how lastingly it adapts.
GAMMA, T0, KAPPA = 0.05, 10, 0.75


@torch.inference_mode(False)
def warm_up(
    f: LogDensity,
    z0: Tensor,
    sampler: Sampler,
    steps: int,
    *,
    key: Tensor | torch.Generator | None = None,
    target: float | None = None,
) -> tuple[Any, Chain]:
    """Runs B chains while their common step size adapts; returns the sampler with what it found.

    After each transition the mean acceptance probability of all chains moves the step size: many
    chains need few transitions. It settles on an average, which stays fixed from then on, as the
    law of a chain wants: don't keep the warm-up's own states as samples. Nothing waits for the
    device until the end.

    Args:
        f, key: as in `sample`.
        z0: (B, ...), float32 or float64; not changed.
        sampler: `MALA`, `MetropolisHastings`, `HMC`, or `Stanley(adjusted=True)`, whose setting is
            the first guess. It tunes `step_size`, or the random walk's `scale`.
        steps: transitions, 1 or more; a few hundred.
        target: mean acceptance probability aimed at, in (0, 1); unless told 0.574 for MALA and
            STANLEY, 0.65 for HMC, 0.234 for Metropolis-Hastings, the best in many dimensions.

    Returns:
        The sampler with its new setting, a number; and the chains as `sample` returns them, `stats`
        being "acceptance" and "step_size", each (steps,), as each transition had them.

    Raises:
        TypeError, ValueError: an argument that makes no sense.
        NonFiniteError, RuntimeError: as `sample`.

    Source: Hoffman and Gelman 2014, The No-U-Turn Sampler, Eq. 6.

    >>> from stanley_fast.metropolis import MALA
    >>> gaussian = lambda z: -(z**2).sum(1) / 2
    >>> sampler, chain = warm_up(gaussian, torch.zeros(100, 2), MALA(1.0), 200, key=keys.key(0))
    >>> 0.5 < float(chain.stats["acceptance"][100:].mean()) < 0.65
    True
    """
    name, target = _check(z0, sampler, steps, target)
    key = key if isinstance(key, Tensor) else keys.key(key, z0.device)
    checks.key(key)
    averaging = _DualAveraging(getattr(sampler, name), target, z0)
    step_size = averaging.step_size.to(z0.dtype, copy=True)  # which the sampler reads
    tuned: Any = dataclasses.replace(sampler, **{name: step_size})  # type: ignore[type-var]

    density = Density(f)
    acceptance, step_sizes = [], []
    with density.eval_mode(), density.frozen_parameters(z0), torch.no_grad():
        state = tuned.init(z0, density)
        for k in range(steps):
            step_sizes.append(step_size.clone())
            state, info = tuned.step(state, density, key, k)
            acceptance.append(info.probability)
            step_size.copy_(averaging.update(k + 1, info.probability.mean()))
    each = torch.stack(acceptance)
    chain = Chain(
        z=state.z,
        key=keys.advance_(key.clone(), steps * ((z0.numel() + 3) // 4)),
        stats={"acceptance": each.mean(dim=1), "step_size": torch.stack(step_sizes)},
        trace=None,
        rung="step: one transition at a time; not in one kernel, because the step size adapts",
        acceptance=each.mean(dim=0),
    )
    return dataclasses.replace(tuned, **{name: averaging.mean.exp().item()}), chain


class _DualAveraging:
    """Brings the mean of target - acceptance to 0 over log step size, all on the device."""

    def __init__(self, step_size: float | Tensor, target: float, z0: Tensor) -> None:
        self.step_size = torch.as_tensor(step_size, dtype=torch.float64, device=z0.device)
        self.target = target
        self.centre = self.step_size.log() + math.log(10)  # mu: rather too large than too small
        self.error = torch.zeros_like(self.step_size)
        self.mean = torch.zeros_like(self.step_size)  # of log step size, weighted to the last ones

    def update(self, t: int, acceptance: Tensor) -> Tensor:
        """The next step size, after transition t = 1, 2, ..."""
        self.error += (self.target - acceptance - self.error) / (t + T0)
        now = self.centre - math.sqrt(t) / GAMMA * self.error
        self.mean += t**-KAPPA * (now - self.mean)
        return now.exp()


def _check(z0: Tensor, sampler: Sampler, steps: int, target: float | None) -> tuple[str, float]:
    """The setting's name and the target."""
    checks.floating("z0", z0)
    if z0.dim() == 0 or len(z0) == 0:
        raise ValueError(f"z0 must hold at least one chain, (B, ...), got {list(z0.shape)}")
    tuned = None if isinstance(sampler, type) else getattr(sampler, "tuned", None)
    if tuned is None or "acceptance" not in sampler.records:
        raise TypeError(
            "sampler must accept or reject: MALA, MetropolisHastings, HMC or "
            f"Stanley(adjusted=True), got {sampler!r}"
        )
    if getattr(sampler, "stepsize", "") == "frozen":
        raise ValueError("stepsize must be 'adaptive' where the step size adapts, got 'frozen'")
    settings.count("steps", steps, 1)
    name, usual = tuned
    target = usual if target is None else target
    if not 0 < target < 1:
        raise ValueError(f"target must be in (0, 1), got {target}")
    return name, target
