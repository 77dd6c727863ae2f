"""The samplers as experiments know them: by name, with settings; and what every run decides."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, TypeVar

from stanley_fast import keys, settings
from stanley_fast.hmc import HMC
from stanley_fast.metropolis import MALA, MetropolisHastings
from stanley_fast.samplers import GradientAscent, Langevin, Sampler, Stanley

SamplerName = Literal["stanley", "langevin", "adjusted-stanley", "mala", "mh", "hmc", "ascent"]


class SettingsError(ValueError):
    """A setting out of its range, or one that does not fit the others."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What every run decides about its chains and its training.

    Attributes:
        sampler: a name in SAMPLERS.
        threshold: th of Eq. 4; None for a sampler that has none.
        step_size: of Eq. 4; Langevin's, MALA's or ascent's one stepsize; the leapfrog's; the
            standard deviation of mh's proposal.
        noise_scale: epsilon of Eq. 5; None for a sampler that has none.
        leapfrog_steps: of a transition of hmc; None for the others.
        steps: K, evaluations of f per chain and iteration: as many transitions, of hmc
            steps / leapfrog_steps, so that all samplers compare at one cost.
        batch_size: observations and chains per iteration.
        iterations: T.
        evaluate_every: iterations between evaluations.
        learning_rate: of Adam.
        seed: decides weights, data, starts and noise.
        grad_clip, data_noise, energy_l2: as in `Trainer`.

    Raises SettingsError: a setting out of its range.
    """

    sampler: SamplerName
    threshold: float | None
    step_size: float
    noise_scale: float | None
    leapfrog_steps: int | None = None
    steps: int = 100
    batch_size: int = 100
    iterations: int = 10_000
    evaluate_every: int = 2_000
    learning_rate: float
    seed: int = 0
    grad_clip: float | None = None
    data_noise: float = 0.0
    energy_l2: float = 0.0

    def __post_init__(self) -> None:
        try:
            self._check()
            self.make_sampler()
            keys.key(self.seed)
        except ValueError as error:
            raise SettingsError(str(error)) from error

    def _check(self) -> None:
        """ValueError: a setting out of its range."""
        known("sampler", self.sampler, SAMPLERS)
        positive("learning_rate", self.learning_rate)
        for name in ("steps", "batch_size", "iterations", "evaluate_every"):
            settings.count(name, getattr(self, name), 1)
        if self.grad_clip is not None:
            positive("grad_clip", self.grad_clip)
        for name in ("data_noise", "energy_l2"):
            settings.not_negative(name, getattr(self, name))
        if self.iterations % self.evaluate_every:
            raise ValueError(
                f"iterations must be a multiple of evaluate_every = {self.evaluate_every}, so that "
                f"the end is evaluated, got {self.iterations}"
            )
        for name in SETTINGS:
            value, taken = getattr(self, name), name in SAMPLERS[self.sampler].takes
            if taken and value is None:
                raise ValueError(f"{name} must be a number for {self.sampler}, got None")
            if not taken and value is not None:
                raise ValueError(f"{name} is not a setting of {self.sampler}, got {value}")
        if self.leapfrog_steps and self.steps % self.leapfrog_steps:
            raise ValueError(
                f"steps must be a multiple of leapfrog_steps = {self.leapfrog_steps}, "
                f"got {self.steps}"
            )

    @property
    def settings(self) -> dict[str, Any]:
        """The sampler's own settings, by name."""
        return {name: getattr(self, name) for name in SETTINGS if getattr(self, name) is not None}

    @property
    def transitions(self) -> int:
        """Transitions per chain that `steps` evaluations of f allow."""
        return self.transitions_of(self.steps)

    def transitions_of(self, evaluations: int) -> int:
        """Transitions that so many evaluations of f allow."""
        return evaluations // (self.leapfrog_steps or 1)

    def make_sampler(self) -> Sampler:
        """The sampler that `sampler` and its settings name."""
        return SAMPLERS[self.sampler].make(**self.settings)

    @property
    def title(self) -> str:
        """The sampler with its settings, for people.

        >>> RunConfig(
        ...     sampler="stanley", threshold=0.1, step_size=1, noise_scale=0.15, learning_rate=1e-3
        ... ).title
        'STANLEY, threshold 0.1, step size 1, noise 0.15'
        """
        own = (f"{SETTINGS[name]} {value:g}" for name, value in self.settings.items())
        return ", ".join((SAMPLERS[self.sampler].title, *own))

    @property
    def adjusted(self) -> bool:
        """Whether the sampler accepts or rejects, so that its law is exp(f)."""
        return SAMPLERS[self.sampler].adjusted

    @property
    def temperature(self) -> float:
        """T for which exp(f / T) is the model that the chains sample.

        Eq. 5 is Langevin's equation for f / noise_scale^2. Samplers that accept or reject sample
        exp(f) whatever their proposal's noise. Without noise there is no balance, and 1 stands for
        the paper's Eq. 1.
        """
        return 1.0 if self.adjusted else (self.noise_scale or 1.0) ** 2


Config = TypeVar("Config", bound=RunConfig)


def with_settings(base: Config, given: Mapping[str, Any]) -> Config:
    """`base` with the settings that are given.

    New iterations alone bring an `evaluate_every` that divides them: the longest up to base's, or
    a single evaluation where that would mean more than 20.

    Raises SettingsError: a setting out of its range.

    >>> base = RunConfig(
    ...     sampler="langevin", threshold=None, step_size=0.1, noise_scale=1, learning_rate=1e-3
    ... )
    >>> with_settings(base, {"iterations": 3_000}).evaluate_every
    1500
    """
    iterations = given.get("iterations", base.iterations)
    if iterations > 0 and "evaluate_every" not in given:
        most = min(base.evaluate_every, iterations)
        divisors = [n for n in range(most, 0, -1) if iterations % n == 0]
        every = divisors[0] if iterations <= 20 * divisors[0] else iterations
        given = {**given, "evaluate_every": every}
    return replace(base, **given)


def known(name: str, value: object, names: Mapping[Any, object]) -> None:
    """ValueError unless `value` is one of the names."""
    if value not in names:
        raise ValueError(f"{name} must be one of {', '.join(names)}, got {value!r}")


def positive(name: str, value: float) -> None:
    """ValueError unless it is positive and finite."""
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must be positive and finite, got {value}")


def _random_walk(step_size: float) -> Sampler:
    settings.positive("step_size", step_size)  # whose name here is not `scale`
    return MetropolisHastings(step_size)


SETTINGS = {
    "threshold": "threshold",
    "step_size": "step size",
    "noise_scale": "noise",
    "leapfrog_steps": "leapfrog steps",
}
"""The samplers' own settings in `RunConfig`, and what a title calls them."""


@dataclass(frozen=True)
class Method:
    """A sampler as the experiments know it.

    Attributes:
        title: its name, for people.
        make: the sampler from its own settings; ValueError where one is out of its range.
        tuned: its settings for learned densities, chosen for the rings. The gmm takes the rings'
            values.
        paper: those that the paper prints, if it does.
        exact: those for the targets themselves, whose gradients reach 20; noise scale 1.
        grid: the values of each setting that `compare --grid` tries.
        adjusted: whether it accepts or rejects, so that its law is exp(f).
    """

    title: str
    make: Callable[..., Sampler]
    tuned: Mapping[str, float]
    paper: Mapping[str, float] | None
    exact: Mapping[str, float]
    grid: Mapping[str, tuple[float, ...]]
    adjusted: bool = False

    @property
    def takes(self) -> frozenset[str]:
        """The names of its settings; any other is an error."""
        return frozenset(self.tuned)


# A new one is an entry here and a name in SamplerName. STANLEY's and Langevin's tuned settings are
# of a grid for each, as the paper tunes them; README.md says how. The others' come from a few short
# runs of one seed (docs/samplers.md); no run of the full length has tried them. With their exact
# settings the adjusted samplers accept about 0.9 of the proposals on the rings, mh a half.
SAMPLERS: dict[SamplerName, Method] = {
    "stanley": Method(
        "STANLEY",
        Stanley,
        tuned={"threshold": 0.1, "step_size": 1.0, "noise_scale": 0.15},
        paper={"threshold": 0.01, "step_size": 1.0, "noise_scale": 0.15},
        exact={"threshold": 10.0, "step_size": 0.01, "noise_scale": 1.0},
        grid={
            "threshold": (0.03, 0.1, 0.3, 1.0),
            "step_size": (0.1, 0.3, 1.0, 3.0),
            "noise_scale": (0.05, 0.15, 0.3),
        },
    ),
    "langevin": Method(
        "Langevin",
        Langevin,
        tuned={"step_size": 0.14, "noise_scale": 0.15},
        paper={"step_size": 0.14, "noise_scale": 0.15},
        exact={"step_size": 0.01, "noise_scale": 1.0},
        grid={"step_size": (0.03, 0.1, 0.14, 0.3, 1.0, 3.0), "noise_scale": (0.05, 0.15, 0.3)},
    ),
    "adjusted-stanley": Method(
        "Adjusted STANLEY",
        partial(Stanley, adjusted=True),
        tuned={"threshold": 10.0, "step_size": 0.1, "noise_scale": 1.0},
        paper=None,
        exact={"threshold": 10.0, "step_size": 0.03, "noise_scale": 1.0},
        grid={
            "threshold": (1.0, 3.0, 10.0),
            "step_size": (0.03, 0.1, 0.3),
            "noise_scale": (0.5, 1.0),
        },
        adjusted=True,
    ),
    "mala": Method(
        "MALA",
        MALA,
        tuned={"step_size": 0.1},
        paper=None,
        exact={"step_size": 0.03},
        grid={"step_size": (0.03, 0.1, 0.2, 0.3)},
        adjusted=True,
    ),
    "mh": Method(
        "Metropolis-Hastings",
        _random_walk,
        tuned={"step_size": 0.3},
        paper=None,
        exact={"step_size": 0.5},
        grid={"step_size": (0.1, 0.2, 0.3, 0.5, 1.0)},
        adjusted=True,
    ),
    "hmc": Method(
        "HMC",
        HMC,
        tuned={"step_size": 0.2, "leapfrog_steps": 5},
        paper=None,
        exact={"step_size": 0.15, "leapfrog_steps": 5},
        grid={"step_size": (0.1, 0.2, 0.3)},
        adjusted=True,
    ),
    "ascent": Method(
        "Gradient ascent",
        GradientAscent,
        tuned={"step_size": 0.14},
        paper=None,
        exact={"step_size": 0.01},
        grid={"step_size": (0.03, 0.1, 0.14, 0.3, 1.0, 3.0)},
    ),
}
