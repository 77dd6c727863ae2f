"""A run's metrics.csv, which keeps step with its checkpoints."""

from __future__ import annotations

import csv
import importlib.util
import os
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO


class MetricsLog:
    """A run's metrics.csv, and TensorBoard's files beside it where tensorboard is installed.

    Rows after `iteration` are cut first: a resumed run writes them again. Figures are written so
    that they read back exactly, and hold no wall-clock times: the same run gives the same file.

    Args:
        folder: the run's, made if need be; None writes nothing.
        columns: names that get a column from the start; others get theirs when first written.
        iteration: how many iterations are complete. At 0 the file starts anew.
    """

    def __init__(
        self, folder: str | os.PathLike[str] | None, columns: Iterable[str], iteration: int
    ) -> None:
        self._closing = ExitStack()
        self._path = None if folder is None else Path(folder) / "metrics.csv"
        self._board: Any = None
        if self._path is None:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        kept = _rows_up_to(self._path, iteration) if iteration else []
        names = ("iteration", *columns, *(name for row in kept[:1] for name in row))
        self._columns = list(dict.fromkeys(names))
        self._rewrite(kept)
        if importlib.util.find_spec("tensorboard"):
            from torch.utils.tensorboard import SummaryWriter

            self._board = self._closing.enter_context(
                SummaryWriter(str(self._path.parent / "tensorboard"), purge_step=iteration + 1)
            )

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._closing.close()

    def write(self, iteration: int, figures: Mapping[str, float]) -> None:
        """Appends one row."""
        if self._path is None:
            return
        new = [name for name in figures if name not in self._columns]
        if new:
            self._columns += new
            self._rewrite(_rows_up_to(self._path, iteration))
        with open(self._path, "a", newline="", encoding="utf-8") as file:
            self._writer(file).writerow({"iteration": iteration, **figures})
        if self._board is not None:
            for name, value in figures.items():
                self._board.add_scalar(name, value, iteration)

    def sync(self) -> None:
        """Puts the rows on disk, for a checkpoint that counts on them."""
        if self._path is not None:
            with open(self._path, "a", encoding="utf-8") as file:
                os.fsync(file.fileno())

    def _rewrite(self, rows: list[dict[str, str]]) -> None:
        assert self._path is not None
        temporary = self._path.with_name(self._path.name + ".tmp")
        with open(temporary, "w", newline="", encoding="utf-8") as file:
            writer = self._writer(file)
            writer.writeheader()
            writer.writerows(rows)
        os.replace(temporary, self._path)

    def _writer(self, file: TextIO) -> csv.DictWriter[str]:
        return csv.DictWriter(file, self._columns, restval="", lineterminator="\n")


def _rows_up_to(path: Path, iteration: int) -> list[dict[str, str]]:
    """The rows of a metrics.csv up to `iteration`, without what a crash left half written."""
    if not path.is_file():
        return []
    rows: list[dict[str, str]] = []
    with open(path, newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            at = int(row["iteration"])
            if at > iteration or (rows and at <= int(rows[-1]["iteration"])):
                break
            rows.append(row)
    return rows
