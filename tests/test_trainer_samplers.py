"""Algorithm 1 with every sampler: it learns, logs what the sampler has to say, and resumes."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

import stanley_fast as sf
from stanley_fast.divergence import advice

pytestmark = pytest.mark.usefixtures("one_thread")

SAMPLERS = [
    sf.Stanley(0.3, 0.5, 0.5),
    sf.Stanley(1.0, 0.5, adjusted=True),
    sf.Langevin(0.3),
    sf.GradientAscent(0.3),
    sf.MALA(0.3),
    sf.MetropolisHastings(0.7),
    sf.HMC(0.4, 3),
]
every_sampler = pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)


def data(n: int, key: Tensor) -> Tensor:
    """Around (1, -1)."""
    centre = torch.tensor([1.0, -1.0])
    return centre + 0.5 * sf.normal((n, 2), key, stream=2)


def trainer(sampler: sf.Sampler, folder: Path | None = None, **more: float) -> sf.Trainer:
    torch.manual_seed(0)
    return sf.Trainer(
        sf.MLPEnergy((2, 16, 16, 1)), data, sampler, start=sf.ReplayBuffer(200),
        optimizer=lambda p: torch.optim.Adam(p, 1e-2), steps=10, batch_size=50, key=sf.key(0),
        folder=folder, log_every=10, checkpoint_every=30, energy_l2=0.1, progress=False, **more,
    )  # fmt: skip


@every_sampler
def test_it_learns_where_the_data_is(sampler: sf.Sampler) -> None:
    run = trainer(sampler)
    run.fit(60)
    x = data(200, sf.key(9))
    with torch.no_grad():
        gap = run.f(x).mean() - run.f(-x).mean()
    assert gap > 0.5


@every_sampler
def test_metrics_have_the_sampler_s_records(sampler: sf.Sampler, tmp_path: Path) -> None:
    trainer(sampler, tmp_path).fit(30)
    with open(tmp_path / "metrics.csv") as file:
        row = list(csv.DictReader(file))[-1]
    own = set(sampler.records) - {"log_density"}
    assert own < set(row)
    if "acceptance" in own:
        assert 0 < float(row["acceptance"]) <= 1
    assert ("grad_abs" in row) == (not isinstance(sampler, sf.MetropolisHastings))


@every_sampler
def test_it_resumes_bit_for_bit(sampler: sf.Sampler, tmp_path: Path) -> None:
    whole = trainer(sampler)
    whole.fit(40)
    trainer(sampler, tmp_path).fit(30)
    later = trainer(sampler, tmp_path)
    later.resume()
    later.fit(40)
    for a, b in zip(whole.f.parameters(), later.f.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("sampler", "lagging", "blowing_up"),
    [
        (sf.Stanley(0.1), "threshold or step_size", "a smaller step_size or noise_scale"),
        (sf.Langevin(0.1), "a larger step_size", "a smaller step_size or noise_scale"),
        (sf.MALA(0.1), "a larger step_size", "a smaller step_size$"),
        (sf.MetropolisHastings(0.1), "a larger scale", "a smaller scale$"),
        (sf.HMC(0.1, 2), "a larger step_size", "a smaller step_size$"),
    ],
    ids=repr,
)
def test_advice_names_the_sampler_s_own_settings(
    sampler: sf.Sampler, lagging: str, blowing_up: str
) -> None:
    run = trainer(sampler, max_gap=1e-9)
    with pytest.raises(sf.DivergedError, match="max_gap"):
        run.fit(5)
    assert re.search(lagging, advice(sampler, lagging=True))
    assert re.search(blowing_up, advice(sampler, lagging=False))
