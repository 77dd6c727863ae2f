"""The paper's toy net as people write it without us: its layers as convolutions, its chain in eager
torch.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import stanley_fast as sf

THRESHOLD, NOISE_SCALE = 0.1, 0.15


def naive(z: Tensor, grad: Tensor) -> Tensor:
    """Eqs. 4 and 5 as one types them."""
    gamma = THRESHOLD / torch.clamp(grad.abs(), min=THRESHOLD)
    return z + gamma / 2 * grad + torch.sqrt(gamma) * NOISE_SCALE * torch.randn_like(z)


def by_autograd(f: nn.Module, z: Tensor, steps: int) -> Tensor:
    for _ in range(steps):
        z = z.detach().requires_grad_()
        with torch.enable_grad():
            (grad,) = torch.autograd.grad(f(z).sum(), z)
        with torch.no_grad():
            z = naive(z, grad)
    return z


def as_conv(f: sf.MLPEnergy) -> nn.Sequential:
    """The same layers as 1x1 convolutions."""
    layers: list[nn.Module] = []
    for layer in f.net:
        if isinstance(layer, nn.Linear):
            conv = nn.Conv2d(layer.in_features, layer.out_features, 1)
            state = {"weight": layer.weight[:, :, None, None], "bias": layer.bias}
            conv.load_state_dict(state)
            layer = conv
        layers.append(layer)
    return nn.Sequential(*layers).requires_grad_(False)
