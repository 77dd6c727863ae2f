"""The noise: Philox known answers, which word goes where, accuracy at the corners, statistics."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from conftest import (
    AVAILABLE,
    DTYPES,
    FAST,
    HALVES,
    INTERPRETER,
    Backend,
    parts,
    philox,
    radius_and_normal,
    threads,
    words,
)
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import stanley_fast as sf

# Salmon et al. 2011 (Random123's kat_vectors), and blocks of seeds: key, counter, output.
KNOWN = [
    ("0 0", "0 0 0 0", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff", "ffffffff " * 4, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    (
        "a4093822 299f31d0",
        "243f6a88 85a308d3 13198a2e 03707344",
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
    ("2a 0", "0 0 0 0", "9ceaf053 77f5493b 12bf50ad 5742b3d7"),
    ("2a 0", "1 0 0 0", "fcdb2127 53ba6cfd 838f5a6e 744e06fb"),
    ("9abcdef0 12345678", "2 1 0 0", "d75cfe3e f25b6e4b fd77eff2 8471bd47"),
]
# A block of seed 42 that holds the word in the lane: found by a scan of all blocks below 2^32.
# Lanes 0 and 2 make a radius (0 is the longest, ffffffff the shortest, ..80 and ..81 round to
# float32 differently), lanes 1 and 3 an angle (on the axes and at the jump from pi to -pi).
CORNERS = [
    (423892995, 2, 0x00000000), (2255507281, 0, 0x00000001), (4173330143, 2, 0xFFFFFFFF),
    (3473521661, 2, 0xFFFFFF80), (1880069070, 2, 0xFFFFFF7F), (4265106319, 2, 0xFFFFFE81),
    (4141024562, 0, 0xFFFFFE7F), (2998113317, 0, 0xFFFFFD80), (1568543990, 3, 0x00000000),
    (2226867172, 1, 0x20000000), (1710472528, 1, 0x3FFFFFFF), (428513056, 3, 0x40000000),
    (3521618349, 1, 0x7FFFFFFF), (401839163, 3, 0x80000000), (2016002291, 3, 0xC0000000),
    (1011452389, 1, 0xFFFFFFFF), (4119691420, 3, 0xFFFFFFFF),
]  # fmt: skip
MILLION = 10**6
# Offsets and elements where a 32-bit or a signed 64-bit counter would go wrong.
EDGES = [0, 1, 2**32 - 2, 2**32 - 1, 2**32, 2**63 - 2, 2**63 - 1, 2**63, 2**64 - 2, 2**64 - 1]


def key_of(seed: int, offset: int, device: str = "cpu") -> Tensor:
    """The key of any 64-bit seed and block offset."""
    signed = [x - 2**64 if x >= 2**63 else x for x in (seed, offset)]
    return torch.tensor(signed, dtype=torch.int64, device=device)


def words_of(normals: Tensor) -> Tensor:
    """The Philox words behind whole blocks of float64 normals: Box-Muller undone.

    u(w0) = exp(-r^2 / 2) and the angle are good to 1e-14, and a word is 2e-10 wide.
    """
    n = normals.double().cpu().view(-1, 2)
    u0 = torch.exp(-n.square().sum(1) / 2)
    u1 = torch.atan2(n[:, 1], n[:, 0]) / (2 * math.pi) % 1.0
    return torch.stack([u0, u1], dim=1).mul(2.0**32).sub(0.5).round().long()


# Philox ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("key", "counter", "output"), KNOWN)
def test_known_answers(key: str, counter: str, output: str) -> None:
    k0, k1 = (int(x, 16) for x in key.split())
    c = [int(x, 16) for x in counter.split()]
    w = sf.reference.philox(key_of(k0 | k1 << 32, 0), key_of(c[0] | c[1] << 32, 0)[:1], c[2], c[3])
    assert [f"{x:08x}" for x in w[0].tolist()] == output.split()
    oracle = philox(np.array([c], dtype=np.uint64), k0, k1)  # the tests' own, used below
    assert [f"{x:08x}" for x in oracle[0]] == output.split()


@pytest.mark.parametrize(("key", "counter", "output"), [k for k in KNOWN if k[1].endswith("0 0")])
def test_known_words_reach_normal(
    each_backend: Backend, key: str, counter: str, output: str
) -> None:
    """Key words, block words and lanes all sit where docs/architecture.md puts them."""
    k0, k1 = (int(x, 16) for x in key.split())
    low, high = (int(x, 16) for x in counter.split()[:2])
    at = key_of(k0 | k1 << 32, low | high << 32, each_backend.device)
    n = sf.normal((4,), at, dtype=torch.float64)
    assert [f"{x:08x}" for x in words_of(n).flatten().tolist()] == output.split()


def test_words_bit_for_bit(each_backend: Backend) -> None:
    """All 10^6 words of a draw, recovered from the float64 normals, stream 3 and step 5."""
    at = key_of(2**63 + 12345, 2**32 - 1000, each_backend.device)
    n = sf.normal((MILLION,), at, 5, stream=3, dtype=torch.float64)
    want = words(MILLION, 2**63 + 12345, 2**32 - 1000, step=5, stream=3)[::2]
    assert np.array_equal(words_of(n).numpy(), want.astype(np.int64))


# Box-Muller --------------------------------------------------------------------------------------


def assert_normals_exact(got: Tensor, w: np.ndarray, first: int = 0) -> None:
    """Relative to the radius, what float32 owes: a log to 2 ulp, halved by the root (1.2e-7), sine
    and cosine to 1.2e-7 and three roundings (1.8e-7). A hardware log near u = 1 is far off."""
    r, want = radius_and_normal(w, first, got.dtype)
    tol = 4e-7 if got.dtype == torch.float32 else 2e-15
    assert got.isfinite().all()
    excess = np.abs(got.double().cpu().numpy() - want) - tol * r
    assert excess.max(initial=0.0) <= 0, f"off by {excess.max()} beyond {tol} of the radius"


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_normal_is_accurate(each_backend: Backend, dtype: torch.dtype) -> None:
    n = sf.normal((MILLION,), key_of(7, 0, each_backend.device), dtype=dtype)
    assert_normals_exact(n, words(MILLION, 7))


@pytest.mark.parametrize("dtype", HALVES)
def test_halves_are_float32_s_normals_rounded_once(
    each_backend: Backend, dtype: torch.dtype
) -> None:
    key = key_of(7, 2**32 - 1000, each_backend.device)
    where = {"stream": 2, "first": 5, "total": MILLION + 9}
    half = sf.normal((MILLION,), key, 3, dtype=dtype, **where)
    assert half.dtype == dtype
    assert torch.equal(half, sf.normal((MILLION,), key, 3, **where).to(dtype))


def test_backends_agree_in_float32() -> None:
    """Within 4 ulp of the radius: the float32 uniforms are the same, to the last bit."""
    drawn = {}
    for name, device in AVAILABLE:
        with sf.use_backend(name):
            drawn[name] = sf.normal((MILLION,), key_of(3, 2**33 - 1000, device), 2).cpu().double()
    w = words(MILLION, 3, 2**33 - 1000, step=2)
    bound = torch.from_numpy(radius_and_normal(w, dtype=torch.float32)[0]) * 2.0**-21
    for one, two in itertools.combinations(drawn, 2):
        assert ((drawn[one] - drawn[two]).abs() <= bound).all(), f"{one} and {two}"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("corner", CORNERS, ids=lambda c: f"w{c[1]}={c[2]:08x}")
def test_corner_words(
    each_backend: Backend, dtype: torch.dtype, corner: tuple[int, int, int]
) -> None:
    block, lane, word = corner
    assert words(4, 42, block)[lane, lane % 2] == word
    # 16 blocks around it, so that vector code meets it too, and the block alone for the tail.
    for before, n in ((8, 64), (0, 4)):
        got = sf.normal((n,), key_of(42, block - before, each_backend.device), dtype=dtype)
        assert_normals_exact(got, words(n, 42, block - before))


def test_longest_normal(each_backend: Backend) -> None:
    """Word 0 gives r = sqrt(-2 ln 2^-33) = 6.76: no tail is cut."""
    pair = sf.normal((4,), key_of(42, 423892995, each_backend.device))[2:]
    assert float(pair.norm()) == pytest.approx(math.sqrt(66 * math.log(2)), rel=1e-6)


# Which element gets which word -------------------------------------------------------------------


@given(
    n=st.integers(0, 90),
    first=st.one_of(st.integers(0, 50), st.sampled_from([2**31 - 1, 2**34 - 3, 2**40])),
    rest=st.integers(0, 50),
    step=st.sampled_from([0, 1, 3, 2**20 + 1]),
    stream=st.sampled_from([0, 1, 2, 3, 2**32 - 1]),
    seed=st.sampled_from(EDGES),
    offset=st.sampled_from(EDGES),
    dtype=st.sampled_from(DTYPES),
)
def test_layout(
    each_backend: Backend,
    n: int,
    first: int,
    rest: int,
    step: int,
    stream: int,
    seed: int,
    offset: int,
    dtype: torch.dtype,
) -> None:
    """Step s, element i: lane i mod 4 of block offset + s ceil(N / 4) + i div 4 modulo 2^64."""
    total = first + n + rest
    where = {"step": step, "stream": stream, "first": first, "total": total}
    got = sf.normal((n,), key_of(seed, offset, each_backend.device), dtype=dtype, **where)
    assert_normals_exact(got, words(n, seed, offset, **where), first)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("edge", [2**32, 2**33, 2**63, 2**64])
def test_block_counter_carries(each_backend: Backend, edge: int, dtype: torch.dtype) -> None:
    """In the middle of a vector and at its start, from the low counter word into the high one."""
    for before in (1, 2, 3, 31, 32) if each_backend == INTERPRETER else range(1, 40):
        key = key_of(13, edge - before, each_backend.device)
        got = sf.normal((230,), key, dtype=dtype)
        assert_normals_exact(got, words(230, 13, edge - before))


def test_step_beyond_32_bits(each_backend: Backend) -> None:
    got = sf.normal((9,), sf.key(1, each_backend.device), 2**40 + 1, dtype=torch.float64)
    assert_normals_exact(got, words(9, 1, step=2**40 + 1))


@pytest.mark.parametrize("dtype", DTYPES + HALVES)
def test_any_part_is_the_whole_bit_for_bit(each_backend: Backend, dtype: torch.dtype) -> None:
    """Every length up to some vectors and every start: no tail or head differs by a rounding."""
    key = key_of(5, 2**32 - 20, each_backend.device)
    whole = sf.normal((400,), key, 2, dtype=dtype)
    for n, first in parts(each_backend):
        part = sf.normal((n,), key, 2, dtype=dtype, first=first, total=400)
        assert torch.equal(part, whole[first : first + n]), f"{n} elements from {first}"


def test_shape_dtype_device(each_backend: Backend) -> None:
    key = sf.key(0, each_backend.device)
    flat = sf.normal((6,), key)
    assert flat.dtype == torch.float32
    assert flat.device == key.device
    for shape in ((2, 3), [3, 2], torch.Size([1, 6, 1])):
        noise = sf.normal(shape, key)
        assert noise.shape == tuple(shape)
        assert noise.is_contiguous()
        assert torch.equal(noise.flatten(), flat)
    assert torch.equal(sf.normal((), key), flat[0])
    assert sf.normal((0, 3), key).shape == (0, 3)
    assert key.tolist() == [0, 0]


def test_key_of_any_strides(each_backend: Backend) -> None:
    row = key_of(3, 5, each_backend.device)
    column = torch.stack([row, row + 100], dim=1)[:, 0]
    assert column.stride() == (2,)
    assert torch.equal(sf.normal((9,), column), sf.normal((9,), row))


def test_normal_into_any_strides(compiled: None) -> None:
    """torch.ops' form fills the tensor it is given in row-major logical order."""
    key = sf.key(0)
    want = sf.normal((5, 6, 7), key, 1, stream=2)
    space = torch.zeros(5, 7, 12)
    out = space.transpose(1, 2)[:, ::2]
    torch.ops.stanley_fast.normal_(out, key, 1, 2, 0, None)
    assert torch.equal(out, want)
    assert (space[:, :, 1::2] == 0).all()  # nothing beside it was written


@pytest.mark.parametrize("dtype", DTYPES + HALVES)
def test_threads_do_not_matter(compiled: None, dtype: torch.dtype) -> None:
    key = sf.key(11)
    with threads(1):
        one = sf.normal((MILLION + 3,), key, dtype=dtype)
    with threads(2):
        assert torch.equal(sf.normal((MILLION + 3,), key, dtype=dtype), one)


# Statistics. Seeds are fixed; every bound is 5 standard deviations or rarer than 1 in 10^5 --------

N = 10**7


@pytest.fixture(
    scope="module",
    params=[b for b in FAST if b != INTERPRETER] or AVAILABLE[-1:],
    ids=lambda b: b.name,
)
def noise(request: pytest.FixtureRequest) -> Tensor:
    """10^7 float32 normals. The slow backends draw the same ones: no statistics of their own."""
    with sf.use_backend(request.param.name):
        return sf.normal((N,), sf.key(2024, request.param.device)).cpu()


# E x^k and Var x^k = E x^2k - (E x^k)^2 of a standard normal.
@pytest.mark.parametrize(
    ("power", "mean", "variance"), [(1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96), (6, 15, 10170)]
)
def test_moments(noise: Tensor, power: int, mean: float, variance: float) -> None:
    assert abs(noise.double().pow(power).mean() - mean) <= 5 * math.sqrt(variance / N)


def test_kolmogorov_smirnov(noise: Tensor) -> None:
    cdf = torch.special.ndtr(noise.sort().values.double())
    grid = torch.arange(N + 1, dtype=torch.float64) / N
    distance = max((grid[1:] - cdf).max(), (cdf - grid[:-1]).max())
    assert math.sqrt(N) * distance <= 2.6  # exceeded with probability 2 exp(-2 * 2.6^2) = 3e-6


@pytest.mark.parametrize("sigma", [1, 2, 3, 4, 5])
def test_tails(noise: Tensor, sigma: int) -> None:
    """The counts beyond each sigma are binomial; at 5 about 3 a side are expected."""
    p = 0.5 * math.erfc(sigma / math.sqrt(2))
    for count in (int((noise > sigma).sum()), int((noise < -sigma).sum())):
        assert abs(count - N * p) <= 5 * math.sqrt(N * p) + 3  # + 3: a Poisson's skewness
    assert (noise.abs() > sigma).any()  # none beyond 5 on either side has probability exp(-5.7)


def test_extremes(noise: Tensor) -> None:
    """None of 10^7 beyond 4.8 on one side has probability exp(-7.9); beyond 6.77 there is no u."""
    assert 4.8 < noise.max() < 6.8
    assert -6.8 < noise.min() < -4.8


def test_lanes_and_neighbours_uncorrelated(noise: Tensor) -> None:
    """Values and squares of the four lanes; values and squares at distances 1 to 9."""
    blocks = noise.double().view(-1, 4).T
    both = torch.corrcoef(torch.cat([blocks, blocks.square()]))
    for i, j in itertools.combinations(range(8), 2):
        if i % 4 != j % 4:  # a lane and its own square are dependent
            assert abs(both[i, j]) <= 5 / math.sqrt(N / 4), f"rows {i} and {j}"
    for x in (noise, (noise.square() - 1) / math.sqrt(2)):
        for lag in range(1, 10):
            assert abs((x[lag:] * x[:-lag]).double().mean()) <= 5 / math.sqrt(N - lag), f"lag {lag}"


def test_streams_splits_seeds_and_steps_are_independent(each_backend: Backend) -> None:
    n = 100_000
    key = sf.key(5, each_backend.device)
    children = sf.split(key, 3)
    sources = [(key, 0, s) for s in range(4)] + [(key, 1, 0), (key, 2, 0)]
    sources += [(k, 0, 0) for k in (*children, *sf.split(children[0], 2))]
    sources += [(sf.key(6, each_backend.device), 0, 0), (children[1], 0, 2)]
    rows = [sf.normal((n,), k, t, stream=s, dtype=torch.float64).cpu() for k, t, s in sources]
    drawn = torch.stack(rows)
    assert drawn.unique().numel() == drawn.numel()  # no two overlap, at any shift
    # 2 * 78 pairs: the largest of so many |N(0, 1)| exceeds 5.5 with probability 6e-6.
    for x in (drawn, drawn.square()):
        off_diagonal = torch.corrcoef(x) - torch.eye(len(x), dtype=x.dtype)
        assert off_diagonal.abs().max() <= 5.5 / math.sqrt(n)
