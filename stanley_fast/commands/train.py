"""stanley-fast train."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from stanley_fast import image_runs, run_folder, runs
from stanley_fast.commands.common import (
    ChainOptions,
    Interrupted,
    ToyOptions,
    TrainingOptions,
    command_line,
    given,
    print_figures,
    unset,
)
from stanley_fast.commands.image_options import (
    ImageOptions,
    PlacedImageOptions,
    image_config,
    image_settings,
    place_of,
    subjects,
)
from stanley_fast.experiments import ToyConfig, preset
from stanley_fast.image_experiments import ImageConfig
from stanley_fast.image_presets import sampler_of
from stanley_fast.methods import RunConfig, SettingsError, with_settings


@dataclass
class RunOptions:
    seed: Annotated[int | None, unset("0")] = None
    """Decides weights, data and noise: the same seed gives the same run."""
    folder: Annotated[Path | None, unset("runs/WHAT-SAMPLER-PRESET")] = None
    """Where to leave everything."""
    resume: bool = False
    """Go on with the run in the folder, as if it had never stopped. Its settings hold; only
    --iterations can change."""
    overwrite: bool = False
    """Remove the run in the folder first."""

    def check(self) -> None:
        if self.resume and self.overwrite:
            raise SettingsError("resume and overwrite exclude each other")


@dataclass
class TrainToy(RunOptions, TrainingOptions, ChainOptions, ToyOptions):
    def run(self) -> None:
        self.check()
        sampler = self.sampler or "stanley"
        folder = self.folder or Path("runs", f"{self.target}-{sampler}-{self.preset}")
        if self.resume:
            config = replace(run_folder.load_config(folder, ToyConfig), **given(self, ToyConfig))
        else:
            base = preset(self.target, sampler, self.preset)
            config = with_settings(base, given(self, ToyConfig))
        with _stopping(folder, self.target):
            runs.train(config, folder, resume=self.resume, overwrite=self.overwrite)
        _report(folder, config)
        print(f"Pictures: {folder / 'figure1.png'} and {folder / 'loss.png'}")
        print(f"More samples: {command_line('sample', str(folder))}")
        if self.preset == "demo" and not self.resume:
            print(f"This was the demo. The full experiment: {command_line('train', self.target)}")


@dataclass
class TrainImages(RunOptions, ImageOptions, ChainOptions):
    keep: int = 2
    """How many of the newest checkpoints stay."""

    def run(self) -> None:
        self.check()
        name = f"{self.data}-{self.sampler or sampler_of(self.preset)}-{self.preset}"
        folder = self.folder or Path("runs", name)
        if self.resume:
            saved = run_folder.load_config(folder, ImageConfig)
            config = replace(saved, **image_settings(self))
        else:
            config = image_config(self, self.sampler)
        place = place_of(self)
        with _stopping(folder, self.data, *([] if place is None else [str(place)])):
            image_runs.train(
                config, folder, resume=self.resume, overwrite=self.overwrite, device=self.device,
                keep=self.keep, weights=self.weights,
            )  # fmt: skip
        _report(folder, config)
        print(f"Pictures: {', '.join(map(str, sorted(folder.glob('*.png'))))}")
        print(f"More samples: {command_line('sample', str(folder))}")


@dataclass(kw_only=True)
class TrainPlacedImages(PlacedImageOptions, TrainImages):
    """Of data that are not at hand by themselves."""


if TYPE_CHECKING:
    Kind = TrainToy | TrainImages
else:
    Kind = subjects(TrainToy, TrainImages, TrainPlacedImages)


@dataclass
class Train:
    """Train a model and watch it learn: of points in the plane, or of images.

    Everything goes into a folder: checkpoint.pt, config.json, metrics.csv and pictures. Of points
    these are figure1.png (learned density and generated samples at every evaluation) and loss.png;
    of images samples.png, training.png (samples at every evaluation), chains.gif, neighbours.png
    (the training images nearest to samples), energies.png, fid.png and loss.png; scores.json says
    what every FID depends on. Ctrl-C leaves a checkpoint.
    """

    what: Kind

    def run(self) -> None:
        self.what.run()


@contextmanager
def _stopping(folder: Path, *what: str) -> Iterator[None]:
    """Says how to go on with what stopped, or what to do where a run is already."""
    try:
        yield
    except FileExistsError as error:
        raise FileExistsError(f"{error}: add --resume, --overwrite or another --folder") from None
    except KeyboardInterrupt:
        saved = folder / "checkpoint.pt"
        state = f"the checkpoint is {saved}" if saved.exists() else "there is no checkpoint yet"
        again = command_line("train", *what, "--folder", str(folder), "--resume")
        raise Interrupted(f"stopped; {state}. Go on with: {again}") from None


def _report(folder: Path, config: RunConfig) -> None:
    """What a finished run came to."""
    print(f"Trained {config.iterations} iterations of {config.title}.")
    evaluated = [row for row in run_folder.read_metrics(folder) if run_folder.qualities(row)]
    for row in evaluated[-1:]:  # metrics.csv may have been removed
        print(f"Samples after {row['iteration']:.0f} iterations:")
        print_figures(row)
