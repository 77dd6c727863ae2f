"""Lets torchvision load beside a torch that its compiled operations were not built for.

pip's torchvision is built for CUDA; beside a CPU build of torch it stops on import, because two
operations, which FID does not use, are unknown. Importing this module declares them if need be.
"""

from __future__ import annotations

import torch

try:
    import torchvision
except RuntimeError:
    LIBRARY = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        LIBRARY.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import torchvision

__all__ = ["torchvision"]
