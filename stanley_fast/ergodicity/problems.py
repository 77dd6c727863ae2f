"""The problems of the ergodicity study: targets with exact samples, and samplers set up for each.

Settings were chosen by hand, on short chains in equilibrium: unadjusted step sizes as large as
keeps discretisation small, adjusted ones by autocorrelation time, at acceptances from 0.45 to 0.85
(0.2 and more for Metropolis-Hastings). Thresholds lie within the target's gradients, so that
STANLEY differs from Langevin.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from stanley_fast.energies import Ring, Target, gaussian_ring
from stanley_fast.hmc import HMC
from stanley_fast.metropolis import MALA, MetropolisHastings
from stanley_fast.samplers import GradientAscent, Langevin, Sampler, Stanley
from stanley_fast.targets import Banana, Funnel, Gaussian


@dataclass(frozen=True)
class Entry:
    """A sampler with its settings for one target.

    Attributes:
        sampler: with its settings.
        exact: whether exp(f) is invariant under it.
        evaluations: of f, with its gradient where it takes one, per transition.
    """

    sampler: Sampler
    exact: bool = False
    evaluations: int = 1


@dataclass(frozen=True)
class Problem:
    """A target and what runs on it.

    Attributes:
        target: with exact samples and moments.
        budget: evaluations of f per chain; a transition may take several.
        beta: of the drift function V = c exp(f)^-beta, small enough for V to be integrable.
        samplers: by name.
    """

    target: Target
    budget: int
    beta: float
    samplers: Mapping[str, Entry]


def _adjusted(threshold: float, step_size: float) -> Entry:
    return Entry(Stanley(threshold, step_size, adjusted=True), exact=True)


def _exact(sampler: Sampler) -> Entry:
    return Entry(sampler, exact=True, evaluations=getattr(sampler, "leapfrog_steps", 1))


PROBLEMS: dict[str, Problem] = {
    "gaussian": Problem(  # condition 10^4
        Gaussian(torch.logspace(-2, 0, 10)),
        budget=5000,
        beta=0.002,
        samplers={
            "STANLEY": Entry(Stanley(1.0, 0.005)),
            "STANLEY, adjusted": _adjusted(1.0, 0.001),
            "Langevin": Entry(Langevin(5e-5)),
            "MALA": _exact(MALA(3e-4)),
            "Metropolis-Hastings": _exact(MetropolisHastings(0.02)),
            "HMC": _exact(HMC(0.015, 25)),
            "gradient ascent": Entry(GradientAscent(1e-4)),
        },
    ),
    "mixture": Problem(
        gaussian_ring(),
        budget=2000,
        beta=0.1,
        samplers={
            "STANLEY": Entry(Stanley(3.0, 0.02)),
            "STANLEY, adjusted": _adjusted(3.0, 0.1),
            "Langevin": Entry(Langevin(0.01)),
            "MALA": _exact(MALA(0.06)),
            "Metropolis-Hastings": _exact(MetropolisHastings(0.6)),
            "HMC": _exact(HMC(0.2, 5)),
            "gradient ascent": Entry(GradientAscent(0.01)),
        },
    ),
    "ring": Problem(
        Ring(1.0, 0.15),
        budget=2000,
        beta=0.1,
        samplers={
            "STANLEY": Entry(Stanley(3.0, 0.02)),
            "STANLEY, adjusted": _adjusted(3.0, 0.15),
            "Langevin": Entry(Langevin(0.01)),
            "MALA": _exact(MALA(0.08)),
            "Metropolis-Hastings": _exact(MetropolisHastings(0.6)),
            "HMC": _exact(HMC(0.25, 5)),
            "gradient ascent": Entry(GradientAscent(0.01)),
        },
    ),
    "banana": Problem(
        Banana(),
        budget=2000,
        beta=0.1,
        samplers={
            "STANLEY": Entry(Stanley(3.0, 0.1)),
            "STANLEY, adjusted": _adjusted(1.0, 1.0),
            "Langevin": Entry(Langevin(0.05)),
            "MALA": _exact(MALA(0.4)),
            "Metropolis-Hastings": _exact(MetropolisHastings(1.6)),
            "HMC": _exact(HMC(0.4, 8)),
            "gradient ascent": Entry(GradientAscent(0.05)),
        },
    ),
    "funnel": Problem(
        Funnel(2, 1.5),
        budget=2000,
        beta=0.1,
        samplers={
            "STANLEY": Entry(Stanley(1.0, 0.1)),
            "STANLEY, adjusted": _adjusted(1.0, 1.0),
            "Langevin": Entry(Langevin(0.05)),
            "MALA": _exact(MALA(0.5)),
            "Metropolis-Hastings": _exact(MetropolisHastings(3.0)),
            "HMC": _exact(HMC(0.5, 8)),
            "gradient ascent": Entry(GradientAscent(0.05)),
        },
    ),
}
