"""A diverging run stops, keeps its last good state, and says what to try."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from training import IN_13, ByStep, K, by_step, make, weights

from stanley_fast import checkpoint
from stanley_fast.chain import sample
from stanley_fast.energies import MLPEnergy
from stanley_fast.samplers import Langevin, Stanley
from stanley_fast.trainer import DivergedError, Trainer

pytestmark = pytest.mark.usefixtures("one_thread")

# Divergence ----------------------------------------------------------------------------------


class Breaks(ByStep):
    """Right until a forward pass, when it gives `value`."""

    def __init__(self, call: int, value: float, data_only: bool) -> None:
        super().__init__((2, 16, 16, 1))
        self.countdown, self.value, self.data_only = call, value, data_only

    def forward(self, z: Tensor) -> Tensor:
        self.countdown -= 1
        if self.countdown > 0:
            return super().forward(z)
        share = torch.cat([torch.ones(len(z) // 2), torch.zeros(len(z) - len(z) // 2)])
        scale = share if self.data_only else torch.ones(len(z))
        return super().forward(z) + self.value * scale * z.sum(1).abs()


IN_LINE_9_OF_13 = 13 * (K + 1)


@pytest.mark.parametrize(
    ("f", "message"),
    [
        (lambda: Breaks(IN_13, math.nan, False), r"NaN or infinity at step 2 in chain 0"),
        (lambda: Breaks(IN_LINE_9_OF_13, math.inf, False), r"NaN or infinity among gap"),
        (lambda: Breaks(IN_LINE_9_OF_13, 1e4, True), r"the energy gap .* max_gap = 100"),
        (lambda: Breaks(IN_LINE_9_OF_13, -1e4, True), r"the energy gap -.* max_gap = 100"),
    ],
    ids=["chain", "values", "gap", "negative gap"],
)
def test_divergence_stops_with_the_last_good_state(
    tmp_path: Path, f: Callable, message: str
) -> None:
    torch.manual_seed(0)
    trainer = make(f(), folder=tmp_path, max_gap=100.0)
    with pytest.raises(DivergedError, match=message) as caught:
        trainer.fit(20)
    error = caught.value
    assert error.iteration == 13
    assert str(error).startswith("training diverged at iteration 13: ")
    assert "learning rate" in str(error)
    lagging = "the energy gap" in message and "-" not in message
    advice = "larger threshold" if lagging else "smaller step_size or noise_scale"
    assert advice in str(error)
    assert str(tmp_path / "last_good.pt") in str(error)
    assert error.last_good == tmp_path / "last_good.pt"
    assert checkpoint.load(tmp_path / "checkpoint.pt")["iteration"] == 10
    # The state before the failed iteration goes on as if nothing had failed.
    rescued = make(by_step(), folder=tmp_path)
    rescued.resume(error.last_good)
    assert rescued.iteration == 12
    rescued.fit(20)
    whole = make(by_step())
    whole.fit(20)
    assert torch.equal(weights(rescued.f), weights(whole.f))


def test_a_gradient_that_is_not_finite_is_divergence() -> None:
    class Steep(MLPEnergy):
        def forward(self, z: Tensor) -> Tensor:
            f = super().forward(z)
            # sqrt(0) has an infinite derivative; the parameters see it, z does not.
            return f + (0 * self.net[0].weight.sum()).sqrt()

    trainer = make(Steep())
    before = weights(trainer.f)
    with pytest.raises(DivergedError, match=r"grad_norm (nan|inf)"):
        trainer.fit(3)
    assert torch.equal(weights(trainer.f), before)


def test_advice_for_langevin_and_without_a_folder() -> None:
    trainer = make(Breaks(1, math.nan, False), sampler=Langevin(0.1))
    with pytest.raises(DivergedError, match="smaller step_size or noise_scale") as caught:
        trainer.fit(3)
    assert caught.value.last_good is None
    assert "last good" not in str(caught.value)


def test_a_step_that_ruins_the_parameters_writes_nothing(tmp_path: Path) -> None:
    """The update of iteration 10, a checkpoint's, overflows: the last good state is the old one."""
    trainer = make(folder=tmp_path, checkpoint_every=5)
    trainer.fit(9)
    for group in trainer.optimizer.param_groups:
        group["lr"] = math.inf
    with pytest.raises(DivergedError, match="at iteration 10: a parameter is NaN") as caught:
        trainer.fit(20)
    assert caught.value.last_good == tmp_path / "checkpoint.pt"
    assert checkpoint.load(tmp_path / "checkpoint.pt")["iteration"] == 9
    assert not (tmp_path / "last_good.pt").exists()


def test_a_step_that_ruins_the_parameters_between_checkpoints(tmp_path: Path) -> None:
    """Seen by the next iteration's chain, when the state before it is no good either."""
    trainer = make(folder=tmp_path, checkpoint_every=5)
    trainer.fit(6)
    for group in trainer.optimizer.param_groups:
        group["lr"] = math.inf
    with pytest.raises(DivergedError, match="at iteration 8: NaN or infinity at step 0") as caught:
        trainer.fit(20)
    assert caught.value.last_good == tmp_path / "checkpoint.pt"
    assert not (tmp_path / "last_good.pt").exists()


def test_an_evaluation_whose_chains_diverge(tmp_path: Path) -> None:
    def evaluate(trainer: Trainer) -> dict[str, float]:
        if trainer.iteration == 12:
            sample(lambda z: math.nan * z.sum(1), torch.zeros(3, 2), Stanley(0.1), 1)
        return {"quality": 1.0}

    trainer = make(folder=tmp_path, evaluate=evaluate, evaluate_every=6)
    with pytest.raises(DivergedError, match="at iteration 12: evaluation: NaN or inf") as caught:
        trainer.fit(20)
    assert caught.value.last_good == tmp_path / "checkpoint.pt"
    assert checkpoint.load(tmp_path / "checkpoint.pt")["iteration"] == 10


def test_data_that_are_not_finite() -> None:
    data = torch.zeros(4, 2)
    data[2, 1] = math.nan
    with pytest.raises(DivergedError, match="f_data nan"):
        make(data=data).fit(3)
