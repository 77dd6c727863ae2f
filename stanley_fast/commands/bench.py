"""stanley-fast bench."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch

from stanley_fast.bench import results
from stanley_fast.bench.cases import cases
from stanley_fast.bench.ceilings import peaks
from stanley_fast.bench.machine import facts, keep_pages
from stanley_fast.commands.common import unset
from stanley_fast.methods import SettingsError
from stanley_fast.terminal import counting_bar
from stanley_fast.threads import use_threads


@dataclass
class Bench:
    """Measure a step, chains and acceptance on this machine, beside plain PyTorch.

    Takes less than a minute. Bytes and FLOPs of every job are counted, and each row is held against
    what the machine can do at most, measured in the same run. Prints a table. Leaves bench.md,
    bench.json and roofline.png in its folder.
    """

    device: Annotated[Literal["cpu", "cuda"] | None, unset("a GPU if there is one")] = None
    """Where to measure."""
    threads: Annotated[int | None, unset("as many as torch takes")] = None
    """CPU threads. Beside other work on the machine 1 says more: see docs/performance.md."""
    folder: Path = Path("runs", "bench")
    """Where to leave everything."""
    overwrite: bool = False
    """Replace what an earlier run left in the folder."""

    def run(self) -> None:
        device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
        if device == "cuda" and not torch.cuda.is_available():
            raise SettingsError("device must be cpu here, got cuda: torch sees no GPU")
        if self.threads is not None and self.threads < 1:
            raise SettingsError(f"threads must be 1 or more, got {self.threads}")
        if (self.folder / "bench.json").exists() and not self.overwrite:
            raise FileExistsError(
                f"{self.folder} already holds a benchmark: add --overwrite or choose another "
                "--folder"
            )
        with use_threads(self.threads or torch.get_num_threads()):
            self._measure(device)

    def _measure(self, device: str) -> None:
        machine, found = facts(device), []  # first, as the load is other people's
        machine["kept_pages"] = keep_pages()
        makers = list(cases(device))
        with counting_bar(len(makers) + 1, "measuring", show=True) as advance:
            ceilings = peaks(device)
            advance(1)
            for make in makers:
                found.append(make().measure(device, ceilings))
                advance(1)
        left = results.write(self.folder, machine, ceilings, found)
        print(f"{left[0].read_text()}\nLeft {', '.join(map(str, left))}")
