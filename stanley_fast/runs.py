"""Toy runs in their folders: training, evaluation, pictures, and reading all that back.

A folder holds config.json, checkpoint.pt, metrics.csv, snapshots/ (the weights and samples of each
evaluation), figure1.png and loss.png; after a divergence last_good.pt; with TensorBoard its files.
"""

from __future__ import annotations

import os
import warnings
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from stanley_fast import checkpoint, keys, plots, run_folder
from stanley_fast.chain import Chain, sample
from stanley_fast.density import LogDensity
from stanley_fast.energies import MLPEnergy
from stanley_fast.experiments import TARGETS, ToyConfig
from stanley_fast.metrics import Quality, grid_density
from stanley_fast.starts import NoiseStart
from stanley_fast.threads import one_thread
from stanley_fast.trainer import Trainer

EVALUATED = 10_000  # samples per evaluation, and in each picture (Nijkamp et al. 2020)
MAX_GAP = 1e3  # a healthy run's energy gap stays below 1


@one_thread()
def train(
    config: ToyConfig,
    folder: str | os.PathLike[str],
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
) -> Trainer:
    """Runs `config`, leaving config.json, metrics.csv, checkpoint.pt, snapshots/ and pictures.

    The pictures figure1.png and loss.png are drawn anew at every evaluation.

    Args:
        config: the settings.
        folder: where the run lives; made if need be.
        resume: go on from the folder's checkpoint, bit for bit as if never interrupted. `config`
            must be the folder's, or differ in `iterations` alone.
        overwrite: begin anew, removing the run that the folder holds.
        progress: show a progress bar.

    Returns:
        The trainer, with the learned f.

    Raises:
        FileExistsError: the folder holds a run, neither to be resumed nor overwritten.
        FileNotFoundError, SettingsError: it holds none to resume, or one with other settings.
        DivergedError, KeyboardInterrupt: as `Trainer.fit`, after the pictures are drawn.
    """
    folder = Path(folder)
    run_folder.check(folder, config, resume=resume, overwrite=overwrite)
    trainer = Trainer(
        new_model(config.seed),
        TARGETS[config.target]().sample,
        config.make_sampler(),
        start=NoiseStart(config.start_scale),
        optimizer=partial(torch.optim.Adam, lr=config.learning_rate, fused=True),
        steps=config.transitions,
        batch_size=config.batch_size,
        key=run_folder.key_for(config.seed, "training"),
        folder=folder,
        evaluate=Evaluation(config, folder),
        evaluate_every=config.evaluate_every,
        checkpoint_every=1000,  # a few seconds' work
        log_every=10,
        max_gap=MAX_GAP,
        grad_clip=config.grad_clip,
        data_noise=config.data_noise,
        energy_l2=config.energy_l2,
        progress=progress,
        notes={"config": asdict(config)},
    )
    run_folder.begin(folder, config, trainer, resume=resume, overwrite=overwrite)
    try:
        trainer.fit(config.iterations)
    finally:
        run_folder.draw_loss(folder)
    return trainer


class Evaluation:
    """What a run does at every evaluation: samples, their quality, a snapshot, the pictures."""

    def __init__(self, config: ToyConfig, folder: Path) -> None:
        self.config, self.folder = config, folder
        self.quality = Quality(
            TARGETS[config.target](), EVALUATED, run_folder.key_for(config.seed, "truth")
        )

    def __call__(self, trainer: Trainer) -> dict[str, float]:
        samples = generate(
            trainer.f, self.config, EVALUATED, run_folder.key_for(self.config.seed, "evaluation")
        )
        state = {
            "iteration": trainer.iteration,
            "f": trainer.f.state_dict(),
            "samples": samples,
            "notes": trainer.notes,
        }
        checkpoint.save(self.folder / "snapshots" / f"{trainer.iteration:06d}.pt", state)
        draw_figure1(self.folder)
        run_folder.draw_loss(self.folder)
        return self.quality(samples)


def new_model(seed: int) -> MLPEnergy:
    """The toy net with the initial weights of `seed`; torch's generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MLPEnergy()


def generate(
    f: LogDensity, config: ToyConfig, n: int, key: Tensor, steps: int | None = None
) -> Tensor:
    """n samples (n, 2) of f: chains from the noise that training starts its chains at.

    `steps` are transitions; config's unless told.
    """
    return draw(f, config, n, key, transitions=steps).z


@one_thread()
def draw(
    f: LogDensity,
    config: ToyConfig,
    n: int,
    key: Tensor,
    *,
    transitions: int | None = None,
    burn_in: int = 0,
    keep_every: int | None = None,
) -> Chain:
    """The chains of `generate`; their trace and acceptance are of what follows `burn_in`."""
    z0, key = _start(config, n, key)
    sampler = config.make_sampler()
    left = (config.transitions if transitions is None else transitions) - burn_in
    warm = sample(f, z0, sampler, burn_in, key=key)
    return sample(f, warm.z, sampler, left, key=warm.key, keep_every=keep_every)


def _start(config: ToyConfig, n: int, key: Tensor) -> tuple[Tensor, Tensor]:
    """Where n chains start, and their key."""
    start_key, chain_key = keys.split(key, 2)
    return NoiseStart(config.start_scale).start(n, start_key, torch.empty(0, 2)), chain_key


def learned_density(f: nn.Module, config: ToyConfig) -> Tensor:
    """The density that f's chains aim at, exp(f / T), normalised on the picture's grid."""
    extent = TARGETS[config.target]().extent
    return grid_density(log_density(f, config), extent, plots.GRID)


def log_density(f: LogDensity, config: ToyConfig) -> LogDensity:
    """What f learned from the chains of `config`: f / T, T being their temperature."""
    return lambda z: f(z) / config.temperature


def draw_figure1(folder: Path) -> None:
    """figure1.png of the run in `folder`, as far as it has come."""
    config, shots = load_config(folder), snapshots(folder)
    if shots:
        target = TARGETS[config.target]()
        truth = target.sample(EVALUATED, run_folder.key_for(config.seed, "truth"))
        plots.figure1(folder / "figure1.png", target, truth, {config.title: shots})


def load_config(folder: Path) -> ToyConfig:
    """The settings of the toy run in `folder`; raises as `run_folder.load_config`."""
    return run_folder.load_config(folder, ToyConfig)


@dataclass(frozen=True)
class Learned:
    """A toy model and where it comes from."""

    f: MLPEnergy
    config: ToyConfig
    iteration: int
    samples: Tensor | None
    """(10 000, 2), in snapshots."""


def load_learned(path: str | os.PathLike[str]) -> Learned:
    """The model in a run's folder, checkpoint or snapshot.

    Raises FileNotFoundError, CheckpointError: as `checkpoint.load`, or not of a toy run.
    """
    path = Path(path)
    state = checkpoint.load(path / "checkpoint.pt" if path.is_dir() else path)
    try:
        config = ToyConfig(**state["notes"]["config"])
        f = new_model(config.seed)
        f.load_state_dict(state["f"])
        return Learned(f, config, state["iteration"], state.get("samples"))
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise checkpoint.CheckpointError(f"{path} is not the checkpoint of a toy run") from error


def snapshots(folder: Path) -> list[plots.Snapshot]:
    """What the run in `folder` had learned at each evaluation but that of the start."""
    learned = []
    for path in sorted((folder / "snapshots").glob("*.pt")):
        try:
            learned.append(load_learned(path))
        except checkpoint.CheckpointError as error:  # a picture must not stop a run
            warnings.warn(f"left out of the picture: {error}", RuntimeWarning, stacklevel=2)
    return [
        plots.Snapshot(each.iteration, learned_density(each.f, each.config), each.samples)
        for each in learned
        if each.iteration > 0 and each.samples is not None
    ]
