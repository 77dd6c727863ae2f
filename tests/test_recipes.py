"""Every recipe moves a chain as its published update formula does."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import stanley_fast as sf
from stanley_fast.recipes import RECIPES, Recipe, langevin

Density = Callable[[Tensor], Tensor]
SHAPE = (6, 3, 4, 4)


def f(x: Tensor) -> Tensor:
    """Small gradients and large ones, for every clamp and threshold above."""
    return (0.01 * x.sin() + 2e-4 * x.pow(3)).flatten(1).sum(1)


def gradient(of: Density, x: Tensor) -> Tensor:
    x = x.detach().requires_grad_()
    return torch.autograd.grad(of(x).sum(), x)[0]


def ebm_anatomy(x: Tensor, xi: Tensor) -> Tensor:
    net = lambda x: -f(x)  # noqa: E731
    return x - gradient(net, x) + 0.01 * xi


def jem(x: Tensor, xi: Tensor) -> Tensor:
    return x + 1.0 * gradient(f, x) + 0.01 * xi


def on_unit_interval(step: Callable[[Density, Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    """A formula for images u in (0, 1), seen from x = 2u - 1."""

    def moved(x: Tensor, xi: Tensor) -> Tensor:
        return 2 * step(lambda u: -f(2 * u - 1), (x + 1) / 2, xi) - 1

    return moved


@on_unit_interval
def igebm(energy: Density, u: Tensor, xi: Tensor) -> Tensor:
    return (u - 10 * gradient(energy, u).clamp(-0.01, 0.01) + 0.005 * xi).clamp(0, 1)


@on_unit_interval
def improved_cd(energy: Density, u: Tensor, xi: Tensor) -> Tensor:
    return (u - 100 * gradient(energy, u) + 0.001 * xi).clamp(0, 1)


def uva(x: Tensor, xi: Tensor) -> Tensor:
    return (x + 10 * gradient(f, x).clamp(-0.03, 0.03) + 0.005 * xi).clamp(-1, 1)


def script(threshold: float, epsilon: float, dims: tuple[int, ...]) -> Callable[..., Tensor]:
    def moved(x: Tensor, xi: Tensor) -> Tensor:
        g = gradient(f, x)
        size = g.square().sum(dims, keepdim=True).sqrt()
        alpha = threshold / torch.maximum(torch.tensor(threshold), size)
        return x + alpha * g + alpha * epsilon * xi

    return moved


ORIGINALS = {
    "ebm-anatomy": ebm_anatomy,
    "jem": jem,
    "igebm": igebm,
    "improved-cd": improved_cd,
    "uva": uva,
    "stanley-toy": script(0.05, 0.1, (1, 2, 3)),
    "stanley-cifar10": script(1e-4, 0.01, (1,)),
    "stanley-flowers102": script(2e-4, 0.01, (1,)),
    "stanley-celeba": script(1e-4, 0.01, (1,)),
}


def test_every_recipe_has_its_formula() -> None:
    assert ORIGINALS.keys() == RECIPES.keys()


@pytest.mark.parametrize("name", RECIPES)
def test_a_chain_moves_as_published(name: str) -> None:
    key, steps = sf.key(1), 5
    x = torch.empty(SHAPE, dtype=torch.float64).uniform_(-0.99, 0.99, generator=_seeded())
    ours = sf.sample(f, x, RECIPES[name].sampler, steps, key=key).z
    for k in range(steps):
        x = ORIGINALS[name](x, sf.normal(SHAPE, key, k, dtype=torch.float64))
    torch.testing.assert_close(ours, x, rtol=0, atol=1e-12)
    clamp = getattr(RECIPES[name].sampler, "clamp", None)
    assert (clamp is not None) == bool((ours.abs() == 1).any()), "the clamp is seen to act"


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES.keys())
def test_settings_train(recipe: Recipe) -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 1), torch.nn.Flatten(0))
    data = torch.empty(20, 3, 4, 4).uniform_(-1, 1, generator=_seeded())
    trainer = sf.Trainer(net, data, key=sf.key(0), batch_size=8, progress=False, **recipe.settings)
    trainer.fit(2)
    assert trainer.iteration == 2
    assert trainer.algorithm.steps == recipe.steps
    assert trainer.optimizer.param_groups[0]["lr"] == recipe.learning_rate


def test_langevin_inverts_eq5() -> None:
    sampler = langevin(0.3, 0.05)
    assert sampler.step_size / 2 == pytest.approx(0.3)
    assert math.sqrt(sampler.step_size) * sampler.noise_scale == pytest.approx(0.05)
    with pytest.raises(ValueError, match="drift must be positive and finite, got 0"):
        langevin(0, 1)
    with pytest.raises(ValueError, match="noise must be 0 or more and finite, got -1"):
        langevin(1, -1)


def _seeded() -> torch.Generator:
    return torch.Generator().manual_seed(3)
