"""What commands share: groups of options, the way a user sees figures and commands."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any

from stanley_fast import run_folder
from stanley_fast.experiments import PresetName, TargetName, ToyConfig
from stanley_fast.methods import SamplerName


class Interrupted(Exception):
    """Ctrl-C, with what there is to go on with."""


def unset(meaning: str) -> Any:
    """For an option whose None stands for something: what its help says is the default."""
    import tyro

    return tyro.conf.arg(help_behavior_hint=f"(default: {meaning})")


# Groups of options; tyro lists them in the order of the method resolution, last base first --------


@dataclass
class TargetOptions:
    target: TargetName
    """What to learn: rings, four rings around 0; or gmm, eight Gaussians on a circle."""
    preset: PresetName = "tuned"
    """Settings to begin with: tuned, chosen on a grid for the rings; demo, a short run; or paper,
    what the paper prints. The options below change single ones."""


@dataclass
class TrainingOptions:
    learning_rate: Annotated[float | None, unset("the preset's")] = None
    """Of Adam, 1e-4 to 1e-2."""
    start_scale: Annotated[float | None, unset("the preset's")] = None
    """Standard deviation of the noise that chains start at; 2 covers the rings, 1 the gmm."""
    steps: Annotated[int | None, unset("the preset's")] = None
    """Evaluations of f per chain and iteration (K), 50 to 500: as many transitions, of hmc steps /
    leapfrog-steps, so that samplers compare at one cost."""
    batch_size: Annotated[int | None, unset("the preset's")] = None
    """Observations, and as many chains, per iteration; 100 to 1000."""
    iterations: Annotated[int | None, unset("the preset's")] = None
    """Training iterations (T), 1500 to 10000."""
    grad_clip: Annotated[float | None, unset("none")] = None
    """Largest norm of the weights' gradient, 0.1 to 10."""
    data_noise: Annotated[float | None, unset("0")] = None
    """Standard deviation of noise added to the observations, 0 to 0.1."""
    energy_l2: Annotated[float | None, unset("0")] = None
    """Weight of the mean squared energy, which keeps energies near 0; 0 to 1."""
    evaluate_every: Annotated[int | None, unset("the preset's")] = None
    """Iterations from one evaluation, a column of figure1.png, to the next."""


@dataclass
class ChainOptions:
    sampler: Annotated[SamplerName | None, unset("stanley")] = None
    """stanley: a stepsize per element, from the gradient; langevin: one for all; ascent: langevin
    without noise. These accept or reject, so that the net learns exp(f): adjusted-stanley, mala,
    mh (Metropolis-Hastings) and hmc; they are slower."""
    threshold: Annotated[float | None, unset("the preset's")] = None
    """Of stanley and adjusted-stanley: gradients beyond it get a smaller stepsize; 0.01 to 1,
    adjusted 1 to 30."""
    step_size: Annotated[float | None, unset("the preset's")] = None
    """The stepsize of langevin, mala and ascent, 0.01 to 1; the largest one of stanley, around 1;
    hmc's leapfrog and mh's proposal as lengths, 0.1 to 1."""
    noise_scale: Annotated[float | None, unset("the preset's")] = None
    """Of stanley, adjusted-stanley and langevin: multiplies the chain's noise, 0.01 to 1."""
    leapfrog_steps: Annotated[int | None, unset("the preset's")] = None
    """Of hmc: gradients per transition, 1 to 20; steps must be a multiple."""


def given(command: object) -> dict[str, Any]:
    """The settings that the user gave: options with the name of one, and not None."""
    options = {each.name: getattr(command, each.name, None) for each in fields(ToyConfig)}
    return {name: value for name, value in options.items() if value is not None}


# What a user reads --------------------------------------------------------------------------------


def command_line(*words: str) -> str:
    """A command that works as typed here, whether or not the program is on PATH."""
    program = (
        ["stanley-fast"] if shutil.which("stanley-fast") else [sys.executable, "-m", "stanley_fast"]
    )
    return shlex.join([*program, *words])


def print_figures(row: Mapping[str, float]) -> None:
    for name in run_folder.qualities(row):
        print(f"  {name:<15} {row[name]:.3f}   (true samples: {row[f'{name}_floor']:.3f})")
