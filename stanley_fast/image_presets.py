"""Image experiments ready to run: for two CPU cores, the paper's, and others' recipes.

Paper values live in the presets here and in experiments.py, nowhere else in the library.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

from stanley_fast.image_experiments import DATA, EXTRAS, GREY, DataName, ImageConfig
from stanley_fast.methods import SAMPLERS, SETTINGS, SamplerName, SettingsError
from stanley_fast.recipes import RECIPES, Recipe
from stanley_fast.samplers import Stanley
from stanley_fast.starts import ReplayBuffer

PresetName = Literal[
    "cpu", "paper", "ebm-anatomy", "jem", "igebm", "improved-cd", "uva", "stanley-cifar10",
    "stanley-flowers102", "stanley-celeba",
]  # fmt: skip

# What makes sense on two CPU cores, by data: digits take two minutes, colour images half an hour
# for first shapes. docs/experiments.md has what they come to.
_DIGITS: dict[str, Any] = {
    "network": "mlp", "width": 256, "layers": 3, "start": "persistent", "buffer_size": 3_000,
    "steps": 20, "batch_size": 64, "iterations": 6_000, "evaluate_every": 1_000,
    "checkpoint_every": 500, "learning_rate": 5e-4, "beta1": 0.0, "final_rate": 0.01,
    "data_noise": 0.1, "energy_l2": 1e-3, "ema": 0.999, "features": "classifier",
    "samples": 1_000, "sample_steps": 600,
}  # fmt: skip
_COLOUR: dict[str, Any] = {
    "network": "strided", "width": 16, "start": "persistent", "buffer_size": 1_000, "flip": True,
    "steps": 20, "batch_size": 32, "iterations": 3_000, "evaluate_every": 1_000,
    "learning_rate": 5e-4, "beta1": 0.0, "warm_up": 100, "final_rate": 0.01, "data_noise": 0.05,
    "energy_l2": 1e-3, "ema": 0.999, "samples": 500, "samples_from": "buffer", "sample_steps": 400,
}  # fmt: skip
CPU: dict[DataName, dict[str, Any]] = {
    "digits": _DIGITS,
    "cifar10": _COLOUR,
    "flowers102": _COLOUR,
    "celeba": _COLOUR | {"image_size": 32, "limit": 20_000},
    "mnist": _COLOUR | {"flip": False, "features": "classifier"},
    "fashion-mnist": _COLOUR | {"features": "classifier"},
    "folder": _COLOUR,
}

# Each sampler's settings for these. They keep pixels in [-1, 1] where they can. Those that accept
# or reject sample exp(f), whose f is 1 / 0.1^2 times as steep: they want a slow start (warm_up) and
# fewer chains that go further, as new ones hardly get to the data.
CPU_SAMPLERS: dict[SamplerName, dict[str, Any]] = {
    "stanley": {"threshold": 0.4, "step_size": 0.5, "noise_scale": 0.1, "clamp": True},
    "langevin": {"step_size": 0.4, "noise_scale": 0.1, "clamp": True},
    "ascent": {"step_size": 0.5, "clamp": True},
    "adjusted-stanley": {"threshold": 10.0, "step_size": 0.01, "noise_scale": 1.0},
    "mala": {"step_size": 0.005},
    "mh": {"step_size": 0.03},
    "hmc": {"step_size": 0.08, "leapfrog_steps": 2},
}
_EXACT: dict[str, Any] = {
    "buffer_size": 1_000, "fresh_share": 0.0, "learning_rate": 1e-3, "warm_up": 2_500,
    "data_noise": 0.12, "energy_l2": 1e-4,
}  # fmt: skip
_DIGITS_TRAINING: dict[SamplerName, dict[str, Any]] = {
    "hmc": _EXACT,
    "mala": _EXACT,
    "adjusted-stanley": _EXACT,
    "mh": _EXACT | {"buffer_size": 256, "learning_rate": 6e-4},
}

# The paper's. It states neither K for CIFAR-10 (100 in the author's script), nor batch, chains'
# start and data noise (64, uniform and 0.03 there), nor thresholds for the other two (the
# middle of those in the script), nor a size for their images (ours).
_PAPER: dict[str, Any] = {
    "network": "conv", "width": 64, "layers": 5, "negative_slope": 0.0, "start": "noise",
    "batch_size": 64, "data_noise": 0.03, "noise_scale": 0.01, "step_size": 1.0,
    "evaluate_every": 5_000, "samples": 10_000,
}  # fmt: skip
PAPER_SAMPLERS: tuple[SamplerName, ...] = ("stanley", "langevin")
PAPER: dict[DataName, dict[str, Any]] = {
    "cifar10": _PAPER | {
        "threshold": 2e-4, "steps": 100, "sample_steps": 100, "iterations": 100_000,
        "learning_rate": 1e-4,
    },
    "flowers102": _PAPER | {
        "threshold": 2e-4, "steps": 50, "sample_steps": 50, "iterations": 100_000,
        "learning_rate": 1e-3,
    },
    "celeba": _PAPER | {
        "threshold": 1e-4, "steps": 50, "sample_steps": 50, "iterations": 50_000,
        "learning_rate": 1e-2, "limit": 100_000,
    },
}  # fmt: skip


def preset(
    data: DataName,
    name: PresetName = "cpu",
    sampler: SamplerName | None = None,
    place: str | os.PathLike[str] | None = None,
) -> ImageConfig:
    """A run's settings by name.

    Args:
        data, place: as in `ImageConfig`.
        name: "cpu", for two cores; "paper", what the paper prints; or one of `recipes.RECIPES`, on
            ebm-anatomy's net.
        sampler: of "cpu" any, of "paper" stanley or langevin; a recipe has its own.

    Raises SettingsError: there is no such preset.

    >>> preset("cifar10", "paper", place="data").threshold
    0.0002
    >>> preset("digits", sampler="langevin").title
    'Langevin, step size 0.4, noise 0.1'
    """
    known_sampler = sampler is None or sampler in SAMPLERS
    if data not in DATA or not known_sampler or name not in get_args(PresetName):
        raise SettingsError(f"there is no preset {name!r} for data {data!r}, sampler {sampler!r}")
    place = None if place is None else str(Path(place).resolve())  # wherever it is resumed
    if name == "cpu":
        sampler = sampler or "stanley"
        chosen = CPU[data] | CPU_SAMPLERS[sampler]
        if data == "digits":
            chosen |= _DIGITS_TRAINING.get(sampler, {})
        elif "noise_scale" in chosen and not SAMPLERS[sampler].adjusted:
            chosen["noise_scale"] = chosen["data_noise"]
    elif name == "paper":
        sampler = sampler or "stanley"
        if data not in PAPER or sampler not in PAPER_SAMPLERS:
            raise SettingsError(f"there is no preset 'paper' for {data} and {sampler}")
        chosen = dict(PAPER[data])
        if sampler == "langevin":
            del chosen["threshold"]
    else:
        chosen = _recipe(RECIPES[name])
        own = chosen.pop("sampler")
        if sampler not in (None, own):
            raise SettingsError(f"the preset {name!r} is of {own}, got {sampler}")
        sampler = own
        chosen |= {"iterations": 100_000, "evaluate_every": 5_000, "batch_size": 64}
        chosen["features"] = "classifier" if data in GREY else "inception"
    return ImageConfig(
        data=data, place=place, sampler=sampler, **{**dict.fromkeys(SETTINGS), **chosen}
    )


def sampler_of(name: PresetName) -> SamplerName:
    """A preset's sampler, unless another is asked for."""
    return _recipe(RECIPES[name])["sampler"] if name in RECIPES else "stanley"


def with_sampler(config: ImageConfig, sampler: SamplerName) -> ImageConfig:
    """`config` with another sampler, and that one's settings for two cores; else as it is.

    >>> with_sampler(preset("digits"), "langevin").title
    'Langevin, step size 0.4, noise 0.1'
    """
    if sampler == config.sampler:
        return config
    plain = {name: none for name, (_, none) in EXTRAS.items()}
    none = dict.fromkeys(SETTINGS)
    own: dict[str, Any] = {**none, **plain, **CPU_SAMPLERS[sampler]}
    if own["noise_scale"] is not None and not (SAMPLERS[sampler].adjusted or config.adjusted):
        own["noise_scale"] = config.noise_scale or own["noise_scale"]  # f's temperature
    return replace(config, sampler=sampler, **own)


def _recipe(recipe: Recipe) -> dict[str, Any]:
    """A recipe as settings of `ImageConfig`."""
    sampler, start = recipe.sampler, recipe.start()
    names = ("threshold", "step_size", "noise_scale", "norm", "update", "grad_clamp")
    chosen = {name: getattr(sampler, name) for name in names if hasattr(sampler, name)}
    if isinstance(start, ReplayBuffer):
        chosen |= {"start": "persistent", "buffer_size": start.size}
        chosen["fresh_share"] = start.fresh_share
    return {
        **chosen,
        "sampler": "stanley" if isinstance(sampler, Stanley) else "langevin",
        "clamp": getattr(sampler, "clamp", None) is not None,
        "steps": recipe.steps,
        # new chains have further to go than those that training takes up again
        "sample_steps": recipe.steps * (10 if "buffer_size" in chosen else 1),
        "learning_rate": recipe.learning_rate,
        "beta1": recipe.betas[0],
        **recipe.training,
    }
