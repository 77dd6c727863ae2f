"""What commands share: groups of options, the way a user sees figures and commands."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any, ClassVar, Union

from stanley_fast import run_folder
from stanley_fast.experiments import PresetName, TargetName
from stanley_fast.methods import RunConfig, SamplerName


class Interrupted(Exception):
    """Ctrl-C, with what there is to go on with."""


def unset(meaning: str) -> Any:
    """For an option whose None stands for something: what its help says is the default."""
    import tyro

    return tyro.conf.arg(help_behavior_hint=f"(default: {meaning})")


def yes_or_no() -> Any:
    """For a switch that a preset sets either way: `--option True` or `False`."""
    import tyro

    return tyro.conf.FlagConversionOff


def positional() -> Any:
    """For an argument that may be left out."""
    import tyro

    return tyro.conf.Positional


def called(name: str) -> Any:
    """For an argument that help is to call by name."""
    import tyro

    return tyro.conf.arg(metavar=name)


def variants(what: str, kinds: Mapping[str, tuple[type, str]]) -> Any:
    """A union of subcommands, one for each thing that a command can be about.

    Args:
        what: the ClassVar that tells a subcommand which it is.
        kinds: a name -> the dataclass of its options, and what it is, which begins its help.
    """
    import tyro

    found = []
    for name, (base, text) in kinds.items():
        members = {what: name, "__doc__": text, "__module__": base.__module__}
        own: Any = dataclass(type(base.__name__, (base,), members))
        found.append(Annotated[own, tyro.conf.subcommand(name)])
    return Union[tuple(found)]  # noqa: UP007  as many as there are


# Groups of options; tyro lists them in the order of the method resolution, last base first --------


@dataclass
class ToyOptions:
    target: ClassVar[TargetName]

    preset: PresetName = "tuned"
    """Settings to begin with: tuned, chosen on a grid for the rings; demo, a short run; or paper,
    what the paper prints. The options below change single ones."""
    start_scale: Annotated[float | None, unset("the preset's")] = None
    """Standard deviation of the noise that chains start at; 2 covers the rings, 1 the gmm."""


@dataclass
class TrainingOptions:
    learning_rate: Annotated[float | None, unset("the preset's")] = None
    """Of Adam, 1e-4 to 1e-2."""
    steps: Annotated[int | None, unset("the preset's")] = None
    """Evaluations of f per chain and iteration (K), 20 to 500: as many transitions, of hmc steps /
    leapfrog-steps, so that samplers compare at one cost."""
    batch_size: Annotated[int | None, unset("the preset's")] = None
    """Observations, and as many chains, per iteration; 32 to 1000."""
    iterations: Annotated[int | None, unset("the preset's")] = None
    """Training iterations (T), 1500 to 100000."""
    grad_clip: Annotated[float | None, unset("the preset's")] = None
    """Largest norm of the weights' gradient, 0.1 to 10."""
    data_noise: Annotated[float | None, unset("the preset's")] = None
    """Standard deviation of noise added to the observations, 0 to 0.1."""
    energy_l2: Annotated[float | None, unset("the preset's")] = None
    """Weight of the mean squared energy, which keeps energies near 0; 0 to 1."""
    evaluate_every: Annotated[int | None, unset("the preset's")] = None
    """Iterations from one evaluation to the next."""


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


def given(command: object, config: type[RunConfig]) -> dict[str, Any]:
    """The settings of `config` that the user gave: options with the name of one, and not None."""
    options = {each.name: getattr(command, each.name, None) for each in fields(config)}
    return {name: value for name, value in options.items() if value is not None}


TOYS: dict[TargetName, str] = {
    "rings": "Four rings around 0 (the paper's Figure 1).",
    "gmm": "Eight Gaussians on a circle.",
}


# What a user reads --------------------------------------------------------------------------------


def command_line(*words: str) -> str:
    """A command that works as typed here, whether or not the program is on PATH."""
    program = (
        ["stanley-fast"] if shutil.which("stanley-fast") else [sys.executable, "-m", "stanley_fast"]
    )
    return shlex.join([*program, *words])


def print_figures(row: Mapping[str, float], true: str = "true samples") -> None:
    """Figures of quality, each beside that of true samples."""
    for name in run_folder.qualities(row):
        floor = row[f"{name}_floor"]
        print(f"  {name:<15} {row[name]:.3f}   ({true}: {floor:.3f})")
