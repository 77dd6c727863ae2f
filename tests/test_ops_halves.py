"""float16 and bfloat16 states: float32's arithmetic, rounded once, to nearest even."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from conftest import (
    HALVES,
    HYPER,
    INTERPRETER,
    LAYOUTS,
    UPDATES,
    Backend,
    assert_step_close,
    eq4,
    eq5,
    parts,
    radius_and_normal,
    random,
    state,
    threads,
    words,
)
from torch import Tensor

import stanley_fast as sf

pytestmark = pytest.mark.parametrize("dtype", HALVES, ids=["float16", "bfloat16"])

CLAMP = (-0.4, 0.9)


def half_state(
    shape: tuple[int, ...], on: Backend, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """z and a gradient in `dtype`, a float32 stepsize for each element, and a key."""
    z, grad, key = state(shape, on, dtype)
    return z, grad, random(shape, 3, on, torch.float32).abs() + 0.1, key


def assert_same(got: Tensor, want: Tensor) -> None:
    """The same values; NaN where NaN is wanted."""
    torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)


def single(*tensors: Tensor) -> list[Tensor]:
    return [x.float() for x in tensors]


# Conversions, through steps without noise, where nothing else is rounded --------------------------


def all_values(dtype: torch.dtype, device: str) -> Tensor:
    """Every bit pattern: zeros, denormals, infinities and NaN too."""
    return torch.arange(2**16, device=device).to(torch.int16).view(dtype)


def ascent(z: Tensor, grad: Tensor, gamma: float | Tensor, update: str = "paper") -> Tensor:
    key = sf.key(0, z.device)
    return sf.langevin_step(z, grad, gamma, key, noise_scale=0.0, update=update)


def test_every_value_is_read_and_written_exactly(each_backend: Backend, dtype: torch.dtype) -> None:
    x = all_values(dtype, each_backend.device)
    zero = torch.zeros_like(x)
    assert_same(ascent(x, zero, 1.0), x)
    assert_same(ascent(zero, x, 2.0), x)
    assert_same(ascent(zero, x, 1.0, "script"), x)
    in_place = x.clone()
    sf.langevin_step_(in_place, zero, 1.0, sf.key(0, x.device), noise_scale=0.0)
    assert_same(in_place, x)


def test_ties_and_their_neighbours(each_backend: Backend, dtype: torch.dtype) -> None:
    """Between every two neighbours, and beyond the largest: to even at the middle, and next to it
    to the nearer one; gamma times 1 is any float32."""
    x = all_values(dtype, each_backend.device)[: 2**15].double()
    x = x[x.isfinite()]
    gap = x.diff()
    middle = (x + torch.cat([gap, gap[-1:]]) / 2).float()
    ends = (torch.zeros_like(middle), torch.full_like(middle, math.inf))
    below, above = (torch.nextafter(middle, end) for end in ends)
    lower, upper = x.to(dtype), torch.cat([x[1:].to(dtype), ends[1][:1].to(dtype)])
    even = torch.where(torch.arange(len(x), device=x.device) % 2 == 0, lower, upper)
    zero = torch.zeros_like(lower)
    for sign in (1.0, -1.0):
        for gamma, want in ((below, lower), (middle, even), (above, upper)):
            got = ascent(zero, torch.full_like(zero, sign), gamma, "script")
            assert_same(got, sign * want)


def test_sums_of_any_two_values(each_backend: Backend, dtype: torch.dtype) -> None:
    """Overflow to infinity, inf - inf, cancellation, denormal sums: z + 2 / 2 grad."""
    x = all_values(dtype, each_backend.device)
    generator = torch.Generator().manual_seed(0)
    for _ in range(4):
        z, grad = (x[torch.randperm(len(x), generator=generator)] for _ in range(2))
        want = (z.float() + grad.float()).to(dtype)
        assert (want.isinf() & z.isfinite() & grad.isfinite()).any()
        assert_same(ascent(z, grad, 2.0), want)
    near = x.roll(1)  # exponents alike: cancellation
    assert_same(ascent(x, -near, 2.0), (x.float() - near.float()).to(dtype))


# The operations ----------------------------------------------------------------------------------

N = 20_001


def exact_noise(step: int, first: int, total: int) -> Tensor:
    """Of key 77, with float32's uniforms and exact from there."""
    w = words(N, 77, step=step, first=first, total=total)
    return torch.from_numpy(radius_and_normal(w, first, torch.float32)[1])


@pytest.mark.parametrize("clamp", [None, CLAMP])
@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("kind", ["stanley", "number", "per row", "per element"])
def test_steps_are_float32_s_rounded_once(
    each_backend: Backend,
    dtype: torch.dtype,
    kind: str,
    update: str,
    clamp: tuple[float, float] | None,
) -> None:
    """Bit for bit this backend's float32 step in `dtype`; close to the equations in float64."""
    z, grad, gamma, key = half_state((N // 3, 3), each_backend, dtype)
    rest: dict[str, Any] = {"update": update, "clamp": clamp, "first": 6, "total": 3 * N}
    given = {"number": 0.14, "per row": gamma[:, :1], "per element": gamma}.get(kind)

    def step(z: Tensor, grad: Tensor) -> Tensor:
        if given is None:
            return sf.stanley_step(z, grad, key, 5, **HYPER, **rest)
        return sf.langevin_step(z, grad, given, key, 5, noise_scale=0.5, **rest)

    got = step(z, grad)
    assert torch.equal(got, step(*single(z, grad)).to(dtype))
    gamma = eq4(grad, 0.3, 0.7) if given is None else torch.as_tensor(given).double().to(z.device)
    noise = 0.5 * exact_noise(5, 6, 3 * N).view(z.shape).to(z.device)
    want = eq5(z, grad.double(), gamma, noise, update)
    if clamp is not None:
        want = want.clamp(*clamp)
    assert_step_close(got, want, z, grad, gamma, 0.5, update)


def test_stepsize(each_backend: Backend, dtype: torch.dtype) -> None:
    """float32, as langevin_step wants it, and float32's own of the same gradient."""
    grad = all_values(dtype, each_backend.device)
    got = sf.stepsize(grad, threshold=0.3, step_size=0.7)
    assert got.dtype == torch.float32
    assert_same(got, sf.stepsize(grad.float(), threshold=0.3, step_size=0.7))


@pytest.mark.parametrize("update", UPDATES)
def test_stanley_is_langevin_with_eq_4(
    each_backend: Backend, dtype: torch.dtype, update: str
) -> None:
    z, grad, _, key = half_state((N,), each_backend, dtype)
    gamma = sf.stepsize(grad, threshold=0.3, step_size=0.7)
    one = sf.stanley_step(z, grad, key, 2, update=update, **HYPER)
    two = sf.langevin_step(z, grad, gamma, key, 2, noise_scale=0.5, update=update)
    assert_step_close(one, two, z, grad, gamma, 0.5, update)
    assert (one != two).double().mean() < 0.01  # where float32's error meets a tie


def test_the_noise_is_float32_s(each_backend: Backend, dtype: torch.dtype) -> None:
    _, _, _, key = half_state((), each_backend, dtype)
    zero = torch.zeros(N, dtype=dtype, device=key.device)
    xi = sf.normal((N,), key, 7)
    assert torch.equal(sf.langevin_step(zero, zero, 1.0, key, 7), xi.to(dtype))
    got = sf.stanley_step(zero, zero, key, 7, threshold=1.0, step_size=4.0, noise_scale=0.25)
    assert torch.equal(got, (0.5 * xi).to(dtype))


def test_clamp_bounds_the_step(each_backend: Backend, dtype: torch.dtype) -> None:
    """The bounds are rounded with the state: a state at -0.4 is the half nearest to it."""
    z, grad, gamma, key = half_state((1000,), each_backend, dtype)
    lo, hi = torch.tensor(CLAMP, dtype=dtype, device=z.device)
    for step in (
        lambda **clamp: sf.stanley_step(z, grad, key, **HYPER, **clamp),
        lambda **clamp: sf.langevin_step(z, grad, gamma, key, **clamp),
    ):
        free, got = step(), step(clamp=CLAMP)
        assert torch.equal(got, free.clamp(lo, hi))
        assert not torch.equal(got, free)


@pytest.mark.parametrize("clamp", [None, (-1.0, 1.0)])
def test_nan_and_infinity_are_not_hidden(
    each_backend: Backend, dtype: torch.dtype, clamp: tuple[float, float] | None
) -> None:
    nan, inf = math.nan, math.inf
    grad = torch.tensor([nan, inf, -inf, 0.1, 1.0, 1.0], device=each_backend.device, dtype=dtype)
    z = torch.tensor([0.0, 0.0, 0.0, nan, nan, 0.5], device=each_backend.device, dtype=dtype)
    key = sf.key(0, each_backend.device)
    for n in (1, 10):  # within vectors, and in their tail
        g, x = grad.repeat(n), z.repeat(n)
        want = torch.tensor([True] * 5 + [False], device=x.device).repeat(n)
        # Eq. 4 makes gamma 0 at an infinite gradient, and 0 times infinity is NaN.
        assert torch.equal(sf.stanley_step(x, g, key, threshold=0.3, clamp=clamp).isnan(), want)
        got = sf.langevin_step(x, g, 0.1, key, clamp=clamp)
        assert torch.equal(got.isnan(), x.isnan() | g.isnan())


# What a step may not depend on --------------------------------------------------------------------


def test_no_head_or_tail_differs(each_backend: Backend, dtype: torch.dtype) -> None:
    z, grad, gamma, key = half_state((2000,), each_backend, dtype)
    stanley = sf.stanley_step(z, grad, key, 3, clamp=CLAMP, **HYPER)
    langevin = sf.langevin_step(z, grad, gamma, key, 3, update="script")
    longer = [(n, first) for n in (0, 1023, 1025) for first in (0, 5)]
    for n, first in itertools.chain(parts(each_backend), longer):
        part, where = slice(first, first + n), {"first": first, "total": 2000}
        got = z[part].clone()
        sf.langevin_step_(got, grad[part], gamma[part], key, 3, update="script", **where)
        assert torch.equal(got, langevin[part]), f"{n} elements from {first}"
        if (n, first) in longer or each_backend != INTERPRETER:
            got = sf.stanley_step(z[part], grad[part], key, 3, clamp=CLAMP, **HYPER, **where)
            assert torch.equal(got, stanley[part]), f"{n} elements from {first}"


@pytest.mark.parametrize("layout", ["channels_last", "sliced", "offset", "rows"])
def test_strides_do_not_matter(each_backend: Backend, dtype: torch.dtype, layout: str) -> None:
    plain, plain_grad, plain_gamma, key = half_state((3, 4, 5, 6), each_backend, dtype)
    z, grad, gamma = (LAYOUTS[layout](x) for x in (plain, plain_grad, plain_gamma))
    want = sf.stanley_step(plain, plain_grad, key, 2, clamp=CLAMP, **HYPER)
    got = sf.stanley_step(z, grad, key, 2, clamp=CLAMP, **HYPER)
    assert torch.equal(got, want)
    assert got.stride() == torch.empty_like(z).stride()
    gammas = sf.stepsize(grad, threshold=0.3)
    assert torch.equal(gammas, sf.stepsize(plain_grad, threshold=0.3))
    assert gammas.stride() == torch.empty_like(grad).stride()
    want_langevin = sf.langevin_step(plain, plain_grad, plain_gamma, key)
    assert torch.equal(sf.langevin_step(z, grad, gamma, key), want_langevin)

    space = z if z._base is None else z._base
    before = space.clone()
    assert sf.stanley_step_(z, grad, key, 2, clamp=CLAMP, **HYPER) is z
    assert torch.equal(z, want)
    z.copy_(plain)
    assert torch.equal(space, before)  # nothing beside it was written


@pytest.mark.parametrize("update", UPDATES)
def test_in_place_is_functional(each_backend: Backend, dtype: torch.dtype, update: str) -> None:
    z, grad, gamma, key = half_state((1003,), each_backend, dtype)
    rest = {"update": update, "clamp": CLAMP, "first": 3, "total": 2000}
    want, same = sf.stanley_step(z, grad, key, 6, **HYPER, **rest), z.clone()
    assert sf.stanley_step_(same, grad, key, 6, **HYPER, **rest) is same
    assert torch.equal(same, want)
    for by in (0.2, gamma[0], gamma):
        want, same = sf.langevin_step(z, grad, by, key, 6, **rest), z.clone()
        assert sf.langevin_step_(same, grad, by, key, 6, **rest) is same
        assert torch.equal(same, want)


def test_threads_do_not_matter(compiled: None, dtype: torch.dtype) -> None:
    z, grad, gamma, key = half_state((300_007,), Backend("cpp", "cpu"), dtype)
    leaves, both = [x.requires_grad_() for x in (z, grad, gamma)], []
    for n in (1, 2):
        with threads(n):
            moved = sf.stanley_step(z, grad, key, 1, clamp=CLAMP, **HYPER)
            moved = sf.langevin_step(moved, grad, gamma, key, 2)
            found = torch.autograd.grad(moved, leaves, torch.ones_like(moved))
            both.append((moved, sf.stepsize(grad, threshold=0.3), *found))
    assert all(map(torch.equal, *both))


# Gradients ---------------------------------------------------------------------------------------


def gradients(step: Callable[..., Tensor], coming: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    return torch.autograd.grad(step(*leaves), leaves, coming)


@pytest.mark.parametrize("clamp", [None, CLAMP])
@pytest.mark.parametrize("update", UPDATES)
def test_gradients_are_float32_s_rounded_once(
    each_backend: Backend, dtype: torch.dtype, update: str, clamp: tuple[float, float] | None
) -> None:
    """And close to what torch's autograd makes of the reference in float32; gamma's is float32."""
    z, grad, gamma, key = half_state((N,), each_backend, dtype)
    coming = random((N,), 5, each_backend, dtype)
    where = {"update": update, "clamp": clamp, "first": 6, "total": 3 * N}
    stanley = {"key": key, "step": 3, **HYPER, **where}
    langevin = {"key": key, "step": 3, "noise_scale": 0.5, **where}
    for name, arguments, inputs in (
        ("stanley_step", stanley, (z, grad)),
        ("langevin_step", langevin, (z, grad, gamma)),
    ):
        step, reference = (partial(getattr(m, name), **arguments) for m in (sf, sf.reference))
        found = gradients(step, coming, *inputs)
        assert [x.dtype for x in found] == [x.dtype for x in inputs]
        own = gradients(step, coming.float(), *single(*inputs))
        assert all(torch.equal(x, y.to(x.dtype)) for x, y in zip(found, own, strict=True))
        want = gradients(reference, coming.float(), *single(*inputs))
        for x, y in zip(found, want, strict=True):
            rtol = 2e-5 + torch.finfo(x.dtype).eps
            torch.testing.assert_close(x.float(), y, rtol=rtol, atol=1e-5)


def test_gradient_of_stepsize(each_backend: Backend, dtype: torch.dtype) -> None:
    _, grad, coming, _ = half_state((N,), each_backend, dtype)
    stepsize = partial(sf.stepsize, threshold=0.3, step_size=0.7)
    (found,), (want,) = (gradients(stepsize, coming, x) for x in (grad, grad.float()))
    assert found.dtype == dtype
    assert torch.equal(found, want.to(dtype))


@pytest.mark.parametrize("shape", [(), (1,), (64, 1)], ids=str)
def test_gradient_of_a_broadcast_gamma_is_summed_in_float32(
    each_backend: Backend, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    """Thousands of terms of one sign: a sum in halves would stop growing."""
    z, grad, _, key = half_state((64, 300), each_backend, dtype)
    grad = grad.abs() + 1
    gamma = random(shape, 3, each_backend, torch.float32).abs() + 1
    rest = {"key": key, "noise_scale": 0.1}
    coming = torch.ones_like(z)
    found = gradients(lambda *x: sf.langevin_step(*x, **rest), coming, z, grad, gamma)[2]
    wide = (coming.double(), z.double(), grad.double(), gamma.double())
    want = gradients(lambda *x: sf.reference.langevin_step(*x, **rest), *wide)[2]
    assert found.dtype == torch.float32
    assert found.shape == shape
    torch.testing.assert_close(found.double(), want, rtol=1e-5, atol=0)


def test_where_clamp_cuts_all_gradients_are_zero(each_backend: Backend, dtype: torch.dtype) -> None:
    """Cut is what exceeds a bound before it is rounded."""
    z, grad, gamma, key = half_state((1000,), each_backend, dtype)
    step = lambda *x: sf.langevin_step(*x, key, clamp=CLAMP)  # noqa: E731
    lo, hi = torch.tensor(CLAMP, dtype=dtype, device=z.device)
    out = step(z, grad, gamma)
    at_a_bound = (out == lo) | (out == hi)
    found = gradients(step, torch.ones_like(z), z, grad, gamma)
    assert 0.1 < at_a_bound.double().mean() < 0.9
    for x in found:
        assert (x[at_a_bound] == 0).double().mean() > 0.95  # some come there by rounding alone
        assert (x[~at_a_bound] != 0).all()
    assert (found[0][~at_a_bound] == 1).all()
