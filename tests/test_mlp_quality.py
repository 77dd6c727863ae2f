"""Training with the kernels of small nets learns as well as training step by step."""

from __future__ import annotations

import statistics
from functools import partial

import pytest
import torch
from torch import nn

import stanley_fast as sf
from stanley_fast import metrics, runs
from stanley_fast.trainer import Trainer

SEEDS, ITERATIONS = 8, 1000
T_95 = 2.365  # Student's t with 7 degrees of freedom, two-sided
SAMPLER = sf.Stanley(0.1, noise_scale=0.15)


class ByStep(sf.MLPEnergy):
    """Its chains and gradients are autograd's: the kernels do not know its class."""


def share_on_rings(f: nn.Module, seed: int) -> float:
    """Of 10 000 samples, after a short training from the seed's weights."""
    f.load_state_dict(runs.new_model(seed).state_dict())
    trainer = Trainer(
        f,
        sf.Rings().sample,
        SAMPLER,
        start=sf.NoiseStart(2.0),
        optimizer=partial(torch.optim.Adam, lr=1e-3, fused=True),
        steps=100,
        batch_size=100,
        key=sf.key(seed),
        progress=False,
    )
    trainer.fit(ITERATIONS)
    learned = sf.MLPEnergy()
    learned.load_state_dict(f.state_dict())
    z0 = 2 * sf.normal((10_000, 2), sf.key(100), stream=2)
    samples = sf.sample(learned, z0, SAMPLER, 100, key=sf.key(101)).z
    return metrics.Quality(sf.Rings(), 10_000, sf.key(102))(samples)["ring_share"]


@pytest.mark.slow
@pytest.mark.usefixtures("compiled", "one_thread")
def test_learns_as_well_as_step_by_step() -> None:
    """The 95 % interval of the difference lies within a hundredth; two minutes on a free core."""
    fused = [share_on_rings(sf.MLPEnergy(), seed) for seed in range(SEEDS)]
    plain = [share_on_rings(ByStep(), seed) for seed in range(SEEDS)]
    differences = [a - b for a, b in zip(fused, plain, strict=True)]
    print("fused", fused, "step by step", plain)
    mean = statistics.mean(differences)
    half = T_95 * statistics.stdev(differences) / SEEDS**0.5
    print(f"difference {mean:+.4f} +- {half:.4f}")
    assert any(differences)  # they are different runs, roundings having grown
    assert mean - half > -0.01
    assert mean + half < 0.01
    assert min(fused + plain) > 0.85  # both learn: starts have 0.80, untrained nets some 0.7
