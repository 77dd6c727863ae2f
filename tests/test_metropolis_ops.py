"""Proposal ratio, acceptance and leapfrog on every backend, against their formulas."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from conftest import (
    DTYPES,
    INTERPRETER,
    LAYOUTS,
    Backend,
    eq4,
    philox,
    random,
    threads,
)
from scipy.stats import norm
from torch import Tensor

import stanley_fast as sf
from stanley_fast import metropolis_ops

SHAPES = [(0, 3), (3, 0), (1, 1), (5,), (3, 7), (2, 3, 4, 4), (3, 3072), (1, 8193), (1, 200_000)]
SCALE = {"step_size": 0.7, "noise_scale": 0.5}
Q = {"adaptive": {"threshold": 0.3}, "one": {"threshold": None}, "given": {}}


# Proposal ratio ----------------------------------------------------------------------------------


def points(shape: tuple[int, ...], on: Backend, dtype: torch.dtype) -> list[Tensor]:
    """z, grad, z_new, grad_new; gradients on both sides of the threshold."""
    return [random(shape, seed, on, dtype) for seed in (1, 2, 3, 4)]


def stepsizes(kind: str, where: list[Tensor]) -> tuple[dict[str, Any], Tensor, Tensor]:
    """Arguments for the kind of stepsize; gamma at the two points in float64."""
    z, grad, _, grad_new = where
    if kind == "given":
        gamma, gamma_new = (g.abs() + 0.1 for g in (grad, grad_new))
        return {"gamma": gamma, "gamma_new": gamma_new}, gamma.double(), gamma_new.double()
    if kind == "one":
        one = torch.full_like(z, 0.7, dtype=torch.float64)
        return {"step_size": 0.7}, one, one
    sizes = [eq4(g, 0.3, 0.7) for g in (grad, grad_new)]
    return {"step_size": 0.7, "threshold": 0.3}, *sizes


def log_q(to: Tensor, z: Tensor, grad: Tensor, gamma: Tensor, noise_scale: float) -> np.ndarray:
    """Each element's log-density of N(z + gamma / 2 grad, gamma noise_scale^2)."""
    mean = z.double() + gamma / 2 * grad.double()
    sd = noise_scale * gamma.sqrt()
    elements = np.asarray(norm.logpdf(to.double().cpu(), mean.cpu(), sd.cpu()))
    return elements.reshape(len(z), math.prod(z.shape[1:]))


@pytest.mark.parametrize("kind", Q)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_log_ratio(
    each_backend: Backend, shape: tuple[int, ...], dtype: torch.dtype, kind: str
) -> None:
    where = points(shape, each_backend, dtype)
    z, grad, z_new, grad_new = where
    given, gamma, gamma_new = stepsizes(kind, where)
    got = metropolis_ops.proposal_log_ratio(z, grad, z_new, grad_new, noise_scale=0.5, **given)
    there = log_q(z_new, z, grad, gamma, 0.5)
    back = log_q(z, z_new, grad_new, gamma_new, 0.5)
    assert got.dtype == torch.float64
    assert got.shape == z.shape[:1]
    assert got.device == z.device
    error = np.abs(got.cpu().numpy() - (back - there).sum(1))
    assert (error <= 1e-12 * (np.abs(back) + np.abs(there)).sum(1)).all()


@pytest.mark.parametrize("scale", [1e-3, 1.0])
def test_log_ratio_of_a_real_proposal_is_good_to_1e_9(each_backend: Backend, scale: float) -> None:
    """f = -|z|^2 / 2 in 3 072 dimensions, float32: against float64 in another order."""
    key = sf.key(3, each_backend.device)
    z = random((4, 3072), 1, each_backend, torch.float32)
    z_new = sf.stanley_step(z, -z, key, threshold=0.5, step_size=scale)
    got = metropolis_ops.proposal_log_ratio(z, -z, z_new, -z_new, threshold=0.5, step_size=scale)
    gamma, gamma_new = eq4(z, 0.5, scale), eq4(z_new, 0.5, scale)
    terms = log_q(z, z_new, -z_new, gamma_new, 1.0) - log_q(z_new, z, -z, gamma, 1.0)
    want = [math.fsum(row) for row in terms]
    np.testing.assert_allclose(got.cpu().numpy(), want, rtol=0, atol=1e-9)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_log_ratio_of_layouts(each_backend: Backend, layout: str) -> None:
    where = points((2, 3, 4, 4), each_backend, torch.float32)
    want = metropolis_ops.proposal_log_ratio(*where, threshold=0.3, **SCALE)
    laid_out = [LAYOUTS[layout](x) for x in where]
    assert torch.equal(metropolis_ops.proposal_log_ratio(*laid_out, threshold=0.3, **SCALE), want)


def test_gamma_broadcasts_and_step_size_is_read_from_a_tensor(each_backend: Backend) -> None:
    where = points((2, 3, 4, 4), each_backend, torch.float32)
    z = where[0]
    rates = random((3, 1, 1), 5, each_backend, torch.float32).abs() + 0.1
    scalar = torch.tensor(0.4, device=z.device)
    got = metropolis_ops.proposal_log_ratio(*where, gamma=rates, gamma_new=scalar)
    full = {"gamma": rates.expand(z.shape), "gamma_new": scalar.expand(z.shape)}
    assert torch.equal(got, metropolis_ops.proposal_log_ratio(*where, **full))
    for dtype in (torch.float64, torch.float32):
        size = torch.tensor(0.5, dtype=dtype, device=z.device)
        for threshold in (None, math.inf, 0.3):
            got = metropolis_ops.proposal_log_ratio(*where, threshold=threshold, step_size=size)
            want = metropolis_ops.proposal_log_ratio(*where, threshold=threshold, step_size=0.5)
            assert torch.equal(got, want)


@pytest.mark.parametrize("kind", Q)
@pytest.mark.parametrize("width", [3, 7, 3072, 20_000])
def test_a_chains_bits_are_its_own(backend: Backend, kind: str, width: int) -> None:
    """Whatever the number of threads and the other chains of the batch."""
    where = points((5, width), backend, torch.float32)
    given, _, _ = stepsizes(kind, where)
    whole = metropolis_ops.proposal_log_ratio(*where, **given)
    for rows in (slice(0, 1), slice(1, 5)):
        part = {k: v[rows] if isinstance(v, Tensor) else v for k, v in given.items()}
        some = metropolis_ops.proposal_log_ratio(*(x[rows] for x in where), **part)
        assert torch.equal(some, whole[rows])
    for n in (1, 3) if backend.device == "cpu" else ():
        with threads(n):
            assert torch.equal(metropolis_ops.proposal_log_ratio(*where, **given), whole)


@pytest.mark.parametrize("width", [3, 50])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("which", range(4))
def test_what_is_not_finite_is_not_accepted(
    each_backend: Backend, which: int, bad: float, width: int
) -> None:
    """NaN for that chain, or -inf; the others are as they were."""
    where = points((3, width), each_backend, torch.float32)
    want = metropolis_ops.proposal_log_ratio(*where, threshold=0.3, **SCALE)
    where[which][1, 2] = bad
    got = metropolis_ops.proposal_log_ratio(*where, threshold=0.3, **SCALE)
    assert torch.equal(got[::2], want[::2])
    assert got[1].isnan() or (which >= 2 and got[1] == -math.inf)


@pytest.mark.parametrize("width", [3, 50])
@pytest.mark.parametrize("bad", [0.0, -0.5, math.nan, math.inf])
@pytest.mark.parametrize("which", ["gamma", "gamma_new"])
def test_a_stepsize_that_is_not_positive_gives_nan(
    backend: Backend, which: str, bad: float, width: int
) -> None:
    where = points((3, width), backend, torch.float32)
    given, _, _ = stepsizes("given", where)
    given[which][1, 2] = bad
    got = metropolis_ops.proposal_log_ratio(*where, **given)
    assert got.isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("threshold", [None, 0.3])
@pytest.mark.parametrize("bad", [0.0, -0.5, math.nan])
def test_one_stepsize_that_is_not_positive_gives_nan(
    each_backend: Backend, bad: float, threshold: float | None
) -> None:
    """A tensor's value is known only on the device."""
    where = points((3, 7), each_backend, torch.float32)
    size = torch.tensor(bad, dtype=torch.float64, device=where[0].device)
    got = metropolis_ops.proposal_log_ratio(*where, step_size=size, threshold=threshold)
    assert got.isnan().all()


# Acceptance --------------------------------------------------------------------------------------


def uniforms(n: int, seed: int, offset: int, step: int, first: int, total: int) -> np.ndarray:
    """u of chains [first, first + n), from docs/architecture.md alone."""
    chain = np.arange(first, first + n)
    block = offset + step * -(-total // 4) + chain // 4
    counter = np.stack([block & 0xFFFFFFFF, block >> 32, block * 0 + 1, block * 0], axis=1)
    w = philox(counter, seed & 0xFFFFFFFF, seed >> 32)
    return (w[np.arange(n), chain % 4].astype(np.float64) + 0.5) * 2.0**-32


def chains(
    n: int, shape: tuple[int, ...], on: Backend, dtype: torch.dtype, density: torch.dtype
) -> list[Tensor]:
    """z, grad, log_density, the same anew, log_ratio."""
    state = [random((n, *shape), seed, on, dtype) for seed in (1, 2, 3, 4)]
    z, grad, z_new, grad_new = state
    log_density, log_density_new = (random((n,), seed, on, density) for seed in (5, 6))
    log_ratio = random((n,), 7, on, torch.float64)
    return [z, grad, log_density, z_new, grad_new, log_density_new, log_ratio]


@pytest.mark.parametrize("density", DTYPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (1,), (7,), (3, 4, 4), (3072,)], ids=str)
@pytest.mark.parametrize("n", [0, 1, 9])
def test_accept(
    each_backend: Backend,
    n: int,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    density: torch.dtype,
) -> None:
    args = chains(n, shape, each_backend, dtype, density)
    before = [x.clone() for x in args]
    key = torch.tensor([(5 << 32) + 3, 11], device=each_backend.device)
    accepted, probability = metropolis_ops.accept_(*args, key, 6, first=5, total=30)
    log_alpha = (args[5].double() - before[2].double() + args[6]).cpu().numpy()
    u = uniforms(n, (5 << 32) + 3, 11, 6, 5, 30)
    assert accepted.dtype == torch.bool
    assert probability.dtype == torch.float64
    assert accepted.tolist() == (np.log(u) <= log_alpha).tolist()
    want = np.minimum(1.0, np.exp(log_alpha))
    np.testing.assert_allclose(probability.cpu().numpy(), want, rtol=1e-14)
    for old, start, new in zip(args[:3], before[:3], before[3:6], strict=True):
        for chain in range(n):
            assert torch.equal(old[chain], (new if accepted[chain] else start)[chain])
    for new, start in zip(args[3:], before[3:], strict=True):
        assert torch.equal(new, start)


def test_known_uniforms(each_backend: Backend) -> None:
    """log alpha a little above log u is accepted, a little below it is not."""
    u = uniforms(8, 42, 0, 0, 0, 8)
    for shift, want in ((1e-9, True), (-1e-9, False)):
        z = torch.zeros(8, 2, device=each_backend.device)
        zero = torch.zeros(8, device=each_backend.device)
        log_ratio = torch.from_numpy(np.log(u) + shift).to(each_backend.device)
        key = sf.key(42, each_backend.device)
        accepted, probability = metropolis_ops.accept_(
            z, None, zero, z + 1, None, zero.clone(), log_ratio, key
        )
        assert accepted.tolist() == [want] * 8
        np.testing.assert_allclose(probability.cpu().numpy(), u * math.exp(shift), rtol=1e-12)


def test_uniforms_are_the_streams_philox_words() -> None:
    """The oracle above against the reference's words, which have known answers."""
    w = sf.reference.philox(torch.tensor([42, 0]), torch.tensor([7]), 1)[0]
    got = uniforms(4, 42, 3, 2, 0, 7)  # 3 + 2 * ceil(7 / 4)
    np.testing.assert_array_equal(got, (w.double().numpy() + 0.5) * 2.0**-32)


def test_without_gradients(each_backend: Backend) -> None:
    """A random walk keeps none."""
    z, _, f, z_new, _, f_new, log_ratio = chains(
        9, (7,), each_backend, torch.float32, torch.float32
    )
    start = z.clone()
    key = sf.key(1, each_backend.device)
    accepted, _ = metropolis_ops.accept_(z, None, f, z_new, None, f_new, log_ratio, key)
    assert 0 < accepted.sum() < 9
    assert torch.equal(z, torch.where(accepted[:, None], z_new, start))


def test_what_is_not_finite_is_rejected(each_backend: Backend) -> None:
    nan, inf = math.nan, math.inf
    f = [0.0, 0.0, 0.0, 0.0, nan, 0.0, -inf, 0.0]
    f_new = [nan, inf, -inf, 1.0, 1.0, 1.0, 1.0, 1.0]
    ratio = [inf, inf, 0.0, nan, 0.0, -inf, 0.0, inf]
    on = {"device": each_backend.device}
    z = torch.zeros(8, 3, **on)
    log_density = torch.tensor(f, **on)
    log_ratio = torch.tensor(ratio, dtype=torch.float64, **on)
    z_new = torch.full((8, 3), nan, **on)
    accepted, probability = metropolis_ops.accept_(
        z, None, log_density, z_new, None, torch.tensor(f_new, **on), log_ratio, sf.key(0, **on)
    )
    want = [False] * 6 + [True] * 2
    assert accepted.tolist() == want
    assert probability.tolist() == [float(x) for x in want]
    assert z.isnan().any(1).tolist() == want


def test_parts_are_the_whole(each_backend: Backend) -> None:
    whole = chains(11, (5,), each_backend, torch.float32, torch.float32)
    start = [x.clone() for x in whole]
    key = sf.key(9, each_backend.device)
    accepted, probability = metropolis_ops.accept_(*whole, key, 3)
    for first, end in ((0, 1), (1, 6), (6, 11)):
        part = [x[first:end].clone() for x in start]
        got = metropolis_ops.accept_(*part, key, 3, first=first, total=11)
        assert torch.equal(got[0], accepted[first:end])
        assert torch.equal(got[1], probability[first:end])
        assert torch.equal(part[0], whole[0][first:end])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_accept_of_layouts(each_backend: Backend, layout: str) -> None:
    args = chains(5, (3, 4, 4), each_backend, torch.float32, torch.float32)
    key = sf.key(2, each_backend.device)
    # torch refuses to have two lazily negated tensors written.
    states = (3, 4) if layout == "negative" else (0, 1, 3, 4)
    odd = [LAYOUTS[layout](x) if i in states else x.clone() for i, x in enumerate(args)]
    odd[2] = torch.stack([odd[2], odd[2]], dim=1)[:, 0]
    want, got = metropolis_ops.accept_(*args, key), metropolis_ops.accept_(*odd, key)
    assert all(map(torch.equal, got, want))
    assert all(map(torch.equal, odd, args))


def test_a_proposal_that_is_the_state(each_backend: Backend) -> None:
    args = chains(5, (3,), each_backend, torch.float32, torch.float32)
    start = [x.clone() for x in args[:3]]
    metropolis_ops.accept_(*args[:3], *args[:3], args[6], sf.key(2, each_backend.device))
    assert all(map(torch.equal, args[:3], start))


def test_the_share_accepted(each_backend: Backend) -> None:
    """alpha = 0.3 for 20 000 chains (100 on the interpreter): within 4 standard deviations."""
    n = 100 if each_backend == INTERPRETER else 20_000
    z = torch.zeros(n, 1, device=each_backend.device)
    f = torch.zeros(n, device=each_backend.device)
    log_ratio = torch.full((n,), math.log(0.3), dtype=torch.float64, device=f.device)
    key = sf.key(4, each_backend.device)
    accepted, _ = metropolis_ops.accept_(z, None, f, z + 1, None, f.clone(), log_ratio, key)
    assert abs(accepted.double().mean().item() - 0.3) <= 4 * math.sqrt(0.3 * 0.7 / n)


def test_thread_counts_agree(backend: Backend) -> None:
    if backend.device != "cpu" or backend == INTERPRETER:
        return
    results = []
    for n in (1, 3):
        args = chains(3000, (33,), backend, torch.float32, torch.float32)
        with threads(n):
            results.append([*metropolis_ops.accept_(*args, sf.key(0)), *args])
    assert all(map(torch.equal, *results))


# The two together --------------------------------------------------------------------------------


def invariant(on: Backend, log_ratio: Callable[..., Tensor]) -> float:
    """Standard deviations that the mean of z^2 is off after one transition from N(0, 1) exactly."""
    n = 60 if on == INTERPRETER else 200_000
    key = sf.key(12, on.device)
    z = sf.normal((n, 1), key, stream=2, dtype=torch.float64)
    f, grad = -0.5 * z[:, 0] ** 2, -z
    z_new = sf.stanley_step(z, grad, key, threshold=0.5, step_size=1.5)
    f_new, grad_new = -0.5 * z_new[:, 0] ** 2, -z_new
    ratio = log_ratio(z, grad, z_new, grad_new)
    metropolis_ops.accept_(z, grad, f, z_new, grad_new, f_new, ratio, key)
    return ((z**2).mean().item() - 1.0) / math.sqrt(2.0 / n)


def test_one_transition_leaves_the_target_invariant(each_backend: Backend) -> None:
    def ratio(*where: Tensor) -> Tensor:
        return metropolis_ops.proposal_log_ratio(*where, threshold=0.5, step_size=1.5)

    assert abs(invariant(each_backend, ratio)) <= 4


def broken_ratio(z: Tensor, grad: Tensor, z_new: Tensor, grad_new: Tensor, drop: str) -> Tensor:
    y, y_new = eq4(grad, 0.5, 1.5), eq4(grad_new, 0.5, 1.5)
    there = (z_new - z - y / 2 * grad) ** 2 / (2 * y)
    back = (z - z_new - y_new / 2 * grad_new) ** 2 / (2 * y_new)
    terms = {"there": there, "back": -back, "log": y.log() / 2, "log_new": -y_new.log() / 2}
    return sum(t for name, t in terms.items() if name != drop).sum(1)  # type: ignore[union-attr]


@pytest.mark.parametrize("drop", ["", "there", "back", "log", "log_new"])
def test_that_test_sees_each_term_of_q(drop: str) -> None:
    """Without any of them the transition moves the variance; with all of them it does not."""
    with sf.use_backend("reference"):
        off = invariant(Backend("reference", "cpu"), lambda *where: broken_ratio(*where, drop))
    assert (abs(off) <= 4) is (drop == "")


# Leapfrog ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mass", [None, "element", "broadcast"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [*SHAPES[:-1], (2, 40_003)], ids=str)
def test_leapfrog(
    each_backend: Backend, shape: tuple[int, ...], dtype: torch.dtype, mass: str | None
) -> None:
    z, momentum, grad = (random(shape, seed, each_backend, dtype) for seed in (1, 2, 3))
    chain = shape[1:] if mass == "element" else shape[-1:] if len(shape) > 1 else ()
    inverse = None if mass is None else random(chain, 4, each_backend, dtype).abs() + 0.5
    p = momentum.double() + 0.5 * 0.1 * grad.double()
    want = z.double() + 0.1 * (p if inverse is None else p * inverse.double())
    size = 0.1 if mass else torch.tensor(0.1, dtype=torch.float64, device=z.device)
    done = metropolis_ops.leapfrog_(
        z, momentum, grad, step_size=size, kick=0.5, inverse_mass=inverse
    )
    assert done is None
    tol = 1e-6 if dtype == torch.float32 else 1e-15
    torch.testing.assert_close(momentum.double(), p, rtol=tol, atol=tol)
    torch.testing.assert_close(z.double(), want, rtol=tol, atol=tol)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_leapfrog_of_layouts(each_backend: Backend, layout: str) -> None:
    args = [random((3, 3, 4, 4), seed, each_backend, torch.float32) for seed in (1, 2, 3)]
    odd = [LAYOUTS[layout](x) for x in args]
    if layout == "negative":  # see above
        odd[:2] = [x.clone() for x in args[:2]]
    metropolis_ops.leapfrog_(*args, step_size=0.1)
    metropolis_ops.leapfrog_(*odd, step_size=0.1)
    assert all(map(torch.equal, odd, args))


def test_leapfrog_is_reversible(each_backend: Backend) -> None:
    """f = -|z|^2 / 2: 20 steps, the momentum's sign, 20 steps."""
    z = random((3, 5), 1, each_backend, torch.float64)
    momentum = random((3, 5), 2, each_backend, torch.float64)
    start = z.clone()
    for _ in range(2):
        for k in range(20):
            metropolis_ops.leapfrog_(z, momentum, -z, step_size=0.1, kick=0.5 if k == 0 else 1.0)
        momentum.add_(-z, alpha=0.05).neg_()
    torch.testing.assert_close(z, start, rtol=1e-12, atol=1e-12)


# torch -------------------------------------------------------------------------------------------


def samples() -> list[Any]:
    found = []
    on = Backend("cpp", "cpu")
    for dtype, shape in itertools.product(DTYPES, [(3, 4), (0, 2), (2, 0)]):
        args = chains(shape[0], shape[1:], on, dtype, dtype)
        where = [args[i] for i in (0, 1, 3, 4)]
        rate, size = where[1].abs() + 0.1, torch.tensor(0.5)
        key = sf.key(1)
        calls = {
            "adaptive": ("proposal_log_ratio", (*where, None, None, size, 0.3, 0.5)),
            "one": ("proposal_log_ratio", (*where, None, None, size, math.inf, 0.5)),
            "given": ("proposal_log_ratio", (*where, rate, rate, None, math.inf, 0.5)),
            "accept": ("accept_", (*args, key, 2, 0, None)),
            "walk": ("accept_", (args[0], None, *args[2:4], None, *args[5:], key, 2, 3, 50)),
            "leapfrog": ("leapfrog_", (*where[:3], size, 0.5, None)),
            "mass": ("leapfrog_", (*where[:3], size, 0.5, torch.ones(shape[1:], dtype=dtype))),
        }
        for name, (op, arguments) in calls.items():
            found.append(pytest.param(op, arguments, id=f"{name}-{shape}-{str(dtype)[6:]}"))
    return found


@pytest.mark.parametrize(("op", "args"), samples())
def test_opcheck(backend: Backend, op: str, args: tuple[Any, ...]) -> None:
    namespace = "stanley_fast_triton" if backend.name == "triton" else "stanley_fast"
    args = tuple(x.to(backend.device) if isinstance(x, Tensor) else x for x in args)
    torch.library.opcheck(getattr(getattr(torch.ops, namespace), op).default, args)


def transition(z: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    """MALA's, then a leapfrog."""
    f = -0.5 * z.square().sum(1)
    for k in range(3):
        z_new = sf.stanley_step(z, -z, key, k, threshold=0.5)
        ratio = metropolis_ops.proposal_log_ratio(
            z, -z, z_new, -z_new, threshold=0.5, step_size=1.0
        )
        f_new = -0.5 * z_new.square().sum(1)
        accepted, _ = metropolis_ops.accept_(z, None, f, z_new, None, f_new, ratio, key, k)
        momentum = sf.normal(z.shape, key, 10 + k)
        metropolis_ops.leapfrog_(z, momentum, -z, step_size=0.1, kick=0.5)
    return z, accepted


@pytest.mark.parametrize(
    "compiler", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)]
)
def test_compiled_transitions_are_the_eager_ones(compiled: None, compiler: str) -> None:
    torch._dynamo.reset()
    z, key = random((6, 3), 1, Backend("cpp", "cpu"), torch.float32), sf.key(0)
    want = transition(z.clone(), key)
    got = torch.compile(transition, fullgraph=True, backend=compiler)(z.clone(), key)
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)


def test_versions_and_inference_mode(backend: Backend) -> None:
    args = chains(4, (3,), backend, torch.float32, torch.float32)
    key = sf.key(0, backend.device)
    before = [x._version for x in args]
    metropolis_ops.accept_(*args, key)
    assert [x._version - v for x, v in zip(args, before, strict=True)] == [1] * 3 + [0] * 4
    z, momentum, grad = args[0], args[3], args[1]
    before = [x._version for x in (z, momentum, grad)]
    metropolis_ops.leapfrog_(z, momentum, grad, step_size=0.1)
    after = [x._version - v for x, v in zip((z, momentum, grad), before, strict=True)]
    assert after == [1, 1, 0]
    with torch.inference_mode():
        mixed = [x.clone() if i == 0 else x for i, x in enumerate(args)]
        accepted, _ = metropolis_ops.accept_(*mixed, key)
        assert accepted.is_inference()
        outside = mixed[0]
    with pytest.raises(RuntimeError, match="inference"):
        metropolis_ops.leapfrog_(outside, momentum, grad, step_size=0.1)
