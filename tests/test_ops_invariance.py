"""What a step may not depend on, bit for bit: strides, in place or not, threads, how a state is cut
into parts, where vectors begin and end; and, within a tolerance, the kind of vector code."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import (
    DTYPES,
    HALVES,
    HYPER,
    INTERPRETER,
    LAYOUTS,
    UPDATES,
    Backend,
    assert_step_close,
    eq4,
    parts,
    random,
    state,
    threads,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from levels import run_at
from torch import Tensor

import stanley_fast as sf

CPU = Backend("cpp", "cpu")


@pytest.fixture
def big(backend: Backend) -> int:
    """Elements for several threads, and for several programs of the interpreter."""
    return 2**18 + 3 if backend == INTERPRETER else 1_000_003


# Sizes and strides -------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1,), (3,), "big"], ids=str)
def test_sizes(
    backend: Backend, shape: tuple[int, ...] | str, dtype: torch.dtype, big: int
) -> None:
    z, grad, key = state((big,) if shape == "big" else shape, backend, dtype)
    got = sf.stanley_step(z, grad, key, 4, **HYPER)
    want = sf.reference.stanley_step(z, grad, key, 4, **HYPER)
    gamma = eq4(grad, 0.3, 0.7)
    assert_step_close(got, want, z, grad, gamma, 0.5)
    got = sf.langevin_step(z, grad, 0.14, key, 4)
    want = sf.reference.langevin_step(z, grad, 0.14, key, 4)
    assert_step_close(got, want, z, grad, torch.full_like(z, 0.14), 1.0)
    assert torch.equal(sf.langevin_step_(z, grad, 0.14, key, 4), got)


@pytest.mark.parametrize("of_grad", LAYOUTS)
@pytest.mark.parametrize("of_z", [name for name in LAYOUTS if name != "negative"])
def test_strides_do_not_matter(each_backend: Backend, of_z: str, of_grad: str) -> None:
    plain, plain_grad, key = state((3, 4, 5, 6), each_backend)
    z, grad = LAYOUTS[of_z](plain), LAYOUTS[of_grad](plain_grad)
    assert torch.equal(z, plain)
    assert torch.equal(grad, plain_grad)
    clamp = (-1.0, 1.5)
    want = sf.stanley_step(plain, plain_grad, key, 2, clamp=clamp, **HYPER)
    got = sf.stanley_step(z, grad, key, 2, clamp=clamp, **HYPER)
    assert torch.equal(got, want)
    if of_z in ("contiguous", "channels_last", "transposed", "permuted"):
        assert got.stride() == z.stride()
    gammas = sf.stepsize(grad, threshold=0.3)
    assert torch.equal(gammas, sf.stepsize(plain_grad, threshold=0.3))
    want_langevin = sf.langevin_step(plain, plain_grad, plain.abs() + 1, key)
    assert torch.equal(sf.langevin_step(z, grad, z.abs() + 1, key), want_langevin)

    # In place: the same values, in the same memory, and nothing beside it.
    space = z if z._base is None else z._base
    before = space.clone()
    assert sf.stanley_step_(z, grad, key, 2, clamp=clamp, **HYPER) is z
    assert torch.equal(z, want)
    z.copy_(plain)
    assert torch.equal(space, before)


def test_expanded_and_0_strided(each_backend: Backend) -> None:
    z, grad, key = state((4, 5), each_backend)
    column, row = grad[:, :1].expand(4, 5), grad[:1].expand(4, 5)
    for expanded in (column, row, grad[0, 0].expand(4, 5)):
        want = sf.stanley_step(z, expanded.contiguous(), key, **HYPER)
        assert torch.equal(sf.stanley_step(z, expanded, key, **HYPER), want)
        assert torch.equal(sf.stanley_step_(z.clone(), expanded, key, **HYPER), want)
        # An expanded z may be read, not written.
        want = sf.stanley_step(expanded.contiguous(), z, key, **HYPER)
        assert torch.equal(sf.stanley_step(expanded, z, key, **HYPER), want)
    gammas = sf.stepsize(column, threshold=0.3)
    assert torch.equal(gammas, sf.stepsize(column.contiguous(), threshold=0.3))


def test_lazily_negated_z(each_backend: Backend) -> None:
    z, grad, key = state((3, 4), each_backend)
    got = sf.stanley_step(LAYOUTS["negative"](z), grad, key, **HYPER)
    assert torch.equal(got, sf.stanley_step(z, grad, key, **HYPER))


def test_z_as_its_own_gradient(each_backend: Backend) -> None:
    z, _, key = state((100,), each_backend)
    want = sf.stanley_step(z, z.clone(), key, **HYPER)
    assert torch.equal(sf.stanley_step(z, z, key, **HYPER), want)
    assert torch.equal(sf.stanley_step_(z, z, key, **HYPER), want)


# The same chain, however it is run ---------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("update", UPDATES)
def test_in_place_is_functional(each_backend: Backend, update: str, dtype: torch.dtype) -> None:
    z, grad, key = state((1003,), each_backend, dtype)
    rest = {"update": update, "clamp": (-1.0, 2.0), "first": 3, "total": 2000}
    want = sf.stanley_step(z, grad, key, 6, **HYPER, **rest)
    same = z.clone()
    assert sf.stanley_step_(same, grad, key, 6, **HYPER, **rest) is same
    assert torch.equal(same, want)
    for gamma in (0.2, torch.full((), 0.2).to(z), z.abs() + 0.1):
        want = sf.langevin_step(z, grad, gamma, key, 6, noise_scale=0.5, **rest)
        same = z.clone()
        assert sf.langevin_step_(same, grad, gamma, key, 6, noise_scale=0.5, **rest) is same
        assert torch.equal(same, want)


@pytest.mark.parametrize("dtype", DTYPES)
def test_threads_do_not_matter(compiled: None, dtype: torch.dtype) -> None:
    z, grad, key = state((1_000_003,), CPU, dtype)
    both = []
    for n in (1, 2):
        with threads(n):
            a = sf.stanley_step(z, grad, key, 1, clamp=(-2.0, 2.0), **HYPER)
            b = sf.langevin_step_(a.clone(), grad, z.abs() + 0.1, key, 2)
            both.append((a, b, sf.stepsize(grad, threshold=0.3)))
    for one, two in zip(*both, strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("kind", ["stanley", "script", "number", "tensor"])
def test_no_head_or_tail_differs(backend: Backend, kind: str) -> None:
    """Every length up to some vectors from every lane gives the bits of the whole."""
    z, grad, key = state((300,), backend)
    gamma = z.abs() + 0.1

    def step(part: slice, **where: int) -> Tensor:
        if kind in ("number", "tensor"):
            by = 0.14 if kind == "number" else gamma[part]
            return sf.langevin_step(z[part], grad[part], by, key, 3, **where)
        update = "script" if kind == "script" else "paper"
        return sf.stanley_step(z[part], grad[part], key, 3, update=update, **HYPER, **where)

    whole = step(slice(None))
    for n, first in parts(backend):
        part = step(slice(first, first + n), first=first, total=300)
        assert torch.equal(part, whole[first : first + n]), f"{n} elements from {first}"


@settings(max_examples=50)
@given(
    n=st.integers(0, 300),
    cut=st.integers(0, 300),
    step=st.sampled_from([0, 1, 2**31]),
    offset=st.sampled_from([0, 2**32 - 30, 2**63 - 30, -30]),
    dtype=st.sampled_from(DTYPES),
)
def test_two_halves_are_one_chain(
    each_backend: Backend, n: int, cut: int, step: int, offset: int, dtype: torch.dtype
) -> None:
    """Two processes that own [0, cut) and [cut, n), some steps of a Gaussian's chain."""
    cut = min(cut, n)
    start, _, _ = state((n,), each_backend, dtype)
    key = torch.tensor([21, offset], device=each_backend.device)
    whole, left, right = start.clone(), start[:cut].clone(), start[cut:].clone()
    for k in range(step, step + (1 if each_backend == INTERPRETER else 3)):
        sf.stanley_step_(whole, -whole, key, k, **HYPER)
        sf.stanley_step_(left, -left, key, k, total=n, **HYPER)
        sf.stanley_step_(right, -right, key, k, first=cut, total=n, **HYPER)
    assert torch.equal(torch.cat([left, right]), whole)


def test_a_big_state_in_parts(backend: Backend, big: int) -> None:
    """Parts that no chunk, thread or program boundary would choose."""
    z, grad, key = state((big,), backend)
    whole = sf.stanley_step(z, grad, key, 9, **HYPER)
    cuts = [0, 1, 4096, 16387, big // 3, big - 3, big]
    for a, b in itertools.pairwise(cuts):
        part = sf.stanley_step(z[a:b], grad[a:b], key, 9, first=a, total=big, **HYPER)
        assert torch.equal(part, whole[a:b])


def test_a_key_that_advances_is_a_step_that_counts(each_backend: Backend) -> None:
    counted, grad, key = state((10, 7), each_backend)
    advanced, moving = counted.clone(), key.clone()
    for k in range(4):
        sf.langevin_step_(counted, grad, 0.1, key, k)
        sf.langevin_step_(advanced, grad, 0.1, moving)
        sf.advance_(moving, -(-70 // 4))
    assert torch.equal(counted, advanced)


@pytest.mark.slow
def test_more_than_2_31_elements(backend: Backend) -> None:
    """The last 1 000 elements equal the same ones computed alone by first=; so do those at 2^31."""
    n = 2**31 + 1000
    if backend == INTERPRETER:
        pytest.skip("a quarter of an hour in Triton's interpreter; gpu_suite.py has it on a GPU")
    if backend.device == "cpu":
        with open("/proc/meminfo") as file:
            free = next(int(line.split()[1]) for line in file if line.startswith("MemAvailable"))
        if free * 1024 < 18 * 2**30:  # z, and a kernel may write the expanded grad out
            pytest.skip(f"needs 18 GiB of free memory, {free / 2**20:.1f} GiB are free")
    key = sf.key(1, backend.device)
    z = torch.zeros(n, device=backend.device)
    grad = torch.full((1,), 0.2, device=backend.device).expand(n)
    sf.stanley_step_(z, grad, key, 1, **HYPER)
    for first in (0, 2**31 - 500, n - 1000):
        part = torch.zeros(1000, device=backend.device)
        sf.stanley_step_(part, grad[:1000], key, 1, first=first, total=n, **HYPER)
        assert torch.equal(z[first : first + 1000], part)


# Vector levels -----------------------------------------------------------------------------------

RUN = """
import sys, torch, stanley_fast as sf
from stanley_fast.backends import vector_level

def run(z, grad, gamma, key):
    z, grad, gamma = (t.requires_grad_() for t in (z, grad, gamma))
    moved = sf.stanley_step(z, grad, key, 2, clamp=(-1.0, 1.5), **HYPER)
    script = sf.langevin_step(z, grad, gamma, key, 2, noise_scale=0.5, update="script")
    grads = torch.autograd.grad((moved + script).sum(), (z, grad, gamma))
    noise = sf.normal(z.shape, key, 2, dtype=z.dtype)
    return moved.detach(), script.detach(), grads, noise

torch.save((vector_level(), [run(*case) for case in torch.load(sys.argv[1])]), sys.argv[2])
"""


@pytest.mark.parametrize("level", ["baseline", "avx2", "avx512"])
def test_vector_levels(compiled: None, tmp_path: Path, level: str) -> None:
    """Each kind of vector code that this CPU can run, not only the one it prefers."""
    cases = []
    for dtype in DTYPES + HALVES:
        z, grad, key = state((5003,), CPU, dtype)
        sf.advance_(key, 2**32 - 1700)  # the low counter word wraps on the way
        gamma = z.abs().to(torch.float32 if dtype in HALVES else dtype) + 0.1
        cases.append((z, grad, gamma, key))
    results = run_at(level, f"HYPER = {HYPER}\n{RUN}", cases, tmp_path)
    for case, result in zip(cases, results, strict=True):
        check_level(*case, *result)


def check_level(
    z: Tensor,
    grad: Tensor,
    gamma: Tensor,
    key: Tensor,
    moved: Tensor,
    script: Tensor,
    grads: tuple[Tensor, ...],
    noise: Tensor,
) -> None:
    """Against the reference: two transitions, the gradients of their sum, and the noise."""
    reference, tol = sf.reference, 1e-12 if z.dtype == torch.float64 else 1e-5
    leaves = [t.to(gamma.dtype, copy=True).requires_grad_() for t in (z, grad, gamma)]
    paper = reference.stanley_step(*leaves[:2], key, 2, clamp=(-1.0, 1.5), **HYPER)
    other = reference.langevin_step(*leaves, key, 2, noise_scale=0.5, update="script")
    assert_step_close(moved, paper.detach(), z, grad, eq4(grad, 0.3, 0.7), 0.5)
    assert_step_close(script, other.detach(), z, grad, gamma, 0.5, "script")
    want = torch.autograd.grad((paper + other).sum(), leaves)
    # The two gradients of a half are each rounded, and so is their sum.
    rtol = tol + (2 * torch.finfo(z.dtype).eps if z.dtype in HALVES else 0)
    for found, wanted in zip(grads, want, strict=True):
        torch.testing.assert_close(found.to(wanted.dtype), wanted, rtol=rtol, atol=rtol)
    want_noise = reference.normal(z.shape, key, 2, dtype=z.dtype)
    torch.testing.assert_close(noise, want_noise, rtol=rtol / 10, atol=rtol / 10)


@pytest.mark.parametrize("gamma_of", [lambda z: z[:1], lambda z: z[0], lambda z: z[7]])
def test_gamma_that_is_an_element_of_z(each_backend: Backend, gamma_of: Callable) -> None:
    """Read before z is written, also by the chunks and threads that come later."""
    z, grad, key = state((40_000,), each_backend)
    z = z.abs() + 0.5
    want = sf.langevin_step(z, grad, gamma_of(z).clone(), key)
    assert torch.equal(sf.langevin_step_(z, grad, gamma_of(z), key), want)


@pytest.mark.parametrize("order", [(0, 3, 1, 2), (0, 1, 2, 3)])
def test_strides_of_dimensions_of_size_1_are_kept(
    each_backend: Backend, order: tuple[int, ...]
) -> None:
    z = random((2, 4, 4, 1), 3, each_backend, torch.float32).permute(order)
    key = sf.key(0, each_backend.device)
    assert sf.stanley_step(z, z, key, threshold=0.1).stride() == z.stride()
    assert sf.stepsize(z, threshold=0.1).stride() == z.stride()
