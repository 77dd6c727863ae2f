"""stanley-fast compare."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import torch

from stanley_fast import comparison, image_comparison
from stanley_fast.commands.common import (
    Interrupted,
    ToyOptions,
    TrainingOptions,
    given,
    unset,
)
from stanley_fast.commands.image_options import (
    ImageOptions,
    PlacedImageOptions,
    image_config,
    subjects,
)
from stanley_fast.experiments import GRID_RUN, ToyConfig, preset
from stanley_fast.image_presets import PAPER_SAMPLERS
from stanley_fast.methods import SAMPLERS, SamplerName, SettingsError, with_settings

FIVE: tuple[SamplerName, ...] = ("stanley", "langevin", "ascent", "hmc", "mh")


@dataclass
class CompareToys(TrainingOptions, ToyOptions):
    grid: bool = False
    """A fine grid for each sampler, with short runs: of stanley and langevin 66 cells of 800
    iterations and three seeds, about 5 minutes on two cores. The options below replace parts."""
    samplers: tuple[SamplerName, ...] = ("stanley", "langevin")
    """Which to train, all with the same evaluations of f per chain and iteration."""
    thresholds: Annotated[tuple[float, ...], unset("the preset's, or grid's")] = ()
    """Grid of thresholds, of stanley and adjusted-stanley; 0.01 to 1."""
    step_sizes: Annotated[tuple[float, ...], unset("the presets', or grid's")] = ()
    """Grid of step sizes, of every sampler."""
    noise_scales: Annotated[tuple[float, ...], unset("the presets', or grid's")] = ()
    """Grid of noise scales, of stanley, adjusted-stanley and langevin."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Every cell of the grid is run with each."""
    jobs: Annotated[int, unset("one per core")] = field(default_factory=torch.get_num_threads)
    """Runs at a time, each with one thread."""
    folder: Annotated[Path | None, unset("runs/compare-TARGET-PRESET or runs/grid-TARGET")] = None
    """Where to leave everything."""
    resume: bool = False
    """Go on with the comparison in the folder; runs that it lacks are added."""

    def run(self) -> None:
        _check_different("samplers", self.samplers)
        _check_different("seeds", self.seeds)
        for option, setting in (("thresholds", "threshold"), ("noise_scales", "noise_scale")):
            takers = [name for name, method in SAMPLERS.items() if setting in method.takes]
            if getattr(self, option) and not set(takers) & set(self.samplers):
                raise SettingsError(
                    f"{option} are a setting of {', '.join(takers)}; none is among samplers"
                )
        _check_jobs(self.jobs)
        if self.grid and self.preset != "tuned":
            raise SettingsError(f"grid begins with the tuned preset, got preset {self.preset}")
        name = f"grid-{self.target}" if self.grid else f"compare-{self.target}-{self.preset}"
        folder = self.folder or Path("runs", name)
        cells = [cell for sampler in self.samplers for cell in self._cells(sampler)]
        with _stopping(folder):
            done = comparison.compare(cells, self.seeds, folder, jobs=self.jobs, resume=self.resume)
        print(comparison.table(done))
        print(
            f"Left {folder / 'comparison.csv'}, {folder / 'figure1.png'}, {folder / 'heat_map.png'}"
        )

    def _cells(self, sampler: SamplerName) -> list[ToyConfig]:
        settings = {**GRID_RUN, **given(self, ToyConfig)} if self.grid else given(self, ToyConfig)
        base = with_settings(preset(self.target, sampler, self.preset), settings)
        values = SAMPLERS[sampler].grid if self.grid else {}
        return comparison.grid(
            [base],
            self.thresholds or values.get("threshold", ()),
            self.step_sizes or values.get("step_size", ()),
            self.noise_scales or values.get("noise_scale", ()),
        )


@dataclass
class CompareImages(ImageOptions):
    samplers: Annotated[
        tuple[SamplerName, ...], unset("stanley langevin ascent hmc mh, of paper the first two")
    ] = ()
    """Which to train, all with the same evaluations of f per chain and iteration."""
    seed: int = 0
    """Decides weights, data and noise of every run."""
    jobs: int = 1
    """Runs at a time, each with its share of the cores; for digits one per core is faster."""
    folder: Annotated[Path | None, unset("runs/compare-DATA-PRESET")] = None
    """Where to leave everything."""
    resume: bool = False
    """Go on with the comparison in the folder."""

    def run(self) -> None:
        samplers = self.samplers or (PAPER_SAMPLERS if self.preset == "paper" else FIVE)
        _check_different("samplers", samplers)
        _check_jobs(self.jobs)
        if self.features == "none":
            raise SettingsError("features must be inception or classifier to compare, got none")
        folder = self.folder or Path("runs", f"compare-{self.data}-{self.preset}")
        configs = [image_config(self, sampler, lenient=True) for sampler in samplers]
        with _stopping(folder):
            done = image_comparison.compare(
                configs, folder, jobs=self.jobs, resume=self.resume, device=self.device,
                weights=self.weights,
            )  # fmt: skip
        print(image_comparison.table(done))
        left = (folder / name for name in ("comparison.csv", "fid.png", "samples.png"))
        print(f"Left {', '.join(map(str, left))}")


@dataclass(kw_only=True)
class ComparePlacedImages(PlacedImageOptions, CompareImages):
    """Of data that are not at hand by themselves."""


if TYPE_CHECKING:
    Kind = CompareToys | CompareImages
else:
    Kind = subjects(CompareToys, CompareImages, ComparePlacedImages)


@dataclass
class Compare:
    """Train several samplers side by side, all with the same evaluations of f.

    Prints a table; leaves each run in a folder of its own, and comparison.csv (every evaluation).
    Of points in the plane it trains a grid of settings over several seeds, and leaves figure1.png
    (two rows per sampler, of its best cell) and heat_map.png; of images one run per sampler, and
    leaves fid.png (Fréchet distances over the iterations) and samples.png.
    """

    what: Kind

    def run(self) -> None:
        self.what.run()


@contextmanager
def _stopping(folder: Path) -> Iterator[None]:
    """Says how to go on with what stopped, or what to do where a comparison is already."""
    try:
        yield
    except FileExistsError as error:
        raise FileExistsError(f"{error}: add --resume or choose another --folder") from None
    except KeyboardInterrupt:
        raise Interrupted(
            f"stopped; the runs so far are in {folder}. Go on: the same command and --resume"
        ) from None


def _check_different(name: str, values: tuple[object, ...]) -> None:
    if not values or len(set(values)) != len(values):
        raise SettingsError(f"{name} must be one or more, all different, got {values}")


def _check_jobs(jobs: int) -> None:
    if jobs < 1:
        raise SettingsError(f"jobs must be 1 or more, got {jobs}")
