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
        self.iteration: int | None = None
        """That of checkpoint.pt, once this run wrote it or was resumed from it."""
        self._ours = False

    @property
    def newest(self) -> Path | None:
        """folder/checkpoint.pt, if it is there."""
        path = None if self.folder is None else self.folder / NEWEST
        return path if path is not None and path.exists() else None

    def claim(self) -> None:
        """FileExistsError if the folder holds a run that is not this one."""
        if self.newest is not None and not self._ours:
            raise FileExistsError(
                f"{self.folder} holds another run: resume() it, or choose another folder"
            )
        self._ours = True

    def resumed(self, path: Path, iteration: int) -> None:
        """The folder's run is this one if `path`, which it goes on from, is in it."""
        if self.folder is not None:
            path, ours = path.resolve(), self.folder.resolve()
            self._ours = path.parent in (ours, ours / KEPT)
            self.iteration = iteration if path == ours / NEWEST else None

    def save(self, iteration: int, state: dict[str, Any]) -> None:
        """The newest checkpoint, and the last `keep` of them."""
        if self.folder is not None:
            newest, kept = self.folder / NEWEST, self.folder / KEPT
            if self.keep == 1:
                checkpoint.save(newest, state)
            else:
                checkpoint.save(kept / f"{iteration:07d}.pt", state)
                _second_name(kept / f"{iteration:07d}.pt", newest)
            self._tidy(kept, iteration)
        self.iteration = iteration

    def _tidy(self, kept: Path, iteration: int) -> None:
        """Removes what is older than the last `keep`, and what is later: a past gone back on.

        A single one is checkpoint.pt alone.
        """
        paths = {int(path.stem): path for path in kept.glob("*.pt") if path.stem.isdigit()}
        last = sorted(i for i in paths if i <= iteration)[-self.keep :] if self.keep > 1 else []
        for i in paths.keys() - set(last):
            paths[i].unlink()

    def save_as(self, name: str, state: dict[str, Any]) -> Path | None:
        """folder/name, or None where there is no folder."""
        if self.folder is None:
            return None
        checkpoint.save(self.folder / name, state)
        return self.folder / name


def _second_name(path: Path, name: Path) -> None:
    """The same file under another name too, or a copy where the file system has no links."""
    temporary = name.with_name(name.name + ".tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(path, temporary)
    except OSError:
        shutil.copyfile(path, temporary)
    os.replace(temporary, name)
