"""Gradients through the last transitions of a chain, against eager autograd of the equations."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import stanley_fast as sf
from stanley_fast import reference

pytestmark = pytest.mark.usefixtures("one_thread")

KEY, STEPS = sf.key(7), 6


class Net(nn.Module):
    """Smooth, so that gradients of gradients are; not an MLPEnergy, so step by step."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 1)).double()

    def forward(self, z: Tensor) -> Tensor:
        flat = z.flatten(1)
        return 3 * self.net(flat).squeeze(1) - flat.square().sum(1) / 2


def start(dtype: torch.dtype = torch.float64) -> Tensor:
    return sf.normal((5, 3, 2), sf.key(1), stream=2, dtype=dtype)


def size(grad: Tensor, norm: str) -> Tensor:
    if norm == "element":
        return grad.abs()
    return grad.square().sum((1,) if norm == "channel" else (1, 2), keepdim=True).sqrt()


def eager(f: nn.Module, z0: Tensor, sampler: sf.Stanley | sf.Langevin, last: int) -> Tensor:
    """The loop anyone would write, detached before the last transitions; plain torch."""
    z, frozen = z0, None
    for k in range(STEPS):
        if k == STEPS - last and k:
            z = z.detach()
            frozen = None if frozen is None else frozen.detach()
        z = z if z.requires_grad else z.requires_grad_()
        (grad,) = torch.autograd.grad(f(z).sum(), z, create_graph=True)
        if isinstance(sampler, sf.Langevin):
            gamma = torch.tensor(sampler.step_size, dtype=z.dtype)
            if sampler.grad_clamp:
                grad = grad.clamp(-sampler.grad_clamp, sampler.grad_clamp)
        else:
            th = torch.tensor(sampler.threshold, dtype=z.dtype)
            gamma = sampler.step_size * th / torch.maximum(th, size(grad, sampler.norm))
            if sampler.stepsize == "frozen":
                gamma = frozen = gamma if frozen is None else frozen
        xi = reference.normal(z.shape, KEY, k, dtype=z.dtype)
        if getattr(sampler, "update", "paper") == "script":
            z = z + gamma * grad + gamma * sampler.noise_scale * xi
        else:
            z = z + gamma / 2 * grad + gamma.sqrt() * sampler.noise_scale * xi
        if sampler.clamp:
            z = z.clamp(*sampler.clamp)
    return z


SAMPLERS = [
    sf.Stanley(0.5, 0.4, 0.3),
    sf.Stanley(0.5, 0.4, 0.3, clamp=(-0.8, 0.8)),
    sf.Stanley(0.5, 0.4, 0.3, update="script"),
    sf.Stanley(0.5, 0.4, 0.3, stepsize="frozen"),
    sf.Stanley(0.5, 0.4, 0.3, norm="channel"),
    sf.Stanley(0.5, 0.4, 0.3, norm="sample", stepsize="frozen"),
    sf.Langevin(0.3, 0.5),
    sf.Langevin(0.3, 0.5, grad_clamp=0.4, clamp=(-1.0, 1.0)),
    sf.GradientAscent(0.3),
]


@pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)
@pytest.mark.parametrize("last", [1, 3, STEPS])
def test_gradients_are_eager_autograd_s(sampler: sf.Stanley | sf.Langevin, last: int) -> None:
    f = Net()
    weight = sf.normal((5, 3, 2), sf.key(9), stream=2, dtype=torch.float64)
    found = []
    for run in (
        lambda z: sf.sample(f, z, sampler, STEPS, key=KEY, backprop_steps=last).z,
        lambda z: eager(f, z, sampler, last),
    ):
        z0 = start().requires_grad_()
        z = run(z0)
        wanted = (z0, *f.parameters())
        grads = torch.autograd.grad((weight * z).sum(), wanted, allow_unused=True)
        found.append((z.detach(), *grads))
    ours, theirs = found
    assert (ours[1] is None) == (last < STEPS)  # z0's
    for a, b in zip(ours, theirs, strict=True):
        if b is None:
            assert a is None
        else:
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)
    assert any(g is not None and g.abs().max() > 0 for g in ours[2:])


def test_parameters_get_no_gradient_from_the_transitions_before() -> None:
    """Nor ask for one there: the first transitions cost what they always do."""
    f, asking = Net(), []
    f.register_forward_pre_hook(lambda m, _: asking.append(next(m.parameters()).requires_grad))
    sf.sample(f, start(), sf.Stanley(0.5, 0.4, stepsize="frozen"), 5, key=KEY, backprop_steps=2)
    assert asking == [False, False, False, True, True]


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_it_works_where_gradients_are_off(mode: type) -> None:
    f = Net()
    with mode():
        z = sf.sample(f, start(), sf.Stanley(0.5), 3, key=KEY, backprop_steps=1).z
    z.sum().backward()
    assert f.net[0].weight.grad.abs().sum() > 0
