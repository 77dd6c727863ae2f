"""Keys: where they come from, how they split and how they advance."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from conftest import Backend, philox
from hypothesis import given
from hypothesis import strategies as st

import stanley_fast as sf

# From a seed -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seed", "stored"),
    [(0, 0), (42, 42), (-1, -1), (2**63 - 1, 2**63 - 1), (2**63, -(2**63)), (2**64 - 1, -1)],
)
def test_key_of_a_seed(seed: int, stored: int) -> None:
    key = sf.key(seed)
    assert key.dtype == torch.int64
    assert key.device.type == "cpu"
    assert key.tolist() == [stored, 0]


@pytest.mark.parametrize("seed", [2**64, -(2**63) - 1])
def test_seed_out_of_range(seed: int) -> None:
    with pytest.raises(ValueError, match=f"seed .*{seed}"):
        sf.key(seed)


@pytest.mark.parametrize("seed", [1.0, "1", True, torch.tensor(1)])
def test_seed_of_the_wrong_type(seed: object) -> None:
    with pytest.raises(TypeError, match="seed"):
        sf.key(seed)  # type: ignore[arg-type]


def test_key_on_a_device() -> None:
    assert sf.key(0, device="meta").device.type == "meta"
    assert sf.key(torch.Generator(), device="meta").device.type == "meta"


# From a generator --------------------------------------------------------------------------------


def test_generator_decides_and_is_asked_once() -> None:
    a, b = (torch.Generator().manual_seed(7) for _ in range(2))
    first, second = sf.key(a), sf.key(a)
    assert torch.equal(first, sf.key(b))
    assert not torch.equal(first, second)
    assert first[1] == second[1] == 0
    torch.randint(-(2**63), 2**63 - 1, (1,), generator=b)
    assert torch.equal(a.get_state(), b.get_state())  # one draw of one 64-bit number a key


def test_none_asks_the_default_generator() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        first, second = sf.key(), sf.key()
        torch.manual_seed(3)
        assert torch.equal(sf.key(), first)
        assert not torch.equal(first, second)


def test_generator_gives_all_64_bits() -> None:
    generator = torch.Generator().manual_seed(0)
    seeds = torch.stack([sf.key(generator)[0] for _ in range(64)])
    ones = (seeds[:, None] >> torch.arange(64) & 1).sum(0)
    assert ones.min() > 0
    assert ones.max() < 64


# Split -------------------------------------------------------------------------------------------


def test_split_shape_and_keys_that_stay() -> None:
    key = torch.tensor([42, 17])
    children = sf.split(key, 5)
    assert children.dtype == torch.int64
    assert children.shape == (5, 2)
    assert key.tolist() == [42, 17]
    assert sf.split(key, 0).shape == (0, 2)
    assert torch.equal(sf.split(key, 3), children[:3])
    for child in children:
        assert sf.normal((3,), child).shape == (3,)  # a row is a key


def test_split_does_not_collide() -> None:
    """Children of children, of neighbouring seeds, and of one key before and after it advanced."""
    parents = [sf.key(0), sf.key(1), *sf.split(sf.key(0), 3), *sf.split(sf.key(1), 3)]
    parents += [sf.advance_(sf.key(0), blocks) for blocks in (1, 2, 3, 4, 2**32)]
    seeds = torch.cat([sf.split(parent, 50)[:, 0] for parent in parents])
    assert seeds.unique().numel() == len(parents) * 50


def test_split_never_changes() -> None:
    """Runs must reproduce with later versions: the seeds are words at counters with c3 = 1."""
    counter = np.array([[0, 0, 0, 1]], dtype=np.uint64)
    w = philox(counter, 42, 0)[0]
    assert int(sf.split(sf.key(42), 1)[0, 0]) % 2**64 == int(w[0]) | int(w[1]) << 32


@pytest.mark.parametrize("n", [-1, -5])
def test_split_into_a_negative_number(n: int) -> None:
    with pytest.raises(ValueError, match=f"n must .*{n}"):
        sf.split(sf.key(0), n)


# Advance -----------------------------------------------------------------------------------------


def test_advance_in_place() -> None:
    key = sf.key(9)
    assert sf.advance_(key, 5) is key
    sf.advance_(key, torch.tensor(2))
    sf.advance_(key, torch.tensor([3], dtype=torch.int32))
    sf.advance_(key, 0)
    assert key.tolist() == [9, 10]


def test_advance_wraps() -> None:
    key = torch.tensor([1, 2**63 - 1])
    assert sf.advance_(key, 1).tolist() == [1, -(2**63)]


@given(
    n=st.integers(0, 40),
    step=st.integers(0, 1000),
    more=st.integers(0, 5),
    offset=st.sampled_from([0, 2**32 - 5, 2**62]),
)
def test_advance_is_a_later_step(
    each_backend: Backend, n: int, step: int, more: int, offset: int
) -> None:
    """`step` steps of N elements use step * ceil(N / 4) blocks, no more and no fewer."""
    key = torch.tensor([4, offset], device=each_backend.device)
    ahead = sf.advance_(key.clone(), step * -(-n // 4))
    assert torch.equal(sf.normal((n,), ahead, more), sf.normal((n,), key, step + more))


def test_steps_share_no_block(each_backend: Backend) -> None:
    """5 elements use two blocks a step; a third of the lanes is skipped, none is used twice."""
    key = sf.key(8, each_backend.device)
    steps = [sf.normal((5,), key, k, dtype=torch.float64) for k in range(3)]
    flat = sf.normal((24,), key, dtype=torch.float64)
    for k, noise in enumerate(steps):
        assert torch.equal(noise, flat[8 * k : 8 * k + 5])


def test_advance_backwards() -> None:
    key = sf.key(0)
    with pytest.raises(ValueError, match=r"blocks .*-1"):
        sf.advance_(key, -1)
    assert key.tolist() == [0, 0]


# Keys that are no keys ---------------------------------------------------------------------------

NOT_KEYS = [
    torch.zeros(2),
    torch.zeros(2, dtype=torch.int32),
    torch.zeros(3, dtype=torch.int64),
    torch.zeros(1, 2, dtype=torch.int64),
    torch.tensor(0),
]


@pytest.mark.parametrize(
    ("key", "use"),
    list(itertools.product(NOT_KEYS, [lambda k: sf.split(k, 2), lambda k: sf.advance_(k, 1)])),
)
def test_not_a_key(key: torch.Tensor, use) -> None:  # type: ignore[no-untyped-def]
    before = key.clone()
    with pytest.raises(RuntimeError, match="key must be an int64 tensor of shape"):
        use(key)
    assert torch.equal(key, before)


@pytest.mark.parametrize("key", [42, [42, 0], None])
def test_key_that_is_no_tensor(key: object) -> None:
    for use in (lambda k: sf.split(k, 2), lambda k: sf.advance_(k, 1)):
        with pytest.raises((RuntimeError, TypeError), match="key"):
            use(key)
