"""The paper's toy experiment (Figure 1) as settings, presets and grids.

Paper values live in the presets here and nowhere else in the library.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from stanley_fast import keys
from stanley_fast.energies import GaussianMixture, Rings, gaussian_ring
from stanley_fast.samplers import Langevin, Sampler, Stanley

TargetName = Literal["rings", "gmm"]
SamplerName = Literal["stanley", "langevin"]
PresetName = Literal["tuned", "demo", "paper"]

TARGETS: dict[TargetName, Callable[[], Rings | GaussianMixture]] = {
    "rings": Rings,
    "gmm": gaussian_ring,
}


class SettingsError(ValueError):
    """A setting out of its range, or one that does not fit the others."""


@dataclass(frozen=True)
class ToyConfig:
    """All that decides a toy run.

    Attributes:
        target: "rings", or "gmm": eight Gaussians on a circle.
        sampler: "stanley" or "langevin", its ablation.
        threshold: th of Eq. 4; None for langevin.
        step_size: of Eq. 4, or Langevin's one stepsize.
        noise_scale: epsilon of Eq. 5.
        learning_rate: of Adam.
        start_scale: standard deviation of the Gaussian that chains start at.
        steps: K, transitions per iteration.
        batch_size: observations and chains per iteration.
        iterations: T.
        evaluate_every: iterations between evaluations, each a column of Figure 1.
        seed: decides weights, data, starts and noise.
        grad_clip, data_noise, energy_l2: as in `Trainer`.

    Raises SettingsError: a setting out of its range.
    """

    target: TargetName
    sampler: SamplerName
    threshold: float | None
    step_size: float
    noise_scale: float
    learning_rate: float
    start_scale: float
    steps: int = 100
    batch_size: int = 100
    iterations: int = 10_000
    evaluate_every: int = 2_000
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
        for name, known in (("target", TARGETS), ("sampler", SAMPLERS)):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}"
                )
        for name in ("learning_rate", "start_scale"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive and finite, got {getattr(self, name)}")
        for name in ("steps", "batch_size", "iterations", "evaluate_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, got {getattr(self, name)}")
        if self.iterations % self.evaluate_every:
            raise ValueError(
                f"iterations must be a multiple of evaluate_every = {self.evaluate_every}, so that "
                f"the end is evaluated, got {self.iterations}"
            )

    def make_sampler(self) -> Sampler:
        """The sampler that `sampler` and its settings name."""
        return SAMPLERS[self.sampler].make(self)

    @property
    def title(self) -> str:
        """The sampler with its settings, for people.

        >>> preset("rings", "stanley").title
        'STANLEY, threshold 0.1, step size 1, noise 0.15'
        """
        threshold = "" if self.threshold is None else f"threshold {self.threshold:g}, "
        steps = f"{threshold}step size {self.step_size:g}, noise {self.noise_scale:g}"
        return f"{SAMPLERS[self.sampler].title}, {steps}"

    @property
    def temperature(self) -> float:
        """T for which Eq. 5's drift and noise balance at exp(f / T): the model the chains sample.

        Eq. 5 is Langevin's equation for f / noise_scale^2. Without noise there is no balance, and 1
        stands for the paper's Eq. 1.
        """
        return self.noise_scale**2 or 1.0


def _stanley(config: ToyConfig) -> Sampler:
    if config.threshold is None:
        raise ValueError("threshold must be a positive number for stanley, got None")
    return Stanley(config.threshold, config.step_size, config.noise_scale)


def _langevin(config: ToyConfig) -> Sampler:
    if config.threshold is not None:
        raise ValueError(f"threshold is not a setting of langevin, got {config.threshold}")
    return Langevin(config.step_size, config.noise_scale)


@dataclass(frozen=True)
class Method:
    """A sampler as the experiments know it.

    Attributes:
        title: its name, for people.
        make: the sampler from a run's settings; ValueError where they don't fit it.
        tuned: its settings for learned densities, chosen on a grid for the rings as the paper tunes
            each method; README.md says how. The gmm takes the rings' values.
        paper: those that the paper prints.
        exact: those for the targets themselves, whose gradients reach 20; noise scale 1.
        grid: the values of each setting that `compare --grid` tries.
    """

    title: str
    make: Callable[[ToyConfig], Sampler]
    tuned: Mapping[str, float]
    paper: Mapping[str, float]
    exact: Mapping[str, float]
    grid: Mapping[str, tuple[float, ...]]


# A new one is an entry here and a name in SamplerName.
SAMPLERS: dict[SamplerName, Method] = {
    "stanley": Method(
        "STANLEY",
        _stanley,
        tuned={"threshold": 0.1, "step_size": 1.0},
        paper={"threshold": 0.01, "step_size": 1.0},
        exact={"threshold": 10.0, "step_size": 0.01},
        grid={
            "threshold": (0.03, 0.1, 0.3, 1.0),
            "step_size": (0.1, 0.3, 1.0, 3.0),
            "noise_scale": (0.05, 0.15, 0.3),
        },
    ),
    "langevin": Method(
        "Langevin",
        _langevin,
        tuned={"step_size": 0.14},
        paper={"step_size": 0.14},
        exact={"step_size": 0.01},
        grid={"step_size": (0.03, 0.1, 0.14, 0.3, 1.0, 3.0), "noise_scale": (0.05, 0.15, 0.3)},
    ),
}


# What `compare --grid` trains each cell for: the order of cells shows long before a run is done.
GRID_RUN = {"learning_rate": 3e-3, "iterations": 800}


def _config(target: TargetName, sampler: SamplerName, settings: Mapping[str, float]) -> ToyConfig:
    """A run of the tuned length and learning rate, with a sampler's settings."""
    own: dict[str, Any] = {"threshold": None, "noise_scale": 0.15, **settings}
    start_scale = 2.0 if target == "rings" else 1.0  # Nijkamp et al. 2020
    return ToyConfig(target, sampler, learning_rate=1e-3, start_scale=start_scale, **own)


def preset(target: TargetName, sampler: SamplerName, name: PresetName = "tuned") -> ToyConfig:
    """A run's settings by name.

    Args:
        target, sampler: as in `ToyConfig`.
        name: "tuned", chosen on a grid for the rings; "demo", 1 500 quicker iterations, which
            already show the target; "paper", the settings that the paper prints.

    Raises SettingsError: there is no such preset.

    >>> preset("rings", "stanley", "paper").threshold
    0.01
    """
    if target not in TARGETS or sampler not in SAMPLERS or name not in ("tuned", "demo", "paper"):
        raise SettingsError(
            f"there is no preset {name!r} for target {target!r}, sampler {sampler!r}"
        )
    method = SAMPLERS[sampler]
    if name == "paper":
        # The "learning rate of 0.14" it gives both methods is Langevin's stepsize; Eq. 4 has no
        # place for it. Its standard deviation, 0.15, is in Nijkamp et al. the data's.
        return replace(_config(target, sampler, method.paper), learning_rate=1e-4)
    tuned = _config(target, sampler, method.tuned)
    if name == "demo":
        # Larger steps and batches than a long run wants.
        return replace(
            tuned, learning_rate=3e-3, batch_size=400, iterations=1_500, evaluate_every=300
        )
    return tuned


def exact(target: TargetName, sampler: SamplerName) -> ToyConfig:
    """Settings with which chains sample the target itself: noise scale 1, 500 transitions.

    >>> exact("rings", "stanley").title
    'STANLEY, threshold 10, step size 0.01, noise 1'
    """
    settings = {"noise_scale": 1.0, **SAMPLERS[sampler].exact}
    return replace(_config(target, sampler, settings), steps=500)


def with_settings(base: ToyConfig, given: Mapping[str, Any]) -> ToyConfig:
    """`base` with the settings that are given.

    New iterations alone bring an `evaluate_every` that divides them: the longest up to base's, or
    a single evaluation where that would mean more than 20.

    Raises SettingsError: a setting out of its range.

    >>> base = preset("rings", "stanley")
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
