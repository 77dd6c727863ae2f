"""stanley-fast ergodicity."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import torch

from stanley_fast import keys
from stanley_fast.commands.common import unset
from stanley_fast.ergodicity import plots, report
from stanley_fast.ergodicity.study import check, study
from stanley_fast.methods import SettingsError

ProblemName = Literal["gaussian", "mixture", "ring", "banana", "funnel"]


@dataclass
class Ergodicity:
    """See how fast samplers forget their start, and how far from the target they end.

    Every sampler on targets with exact samples, from the same starts: the rate rho of the paper's
    Eq. 10 towards the sampler's own limit law, that law's distance to the target, the drift
    condition (9), effective sample sizes; and what unadjusted STANLEY samples, beside its closed
    form. Prints tables. Leaves convergence.png, limit_law.png, ergodicity.csv and ergodicity.json
    in its folder.
    """

    targets: tuple[ProblemName, ...] = ("gaussian", "mixture", "ring", "banana", "funnel")
    """Where to sample: gaussian, of condition 10000; mixture, eight modes; ring; banana; funnel."""
    chains: int = 2000
    """Chains per sampler, 500 to 4000."""
    steps: Annotated[int | None, unset("2000, on the gaussian 5000")] = None
    """Evaluations of f per chain: as many transitions, of HMC fewer; 500 to 10000."""
    seed: int = 0
    """Decides starts, noise and exact samples."""
    jobs: Annotated[int, unset("one per core")] = field(default_factory=torch.get_num_threads)
    """Samplers at a time, each with one thread."""
    folder: Path = Path("runs", "ergodicity")
    """Where to leave everything."""
    overwrite: bool = False
    """Replace what an earlier run left in the folder."""

    def run(self) -> None:
        try:
            check(self.targets, self.chains, self.steps, self.jobs)
            key = keys.key(self.seed)
        except ValueError as error:
            raise SettingsError(str(error)) from error
        if (self.folder / "ergodicity.json").exists() and not self.overwrite:
            raise FileExistsError(
                f"{self.folder} already holds a study: add --overwrite or choose another --folder"
            )
        found = study(
            self.targets,
            key,
            chains=self.chains,
            budget=self.steps,
            jobs=self.jobs,
            progress=True,
        )
        self.folder.mkdir(parents=True, exist_ok=True)
        left = [
            self.folder / name
            for name in ("convergence.png", "limit_law.png", "ergodicity.csv", "ergodicity.json")
        ]
        plots.convergence(left[0], found.rows, found.floors)
        plots.limit_laws(left[1], found.variances)
        report.write_csv(found, left[2])
        report.write_json(found, left[3])
        print(report.table(found))
        print(f"Left {', '.join(map(str, left))}")
