"""What a run leaves on disk: checkpoints, whole or not at all, and the metrics beside them."""

from __future__ import annotations

import csv
import importlib.util
import os
import pickle
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

import torch

FORMAT = 1


class CheckpointError(RuntimeError):
    """The file is not a checkpoint this version can read; the message says why."""


def save(path: str | os.PathLike[str], state: dict[str, Any]) -> None:
    """Writes `state` to `path` atomically: a reader, or a crash, finds the old file or the new.

    Args:
        path: the file; its folder is made if need be.
        state: tensors, numbers, strings and containers of them: what `load` accepts.

    Raises:
        OSError: the folder can't be written; the old file stays.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(folder + "/a.pt", {"step": 3})
    ...     load(folder + "/a.pt")
    {'step': 3}
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            torch.save({"stanley_fast": FORMAT, "state": state}, file)
            file.flush()
            os.fsync(file.fileno())  # on disk before it takes the old one's name
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def load(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads what `save` wrote, tensors onto the CPU. Runs no code from the file.

    Raises:
        FileNotFoundError: there is none.
        CheckpointError: truncated, damaged, of another format, or something else altogether.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint at {path}")
    try:
        with open(path, "rb") as file:
            content = torch.load(file, map_location="cpu", weights_only=True)
    except PermissionError:
        raise
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} is no checkpoint of stanley-fast: it is no archive of tensors and "
            "plain values, and loading anything else could run code"
        ) from error
    except (RuntimeError, EOFError, ValueError, OSError) as error:
        raise CheckpointError(f"{path} is truncated or damaged: {first_line(error)}") from error
    if not isinstance(content, dict) or "stanley_fast" not in content or "state" not in content:
        raise CheckpointError(f"{path} is no checkpoint of stanley-fast")
    if content["stanley_fast"] != FORMAT:
        raise CheckpointError(
            f"{path} has format {content['stanley_fast']}, this version reads format {FORMAT}"
        )
    state: dict[str, Any] = content["state"]
    return state


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


def _sync_folder(folder: Path) -> None:
    """The new name is on disk too. Windows can't open a folder and needs none of it."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def first_line(error: Exception) -> str:
    """The beginning of an error's message, to go into one of ours."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].split(". ")[0]
