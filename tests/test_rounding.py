"""Stochastic rounding of bfloat16 states: right on average, by the same words on every backend."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from conftest import (
    AVAILABLE,
    HYPER,
    INTERPRETER,
    LAYOUTS,
    UPDATES,
    Backend,
    parts,
    random,
    state,
    threads,
    words,
)
from torch import Tensor

import stanley_fast as sf
from stanley_fast import direct

BF16 = torch.bfloat16
CLAMP = (-0.4, 0.9)
STOCHASTIC: dict[str, Any] = {"rounding": "stochastic"}
SIGMAS = 5


def bits(x: Tensor) -> Tensor:
    """Which also tells zeros apart. NaNs are made one."""
    one = torch.where(x.isnan(), torch.full_like(x, math.nan), x)
    return one.cpu().view(torch.int16 if x.dtype == BF16 else torch.int32)


def assert_same(got: Tensor, want: Tensor) -> None:
    assert got.dtype == want.dtype
    assert torch.equal(bits(got), bits(want))


def element_words(n: int, step: int = 0, first: int = 0, total: int | None = None) -> np.ndarray:
    """Key 77's word of each element in stream 3, from no code of the package."""
    pairs = words(n, 77, step=step, stream=3, first=first, total=total)
    return pairs[np.arange(n), (first + np.arange(n)) % 2].astype(np.uint32)


def rounded(x: Tensor, word: np.ndarray) -> Tensor:
    """float32 x as bfloat16, by the bits."""
    upper = (x.cpu().numpy().reshape(-1).view(np.uint32) + (word & 0xFFFF)) >> np.uint32(16)
    new = torch.from_numpy(upper.astype(np.uint16)).view(BF16).view(x.shape)
    return torch.where(x.cpu().isnan(), torch.full_like(new, math.nan), new)


def settle(x: Tensor, step: int = 0, **rest: Any) -> Tensor:
    """A step whose z' is the finite float32 x before it is rounded: 0 + x (1 + 0)."""
    zero = torch.zeros_like(x, dtype=BF16)
    key, given = sf.key(77, x.device), {"noise_scale": 0.0, "update": "script", **STOCHASTIC}
    return sf.langevin_step(zero, zero + 1, x, key, step, **given, **rest)


def any_finite(n: int, device: str) -> Tensor:
    """float32 of every exponent and sign, subnormal ones too."""
    generator = torch.Generator().manual_seed(n)
    x = torch.randint(-(2**31), 2**31, (n,), generator=generator, dtype=torch.int64)
    x = x.to(torch.int32).view(torch.float32)
    return torch.where(x.isfinite(), x, 1.1).to(device)


# The rounding, where z' is known ------------------------------------------------------------------


def test_words_and_bits(each_backend: Backend) -> None:
    for n, first in parts(each_backend):
        x, where = any_finite(n, each_backend.device), {"first": first, "total": n + first + 9}
        assert_same(settle(x, 3, **where), rounded(x, element_words(n, 3, **where)))


@pytest.mark.parametrize("n", [0, 1, 20_001, 300_001])
def test_sizes(each_backend: Backend, n: int) -> None:
    x = any_finite(n, each_backend.device)
    assert_same(settle(x), rounded(x, element_words(n)))


def test_what_bfloat16_has_stays(each_backend: Backend) -> None:
    """Every value: zeros with their signs, subnormal numbers, infinities, and NaN."""
    x = torch.arange(2**16, device=each_backend.device).to(torch.int16).view(BF16)
    key = sf.key(0, x.device)
    for z in (x, x.roll(1)):  # by another word
        moved = sf.langevin_step(z, 0 * z.sign(), 1.0, key, noise_scale=0.0, **STOCHASTIC)
        nonzero = z != 0  # z + 0 is 0 also for z = -0
        assert_same(moved[nonzero], z[nonzero])
        assert (moved[~nonzero] == 0).all()


EXAMPLES = [1.0 + 2**-8, -1.0 - 2**-23, 3.14159, -1e-3, 1.9999, 1e-40, -1.1754942e-38, 3.38e38]


@pytest.mark.parametrize("x", EXAMPLES)
def test_each_of_the_16_bits_counts(x: float) -> None:
    """Over all words the mean is x, exactly."""
    word = torch.arange(2**16) + 0x7FF0000
    full = torch.full((2**16,), x)
    got = sf.reference.round_stochastically(full, word)
    assert_same(got, got.to(BF16).float())
    assert got.double().mean() == full[0].double()
    assert len(got.unique()) == 2
    host = pytest.importorskip("stanley_fast._host")
    from_headers = host.round_stochastically(full.numpy(), word.numpy().astype(np.uint32))
    assert_same(torch.from_numpy(from_headers), got)


@pytest.mark.parametrize("x", [*EXAMPLES, 1.0 + 2**-23, -2.0 + 2**-20])
def test_unbiased(each_backend: Backend, x: float) -> None:
    """The share of the upper neighbour is binomial."""
    n = 2**14 if each_backend == INTERPRETER else 2**17
    full = torch.full((n,), x, device=each_backend.device)
    lower = torch.tensor(x).view(torch.int32).bitwise_and(~0xFFFF).view(torch.float32)
    p = (torch.tensor(x).view(torch.int32) & 0xFFFF).item() / 2**16
    for step in range(2):
        up = (settle(full, step).float() != lower.to(full.device)).double().mean().item()
        assert abs(up - p) <= SIGMAS * math.sqrt(p * (1 - p) / n)


def test_steps_that_nearest_swallows_add_up(each_backend: Backend) -> None:
    """100 of 2^-12 from 1, whose upper neighbour is 2^-7 away, on both sides of 0."""
    n, steps = 2_000 if each_backend == INTERPRETER else 20_000, 100
    move, gap = 2.0**-12, 2.0**-7
    side = torch.ones(n, device=each_backend.device, dtype=BF16)
    side[::2] = -1
    key, grad = sf.key(5, side.device), 2 * move * side
    nearest = sf.stanley_step(side, grad, key, threshold=1.0, noise_scale=0.0)
    assert torch.equal(nearest, side)
    z = side.clone()
    for k in range(steps):
        sf.stanley_step_(z, grad, key, k, threshold=1.0, noise_scale=0.0, **STOCHASTIC)
    moved = (z.double() * side.double() - 1).view(-1, 2)
    p = move / gap  # of a step of one gap, whatever z is
    sd = gap * math.sqrt(steps * p * (1 - p))
    for mean in moved.mean(0).tolist():
        assert abs(mean - steps * move) <= SIGMAS * sd / math.sqrt(n / 2)
    assert abs(moved.std().item() / sd - 1) <= SIGMAS / math.sqrt(n)  # it is nearly normal


def test_beyond_the_largest(each_backend: Backend) -> None:
    """The upper neighbour of what lies between bfloat16's largest number and 2^128 is infinity."""
    most, n = torch.finfo(BF16).max, 2**12
    x = torch.full((n,), torch.finfo(torch.float32).max, device=each_backend.device)
    x[::2] = most + 2.0**118  # a quarter of the gap, 2^120
    got = settle(torch.cat([x, -x])).float().view(2, -1, 2)
    assert set(got.unique().tolist()) == {-math.inf, -most, most, math.inf}
    assert torch.equal(got[0].sign(), -got[1].sign())
    far = got.abs().isinf().double().mean(dim=(0, 1))
    assert abs(far[0] - 0.25) < SIGMAS * math.sqrt(3 / 16 / n)
    assert far[1] > 0.99


def test_within_the_clamp(each_backend: Backend) -> None:
    """Bounds that bfloat16 has are never left; of others it is their neighbours."""
    x = random((4000,), 3, each_backend, torch.float32)
    got = settle(x, clamp=(-0.5, 0.25))
    assert (got.min(), got.max()) == (-0.5, 0.25)
    assert ((got == 0.25) == (settle(x) >= 0.25))[x >= 0.25].all()
    got = settle(x, clamp=CLAMP)
    assert set(got[x > CLAMP[1]].tolist()) == {0.8984375, 0.90234375}
    assert set(got[x < CLAMP[0]].tolist()) == {-0.400390625, -0.3984375}


# The steps ---------------------------------------------------------------------------------------


def bf16_state(shape: tuple[int, ...], on: Backend) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    z, grad, key = state(shape, on, BF16)
    return z, grad, random(shape, 3, on, torch.float32).abs() + 0.1, key


Step = Callable[..., Tensor]


def step_of(kind: str, gamma: Tensor, key: Tensor, **rest: Any) -> Step:
    """step(z, grad, in_place=False, **more)."""
    given: Any = {"number": 0.14, "per row": gamma[:, :1], "per element": gamma}.get(kind)

    def step(z: Tensor, grad: Tensor, in_place: bool = False, **more: Any) -> Tensor:
        if kind == "stanley":
            move = sf.stanley_step_ if in_place else sf.stanley_step
            return move(z, grad, key, 3, **{**HYPER, **rest, **more})
        move_by = sf.langevin_step_ if in_place else sf.langevin_step
        return move_by(z, grad, given, key, 3, **{"noise_scale": 0.5, **rest, **more})

    return step


KINDS = ["stanley", "number", "per row", "per element"]


@pytest.mark.parametrize("clamp", [None, CLAMP])
@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("kind", KINDS)
def test_steps(
    each_backend: Backend, kind: str, update: str, clamp: tuple[float, float] | None
) -> None:
    """Bit for bit this backend's float32 step, rounded by the words of the same step and part."""
    n = 7000 if each_backend == INTERPRETER else 20_001
    z, grad, gamma, key = bf16_state((n // 3, 3), each_backend)
    where = {"first": 6, "total": 3 * n}
    step = step_of(kind, gamma, key, update=update, clamp=clamp, **where)
    got = step(z, grad, **STOCHASTIC)
    word = element_words(z.numel(), 3, **where)
    assert_same(got, rounded(step(z.float(), grad.float()), word))
    in_place = z.clone()
    assert step(in_place, grad, in_place=True, **STOCHASTIC) is in_place
    assert_same(in_place, got)
    assert not torch.equal(got, step(z, grad))


@pytest.mark.parametrize("kind", ["stanley", "per element"])
def test_agrees_with_the_reference(backend: Backend, kind: str) -> None:
    """Where float32 rounds to another z' the result may be the other neighbour."""
    z, grad, gamma, key = bf16_state((3000, 3), backend)
    step = step_of(kind, gamma, key)
    got = step(z, grad, **STOCHASTIC)
    with sf.use_backend("reference"):
        want = step(z, grad, **STOCHASTIC)
    apart = (got.double() - want.double()).abs()
    gap = torch.nextafter(want.abs(), torch.full_like(want, math.inf)) - want.abs()
    assert (apart <= gap.double()).all()
    assert (apart == 0).double().mean() > 0.999


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "negative"])
def test_strides(each_backend: Backend, layout: str) -> None:
    """The word goes with the logical index, and the result keeps z's strides."""
    z, grad, gamma, key = bf16_state((3, 4, 5, 7), each_backend)
    step = step_of("stanley", gamma, key, **STOCHASTIC)
    want = step(z, grad)
    view, slope = map(LAYOUTS[layout], (z, grad))
    got = step(view, slope)
    assert_same(got.contiguous(), want)
    assert got.stride() == torch.empty_like(view).stride()
    assert_same(step(view, slope, in_place=True).contiguous(), want)


def test_parts_make_the_whole(each_backend: Backend) -> None:
    z, grad, gamma, key = bf16_state((100, 1), each_backend)
    step = step_of("per element", gamma, key, **STOCHASTIC)
    whole = step(z, grad)
    for cut in (1, 2, 7, 50):
        ends = [(0, cut), (cut, 100)]
        found = [
            step_of("per element", gamma[a:b], key)(
                z[a:b], grad[a:b], first=a, total=100, **STOCHASTIC
            )
            for a, b in ends
        ]
        assert_same(torch.cat(found), whole)


def test_threads(compiled: None) -> None:
    on = Backend("cpp", "cpu")
    z, grad, gamma, key = bf16_state((100_003, 1), on)
    step = step_of("stanley", gamma, key, **STOCHASTIC)
    want = step(z, grad)
    for n in (1, 3):
        with threads(n):
            assert_same(step(z, grad), want)


@pytest.mark.parametrize("clamp", [None, CLAMP])
@pytest.mark.parametrize("kind", ["stanley", "per row"])
def test_derivatives_are_those_without_it(
    each_backend: Backend, kind: str, clamp: tuple[float, float] | None
) -> None:
    z, grad, gamma, key = bf16_state((200, 3), each_backend)
    coming, found = random((200, 3), 4, each_backend, BF16), []
    for rounding in ("nearest", "stochastic"):
        leaves = [x.clone().requires_grad_() for x in (z, grad, gamma)]
        step = step_of(kind, leaves[2], key, clamp=clamp, rounding=rounding)
        out = step(*leaves[:2])
        found.append(torch.autograd.grad(out, leaves[: 2 + (kind != "stanley")], coming))
    for stochastic, nearest in zip(*found, strict=True):
        assert torch.equal(stochastic, nearest)


def test_the_short_way(compiled: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small calls take it, with the same bits; torch.ops has the argument last."""
    taken, run = [], direct.step

    def spy(*args: Any) -> Tensor | None:
        moved = run(*args)
        taken.append(moved is not None)
        return moved

    monkeypatch.setattr(direct, "step", spy)
    on, ops = Backend("cpp", "cpu"), torch.ops.stanley_fast
    for n in (1, 5, 200, 16384):
        z, grad, gamma, key = bf16_state((n, 1), on)
        rest = (0.5, -math.inf, math.inf, False, 0, None, True)
        want = ops.stanley_step(z, grad, key, 3, 0.3, 0.7, *rest)
        step = step_of("stanley", gamma, key, **STOCHASTIC)
        assert_same(step(z, grad), want)
        assert_same(step(z.clone(), grad, in_place=True), want)
        want = ops.langevin_step(z, grad, gamma, key, 3, *rest)
        step = step_of("per element", gamma, key, **STOCHASTIC)
        assert_same(step(z, grad), want)
        assert_same(step(z.clone(), grad, in_place=True), want)
    assert taken == [True] * 16


# torch -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["stanley_step", "langevin_step"])
@pytest.mark.parametrize("form", ["", "_", "_backward"])
@pytest.mark.parametrize(
    "on", [b for b in AVAILABLE if b.name != "reference"], ids=lambda b: b.name
)
def test_opcheck(on: Backend, name: str, form: str) -> None:
    z, grad, gamma, key = bf16_state((3, 4), on)
    gammas = () if name == "stanley_step" else (gamma[:1],)
    scales = (0.3, 0.7) if name == "stanley_step" else ()
    rest = (*gammas, key, 3, *scales, 0.5, *CLAMP, False, 5, 500, True)
    args = (grad.exp(), z, grad, *rest) if form == "_backward" else (z, grad, *rest)
    library = torch.ops.stanley_fast_triton if on.name == "triton" else torch.ops.stanley_fast
    torch.library.opcheck(getattr(library, name + form).default, args)


def test_compiled_by_torch(compiled: None) -> None:
    torch._dynamo.reset()
    z, grad, _, key = bf16_state((50, 3), Backend("cpp", "cpu"))

    def chain(z: Tensor) -> Tensor:
        for k in range(3):
            z = sf.stanley_step(z, grad, key, k, **HYPER, **STOCHASTIC)
            sf.langevin_step_(z, grad, 0.1, key, k, **STOCHASTIC)
        return z

    run = torch.compile(chain, fullgraph=True, backend="aot_eager")
    assert_same(run(z), chain(z))


# Errors ------------------------------------------------------------------------------------------

ERRORS = [
    (torch.float32, "stochastic", "rounding must be 'nearest' for a torch.float32 z, got 'stoch"),
    (torch.float64, "stochastic", "rounding must be 'nearest' for a torch.float64 z"),
    (torch.float16, "stochastic", "rounding must be 'nearest' for a torch.float16 z"),
    (BF16, "up", "rounding must be 'nearest' or 'stochastic', got 'up'"),
    (BF16, None, "rounding must be 'nearest' or 'stochastic', got None"),
]


@pytest.mark.parametrize(("dtype", "rounding", "message"), ERRORS)
@pytest.mark.parametrize("n", [6, 20_000])
def test_errors(
    each_backend: Backend, n: int, dtype: torch.dtype, rounding: Any, message: str
) -> None:
    z, grad, key = state((n,), each_backend, dtype)
    before = z.clone()
    for in_place, leaf in itertools.product([False, True], [False, True]):
        stanley = sf.stanley_step_ if in_place else sf.stanley_step
        langevin = sf.langevin_step_ if in_place else sf.langevin_step
        given = z if in_place or not leaf else z.clone().requires_grad_()
        with pytest.raises(RuntimeError, match=message):
            stanley(given, grad, key, threshold=0.3, rounding=rounding)
        with pytest.raises(RuntimeError, match=message):
            langevin(given, grad, 0.1, key, rounding=rounding)
    assert torch.equal(z, before)
    assert z._version == 0


def test_errors_of_the_host() -> None:
    host = pytest.importorskip("stanley_fast._host")
    x, word = np.ones(3, np.float32), np.ones(3, np.uint32)
    with pytest.raises(ValueError, match=r"x must be float32, got float64 \(3,\)"):
        host.round_stochastically(x.astype(float), word)
    with pytest.raises(ValueError, match=r"words must be uint32 .* got uint32 \(2,\)"):
        host.round_stochastically(x, word[:2])
    with pytest.raises(ValueError, match=r"words must be uint32 .* got int32"):
        host.round_stochastically(x, word.astype(np.int32))


# Samplers ----------------------------------------------------------------------------------------


def gaussian(z: Tensor) -> Tensor:
    return -z.square().sum(1) / 2


SAMPLERS = [
    sf.Stanley(0.3, 0.1, 0.5, **STOCHASTIC),
    sf.Stanley(0.3, 0.1, 0.5, norm="sample", clamp=(-1, 1), **STOCHASTIC),
    sf.Stanley(0.3, 0.1, 0.5, stepsize="frozen", **STOCHASTIC),
    sf.Langevin(0.1, 0.5, **STOCHASTIC),
    sf.GradientAscent(0.1, grad_clamp=0.5, **STOCHASTIC),
]


@pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)
def test_sample(each_backend: Backend, sampler: Any) -> None:
    """bfloat16 chains by the loop that the sampler stands for; float32 ones are refused."""
    z0, key = random((40, 3), 1, each_backend, BF16), sf.key(2, each_backend.device)
    out = sf.sample(gaussian, z0, sampler, 5, key=key)
    assert out.z.dtype == BF16
    z = z0.clone()
    frozen = None
    for k in range(5):
        grad = torch.autograd.grad(gaussian(z.requires_grad_()).sum(), z)[0]
        z = z.detach()
        rest: dict[str, Any] = {"noise_scale": sampler.noise_scale, "clamp": sampler.clamp}
        if isinstance(sampler, sf.Langevin):
            slope = grad.clamp(-0.5, 0.5) if sampler.grad_clamp else grad
            z = sf.langevin_step(z, slope, 0.1, key, k, **rest, **STOCHASTIC)
            continue
        size = grad.float().norm(dim=1, keepdim=True) if sampler.norm == "sample" else grad
        gamma = sf.stepsize(size, threshold=0.3, step_size=0.1)
        frozen = gamma if frozen is None else frozen
        if sampler.stepsize == "frozen":
            gamma = frozen
        if sampler.stepsize == "adaptive" and sampler.norm == "element":
            scale = {"threshold": 0.3, "step_size": 0.1}
            z = sf.stanley_step(z, grad, key, k, **scale, **rest, **STOCHASTIC)
        else:
            z = sf.langevin_step(z, grad, gamma, key, k, **rest, **STOCHASTIC)
    assert_same(out.z, z)
    with pytest.raises(RuntimeError, match=r"rounding must be 'nearest' for a torch\.float32 z"):
        sf.sample(gaussian, z0.float(), sampler, 5, key=key)


def test_a_net_s_chain_is_refused_too() -> None:
    """Which would run in one kernel that knows no rounding."""
    with pytest.raises(RuntimeError, match=r"rounding must be 'nearest' for a torch\.float32 z"):
        sf.sample(sf.MLPEnergy(), torch.zeros(9, 2), SAMPLERS[0], 5)


def test_settings() -> None:
    for make in (sf.Stanley, sf.Langevin, sf.GradientAscent):
        with pytest.raises(ValueError, match="rounding must be one of 'nearest', 'stochastic'"):
            make(0.1, rounding="up")
    with pytest.raises(ValueError, match="rounding must be 'nearest' with adjusted=True"):
        sf.Stanley(0.1, adjusted=True, **STOCHASTIC)


def test_a_climb_that_nearest_stops() -> None:
    """A chain's mean follows exp(-step_size k / 2) to where its steps are below half a gap."""
    z0, steps, rate = torch.ones(2000, 2, dtype=BF16), 200, 2.0**-9
    key = sf.key(1)
    stuck = sf.sample(gaussian, z0, sf.GradientAscent(2 * rate), steps, key=key).z
    assert torch.equal(stuck, z0)  # 1 - 2^-9 is half way to the next and goes to even
    z = sf.sample(gaussian, z0, sf.GradientAscent(2 * rate, **STOCHASTIC), steps, key=key).z
    mean = (1 - rate) ** steps
    gap = 2.0**-8  # of [1/2, 1]: where z is until then; a step's rounding has variance gap^2 / 4
    sd = gap / 2 * math.sqrt(steps)
    assert z.min() > 0.5
    assert abs(z.double().mean().item() - mean) <= SIGMAS * sd / math.sqrt(z.numel())
