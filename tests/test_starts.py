"""Starts: their law, that a key decides them, and that persistent chains return to their slots."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import stanley_fast as sf
from stanley_fast.starts import DataStart, NoiseStart, ReplayBuffer, Start

DATA = torch.zeros(8, 3, 2)


@pytest.mark.parametrize(
    "start", [NoiseStart(), DataStart(), ReplayBuffer(8)], ids=lambda s: type(s).__name__
)
def test_all_are_starts(start: Start) -> None:
    assert isinstance(start, Start)
    z = start.start(8, sf.key(0), DATA)
    assert z.shape == DATA.shape
    start.update(z)
    start.load_state_dict(start.state_dict())


def test_normal_noise() -> None:
    z = NoiseStart(2.0).start(50_000, sf.key(0), torch.zeros(1, 2))
    assert z.shape == (50_000, 2)
    # n = 1e5 normals: the mean's error is 2 / sqrt(n), the standard deviation's 2 / sqrt(2 n).
    assert abs(z.mean()) < 4 * 2 / math.sqrt(1e5)
    assert abs(z.std() - 2) < 4 * 2 / math.sqrt(2e5)


def test_uniform_noise() -> None:
    z = NoiseStart(3.0, "uniform").start(50_000, sf.key(0), torch.zeros(1, 2))
    assert z.abs().max() <= 3
    # Kolmogorov-Smirnov: P(sup |F_n - F| > 2 / sqrt(n)) = 2 exp(-8) = 7e-4.
    ordered = z.flatten().sort().values.double()
    expected = (ordered / 3 + 1) / 2
    empirical = torch.arange(1, len(ordered) + 1) / len(ordered)
    assert (expected - empirical).abs().max() < 2 / math.sqrt(len(ordered))


@pytest.mark.parametrize("distribution", ["normal", "uniform"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_noise_is_decided_by_the_key(distribution: str, dtype: torch.dtype) -> None:
    start, data = NoiseStart(1.0, distribution), DATA.to(dtype)
    z = start.start(5, sf.key(3), data)
    assert z.dtype == dtype
    assert z.shape == (5, 3, 2)
    assert torch.equal(z, start.start(5, sf.key(3), data))
    assert not torch.equal(z, start.start(5, sf.key(4), data))


def test_starts_leave_the_key() -> None:
    key = torch.tensor([3, 17])
    for start in (NoiseStart(), DataStart(), ReplayBuffer(10)):
        start.start(8, key, DATA)
    assert key.tolist() == [3, 17]


def test_data_start_is_a_copy() -> None:
    data = torch.arange(6.0).reshape(3, 2)
    z = DataStart().start(3, sf.key(0), data)
    assert torch.equal(z, data)
    z += 1
    assert torch.equal(data, torch.arange(6.0).reshape(3, 2))


def test_data_start_needs_as_many_observations_as_chains() -> None:
    with pytest.raises(ValueError, match="n must be the data batch's size 8, got 5"):
        DataStart().start(5, sf.key(0), DATA)


def numbered(size: int, fresh_share: float = 0.0) -> ReplayBuffer:
    """A buffer of shape (2,) states that hold their slot's number."""
    buffer = ReplayBuffer(size, fresh_share=fresh_share)
    buffer.load_state_dict({"chains": torch.arange(float(size))[:, None].expand(size, 2)})
    return buffer


POINTS = torch.zeros(1, 2)


def test_buffer_fills_itself_with_fresh_starts() -> None:
    buffer = ReplayBuffer(20_000, NoiseStart(2.0))
    assert buffer.chains is None
    buffer.start(10, sf.key(0), POINTS)
    assert buffer.chains is not None
    assert buffer.chains.shape == (20_000, 2)
    # n = 4e4 normals: the standard deviation's error is 2 / sqrt(2 n).
    assert abs(buffer.chains.std() - 2) < 4 * 2 / math.sqrt(8e4)
    assert len(buffer.chains[:, 0].unique()) > 19_900


def test_chains_return_to_their_slots() -> None:
    buffer = numbered(50)
    z = buffer.start(20, sf.key(1), POINTS)
    slots = z[:, 0].long()
    assert len(slots.unique()) == 20
    buffer.update(-100 - z)
    wanted = torch.arange(50.0)[:, None].repeat(1, 2)
    wanted[slots] = -100 - wanted[slots]
    assert torch.equal(buffer.chains, wanted)


def test_every_slot_is_as_likely() -> None:
    buffer, rounds, n, size = numbered(40), 2_000, 10, 40
    counts = torch.zeros(size)
    for k in range(rounds):
        counts[buffer.start(n, sf.key(k), POINTS)[:, 0].long()] += 1
    # Chi-square: binomial counts of chance p = 1/4, with size - 1 degrees of freedom.
    p = n / size
    statistic = float(((counts - rounds * p).square() / (rounds * p * (1 - p))).sum())
    degrees = (size - 1) * 1.0
    assert abs(statistic - degrees) < 4 * math.sqrt(2 * degrees)


def test_fresh_share() -> None:
    buffer = numbered(1_000, fresh_share=0.3)
    fresh = 0
    for k in range(20):
        z = buffer.start(1_000, sf.key(k), POINTS)
        is_fresh = z[:, 0] != z[:, 1]  # the slots' states have two equal coordinates
        fresh += int(is_fresh.sum())
        assert (z[is_fresh].abs() < 7).all()
    # Binomial with n = 2e4.
    assert abs(fresh / 2e4 - 0.3) < 4 * math.sqrt(0.3 * 0.7 / 2e4)


@pytest.mark.parametrize(("share", "fresh"), [(0.0, 0), (1.0, 100)])
def test_fresh_share_at_its_ends(share: float, fresh: int) -> None:
    z = numbered(200, share).start(100, sf.key(0), POINTS)
    assert int((z[:, 0] != z[:, 1]).sum()) == fresh


def test_fresh_chains_are_kept() -> None:
    buffer = numbered(10, fresh_share=1.0)
    z = buffer.start(10, sf.key(0), POINTS)
    buffer.update(z)
    assert torch.equal(buffer.chains.sort(0).values, z.sort(0).values)


def test_fill_slots_and_fresh_starts_use_different_noise() -> None:
    buffer = ReplayBuffer(6, fresh_share=0.5)
    z = buffer.start(6, sf.key(0), POINTS)
    new = z[~torch.isin(z, buffer.chains).all(1)]
    assert 0 < len(new) < 6
    everything = torch.cat([buffer.chains, new]).flatten()
    assert len(everything.unique()) == len(everything)


def test_the_choice_of_slots_says_nothing_of_the_states_in_them() -> None:
    z = ReplayBuffer(2_000, fresh_share=0.0).start(100, sf.key(0), torch.zeros(1, 1))
    # 100 standard normals.
    assert abs(z.mean()) < 4 / math.sqrt(100)
    assert abs(z.std() - 1) < 4 / math.sqrt(200)


def test_buffer_goes_on_from_its_state() -> None:
    one = ReplayBuffer(30, fresh_share=0.2)
    one.update(one.start(10, sf.key(0), POINTS) + 1)
    two = ReplayBuffer(30, fresh_share=0.2)
    two.load_state_dict(one.state_dict())
    for k in (1, 2):
        a, b = one.start(10, sf.key(k), POINTS), two.start(10, sf.key(k), POINTS)
        assert torch.equal(a, b)
        one.update(a + 1)
        two.update(b + 1)
    assert torch.equal(one.chains, two.chains)


def test_buffer_keeps_no_graph() -> None:
    buffer = numbered(10)
    z: Tensor = buffer.start(4, sf.key(0), POINTS) * torch.ones((), requires_grad=True)
    buffer.update(z)
    assert not buffer.chains.requires_grad


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NoiseStart(0.0), "scale must be positive and finite, got 0.0"),
        (lambda: NoiseStart(math.nan), "scale must be positive"),
        (lambda: NoiseStart(1.0, "cauchy"), "distribution must be .*got 'cauchy'"),
        (lambda: ReplayBuffer(0), "size must be 1 or more, got 0"),
        (lambda: ReplayBuffer(5, fresh_share=1.5), r"fresh_share must be in \[0, 1\], got 1.5"),
        (lambda: ReplayBuffer(5, fresh_share=math.nan), "fresh_share must be"),
        (lambda: ReplayBuffer(5).start(6, sf.key(0), POINTS), "at most the buffer's size 5, got 6"),
        (lambda: ReplayBuffer(5).update(torch.zeros(2, 2)), "must come after start"),
        (lambda: numbered(5).load_state_dict({"chains": POINTS}), "holds 1 chains, this buffer 5"),
        (lambda: NoiseStart().load_state_dict({"chains": POINTS}), r"has no state.*chains"),
    ],
)
def test_bad_input(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_update_wants_as_many_chains_as_were_started() -> None:
    buffer = numbered(5)
    buffer.start(3, sf.key(0), POINTS)
    for shape in ((2, 2), (1, 2), (3, 1)):
        with pytest.raises(ValueError, match=r"chains of the last start ended, shape \[3, 2\]"):
            buffer.update(torch.zeros(shape))
    assert torch.equal(buffer.chains, numbered(5).chains)
