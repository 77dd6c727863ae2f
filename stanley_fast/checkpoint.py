"""Checkpoint files: written whole or not at all, and read without running anything in them."""

from __future__ import annotations

import os
import pickle
import re
from pathlib import Path
from typing import Any

import torch

FORMAT = 2  # 1 had no averaged weights, schedule, rollbacks


class CheckpointError(RuntimeError):
    """The file is not a checkpoint this version can read; the message says why."""


def save(path: str | os.PathLike[str], state: dict[str, Any]) -> None:
    """Writes `state` to `path` atomically: a reader, or a crash, finds the old file or the new.

    Args:
        path: the file; its folder is made if need be.
        state: tensors, numbers, strings and containers of them: what `load` accepts.

    Raises:
        OSError: the folder can't be written; the old file stays.
        TypeError: `state` holds something else, which `load` would refuse; the old file stays.

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
        _check_readable(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _check_readable(path: Path) -> None:
    """All but the numbers of tensors is read back: NumPy's numbers look plain and are not."""
    try:
        torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        what = re.search(r"GLOBAL (\S+)", str(error))
        raise TypeError(
            "state must hold tensors, Python's numbers and strings, and containers of them alone, "
            f"got {what[1] if what else first_line(error)}"
        ) from error


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
    state = content.get("state") if isinstance(content, dict) else None
    if not isinstance(state, dict) or "stanley_fast" not in content:
        raise CheckpointError(f"{path} is no checkpoint of stanley-fast")
    if content["stanley_fast"] != FORMAT:
        raise CheckpointError(
            f"{path} has format {content['stanley_fast']}, this version reads format {FORMAT}"
        )
    return state


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
