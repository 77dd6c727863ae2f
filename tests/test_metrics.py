"""The toy's figures: by hand on small sets, and against their floors on true and false samples."""

from __future__ import annotations

import math

import pytest
import scipy.stats
import torch
from torch import Tensor

from stanley_fast import keys, metrics
from stanley_fast.energies import GaussianMixture, MLPEnergy, Rings, gaussian_ring
from stanley_fast.metrics import Quality

N = 10_000
HIGHER_IS_BETTER = {"ring_share", "mode_share"}


@pytest.fixture(scope="module", params=[Rings(), gaussian_ring()], ids=["rings", "gmm"])
def quality(request: pytest.FixtureRequest) -> Quality:
    return Quality(request.param, N, keys.key(0))


def test_grid_density_integrates_to_one_and_has_x_along_columns() -> None:
    density = metrics.grid_density(lambda z: 3 * z[:, 0], extent=2.0, size=50)
    assert float(density.sum()) * (4 / 50) ** 2 == pytest.approx(1, rel=1e-5)
    # exp(3 x): the same for every y, and e^(3 * 0.08) larger from one column to the next.
    torch.testing.assert_close(density, density[:1].expand(50, 50))
    torch.testing.assert_close(
        density[:, 1:] / density[:, :-1], torch.full((50, 49), math.exp(0.24))
    )


def test_grid_density_ignores_a_constant_and_keeps_no_graph() -> None:
    f = MLPEnergy()
    density = metrics.grid_density(f, 4.6, 20)
    assert not density.requires_grad
    torch.testing.assert_close(metrics.grid_density(lambda z: f(z) + 90, 4.6, 20), density)


def test_grid_density_of_a_true_density_is_it() -> None:
    target = gaussian_ring()
    density = metrics.grid_density(target, target.extent)
    # The square leaves out the tails beyond 4 sd, about 1e-4 of the mass.
    want = metrics.grid_log_density(target, target.extent).exp()
    torch.testing.assert_close(density, want, rtol=1e-3, atol=0)


def test_histogram_puts_samples_in_their_cells() -> None:
    # Cells [-2, 0) and [0, 2): (x, y) = (-1, 1) is column 0, row 1; 2.0 itself is outside.
    z = torch.tensor([[-1.0, 1.0], [-2.0, 0.0], [0.5, -0.1], [2.0, 0.0], [math.nan, 0.0]])
    assert metrics.histogram(z, extent=2.0, size=2).tolist() == [
        [0.0, pytest.approx(0.2)],
        [pytest.approx(0.4), 0.0],
    ]


def test_ring_share_is_the_share_within_three_sd() -> None:
    radii = torch.tensor([0.54, 0.56, 1.44, 1.46, 4.44, 4.46, 0.0, 9.0])
    z = torch.stack([0.6 * radii, 0.8 * radii], dim=1)
    assert metrics.ring_share(z) == 3 / 8


def test_radius_wasserstein_is_scipys() -> None:
    a, b = torch.randn(500, 2), 1.5 * torch.randn(500, 2)
    want = scipy.stats.wasserstein_distance(a.norm(dim=1), b.norm(dim=1))
    assert metrics.radius_wasserstein(a, b) == pytest.approx(want, rel=1e-5)
    with pytest.raises(ValueError, match=r"samples must have truth's shape \[4, 2\]"):
        metrics.radius_wasserstein(a, b[:4])


def test_mode_figures_by_hand() -> None:
    mixture = GaussianMixture(
        torch.tensor([[0.0, 0.0], [10.0, 0.0]]), torch.tensor([1.0, 2.0]), torch.tensor([1.0, 3.0])
    )
    z = torch.tensor([[0.0, 2.9], [0.0, 3.1], [10.0, 5.9], [10.0, 6.1]])
    assert metrics.mode_share(z, mixture) == 0.5
    assert metrics.mode_imbalance(z, mixture) == pytest.approx(0.25)  # half and half, not 1 : 3


def test_histogram_tv_counts_what_lies_outside() -> None:
    shares = torch.tensor([[0.5, 0.0], [0.0, 0.4]])  # and 0.1 outside
    inside, outside = torch.tensor([[-0.5, -0.5]]), torch.tensor([[7.0, 0.0]])
    assert metrics.histogram_tv(inside, shares, 1.0) == pytest.approx(0.5)
    assert metrics.histogram_tv(outside, shares, 1.0) == pytest.approx(0.9)


def test_true_shares_are_the_targets() -> None:
    target = Rings()
    shares = metrics.true_shares(target)
    assert float(shares.sum()) == pytest.approx(1, abs=1e-3)
    n = 1_000_000
    found = metrics.histogram(target.sample(n, keys.key(1)), target.extent, metrics.BINS)
    # Each of the 1 600 cells is binomial: sd sqrt(p / n); 6 sd leaves 3e-6 for all of them, and the
    # quadrature adds at most 1 %.
    bound = 6 * (shares / n).sqrt() + 0.01 * shares + 2 / n
    assert ((found - shares).abs() <= bound).all()


def test_every_figure_is_beside_its_floor(quality: Quality) -> None:
    columns = list(quality(quality.target.sample(N, keys.key(5))))
    assert len(columns) == 6
    assert columns[1::2] == [f"{name}_floor" for name in columns[0::2]]


def test_true_samples_reach_the_floors(quality: Quality) -> None:
    figures = quality(quality.target.sample(N, keys.key(6)))
    for name in list(figures)[0::2]:
        # The figures of true sets vary by less than 0.002 (shares), 40 % (radius_w1 and
        # mode_imbalance, sums of a few independent errors of the size of the floor), 5 % (TV).
        floor = figures[f"{name}_floor"]
        slack = 0.004 if name in HIGHER_IS_BETTER else 1.5 * floor
        assert abs(figures[name] - floor) < slack, name


@pytest.mark.parametrize("scale", [1, 2])
def test_the_gaussian_start_is_far_from_the_floors(quality: Quality, scale: int) -> None:
    # What the figures are for. The mode imbalance is not: a Gaussian visits all modes alike.
    figures = quality(scale * torch.randn(N, 2, generator=torch.Generator().manual_seed(0)))
    for name in set(list(figures)[0::2]) - {"mode_imbalance"}:
        floor = figures[f"{name}_floor"]
        if name in HIGHER_IS_BETTER:
            assert figures[name] < floor - 0.15, name
        else:
            assert figures[name] > 3 * floor, name


def test_one_lost_mode_shows_in_the_imbalance() -> None:
    target = gaussian_ring()
    quality = Quality(target, N, keys.key(0))
    lost = GaussianMixture(target.means[1:], 0.15).sample(N, keys.key(7))
    figures = quality(lost)
    assert figures["mode_share"] == pytest.approx(figures["mode_share_floor"], abs=0.004)
    assert figures["mode_imbalance"] > 0.1 > 5 * figures["mode_imbalance_floor"]  # 1/8 is missing


def test_floors_are_made_once_from_the_key() -> None:
    samples = Rings().sample(500, keys.key(8))
    figures = Quality(Rings(), 500, keys.key(9))(samples)
    assert metrics.quality(Rings(), samples, keys.key(9)) == figures
    assert metrics.quality(Rings(), samples, keys.key(10)) != figures


@pytest.mark.parametrize("target", [GaussianMixture(torch.zeros(1, 3), 1.0), MLPEnergy()])
def test_quality_refuses_other_targets(target: GaussianMixture) -> None:
    with pytest.raises(ValueError, match="target must be Rings or a 2-D GaussianMixture"):
        Quality(target, 10, keys.key(0))


@pytest.mark.parametrize("samples", [torch.zeros(9, 2), torch.zeros(N, 3)])
def test_quality_refuses_other_sizes(quality: Quality, samples: Tensor) -> None:
    with pytest.raises(ValueError, match=rf"samples must be \[{N}, 2\]"):
        quality(samples)
