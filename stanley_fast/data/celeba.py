"""CelebA as its authors give it: the folder img_align_celeba and list_eval_partition.txt."""

from __future__ import annotations

import re
from pathlib import Path

from stanley_fast.data import pictures
from stanley_fast.data.images import DataError

PARTITIONS = {"train": "0", "valid": "1", "test": "2", "all": "012"}


def read(folder: Path, split: str) -> tuple[pictures.Pictures, None]:
    """The aligned and cropped faces of a partition, 178 x 218 pixels as they come.

    Raises:
        FileNotFoundError: the partition file is not there.
        DataError: one of its lines is not "000001.jpg 0", or pictures are missing.
    """
    path = folder / "list_eval_partition.txt"
    if not path.exists():
        raise FileNotFoundError(f"CelebA wants {path}, which is not there")
    names = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        fields = re.fullmatch(r"(\d{6}\.jpg) ([012])", line.strip())
        if fields is None:
            raise DataError(f"{path}, line {number}: wanted '000001.jpg 0', got {line[:40]!r}")
        if fields[2] in PARTITIONS[split]:
            names.append(f"img_align_celeba/{fields[1]}")
    return pictures.named(folder, names), None
