"""stanley-fast sample."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np

from stanley_fast import keys, metrics, plots, runs
from stanley_fast.commands.common import given, print_figures, unset
from stanley_fast.experiments import TARGETS, SamplerName, SettingsError, ToyConfig, preset


@dataclass
class Sample:
    """Draw samples from a trained model.

    Leaves samples.npy, an array (n, 2), and samples.png in its folder; prints how good they are.
    """

    checkpoint: Path
    """What `train` left: its folder, or a checkpoint in it."""
    n: int = 10_000
    """How many samples."""
    steps: Annotated[int | None, unset("as in training")] = None
    """Transitions per chain (K), 50 to 500."""
    sampler: Annotated[SamplerName | None, unset("as in training")] = None
    """stanley or langevin. The other one than in training comes with its tuned settings."""
    threshold: Annotated[float | None, unset("as in training")] = None
    """Of STANLEY: gradients beyond it get a smaller stepsize; 0.01 to 1."""
    step_size: Annotated[float | None, unset("as in training")] = None
    """Stepsize, STANLEY's largest; 0.01 to 1."""
    noise_scale: Annotated[float | None, unset("as in training")] = None
    """Multiplies the chain's noise, 0 to 1."""
    start_scale: Annotated[float | None, unset("as in training")] = None
    """Standard deviation of the noise that chains start at."""
    seed: int = 0
    """Decides the samples."""
    folder: Annotated[Path | None, unset("samples, beside the checkpoint")] = None
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
        print_figures(metrics.quality(target, samples, truth_key))
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
        return replace(trained, **given(self))
