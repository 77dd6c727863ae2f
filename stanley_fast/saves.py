"""The checkpoints in a run's folder: the newest, some before it, the best, the last good one."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from stanley_fast import checkpoint

NEWEST, BEST, LAST_GOOD = "checkpoint.pt", "best.pt", "last_good.pt"
KEPT = "checkpoints"  # the folder of the newest ones by iteration, where more than one is kept


class Saves:
    """Where a trainer's states go.

    Args:
        folder: the run's; None keeps nothing.
        keep: how many of the newest checkpoints stay, 1 or more. Beyond one they are
            checkpoints/0000500.pt ... as well.
    """

    def __init__(self, folder: str | os.PathLike[str] | None, keep: int = 1) -> None:
        self.folder = None if folder is None else Path(folder)
        self.keep = keep
        self._ours = False

    @property
    def newest(self) -> Path | None:
        """folder/checkpoint.pt, whether or not it is there yet."""
        return None if self.folder is None else self.folder / NEWEST

    def claim(self) -> None:
        """FileExistsError if the folder holds a run that is not this one."""
        if self.newest is not None and self.newest.exists() and not self._ours:
            raise FileExistsError(
                f"{self.folder} holds another run: resume() it, or choose another folder"
            )
        self._ours = True

    def resumed(self, path: Path) -> None:
        """The folder's run is this one if `path`, which it goes on from, is in it."""
        folder = path.resolve().parent
        ours = None if self.folder is None else self.folder.resolve()
        self._ours = ours is not None and folder in (ours, ours / KEPT)

    def save(self, iteration: int, state: dict[str, Any]) -> None:
        """The newest checkpoint, and the last `keep` of them."""
        if self.newest is None:
            return
        checkpoint.save(self.newest, state)
        if self.keep > 1:
            kept = self.newest.with_name(KEPT)
            kept.mkdir(exist_ok=True)
            _second_name(self.newest, kept / f"{iteration:07d}.pt")
            names = sorted(kept.glob("*.pt"))  # by iteration; later ones are of a past gone back on
            later = [name for name in names if int(name.stem) > iteration]
            for name in later + names[: len(names) - len(later)][: -self.keep]:
                name.unlink()

    def save_as(self, name: str, state: dict[str, Any]) -> Path | None:
        """folder/name, or None where there is no folder."""
        if self.folder is None:
            return None
        checkpoint.save(self.folder / name, state)
        return self.folder / name


def _second_name(path: Path, name: Path) -> None:
    """The same file under another name, or a copy where the file system has no links."""
    name.unlink(missing_ok=True)
    try:
        os.link(path, name)
    except OSError:
        shutil.copyfile(path, name)
