"""What a user writes without us: the paper's equations in eager torch."""

from __future__ import annotations

import torch
from torch import Tensor


def naive(z: Tensor, grad: Tensor, threshold: float, noise_scale: float) -> Tensor:
    """Eqs. 4 and 5 as one types them."""
    gamma = threshold / torch.clamp(grad.abs(), min=threshold)
    return z + gamma / 2 * grad + torch.sqrt(gamma) * noise_scale * torch.randn_like(z)


class Tuned:
    """The same in place, with buffers kept and torch's own in-place normals."""

    def __init__(self, z: Tensor) -> None:
        self.gamma, self.noise = torch.empty_like(z), torch.empty_like(z)

    def __call__(self, z: Tensor, grad: Tensor, threshold: float, noise_scale: float) -> Tensor:
        torch.abs(grad, out=self.gamma)
        self.gamma.clamp_(min=threshold).reciprocal_().mul_(threshold)
        self.noise.normal_(std=noise_scale)
        return z.addcmul_(self.gamma, grad, value=0.5).addcmul_(self.gamma.sqrt_(), self.noise)
