"""stanley-fast compare."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import torch

from stanley_fast import comparison
from stanley_fast.commands.common import Interrupted, TargetOptions, TrainingOptions, given, unset
from stanley_fast.experiments import GRID_RUN, ToyConfig, preset
from stanley_fast.methods import SAMPLERS, SamplerName, SettingsError, with_settings


@dataclass
class Compare(TrainingOptions, TargetOptions):
    """Train several samplers side by side, on a grid of settings and over several seeds.

    Prints a table, mean and standard deviation over the seeds. Leaves comparison.csv (every
    evaluation), figure1.png (two rows per sampler, of its best cell), heat_map.png, and each run in
    a folder of its own.
    """

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
        for name in ("samplers", "seeds"):
            values = getattr(self, name)
            if not values or len(set(values)) != len(values):
                raise SettingsError(f"{name} must be one or more, all different, got {values}")
        for option, setting in (("thresholds", "threshold"), ("noise_scales", "noise_scale")):
            takers = [name for name, method in SAMPLERS.items() if setting in method.takes]
            if getattr(self, option) and not set(takers) & set(self.samplers):
                raise SettingsError(
                    f"{option} are a setting of {', '.join(takers)}; none is among samplers"
                )
        if self.jobs < 1:
            raise SettingsError(f"jobs must be 1 or more, got {self.jobs}")
        if self.grid and self.preset != "tuned":
            raise SettingsError(f"grid begins with the tuned preset, got preset {self.preset}")
        name = f"grid-{self.target}" if self.grid else f"compare-{self.target}-{self.preset}"
        folder = self.folder or Path("runs", name)
        cells = [cell for sampler in self.samplers for cell in self._cells(sampler)]
        try:
            done = comparison.compare(cells, self.seeds, folder, jobs=self.jobs, resume=self.resume)
        except FileExistsError as error:
            raise FileExistsError(f"{error}: add --resume or choose another --folder") from None
        except KeyboardInterrupt:
            raise Interrupted(
                f"stopped; the runs so far are in {folder}. Go on: the same command and --resume"
            ) from None
        print(comparison.table(done))
        print(
            f"Left {folder / 'comparison.csv'}, {folder / 'figure1.png'}, {folder / 'heat_map.png'}"
        )

    def _cells(self, sampler: SamplerName) -> list[ToyConfig]:
        settings = {**GRID_RUN, **given(self)} if self.grid else given(self)
        base = with_settings(preset(self.target, sampler, self.preset), settings)
        values = SAMPLERS[sampler].grid if self.grid else {}
        return comparison.grid(
            [base],
            self.thresholds or values.get("threshold", ()),
            self.step_sizes or values.get("step_size", ()),
            self.noise_scales or values.get("noise_scale", ()),
        )
