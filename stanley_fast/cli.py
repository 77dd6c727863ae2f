"""The command line: stanley-fast train | sample | compare | ergodicity | doctor.

Each command is a dataclass of which tyro makes options and help. A user's mistake is one line on
stderr and exit status 2; a run that fails is one with status 1.
"""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch

from stanley_fast import comparison, doctor, keys, metrics, plots, runs
from stanley_fast.backends import select
from stanley_fast.chain import NonFiniteError
from stanley_fast.checkpoint import CheckpointError
from stanley_fast.doctor import SelfCheckError
from stanley_fast.ergodicity_command import Ergodicity
from stanley_fast.experiments import (
    TARGETS,
    PresetName,
    SamplerName,
    SettingsError,
    TargetName,
    ToyConfig,
    preset,
    with_settings,
)
from stanley_fast.trainer import DivergedError

DESCRIPTION = """Learns energy-based models by Langevin sampling, each element with its stepsize.

Begin with: stanley-fast train rings --preset demo"""


def _unset(meaning: str) -> Any:
    """For an option whose None stands for something: what its help says is the default."""
    import tyro

    return tyro.conf.arg(help_behavior_hint=f"(default: {meaning})")


# What commands share; tyro lists options in the order of the method resolution, last base first ---


@dataclass
class _Target:
    target: TargetName
    """What to learn: rings, four rings around 0; or gmm, eight Gaussians on a circle."""
    preset: PresetName = "tuned"
    """Settings to begin with: tuned, chosen on a grid for the rings; demo, a short run; or paper,
    what the paper prints. The options below change single ones."""


@dataclass
class _Training:
    learning_rate: Annotated[float | None, _unset("the preset's")] = None
    """Of Adam, 1e-4 to 1e-2."""
    start_scale: Annotated[float | None, _unset("the preset's")] = None
    """Standard deviation of the noise that chains start at; 2 covers the rings, 1 the gmm."""
    steps: Annotated[int | None, _unset("the preset's")] = None
    """Transitions per chain and iteration (K), 50 to 500."""
    batch_size: Annotated[int | None, _unset("the preset's")] = None
    """Observations, and as many chains, per iteration; 100 to 1000."""
    iterations: Annotated[int | None, _unset("the preset's")] = None
    """Training iterations (T), 1500 to 10000."""
    grad_clip: Annotated[float | None, _unset("none")] = None
    """Largest norm of the weights' gradient, 0.1 to 10."""
    data_noise: Annotated[float | None, _unset("0")] = None
    """Standard deviation of noise added to the observations, 0 to 0.1."""
    energy_l2: Annotated[float | None, _unset("0")] = None
    """Weight of the mean squared energy, which keeps energies near 0; 0 to 1."""
    evaluate_every: Annotated[int | None, _unset("the preset's")] = None
    """Iterations from one evaluation, a column of figure1.png, to the next."""


@dataclass
class _Chain:
    sampler: Annotated[SamplerName | None, _unset("stanley")] = None
    """stanley: a stepsize per element, from the gradient; or langevin: one for all."""
    threshold: Annotated[float | None, _unset("the preset's")] = None
    """Of STANLEY: gradients beyond it get a smaller stepsize; 0.01 to 1."""
    step_size: Annotated[float | None, _unset("the preset's")] = None
    """The stepsize of langevin, 0.01 to 1; the largest one of stanley, around 1."""
    noise_scale: Annotated[float | None, _unset("the preset's")] = None
    """Multiplies the chain's noise, 0.01 to 1."""


def _given(command: object) -> dict[str, Any]:
    """The settings that the user gave: options with the name of one, and not None."""
    options = {each.name: getattr(command, each.name, None) for each in fields(ToyConfig)}
    return {name: value for name, value in options.items() if value is not None}


@dataclass
class Train(_Training, _Chain, _Target):
    """Train a model and watch it learn.

    Leaves figure1.png (learned density and generated samples at every evaluation), loss.png,
    metrics.csv, config.json and checkpoint.pt in its folder. Ctrl-C leaves a checkpoint.
    """

    seed: Annotated[int | None, _unset("0")] = None
    """Decides weights, data and noise: the same seed gives the same run."""
    folder: Annotated[Path | None, _unset("runs/TARGET-SAMPLER-PRESET")] = None
    """Where to leave everything."""
    resume: bool = False
    """Go on with the run in the folder, as if it had never stopped. Its settings hold; only
    --iterations can change."""
    overwrite: bool = False
    """Remove the run in the folder first."""

    def run(self) -> None:
        if self.resume and self.overwrite:
            raise SettingsError("resume and overwrite exclude each other")
        folder = self.folder or Path("runs", f"{self.target}-{self._sampler()}-{self.preset}")
        config = self._config(folder)
        again = _command("train", self.target, "--folder", str(folder), "--resume")
        try:
            runs.train(config, folder, resume=self.resume, overwrite=self.overwrite)
        except FileExistsError as error:
            raise FileExistsError(
                f"{error}: add --resume, --overwrite or another --folder"
            ) from None
        except KeyboardInterrupt:
            saved = folder / "checkpoint.pt"
            state = f"the checkpoint is {saved}" if saved.exists() else "there is no checkpoint yet"
            raise _Interrupted(f"stopped; {state}. Go on with: {again}") from None
        _report(folder, config)
        if self.preset == "demo" and not self.resume:
            print(f"This was the demo. The full experiment: {_command('train', self.target)}")

    def _sampler(self) -> SamplerName:
        return self.sampler or "stanley"

    def _config(self, folder: Path) -> ToyConfig:
        base = preset(self.target, self._sampler(), self.preset)
        if self.resume:
            return replace(runs.load_config(folder), **_given(self))
        return with_settings(base, _given(self))


def _report(folder: Path, config: ToyConfig) -> None:
    """What a finished run came to."""
    print(f"Trained {config.iterations} iterations of {config.title}.")
    evaluated = [row for row in runs.read_metrics(folder) if runs.qualities(row)]
    for row in evaluated[-1:]:  # metrics.csv may have been removed
        print(f"Samples after {row['iteration']:.0f} iterations:")
        _print_figures(row)
    print(f"Pictures: {folder / 'figure1.png'} and {folder / 'loss.png'}")
    print(f"More samples: {_command('sample', str(folder))}")


def _command(*words: str) -> str:
    """A command that works as typed here, whether or not the program is on PATH."""
    program = (
        ["stanley-fast"] if shutil.which("stanley-fast") else [sys.executable, "-m", "stanley_fast"]
    )
    return shlex.join([*program, *words])


def _print_figures(row: Mapping[str, float]) -> None:
    for name in runs.qualities(row):
        print(f"  {name:<15} {row[name]:.3f}   (true samples: {row[f'{name}_floor']:.3f})")


@dataclass
class Sample:
    """Draw samples from a trained model.

    Leaves samples.npy, an array (n, 2), and samples.png in its folder; prints how good they are.
    """

    checkpoint: Path
    """What `train` left: its folder, or a checkpoint in it."""
    n: int = 10_000
    """How many samples."""
    steps: Annotated[int | None, _unset("as in training")] = None
    """Transitions per chain (K), 50 to 500."""
    sampler: Annotated[SamplerName | None, _unset("as in training")] = None
    """stanley or langevin. The other one than in training comes with its tuned settings."""
    threshold: Annotated[float | None, _unset("as in training")] = None
    """Of STANLEY: gradients beyond it get a smaller stepsize; 0.01 to 1."""
    step_size: Annotated[float | None, _unset("as in training")] = None
    """Stepsize, STANLEY's largest; 0.01 to 1."""
    noise_scale: Annotated[float | None, _unset("as in training")] = None
    """Multiplies the chain's noise, 0 to 1."""
    start_scale: Annotated[float | None, _unset("as in training")] = None
    """Standard deviation of the noise that chains start at."""
    seed: int = 0
    """Decides the samples."""
    folder: Annotated[Path | None, _unset("samples, beside the checkpoint")] = None
    """Where to leave them."""

    def run(self) -> None:
        if self.n < 1:
            raise SettingsError(f"n must be 1 or more, got {self.n}")
        learned = runs.load_learned(self.checkpoint)
        config = self._config(learned.config)
        sample_key, truth_key = keys.split(keys.key(config.seed), 2)
        samples = runs.generate(learned.f, config, self.n, sample_key)
        beside = self.checkpoint if self.checkpoint.is_dir() else self.checkpoint.parent
        folder = self.folder or beside / "samples"
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / "samples.npy", samples.numpy())
        target = TARGETS[config.target]()
        panels = {
            "true density": metrics.grid_density(target, target.extent),
            "learned density": runs.learned_density(learned.f, learned.config),
            f"{self.n} samples": plots.sample_density(samples, target.extent),
        }
        plots.densities(folder / "samples.png", panels)
        print(f"{self.n} samples after {learned.iteration} iterations, by {config.title}:")
        _print_figures(metrics.quality(target, samples, truth_key))
        print(f"Left {folder / 'samples.npy'} and {folder / 'samples.png'}")

    def _config(self, trained: ToyConfig) -> ToyConfig:
        """The training's settings with the user's; another sampler comes with its tuned ones."""
        if self.sampler not in (None, trained.sampler):
            other = preset(trained.target, self.sampler)
            trained = replace(
                trained,
                sampler=other.sampler,
                threshold=other.threshold,
                step_size=other.step_size,
            )
        return replace(trained, **_given(self))


@dataclass
class Compare(_Training, _Target):
    """Train several samplers side by side, on a grid of settings and over several seeds.

    Prints a table, mean and standard deviation over the seeds. Leaves comparison.csv (every
    evaluation), figure1.png (two rows per sampler, of its best cell), heat_map.png, and each run in
    a folder of its own.
    """

    samplers: tuple[SamplerName, ...] = ("stanley", "langevin")
    """Which to train."""
    thresholds: Annotated[tuple[float, ...], _unset("the preset's")] = ()
    """Grid of thresholds, of stanley alone; 0.01 to 1."""
    step_sizes: Annotated[tuple[float, ...], _unset("the presets'")] = ()
    """Grid of step sizes, of every sampler."""
    noise_scales: Annotated[tuple[float, ...], _unset("the presets'")] = ()
    """Grid of noise scales, of every sampler."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Every cell of the grid is run with each."""
    jobs: Annotated[int, _unset("one per core")] = field(default_factory=torch.get_num_threads)
    """Runs at a time, each with one thread."""
    folder: Annotated[Path | None, _unset("runs/compare-TARGET-PRESET")] = None
    """Where to leave everything."""
    resume: bool = False
    """Go on with the comparison in the folder; runs that it lacks are added."""

    def run(self) -> None:
        for name in ("samplers", "seeds"):
            given = getattr(self, name)
            if not given or len(set(given)) != len(given):
                raise SettingsError(f"{name} must be one or more, all different, got {given}")
        if self.thresholds and "stanley" not in self.samplers:
            raise SettingsError("thresholds are a setting of stanley, which is not among samplers")
        if self.jobs < 1:
            raise SettingsError(f"jobs must be 1 or more, got {self.jobs}")
        folder = self.folder or Path("runs", f"compare-{self.target}-{self.preset}")
        bases = [
            with_settings(preset(self.target, name, self.preset), _given(self))
            for name in self.samplers
        ]
        cells = comparison.grid(bases, self.thresholds, self.step_sizes, self.noise_scales)
        try:
            done = comparison.compare(cells, self.seeds, folder, jobs=self.jobs, resume=self.resume)
        except FileExistsError as error:
            raise FileExistsError(f"{error}: add --resume or choose another --folder") from None
        except KeyboardInterrupt:
            raise _Interrupted(
                f"stopped; the runs so far are in {folder}. Go on: the same command and --resume"
            ) from None
        print(comparison.table(done))
        print(
            f"Left {folder / 'comparison.csv'}, {folder / 'figure1.png'}, {folder / 'heat_map.png'}"
        )


@dataclass
class Doctor:
    """Say what is installed, which backends can run here or why not, and check that they compute
    what they should. Exit status 1 if one doesn't."""

    json: bool = False
    """As JSON, for a bug report."""

    def run(self) -> None:
        report = doctor.examine()
        print(json.dumps(report, indent=2) if self.json else doctor.text(report))
        wrong = doctor.failed(report)
        if wrong:
            raise SelfCheckError(f"self-check failed: {', '.join(wrong)}")


def _backend() -> str:
    try:
        return select("cpu")
    except (ValueError, RuntimeError) as error:
        raise SettingsError(f"STANLEY_FAST_BACKEND: {error}") from error


class _Interrupted(Exception):
    """Ctrl-C, with what there is to go on with."""


def main(args: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        args: the command line without the program's name; sys.argv's unless told.

    Returns:
        The exit status: 0; 1 a failure; 2 a mistake of the user; 130 stopped by Ctrl-C.

    Raises SystemExit: for --help (0) and options that do not parse (2).
    """
    missing = [name for name in ("tyro", "tqdm", "matplotlib") if find_spec(name) is None]
    if missing:
        return _fail(f"needs {', '.join(missing)}: pip install 'stanley-fast[cli]'", 1)
    try:
        command = _parse(args)
        if not isinstance(command, Doctor):
            _backend()
        command.run()
    except SettingsError as error:
        return _fail(str(error), 2)
    except comparison.WorkerDiedError as error:
        return _fail(f"{error} Go on: the same command and --resume", 1)
    except (CheckpointError, DivergedError, NonFiniteError, SelfCheckError, OSError) as error:
        return _fail(str(error), 1)
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):
            raise
        return _fail("not enough memory for that many samples or chains", 1)
    except (_Interrupted, KeyboardInterrupt) as error:
        return _fail(str(error) or "stopped", 130)
    return 0


def _parse(args: Sequence[str] | None) -> Train | Sample | Compare | Ergodicity | Doctor:
    import tyro

    marks = tyro.conf
    return tyro.cli(
        Train | Sample | Compare | Ergodicity | Doctor,
        prog="stanley-fast",
        description=DESCRIPTION,
        args=args,
        config=(
            marks.DisallowNone,
            marks.FlagCreatePairsOff,
            marks.OmitArgPrefixes,
            marks.PositionalRequiredArgs,
        ),
    )


def _fail(message: str, status: int) -> int:
    print(f"stanley-fast: {message}", file=sys.stderr)
    return status
