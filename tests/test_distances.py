"""Distances between sets of samples: known answers, no bias, bootstrap and floors."""

from __future__ import annotations

import math

import pytest
import scipy.stats
import torch
from torch import Tensor

from stanley_fast import keys, ops
from stanley_fast.distances import (
    Law,
    directions,
    energy_distance,
    energy_floor,
    resamples,
    sliced_wasserstein,
    wasserstein_floor,
)


def normals(seed: int, *shape: int) -> Tensor:
    return ops.normal(shape, keys.key(seed))


def test_directions_are_uniform() -> None:
    along = directions(20_000, 3, keys.key(0))
    torch.testing.assert_close(along.norm(dim=1), torch.ones(20_000))
    # Each coordinate has mean 0 and variance 1/3, the off-diagonal products variance 1/15.
    assert along.mean(0).abs().max() < 5 * math.sqrt(1 / 3 / 20_000)
    product = along.T @ along / 20_000 - torch.eye(3) / 3
    assert product.abs().max() < 5 * math.sqrt(4 / 45 / 20_000)


def test_wasserstein_in_one_dimension_is_scipy_s() -> None:
    x, y = normals(0, 500, 1), 0.3 + 1.5 * normals(1, 500, 1)
    wanted = scipy.stats.wasserstein_distance(x[:, 0].numpy(), y[:, 0].numpy())
    assert sliced_wasserstein(x, y, torch.ones(1, 1)) == pytest.approx(wanted, rel=1e-5)


def test_wasserstein_of_a_shift_is_its_projections_mean() -> None:
    x, shift, along = (
        normals(0, 300, 3),
        torch.tensor([1.0, -2.0, 0.5]),
        directions(40, 3, keys.key(1)),
    )
    wanted = float((along @ shift).abs().mean())
    assert sliced_wasserstein(x, x + shift, along) == pytest.approx(wanted, rel=1e-5)


def test_energy_distance_by_hand() -> None:
    x, y = normals(0, 7, 2), normals(1, 5, 2) + 1
    across = sum(float((a - b).norm()) for a in x for b in y) / 35
    within = [
        sum(float((a - b).norm()) for a in s for b in s) / (len(s) * (len(s) - 1)) for s in (x, y)
    ]
    assert energy_distance(x, y) == pytest.approx(2 * across - sum(within), rel=1e-5)


def test_energy_distance_of_two_normals() -> None:
    # |N(m, 2)| has mean 2/sqrt(pi) exp(-m^2/4) + m erf(m/2).
    m, n = 0.7, 4000
    wanted = 2 * (2 / math.sqrt(math.pi) * (math.exp(-(m**2) / 4) - 1) + m * math.erf(m / 2))
    found = [energy_distance(normals(2 * i, n, 1), m + normals(2 * i + 1, n, 1)) for i in range(8)]
    sd = float(torch.tensor(found).std()) / math.sqrt(8)
    assert abs(sum(found) / 8 - wanted) < 5 * sd
    assert sd < 0.05 * wanted


def test_energy_distance_of_one_law_has_mean_zero() -> None:
    found = torch.tensor(
        [energy_distance(normals(2 * i, 50, 2), normals(2 * i + 1, 50, 2)) for i in range(400)]
    )
    assert abs(float(found.mean())) < 5 * float(found.std()) / math.sqrt(400)


def test_equal_points_are_at_no_distance() -> None:
    point = torch.full((50, 2), 1e4)
    assert energy_distance(point, point) == 0


def test_resamples_count_every_draw() -> None:
    counts = resamples(30, 20, torch.Generator().manual_seed(0))
    assert counts.shape == (20, 30)
    assert (counts.sum(dim=1) == 30).all()
    assert len(counts.unique(dim=0)) == 20


def test_bootstrap_is_the_resample_s_distance() -> None:
    """With the resamples drawn out, and pairs of copies made up for."""
    x, y = normals(0, 40, 2), normals(1, 30, 2) + 0.5
    generator = torch.Generator().manual_seed(0)
    of_x, of_y = resamples(40, 5, generator), resamples(30, 5, generator)
    found = Law(y).against(x).bootstrap(of_x, of_y)
    for value, times_x, times_y in zip(found.tolist(), of_x, of_y, strict=True):
        drawn_x, drawn_y = (
            x.repeat_interleave(times_x.int(), 0),
            y.repeat_interleave(times_y.int(), 0),
        )
        across = float(torch.cdist(drawn_x, drawn_y).mean())
        within = [float(torch.cdist(s, s).sum()) / (len(s) - 1) ** 2 for s in (drawn_x, drawn_y)]
        assert value == pytest.approx(2 * across - sum(within), abs=1e-4)


def test_bootstrap_has_the_estimate_s_mean_and_spread() -> None:
    n, generator = 400, torch.Generator().manual_seed(0)
    distance = Law(normals(0, n, 1)).against(normals(1, n, 1) + 1)
    drawn = distance.bootstrap(resamples(n, 1000, generator), resamples(n, 1000, generator))
    assert float(drawn.mean()) == pytest.approx(
        float(distance.estimate()), abs=5 * float(drawn.std()) / math.sqrt(1000)
    )
    repeated = torch.tensor(
        [energy_distance(normals(2 * i, n, 1), normals(2 * i + 1, n, 1) + 1) for i in range(300)]
    )
    # A standard deviation over 300 is known to 4 %; the bootstrap's own error is of that order.
    assert float(drawn.std() / repeated.std()) == pytest.approx(1, abs=0.25)


def test_floors_are_what_one_law_gets() -> None:
    along = directions(16, 2, keys.key(0))
    sets = torch.stack([normals(i, 200, 2) for i in range(40)])
    floors = wasserstein_floor(sets, along), energy_floor(sets)
    more = [(normals(1000 + 2 * i, 200, 2), normals(1001 + 2 * i, 200, 2)) for i in range(200)]
    found = [
        torch.tensor([sliced_wasserstein(x, y, along) for x, y in more]),
        torch.tensor([energy_distance(x, y) for x, y in more]),
    ]
    for floor, values in zip(floors, found, strict=True):
        # 40 sets know the quantile to a few percent; of 200 pairs 95 % +- 1.5 % lie below it. The
        # mean over all pairs of S sets has at most 2/S of a pair's variance.
        assert 0.87 < float((values <= floor.upper).float().mean()) < 0.995
        assert abs(floor.mean - float(values.mean())) < 4 * math.sqrt(2 / 40) * float(values.std())
    assert sliced_wasserstein(sets[0], sets[1] + 0.5, along) > floors[0].upper
    assert energy_distance(sets[0], sets[1] + 0.5) > floors[1].upper


def test_distances_refuse() -> None:
    x = torch.zeros(5, 2)
    with pytest.raises(ValueError, match=r"x must have y's shape \[5, 2\], got \[4, 2\]"):
        sliced_wasserstein(x[:4], x, torch.eye(2))
    with pytest.raises(ValueError, match=r"x must be \(n, d\) with n > 1, got \[1, 2\]"):
        energy_distance(x[:1], x)
    with pytest.raises(ValueError, match=r"y must be \(n, d\) with n > 1, got \[1, 2\]"):
        energy_distance(x, x[:1])
    with pytest.raises(ValueError, match="x must have y's dimension 2, got 1"):
        energy_distance(x[:, :1], x)
