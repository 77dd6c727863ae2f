"""Results that take long to make, kept on disk: decoded pictures and Inception's features."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stanley_fast import checkpoint

FORMAT = 1


def default_folder() -> Path:
    """$XDG_CACHE_HOME/stanley-fast, by default ~/.cache/stanley-fast."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "stanley-fast"


def cached(
    make: Callable[[], Tensor],
    *,
    name: str,
    source: Mapping[str, Any],
    folder: str | os.PathLike[str] | None,
) -> Tensor:
    """The tensor that `make` gives, from the cache if it was made of the same source.

    A file that is damaged, or of another source, is made anew. A warning tells of damage, and of a
    folder that can't be written: the tensor is then made each time.

    Args:
        name: of the file, without its ending.
        source: plain values that say what the tensor is made of.
        folder: the cache's; `default_folder()` if None.
    """
    folder = default_folder() if folder is None else Path(folder)
    path = folder / f"{name}.pt"
    source_digest = hashlib.sha256(json.dumps([FORMAT, source]).encode()).hexdigest()
    found = _read(path, source_digest)
    if found is not None:
        return found
    tensor = make()
    entry = {"source": source_digest, "tensor": tensor, "sha256": digest(tensor)}
    own = path.with_name(f"{path.name}.{os.getpid()}")  # others may be making the same
    try:
        checkpoint.save(own, entry)
        os.replace(own, path)
    except OSError as error:
        warnings.warn(f"nothing is cached: {error}", stacklevel=2)
    return tensor


def _read(path: Path, source_digest: str) -> Tensor | None:
    if not path.exists():
        return None
    try:
        entry = checkpoint.load(path)
        if entry["source"] != source_digest:
            return None
        tensor: Tensor = entry["tensor"]
        if digest(tensor) != entry["sha256"]:
            raise checkpoint.CheckpointError(f"{path} is damaged: its checksum is wrong")
    except (checkpoint.CheckpointError, OSError, KeyError) as error:
        warnings.warn(f"making the cached data anew: {error}", stacklevel=3)
        return None
    return tensor


def digest(tensor: Tensor) -> str:
    """SHA-256 of a tensor's dtype, shape and values, in hex."""
    sha = hashlib.sha256(f"{tensor.dtype} {list(tensor.shape)}".encode())
    sha.update(tensor.cpu().contiguous().view(torch.uint8).numpy().data)
    return sha.hexdigest()
