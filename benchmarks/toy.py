"""Chains as people write them without us, in eager torch and in TorchEBM; the paper's toy net in
layers that are convolutions.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

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


def by_backward(f: nn.Module, z: Tensor, steps: int) -> Tensor:
    """The common loop: f's parameters get their gradients too, which nobody reads."""
    for _ in range(steps):
        z = z.detach().requires_grad_()
        with torch.enable_grad():
            f(z).sum().backward()
        assert z.grad is not None
        with torch.no_grad():
            z = naive(z, z.grad)
    return z


def torchebm(f: nn.Module, z: Tensor, steps: int) -> Callable[[], object]:
    """Its sampler, with the largest stepsize of ours: eta = 1/2 there is step_size 1 here."""
    core = importlib.import_module("torchebm.core")
    samplers = importlib.import_module("torchebm.samplers")

    class Energy(core.BaseModel):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.f = f

        def forward(self, x: Tensor) -> Tensor:
            return -self.f(x)

    sampler = samplers.LangevinDynamics(Energy(), step_size=0.5, noise_scale=NOISE_SCALE)
    return lambda: sampler.sample(x=z, n_steps=steps)


def flop(f: nn.Module, z: Tensor) -> int:
    """Of one gradient by z: each product forward, and again back to its input."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        f(z)
    return 2 * int(counter.get_total_flops())


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
