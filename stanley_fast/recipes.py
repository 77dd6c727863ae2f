"""How others sample and train image EBMs, in this library's terms.

Published code writes an update as z + a g + b xi. `langevin` finds the stepsize and noise scale for
which Eq. 5 is that update; docs/recipes.md has the table.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from stanley_fast import settings
from stanley_fast.samplers import Langevin, Sampler, Stanley
from stanley_fast.starts import NoiseStart, ReplayBuffer, Start

_UNIFORM = NoiseStart(1.0, "uniform")


def langevin(
    drift: float,
    noise: float,
    *,
    grad_clamp: float | None = None,
    clamp: tuple[float, float] | None = None,
) -> Langevin:
    """The sampler whose transition is z + drift * g + noise * xi.

    Args:
        drift: > 0, what multiplies the gradient of the log-density f = -E.
        noise: >= 0, the standard deviation of the noise.
        grad_clamp, clamp: as in `Langevin`.

    Raises ValueError: drift or noise out of range.
    Source: Eq. 5 with step_size / 2 = drift and sqrt(step_size) * noise_scale = noise.

    >>> langevin(2.0, 0.01)
    Langevin(step_size=4.0, noise_scale=0.005, grad_clamp=None, clamp=None, rounding='nearest')
    """
    settings.positive("drift", drift)
    settings.not_negative("noise", noise)
    return Langevin(2 * drift, noise / math.sqrt(2 * drift), grad_clamp=grad_clamp, clamp=clamp)


@dataclass(frozen=True)
class Recipe:
    """One published way to train an EBM, for states in (-1, 1).

    Attributes:
        sampler: its transition.
        steps: K.
        start: makes the start of its chains; a new buffer at each call.
        learning_rate, betas: of Adam.
        training: further settings of `Trainer`.
        source: who published it.
        missing: what of the original these settings do not cover.

    >>> from stanley_fast import Trainer, energies, key
    >>> f = energies.MLPEnergy((2, 8, 1))
    >>> trainer = Trainer(f, torch.zeros(9, 2), key=key(0), batch_size=5, **RECIPES["jem"].settings)
    """

    sampler: Sampler
    steps: int
    start: Callable[[], Start]
    source: str
    learning_rate: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    training: dict[str, Any] = field(default_factory=dict)
    missing: str = ""

    @property
    def settings(self) -> dict[str, Any]:
        """Keyword arguments of `Trainer`: all but f, data, key and the batch size."""
        adam = partial(torch.optim.Adam, lr=self.learning_rate, betas=self.betas)
        return {
            "sampler": self.sampler,
            "start": self.start(),
            "steps": self.steps,
            "optimizer": adam,
            **self.training,
        }


def _authors(threshold: float, noise_scale: float = 0.01, **settings: Any) -> Stanley:
    return Stanley(threshold, noise_scale=noise_scale, update="script", **settings)


_AUTHORS = "the first author's script; Eqs. 4 and 5 read otherwise"

# IGEBM and Improved CD keep images in (0, 1). With x = 2u - 1 a gradient halves and a move doubles:
# u + a clamp(df/du, c) + b xi  is  x + 4a clamp(df/dx, c/2) + 2b xi.
RECIPES: dict[str, Recipe] = {
    "ebm-anatomy": Recipe(
        langevin(1.0, 0.01),
        steps=150,
        start=lambda: _UNIFORM,
        training={"data_noise": 0.03},
        source="Nijkamp et al. 2020; f is the net's -U', the energy times epsilon^2 / 2",
        missing="its runs against a bank of persistent chains",
    ),
    "jem": Recipe(
        langevin(1.0, 0.01),
        steps=20,
        start=lambda: ReplayBuffer(10_000, _UNIFORM, fresh_share=0.05),
        training={"data_noise": 0.03, "max_gap": 1e8},
        source="Grathwohl et al. 2020; f is the logsumexp of a classifier's logits",
        missing="the classifier's own loss, learning-rate warm-up",
    ),
    "igebm": Recipe(
        langevin(40.0, 0.01, grad_clamp=0.005, clamp=(-1.0, 1.0)),
        steps=60,
        start=lambda: ReplayBuffer(10_000, _UNIFORM, fresh_share=0.05),
        betas=(0.0, 0.999),
        training={"energy_l2": 1.0},
        source="Du and Mordatch 2019, moved from (0, 1) to (-1, 1)",
        missing="spectral norm; the noise comes after the drift here, before it there",
    ),
    "improved-cd": Recipe(
        langevin(400.0, 0.002, clamp=(-1.0, 1.0)),
        steps=40,
        start=lambda: ReplayBuffer(10_000, _UNIFORM, fresh_share=0.05),
        betas=(0.0, 0.999),
        training={"energy_l2": 1.0, "grad_clip": 0.5},
        source="Du et al. 2021, moved from (0, 1) to (-1, 1)",
        missing="the gradient through the last transition, EMA weights, data augmentation",
    ),
    "uva": Recipe(
        langevin(10.0, 0.005, grad_clamp=0.03, clamp=(-1.0, 1.0)),
        steps=60,
        start=lambda: ReplayBuffer(8_192, _UNIFORM, fresh_share=0.05),
        betas=(0.0, 0.999),
        training={"energy_l2": 0.1, "grad_clip": 0.1, "data_noise": 0.005},
        source="UvA deep learning tutorial 8, after Du and Mordatch 2019",
        missing="the noise comes after the drift here, before it there",
    ),
    "stanley-toy": Recipe(
        _authors(0.05, 0.1, norm="sample"),
        steps=100,
        start=lambda: NoiseStart(2.0),
        source=_AUTHORS,
    ),
    "stanley-cifar10": Recipe(
        _authors(1e-4, norm="channel"),
        steps=100,
        start=lambda: _UNIFORM,
        training={"data_noise": 0.03},
        source=_AUTHORS,
    ),
    "stanley-flowers102": Recipe(
        _authors(2e-4, norm="channel"),
        steps=50,
        start=lambda: _UNIFORM,
        learning_rate=1e-3,
        training={"data_noise": 0.03},
        source=f"{_AUTHORS}; thresholds from 1e-4 to 3e-4 are tried there",
    ),
    "stanley-celeba": Recipe(
        _authors(1e-4, norm="channel"),
        steps=50,
        start=lambda: _UNIFORM,
        learning_rate=1e-2,
        training={"data_noise": 0.03},
        source=f"{_AUTHORS}; thresholds 8e-5, 1e-4 and 2e-4 are tried there",
    ),
}
