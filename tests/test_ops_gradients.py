"""Gradients of the steps: gradcheck in z, g and gamma, Eq. 5 differentiated by hand, edges."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from conftest import DTYPES, HYPER, LAYOUTS, UPDATES, Backend, random, state, threads
from torch import Tensor

import stanley_fast as sf

CLAMP = (-0.4, 0.9)


def away(x: Tensor, *edges: float) -> Tensor:
    """x moved at least 1e-3 away from the edges, where a derivative jumps."""
    for edge in edges:
        x = torch.where((x - edge).abs() < 1e-3, edge + 2e-3, x)
    return x


def asks_grad(*tensors: Tensor) -> list[Tensor]:
    return [t.detach().clone().requires_grad_() for t in tensors]


GAMMA_SHAPES = [(), (3, 1), (4,), (3, 4)]


@pytest.mark.parametrize("clamp", [None, CLAMP, (-math.inf, 0.5)])
@pytest.mark.parametrize("update", UPDATES)
def test_gradcheck_stanley(
    each_backend: Backend, update: str, clamp: tuple[float, float] | None
) -> None:
    z, grad, key = state((3, 4), each_backend, torch.float64)
    if clamp is not None:
        z = off_the_bounds(z, grad, key, clamp, update)
    rest = {"update": update, "clamp": clamp, "first": 3, "total": 40, **HYPER}
    step = lambda z, grad: sf.stanley_step(z, grad, key, 2, **rest)  # noqa: E731
    assert torch.autograd.gradcheck(step, asks_grad(z, grad))


def off_the_bounds(
    z: Tensor, grad: Tensor, key: Tensor, clamp: tuple[float, float], update: str
) -> Tensor:
    """z such that no new state is within 1e-3 of a bound."""
    where = {"first": 3, "total": 40, "update": update}
    moved = sf.reference.stanley_step(z, grad, key, 2, **where, **HYPER)
    assert ((moved < clamp[0]) | (moved > clamp[1])).any()  # the bounds cut somewhere
    return z + away(moved, *clamp) - moved


@pytest.mark.parametrize("shape", GAMMA_SHAPES, ids=str)
@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("clamp", [None, CLAMP])
def test_gradcheck_langevin(
    each_backend: Backend, update: str, shape: tuple[int, ...], clamp: tuple[float, float] | None
) -> None:
    """In z, g and gamma: a number for all, for each sample, each channel, each element."""
    z, grad, key = state((3, 4), each_backend, torch.float64)
    gamma = random(shape, 3, each_backend, torch.float64).abs() + 0.2
    rest = {"update": update, "clamp": clamp, "noise_scale": 0.5}
    step = lambda z, grad, gamma: sf.langevin_step(z, grad, gamma, key, 2, **rest)  # noqa: E731
    assert torch.autograd.gradcheck(step, asks_grad(z, grad, gamma))


def test_gradcheck_stepsize(each_backend: Backend) -> None:
    _, grad, _ = state((3, 4), each_backend, torch.float64)
    assert torch.autograd.gradcheck(
        lambda g: sf.stepsize(g, threshold=0.3, step_size=0.7), asks_grad(grad)
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("update", UPDATES)
def test_gradients_by_formula(each_backend: Backend, update: str, dtype: torch.dtype) -> None:
    """Eq. 5 differentiated by hand, over enough elements for vectors, tails and threads."""
    n = 40_003
    z, grad, key = state((n,), each_backend, dtype)
    coming = random((n,), 5, each_backend, dtype)
    xi = sf.normal((n,), key, 3, dtype=dtype).double()
    g, gamma = grad.double(), sf.stepsize(grad, threshold=0.3, step_size=0.7).double()
    by_gamma = g / 2 + 0.25 * xi / gamma.sqrt() if update == "paper" else g + 0.5 * xi
    drift = gamma / 2 if update == "paper" else gamma
    slope = torch.where(g.abs() > 0.3, -gamma / g, 0.0)  # d gamma / d g, from Eq. 4
    rtol = 2e-5 if dtype == torch.float32 else 1e-12

    def check(got: Tensor, want: Tensor, size: Tensor) -> None:
        assert got.dtype == dtype
        excess = (got.double() - coming * want).abs() - rtol * (coming * size).abs()
        assert excess.max() <= 0

    leaves = asks_grad(z, grad)
    out = sf.stanley_step(*leaves, key, 3, update=update, **HYPER)
    by_z, by_grad = torch.autograd.grad(out, leaves, coming)
    assert torch.equal(by_z, coming)
    noise_size = (slope * (by_gamma.abs() + g.abs())).abs()
    check(by_grad, drift + slope * by_gamma, drift + noise_size)

    leaves = asks_grad(z, grad, gamma.to(dtype))
    out = sf.langevin_step(*leaves, key, 3, noise_scale=0.5, update=update)
    by_z, by_grad, by = torch.autograd.grad(out, leaves, coming)
    assert torch.equal(by_z, coming)
    check(by_grad, drift, drift)
    check(by, by_gamma, by_gamma.abs() + g.abs())


def test_threads_do_not_change_a_gradient(backend: Backend) -> None:
    z, grad, key = state((200_003,), backend, torch.float32)
    leaves, found = asks_grad(z, grad), []
    for n in (1, 2):
        with threads(n):
            out = sf.stanley_step(*leaves, key, clamp=CLAMP, **HYPER)
            found.append(torch.autograd.grad(out.square().sum(), leaves))
    assert all(map(torch.equal, *found))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("threshold", [0.3, 0.1, 2e-4])
def test_at_the_threshold_gamma_is_flat(
    each_backend: Backend, threshold: float, dtype: torch.dtype
) -> None:
    """|g| <= th is Eq. 4's flat side: there d z' / d g = gamma / 2 and d gamma / d g = 0."""
    grad = torch.tensor([threshold, -threshold, 0.0], dtype=dtype, device=each_backend.device)
    z, grad = asks_grad(torch.zeros_like(grad), grad)
    key = sf.key(1, grad.device)
    out = sf.stanley_step(z, grad, key, threshold=threshold, step_size=0.5)
    (found,) = torch.autograd.grad(out.sum(), grad)
    exact = torch.full_like(found, 0.25)
    torch.testing.assert_close(found, exact, rtol=4 * torch.finfo(dtype).eps, atol=0)
    gamma = sf.stepsize(grad, threshold=threshold)
    (found,) = torch.autograd.grad(gamma.sum(), grad)
    assert torch.equal(found, torch.zeros_like(found))


def test_where_clamp_cuts_all_gradients_are_zero(each_backend: Backend) -> None:
    z, grad, key = state((1000,), each_backend, torch.float64)
    gamma = z.abs() + 0.1
    for step, inputs in (
        (lambda z, g: sf.stanley_step(z, g, key, clamp=CLAMP, **HYPER), (z, grad)),
        (lambda z, g, y: sf.langevin_step(z, g, y, key, clamp=CLAMP), (z, grad, gamma)),
    ):
        leaves = asks_grad(*inputs)
        out = step(*leaves)
        cut = (out == CLAMP[0]) | (out == CLAMP[1])
        assert 0.1 < cut.double().mean() < 0.9
        found = torch.autograd.grad(out.sum(), leaves)
        assert all((x[cut] == 0).all() and (x[~cut] != 0).all() for x in found)
        assert (found[0][~cut] == 1).all()


def test_clamp_cuts_a_gradient_even_if_it_is_not_finite(each_backend: Backend) -> None:
    """A bound's own value passes; beyond it the zero is a zero."""
    z = torch.tensor([0.5, 0.75, -0.75], dtype=torch.float64, device=each_backend.device)
    z, grad = asks_grad(z, torch.zeros_like(z))
    key = sf.key(0, z.device)
    out = sf.stanley_step(z, grad, key, threshold=1.0, noise_scale=0.0, clamp=(-0.5, 0.5))
    (found,) = torch.autograd.grad(out.sum(), z)
    assert found.tolist() == [1.0, 0.0, 0.0]


@pytest.mark.parametrize("wanted", [c for k in (1, 2) for c in itertools.combinations(range(3), k)])
def test_only_some_inputs_want_a_gradient(each_backend: Backend, wanted: tuple[int, ...]) -> None:
    z, grad, key = state((3, 4), each_backend, torch.float64)
    inputs = [z, grad, z.abs()[:, :1] + 0.1]
    leaves = asks_grad(*inputs)
    want = torch.autograd.grad(sf.langevin_step(*leaves, key, clamp=CLAMP).sum(), leaves)
    mixed = [leaves[i] if i in wanted else inputs[i] for i in range(3)]
    out = sf.langevin_step(*mixed, key, clamp=CLAMP)
    found = torch.autograd.grad(out.sum(), [leaves[i] for i in wanted])
    assert all(torch.equal(x, want[i]) for x, i in zip(found, wanted, strict=True))


def test_no_graph_where_none_is_wanted(each_backend: Backend) -> None:
    z, grad, key = state((5,), each_backend, torch.float64)
    assert not sf.stanley_step(z, grad, key, **HYPER).requires_grad
    z.requires_grad_()
    assert sf.stanley_step(z, grad, key, **HYPER).requires_grad
    with torch.no_grad():
        assert not sf.stanley_step(z, grad, key, **HYPER).requires_grad


def test_key_may_move_before_backward(each_backend: Backend) -> None:
    z, grad, key = state((100,), each_backend, torch.float64)
    z, grad, gamma = asks_grad(z, grad, z.abs() + 0.1)

    def gradients(move: Callable[[Tensor], object]) -> list[Tensor]:
        mine = key.clone()
        out = sf.stanley_step(z, grad, mine, 1, **HYPER) + sf.langevin_step(z, grad, gamma, mine, 2)
        move(mine)
        return list(torch.autograd.grad(out.sum(), (z, grad, gamma)))

    still, moved = gradients(lambda key: None), gradients(lambda key: sf.advance_(key, 1000))
    assert all(map(torch.equal, still, moved))


def test_state_changed_before_backward_is_noticed(each_backend: Backend) -> None:
    """backward needs grad: torch's own version check must speak, not a wrong number."""
    z, grad, key = state((10,), each_backend, torch.float64)
    held = grad.clone()
    out = sf.stanley_step(z.requires_grad_(), held.requires_grad_(), key, **HYPER)
    with torch.no_grad():
        sf.langevin_step_(held, grad, 0.1, key)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_double_backward_is_an_error(backend: Backend) -> None:
    z, grad, key = state((5,), backend)
    for step in (
        lambda z, g: sf.stanley_step(z, g, key, **HYPER),
        lambda z, g: sf.langevin_step(z, g, g.detach().abs() + 0.1, key),
    ):
        leaves = asks_grad(z, grad)
        (first,) = torch.autograd.grad(step(*leaves).square().sum(), leaves[1], create_graph=True)
        with pytest.raises(RuntimeError, match="differentiable once"):
            torch.autograd.grad(first.sum(), leaves)


def test_backward_twice_through_one_graph(each_backend: Backend) -> None:
    z, grad, key = state((50,), each_backend, torch.float64)
    leaves = asks_grad(z, grad)
    out = sf.stanley_step(*leaves, key, clamp=CLAMP, **HYPER).sum()
    first = torch.autograd.grad(out, leaves, retain_graph=True)
    assert all(map(torch.equal, first, torch.autograd.grad(out, leaves)))


@pytest.mark.parametrize("layout", ["channels_last", "transposed", "sliced"])
@pytest.mark.parametrize("which", ["z", "grad", "gamma", "coming", "all"])
def test_gradients_of_any_strides(each_backend: Backend, layout: str, which: str) -> None:
    z, grad, key = state((2, 3, 4, 5), each_backend, torch.float64)
    tensors = {"z": z, "grad": grad, "gamma": z.abs() + 0.1, "coming": grad.exp()}

    def gradients(**given: Tensor) -> tuple[Tensor, ...]:
        coming = given.pop("coming")
        leaves = [x.requires_grad_() for x in given.values()]
        out = sf.langevin_step(*leaves, key, clamp=CLAMP)
        out = out + sf.stanley_step(*leaves[:2], key, 1, clamp=CLAMP, **HYPER)
        return torch.autograd.grad(out, leaves, coming)

    want = gradients(**{name: x.clone() for name, x in tensors.items()})
    laid = {
        name: LAYOUTS[layout](x).detach() if which in (name, "all") else x.clone()
        for name, x in tensors.items()
    }
    for found, wanted in zip(gradients(**laid), want, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 0)], ids=str)
def test_gradients_of_small_states(each_backend: Backend, shape: tuple[int, ...]) -> None:
    z, grad, key = state(shape, each_backend, torch.float64)
    leaves = asks_grad(z, grad, torch.tensor(0.2, dtype=z.dtype, device=z.device))
    out = sf.langevin_step(*leaves, key, clamp=(-9.0, 9.0)) + sf.stanley_step(
        *leaves[:2], key, clamp=(-9.0, 9.0), **HYPER
    )
    found = torch.autograd.grad(out.sum(), leaves)
    assert [x.shape for x in found] == [shape, shape, ()]
    assert torch.equal(found[0], torch.full_like(z, 2.0))


def test_gradient_through_a_chain(each_backend: Backend) -> None:
    """Three transitions unrolled, to the energy's weights and the start: as the plain equations."""
    key = sf.key(3, each_backend.device)
    z0 = random((6, 2), 1, each_backend, torch.float64)
    weight = random((2, 5), 2, each_backend, torch.float64)

    def chain(step: Callable[..., Tensor]) -> tuple[Tensor, ...]:
        leaves = asks_grad(z0, weight)
        z, w = leaves
        for k in range(3):
            (grad,) = torch.autograd.grad(torch.tanh(z @ w).sum(), z, create_graph=True)
            z = step(z, grad, key, k, clamp=(-1.5, 1.5), **HYPER)
        return torch.autograd.grad(z.square().sum(), leaves)

    for found, want in zip(chain(sf.stanley_step), chain(sf.reference.stanley_step), strict=True):
        torch.testing.assert_close(found, want, rtol=1e-11, atol=1e-12)


def test_gradients_under_vmap(each_backend: Backend) -> None:
    """A batched tensor hides that it requires grad."""
    z, grad, key = state((3, 4), each_backend, torch.float64)
    grad.requires_grad_()

    def step(z: Tensor, grad: Tensor) -> Tensor:
        return sf.stanley_step(z, grad, key, threshold=0.3)

    (want,) = torch.autograd.grad(
        torch.stack([step(*c) for c in zip(z, grad, strict=True)]).sum(), grad
    )
    (found,) = torch.autograd.grad(torch.vmap(step)(z, grad).sum(), grad)
    torch.testing.assert_close(found, want)


def test_no_gradient_comes_through_a_cut(backend: Backend) -> None:
    """Also where the derivative that is cut would be infinite."""
    z = torch.full((2,), 9.0, device=backend.device)
    grad = torch.tensor([math.inf, 1.0], device=backend.device)
    gamma = torch.tensor([1.0, 0.0], device=backend.device, requires_grad=True)
    moved = sf.langevin_step(z, grad, gamma, sf.key(0, backend.device), clamp=(-1.0, 1.0))
    assert torch.equal(torch.autograd.grad(moved.sum(), gamma)[0], torch.zeros_like(gamma))


def test_stepsize_of_nan_has_no_gradient_either(each_backend: Backend) -> None:
    grad = torch.tensor([math.nan, 0.01, 2.0], device=each_backend.device, requires_grad=True)
    (found,) = torch.autograd.grad(sf.stepsize(grad, threshold=0.1).sum(), grad)
    torch.testing.assert_close(found.cpu(), torch.tensor([math.nan, 0.0, -0.025]), equal_nan=True)
