"""Chains and training as people write them without us: in eager torch, torch.compile and TorchEBM;
the paper's toy net in layers that are convolutions.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn

import stanley_fast as sf
from stanley_fast.bench import baselines
from stanley_fast.bench.timing import Run

THRESHOLD, NOISE_SCALE = 0.1, 0.15
naive = partial(baselines.naive, threshold=THRESHOLD, noise_scale=NOISE_SCALE)
by_autograd = partial(baselines.by_autograd, threshold=THRESHOLD, noise_scale=NOISE_SCALE)

Chain = Callable[[Tensor], Tensor]
"""z0 -> the state after all transitions."""


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


def by_compile(f: nn.Module, steps: int, mode: str | None = None) -> Chain:
    """One transition in torch.compile."""

    def transition(z: Tensor) -> Tensor:
        return naive(z, torch.func.grad(lambda x: f(x).sum())(z))

    compiled = torch.compile(transition, mode=mode)
    graphed = mode is not None  # each replay writes where the last one did

    @torch.no_grad()  # or it would be compiled for gradients of f's parameters too
    def chain(z: Tensor) -> Tensor:
        for _ in range(steps):
            if graphed:
                torch.compiler.cudagraph_mark_step_begin()
            z = compiled(z).clone() if graphed else compiled(z)
        return z

    return chain


def torchebm(f: nn.Module, z: Tensor, steps: int) -> Run:
    """Its sampler, with the largest stepsize of ours: eta = 1/2 there is step_size 1 here."""
    chain = torchebm_chain(f, steps, z.device)
    return lambda: chain(z)


def torchebm_chain(f: nn.Module, steps: int, device: torch.device) -> Chain:
    """Its LangevinDynamics on the energy -f."""
    core = importlib.import_module("torchebm.core")
    samplers = importlib.import_module("torchebm.samplers")

    class Energy(core.BaseModel):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.f = f

        def forward(self, x: Tensor) -> Tensor:
            return -self.f(x)

    sampler = samplers.LangevinDynamics(
        Energy(), step_size=0.5, noise_scale=NOISE_SCALE, device=device
    )
    return lambda z: sampler.sample(x=z, n_steps=steps)


def iteration(
    net: nn.Module,
    chain: Chain,
    start: Callable[[], Tensor],
    data: Callable[[], Tensor],
    optimizer: Callable[[Iterator[nn.Parameter]], torch.optim.Optimizer],
) -> Callable[[], Tensor]:
    """Algorithm 1's lines 3 to 10 in plain torch: a call makes an iteration, and gives the loss."""
    adam = optimizer(net.parameters())

    def run() -> Tensor:
        x, z = data(), chain(start()).detach()
        loss = net(z).mean() - net(x).mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
        return loss.detach()

    return run


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
