"""Oxford Flowers 102 as its authors give it: the folder jpg, imagelabels.mat and setid.mat."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from stanley_fast.data import matlab, pictures
from stanley_fast.data.images import DataError

SETS = {"train": ["trnid"], "valid": ["valid"], "test": ["tstid"]}
SETS["all"] = [name for names in SETS.values() for name in names]


def read(folder: Path, split: str) -> tuple[pictures.Pictures, Tensor]:
    """The pictures jpg/image_00001.jpg ... of a split, and labels (n,), which are the file's - 1.

    Raises:
        FileNotFoundError: a .mat file is not there.
        DataError: a .mat file is damaged, or pictures are missing.
    """
    labels_path, sets_path = folder / "imagelabels.mat", folder / "setid.mat"
    for path in (labels_path, sets_path):
        if not path.exists():
            raise FileNotFoundError(f"Flowers 102 wants {path}, which is not there")
    classes = matlab.read(labels_path, "labels")
    index = torch.cat([matlab.read(sets_path, name) for name in SETS[split]])
    if len(index) == 0 or int(index.min()) < 1 or int(index.max()) > len(classes):
        raise DataError(f"{sets_path} does not fit the {len(classes)} labels")
    names = [f"jpg/image_{i:05}.jpg" for i in index.tolist()]
    return pictures.named(folder, names), classes[index - 1] - 1
