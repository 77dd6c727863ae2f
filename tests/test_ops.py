"""Values of the steps: against Eqs. 4 and 5 in float64, against the reference, at the edges."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from conftest import (
    DTYPES,
    HYPER,
    UPDATES,
    Backend,
    assert_step_close,
    eq4,
    eq5,
    oracle_normal,
    random,
    state,
)
from hypothesis import given
from hypothesis import strategies as st

import stanley_fast as sf

# Eq. 4 -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_stepsize_by_hand(each_backend: Backend, dtype: torch.dtype) -> None:
    grad = torch.tensor([0, -0.0, 0.25, -0.25, 0.5, -0.5, 1, -2, 4, 2.0**60, math.inf, -math.inf])
    grad = grad.to(each_backend.device, dtype)
    want = torch.tensor([8, 8, 8, 8, 8, 8, 4, 2, 1, 2.0**-58, 0, 0]).to(grad)
    assert torch.equal(sf.stepsize(grad, threshold=0.5, step_size=8), want)
    assert sf.stepsize(grad.new_full((), math.nan), threshold=0.5).isnan()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("threshold", [0.1, 2e-4, 0.3, 7.7])
def test_at_the_threshold_the_step_is_the_largest(
    each_backend: Backend, dtype: torch.dtype, threshold: float
) -> None:
    """The threshold is compared as grad's dtype rounds it: 0.1 in float32 is more than 0.1."""
    grad = torch.tensor([threshold, -threshold], dtype=dtype, device=each_backend.device)
    gamma = sf.stepsize(grad, threshold=threshold, step_size=0.7)
    assert torch.equal(gamma, torch.full_like(grad, 0.7))


@given(
    grads=st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=40),
    threshold=st.floats(1e-6, 1e3),
    step_size=st.floats(1e-3, 1e2),
    dtype=st.sampled_from(DTYPES),
)
def test_stepsize(
    each_backend: Backend,
    grads: list[float],
    threshold: float,
    step_size: float,
    dtype: torch.dtype,
) -> None:
    grad = torch.tensor(grads, dtype=dtype, device=each_backend.device)
    got = sf.stepsize(grad, threshold=threshold, step_size=step_size)
    assert got.dtype == dtype
    rtol = 5e-7 if dtype == torch.float32 else 1e-15  # a division, a product, two constants
    tiny = 1e-44 if dtype == torch.float32 else 0  # gamma is denormal at 1e-6 / 1e30 and below
    want = eq4(grad, threshold, step_size)
    torch.testing.assert_close(got.double(), want, rtol=rtol, atol=tiny)


# Eq. 5 by hand -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_without_noise_it_is_gradient_ascent(each_backend: Backend, dtype: torch.dtype) -> None:
    """Every number here is exact in binary."""
    grad = torch.tensor([0.25, -0.25, 0.5, 1.0, -4.0, 0.0], device=each_backend.device, dtype=dtype)
    z = torch.full_like(grad, 3.0)
    gamma = torch.tensor([2, 2, 2, 1, 0.25, 2]).to(grad)
    for key in (sf.key(0, grad.device), sf.key(1, grad.device)):
        step = {"key": key, "noise_scale": 0.0}
        stanley = {"threshold": 0.5, "step_size": 2.0, **step}
        got = sf.stanley_step(z, grad, **stanley)
        assert torch.equal(got, z + gamma / 2 * grad)
        got = sf.stanley_step(z, grad, update="script", **stanley)
        assert torch.equal(got, z + gamma * grad)
        got = sf.langevin_step(z, grad, 0.5, **step)
        assert torch.equal(got, z + 0.25 * grad)
        got = sf.langevin_step(z, grad, gamma, update="script", **step)
        assert torch.equal(got, z + gamma * grad)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("update", UPDATES)
def test_the_noise_is_normal_s(each_backend: Backend, update: str, dtype: torch.dtype) -> None:
    """With z = grad = 0 what remains is exactly gamma's factor times sf.normal of the same key."""
    key = sf.key(3, each_backend.device)
    xi = sf.normal((50,), key, 7, dtype=dtype)
    zero = torch.zeros_like(xi)
    got = sf.langevin_step(zero, zero, 4.0, key, 7, noise_scale=0.5, update=update)
    assert torch.equal(got, xi if update == "paper" else 2 * xi)
    got = sf.stanley_step(
        zero, zero, key, 7, threshold=1, step_size=4, noise_scale=0.5, update=update
    )
    assert torch.equal(got, xi if update == "paper" else 2 * xi)


# Both steps against the equations and the oracle's noise, and against the reference ---------------

COMMON = {
    "n": st.integers(0, 70),
    "dtype": st.sampled_from(DTYPES),
    "noise_scale": st.sampled_from([0.0, 0.01, 0.15, 1.0, 3.0]),
    "update": st.sampled_from(UPDATES),
    "clamp": st.sampled_from([None, (-0.5, 0.5), (0.0, math.inf), (-math.inf, 0.1), (0.2, 0.2)]),
    "step": st.sampled_from([0, 1, 5, 2**20]),
    "offset": st.sampled_from([0, 2**32 - 4, 2**63 - 3, 2**64 - 2]),
    "first": st.sampled_from([0, 1, 2, 3, 4, 7, 1001]),
    "scale": st.sampled_from([1e-12, 1e-3, 1.0, 1e4]),
}


def check_step(each_backend: Backend, kind: str, threshold: float, step_size: float, **case: Any):
    n, dtype, scale, offset = (case.pop(name) for name in ("n", "dtype", "scale", "offset"))
    z, grad, _ = state((n,), each_backend, dtype)
    grad = grad * scale
    signed = offset - 2**64 if offset >= 2**63 else offset
    key = torch.tensor([11, signed], device=each_backend.device)
    case["total"] = case["first"] + n + 2
    gamma = eq4(grad, threshold, step_size)
    if kind == "stanley":
        args: tuple[Any, ...] = (z, grad, key)
        case |= {"threshold": threshold, "step_size": step_size}
        run, oracle = sf.stanley_step, sf.reference.stanley_step
    else:
        tensor = gamma.to(dtype)
        args = (z, grad, tensor if kind == "langevin tensor" else step_size, key)
        gamma = tensor.double() if kind == "langevin tensor" else torch.full_like(gamma, step_size)
        run, oracle = sf.langevin_step, sf.reference.langevin_step
    before = z.clone(), grad.clone(), key.clone()
    got = run(*args, **case)
    assert all(map(torch.equal, before, (z, grad, key)))

    where = {"step": case["step"], "total": case["total"]}
    xi = oracle_normal(n, 11, case["first"], offset=offset, **where).to(z.device)
    want = eq5(z, grad, gamma, case["noise_scale"] * xi, case["update"])
    if case["clamp"] is not None:
        want = want.clamp(*case["clamp"])
    about = (z, grad, gamma, case["noise_scale"], case["update"])
    if dtype == torch.float64:  # the oracle's u is the one of float64
        assert_step_close(got, want, *about)
    assert_step_close(got, oracle(*args, **case), *about)


@given(threshold=st.sampled_from([2e-4, 0.3, 50.0]), step_size=st.floats(0.01, 5.0), **COMMON)
def test_stanley_step(each_backend: Backend, **case: Any) -> None:
    check_step(each_backend, "stanley", **case)


@given(threshold=st.just(0.3), step_size=st.floats(0.01, 5.0), **COMMON)
def test_langevin_step_with_a_number(each_backend: Backend, **case: Any) -> None:
    check_step(each_backend, "langevin number", **case)


@given(threshold=st.just(0.3), step_size=st.floats(0.01, 5.0), **COMMON)
def test_langevin_step_with_a_tensor(each_backend: Backend, **case: Any) -> None:
    check_step(each_backend, "langevin tensor", **case)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "shape",
    [(2, 3, 4, 5), (4, 5), (5,), (), (1,), (1, 1, 1, 1), (2, 1, 1, 1), (3, 1, 5), (1, 3, 4, 1)],
)
def test_gamma_broadcasts(
    each_backend: Backend, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    """One stepsize for all, for each sample, each channel, each pixel, each element."""
    z, grad, key = state((2, 3, 4, 5), each_backend, dtype)
    gamma = random(shape, 3, each_backend, dtype).abs() + 0.1
    got = sf.langevin_step(z, grad, gamma, key, 3)
    full = gamma.expand(z.shape)
    assert torch.equal(got, sf.langevin_step(z, grad, full.contiguous(), key, 3))
    want = sf.reference.langevin_step(z, grad, gamma, key, 3)
    assert_step_close(got, want, z, grad, full, 1.0)
    assert torch.equal(sf.langevin_step_(z.clone(), grad, gamma, key, 3), got)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_number_is_a_0_dim_gamma(each_backend: Backend, dtype: torch.dtype) -> None:
    z, grad, key = state((100,), each_backend, dtype)
    got = sf.langevin_step(z, grad, 0.14, key)
    gamma = torch.tensor(0.14, dtype=dtype, device=z.device)
    assert torch.equal(got, sf.langevin_step(z, grad, gamma, key))


@pytest.mark.parametrize("update", UPDATES)
def test_stanley_is_langevin_with_eq_4(each_backend: Backend, update: str) -> None:
    z, grad, key = state((1000,), each_backend)
    gamma = sf.stepsize(grad, threshold=0.3, step_size=0.7)
    one = sf.stanley_step(z, grad, key, 2, update=update, **HYPER)
    two = sf.langevin_step(z, grad, gamma, key, 2, noise_scale=0.5, update=update)
    assert_step_close(one, two, z, grad, gamma, 0.5, update)


def test_defaults_are_ones(each_backend: Backend) -> None:
    z, grad, key = state((100,), each_backend)
    got = sf.stanley_step(z, grad, key, threshold=0.3)
    explicit = {"step_size": 1.0, "noise_scale": 1.0, "clamp": None, "update": "paper"}
    want = sf.stanley_step(z, grad, key, 0, threshold=0.3, first=0, total=100, **explicit)
    assert torch.equal(got, want)
    assert not torch.equal(got, sf.stanley_step(z, grad, key, 1, threshold=0.3))


# Values at the edges -----------------------------------------------------------------------------


@pytest.mark.parametrize("clamp", [(-0.5, 0.5), (-math.inf, 0.0), (0.25, math.inf), (0.1, 0.1)])
def test_clamp_bounds_the_step(each_backend: Backend, clamp: tuple[float, float]) -> None:
    z, grad, key = state((1000,), each_backend)
    free = sf.stanley_step(z, grad, key, **HYPER)
    got = sf.stanley_step(z, grad, key, clamp=clamp, **HYPER)
    assert torch.equal(got, free.clamp(*clamp))
    assert not torch.equal(got, free)
    free = sf.langevin_step(z, grad, 0.1, key)
    assert torch.equal(sf.langevin_step(z, grad, 0.1, key, clamp=clamp), free.clamp(*clamp))


@pytest.mark.parametrize("clamp", [None, (-1.0, 1.0)])
@pytest.mark.parametrize("noise_scale", [0.0, 1.0])
@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_and_infinity_are_not_hidden(
    each_backend: Backend, noise_scale: float, clamp: tuple[float, float] | None, dtype: torch.dtype
) -> None:
    nan, inf = math.nan, math.inf
    grad = torch.tensor([nan, inf, -inf, 0.1, 1.0, 1.0], dtype=dtype, device=each_backend.device)
    z = torch.tensor([0.0, 0.0, 0.0, nan, nan, 0.5], dtype=dtype, device=each_backend.device)
    key = sf.key(0, each_backend.device)
    rest = {"noise_scale": noise_scale, "clamp": clamp}
    for n in (1, 10):  # within vectors, and in their tail
        g, x = grad.repeat(n), z.repeat(n)
        want = torch.tensor([True] * 5 + [False], device=x.device).repeat(n)
        # Eq. 4 makes gamma 0 at an infinite gradient, and 0 times infinity is NaN.
        assert torch.equal(sf.stanley_step(x, g, key, threshold=0.3, **rest).isnan(), want)
        got = sf.langevin_step(x, g, 0.1, key, **rest)
        assert torch.equal(got.isnan(), x.isnan() | g.isnan())
        gamma = torch.full_like(x, nan)
        assert sf.langevin_step(x, g, gamma, key, **rest).isnan().all()


def test_extreme_gradients(each_backend: Backend) -> None:
    """Denormal ones take the largest step; huge ones move no further than the threshold does."""
    tiny, huge = 1e-45, 3e38
    grad = torch.tensor([0.0, tiny, -tiny, 1e-30, 1e20, -1e20, 1e34, huge, -huge])
    grad = grad.to(each_backend.device)
    z, key = torch.zeros_like(grad), sf.key(0, each_backend.device)
    for noise_scale in (0.0, 0.5):
        got = sf.stanley_step(z, grad, key, threshold=0.5, noise_scale=noise_scale)
        gamma = eq4(grad, 0.5, 1.0)
        xi = sf.normal(z.shape, key).double()
        want = eq5(z, grad, gamma, noise_scale * xi, "paper")
        torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)


def test_stepsizes_of_every_magnitude(each_backend: Backend) -> None:
    """A few units in the last place from Eq. 4, from the smallest normal numbers to the largest."""
    thresholds = [2.0**-123, 2.0**-66, 2.0**-10, 1.0, 2.0**66]
    if each_backend.name in ("cpp", "reference"):
        thresholds.append(2.0**-133)  # not a normal number; a GPU may take it for 0
    grad = (2.0 ** torch.linspace(-126, 127.9, 4001, dtype=torch.float64)).float()
    z, key = torch.zeros_like(grad), sf.key(0, each_backend.device)
    for threshold in thresholds:
        given = (x.to(each_backend.device) for x in (z, grad))
        step_size = min(1 / threshold, 1e38)
        rest = {"threshold": threshold, "step_size": step_size, "noise_scale": 0.0}
        got = sf.stanley_step(*given, key, **rest).cpu().double()
        ratio = threshold / grad.double().clamp_min(threshold)
        want = ratio * step_size * grad.double() / 2
        normal = (ratio > 2.0**-125) & (want > 2.0**-125)
        assert ((got - want).abs() / want)[normal].max() < 8 * 2.0**-23, threshold


def test_zero_noise_is_zero_noise_whatever_the_key(each_backend: Backend) -> None:
    z, grad, key = state((5000,), each_backend)
    rest = {"threshold": 0.3, "noise_scale": 0.0}
    got = sf.stanley_step(z, grad, key, **rest)
    assert torch.equal(got, sf.stanley_step(z, grad, sf.key(5, z.device), 3, **rest))
    gamma = eq4(grad, 0.3, 1.0)
    zero = torch.zeros_like(gamma)
    assert_step_close(got, eq5(z, grad, gamma, zero, "paper"), z, grad, gamma, 0.0)


def test_threshold_times_step_size_may_leave_the_range(each_backend: Backend) -> None:
    """Their product is 10^310, their stepsize 10^10."""
    z = torch.zeros(8, dtype=torch.float64, device=each_backend.device)
    key = sf.key(0, z.device)
    got = sf.stanley_step(z, z + 1, key, threshold=1e300, step_size=1e10, noise_scale=0.0)
    torch.testing.assert_close(got, z + 0.5e10, rtol=1e-14, atol=0)
