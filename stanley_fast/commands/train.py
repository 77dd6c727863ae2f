"""stanley-fast train."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from stanley_fast import run_folder, runs
from stanley_fast.commands.common import (
    ChainOptions,
    Interrupted,
    TargetOptions,
    TrainingOptions,
    command_line,
    given,
    print_figures,
    unset,
)
from stanley_fast.experiments import ToyConfig, preset
from stanley_fast.methods import SamplerName, SettingsError, with_settings


@dataclass
class Train(TrainingOptions, ChainOptions, TargetOptions):
    """Train a model and watch it learn.

    Leaves figure1.png (learned density and generated samples at every evaluation), loss.png,
    metrics.csv, config.json and checkpoint.pt in its folder. Ctrl-C leaves a checkpoint.
    """

    seed: Annotated[int | None, unset("0")] = None
    """Decides weights, data and noise: the same seed gives the same run."""
    folder: Annotated[Path | None, unset("runs/TARGET-SAMPLER-PRESET")] = None
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
        again = command_line("train", self.target, "--folder", str(folder), "--resume")
        try:
            runs.train(config, folder, resume=self.resume, overwrite=self.overwrite)
        except FileExistsError as error:
            raise FileExistsError(
                f"{error}: add --resume, --overwrite or another --folder"
            ) from None
        except KeyboardInterrupt:
            saved = folder / "checkpoint.pt"
            state = f"the checkpoint is {saved}" if saved.exists() else "there is no checkpoint yet"
            raise Interrupted(f"stopped; {state}. Go on with: {again}") from None
        _report(folder, config)
        if self.preset == "demo" and not self.resume:
            print(f"This was the demo. The full experiment: {command_line('train', self.target)}")

    def _sampler(self) -> SamplerName:
        return self.sampler or "stanley"

    def _config(self, folder: Path) -> ToyConfig:
        base = preset(self.target, self._sampler(), self.preset)
        if self.resume:
            return replace(runs.load_config(folder), **given(self))
        return with_settings(base, given(self))


def _report(folder: Path, config: ToyConfig) -> None:
    """What a finished run came to."""
    print(f"Trained {config.iterations} iterations of {config.title}.")
    evaluated = [row for row in run_folder.read_metrics(folder) if run_folder.qualities(row)]
    for row in evaluated[-1:]:  # metrics.csv may have been removed
        print(f"Samples after {row['iteration']:.0f} iterations:")
        print_figures(row)
    print(f"Pictures: {folder / 'figure1.png'} and {folder / 'loss.png'}")
    print(f"More samples: {command_line('sample', str(folder))}")
