"""The paper's toy experiment (Figure 1) as settings, presets and grids.

Paper values live in the presets here and in image_experiments.py, nowhere else in the library.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from stanley_fast.energies import GaussianMixture, Rings, gaussian_ring
from stanley_fast.methods import (
    SAMPLERS,
    SETTINGS,
    RunConfig,
    SamplerName,
    SettingsError,
    known,
    positive,
)

TargetName = Literal["rings", "gmm"]
PresetName = Literal["tuned", "demo", "paper"]

TARGETS: dict[TargetName, Callable[[], Rings | GaussianMixture]] = {
    "rings": Rings,
    "gmm": gaussian_ring,
}


@dataclass(frozen=True, kw_only=True)
class ToyConfig(RunConfig):
    """All that decides a toy run: what every run decides, and these.

    Attributes:
        target: "rings", or "gmm": eight Gaussians on a circle.
        start_scale: standard deviation of the Gaussian that chains start at.

    Raises SettingsError: a setting out of its range.
    """

    target: TargetName
    start_scale: float

    def _check(self) -> None:
        known("target", self.target, TARGETS)
        super()._check()
        positive("start_scale", self.start_scale)


# What `compare --grid` trains each cell for: the order of cells shows long before a run is done.
GRID_RUN = {"learning_rate": 3e-3, "iterations": 800}


def _config(target: TargetName, sampler: SamplerName, chosen: Mapping[str, float]) -> ToyConfig:
    """A run of the tuned length and learning rate, with a sampler's settings."""
    own: dict[str, Any] = {**dict.fromkeys(SETTINGS), **chosen}
    start_scale = 2.0 if target == "rings" else 1.0  # Nijkamp et al. 2020
    return ToyConfig(
        target=target, sampler=sampler, learning_rate=1e-3, start_scale=start_scale, **own
    )


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
        if method.paper is None:
            raise SettingsError(f"there is no preset 'paper' for {sampler}: the paper prints none")
        # The "learning rate of 0.14" it gives both methods is Langevin's stepsize; Eq. 4 has no
        # place for it. Its standard deviation, 0.15, is in Nijkamp et al. the data's.
        return replace(_config(target, sampler, method.paper), learning_rate=1e-4)
    # An adjusted sampler's f is 1 / 0.15^2 = 44 times as high as that of noise scale 0.15.
    tuned = _config(target, sampler, method.tuned)
    if method.adjusted:
        tuned = replace(tuned, learning_rate=3e-3)
    if name == "demo":
        # Larger steps and batches than a long run wants.
        rate = 1e-2 if method.adjusted else 3e-3
        return replace(
            tuned, learning_rate=rate, batch_size=400, iterations=1_500, evaluate_every=300
        )
    return tuned


def exact(target: TargetName, sampler: SamplerName) -> ToyConfig:
    """Settings with which chains sample the target itself: noise scale 1, 500 evaluations.

    >>> exact("rings", "stanley").title
    'STANLEY, threshold 10, step size 0.01, noise 1'
    """
    return replace(_config(target, sampler, SAMPLERS[sampler].exact), steps=500)
