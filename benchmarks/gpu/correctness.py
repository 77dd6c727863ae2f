"""Every operation of a backend against the reference: values, gradients, noise, edges."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

import stanley_fast as sf
from gpu import data, metropolis
from gpu.data import CLAMP, HYPER, LAYOUTS, NOISE_SCALE, Guarded, poisoned
from gpu.rows import Rows

OPS = ("stanley_step_", "stanley_step", "langevin_step_", "langevin_step")
UPDATES = ("paper", "script")
SHAPE = (3, 4, 15, 17)  # for layouts: nothing in it divides by a vector's length
SIZES = (0, 1, 2, 3, 4, 5, 7, 15, 17, 1023, 1025, 196_607, 196_608, 2**20 + 3)
DRY_SIZES = (0, 1, 3, 4, 5, 17, 1025)

# Blocks of seed 42 with a word where float32 is delicate: radii and angles at their ends.
CORNERS = (423892995, 2255507281, 4173330143, 3473521661, 1880069070, 4265106319, 4141024562,
           2998113317, 1568543990, 2226867172, 1710472528, 428513056, 3521618349, 401839163,
           2016002291, 1011452389, 4119691420)  # fmt: skip
EDGES = (0, 1, 2**32 - 2, 2**32, 2**63 - 1, 2**63, 2**64 - 1)  # of seeds and block offsets

Cases = dict[str, Callable[[], float]]


def run(rows: Rows, backend: str, device: str, dtype: torch.dtype) -> None:
    """All rows of one backend and dtype; on the CPU with sizes that an interpreter can do."""
    sizes = SIZES if device == "cuda" else DRY_SIZES
    label = {"dtype": data.name(dtype)}
    rows.check("new memory is poisoned", {"empty": partial(poison_works, dtype, device)}, **label)
    for op in OPS:
        rows.check(f"{op} sizes", step_sizes(op, sizes, dtype, device), **label)
        rows.check(f"{op} layouts", step_layouts(op, dtype, device), **label)
    rows.check("NaN and infinity", not_finite(dtype, device), **label)
    for op in ("stanley_step", "langevin_step"):
        rows.check(f"{op} gradients", gradients(op, sizes, dtype, device), **label)
    if dtype == torch.bfloat16:
        rows.check("stochastic rounding", rounding(sizes, device), **label)
    rows.check("stepsize", stepsizes(sizes, dtype, device), **label)
    rows.check("normal values", normals(sizes, dtype, device), **label)
    rows.check("normal layouts", normal_layouts(backend, dtype, device), **label)
    if dtype in (torch.float32, torch.float64):
        metropolis.correctness(rows, dtype, device)
    if dtype == torch.float64:
        rows.check("normal words", words(10**6 if device == "cuda" else 4000, device), **label)


def poison_works(dtype: torch.dtype, device: str) -> float:
    like = torch.zeros(1000, dtype=dtype, device=device)
    with poisoned(like):
        assert torch.empty_like(like).isnan().all()
    return 0.0


# Steps -------------------------------------------------------------------------------------------


class Case(NamedTuple):
    """One call of a step; gamma's shape matters to Langevin alone, None is a number."""

    shape: tuple[int, ...]
    layouts: tuple[str, str] = ("contiguous", "contiguous")
    update: str = "paper"
    clamp: tuple[float, float] | None = None
    gamma: tuple[int, ...] | None = None
    first: int = 0
    beyond: int = 0  # elements of the whole state after ours

    def rest(self) -> dict[str, Any]:
        total = self.first + math.prod(self.shape) + self.beyond
        part = {"first": self.first, "total": total} if self.first or self.beyond else {}
        return {"update": self.update, "clamp": self.clamp, **part}


def draw_gamma(case: Case, dtype: torch.dtype) -> Tensor:
    return data.random(case.gamma or (), data.compute_dtype(dtype)).abs() + 0.2


def check_step(op: str, case: Case, dtype: torch.dtype, device: str) -> float:
    """Values, what else was written, and the strides of what is new."""
    z, grad = data.random(case.shape, dtype), data.gradient(case.shape, dtype)
    gamma, key = draw_gamma(case, dtype), sf.key(77)
    want = data.reference_step(op, z, grad, gamma, key, 3, **case.rest())
    sizes = sf.reference.stepsize(grad.to(want.dtype), **HYPER) if "stanley" in op else gamma
    bound = data.step_bound(want, z, grad, sizes, case.update, dtype)

    state, slope = Guarded(z, case.layouts[0], device), Guarded(grad, case.layouts[1], device)
    given: Any = gamma.to(device) if case.gamma is not None else float(gamma)
    with poisoned(state.view):
        got = data.our_step(op, state.view, slope.view, given, key.to(device), 3, **case.rest())
    assert got.dtype == dtype
    slope.assert_untouched()
    if op.endswith("_"):
        assert got is state.view
        state.assert_nothing_beside()
    else:
        state.assert_untouched()
        assert got.stride() == torch.empty_like(state.view).stride(), f"strides {got.stride()}"
    return data.excess(got, want, bound)


def step_sizes(op: str, sizes: tuple[int, ...], dtype: torch.dtype, device: str) -> Cases:
    """Every size, aligned and not; updates, clamps, gammas and parts take turns."""
    cases: Cases = {}
    for i, n in enumerate(sizes):
        for j, layout in enumerate(("contiguous", "offset")):
            case = Case(
                (n,),
                (layout, layout),
                UPDATES[(i + j) % 2],
                (None, CLAMP, (-math.inf, 0.5))[i % 3],
                (None, (n,), (1,))[(i + j) % 3],
                *((0, 0), (0, 9), (n + 1, 0), (2**33 + 6, 5))[(i + 2 * j) % 4],
            )
            cases[f"{n} {layout}"] = partial(check_step, op, case, dtype, device)
    return cases


def step_layouts(op: str, dtype: torch.dtype, device: str) -> Cases:
    """Every layout for both, for z alone and for the gradient alone; gammas that broadcast."""
    gammas: tuple[tuple[int, ...] | None, ...] = (None, SHAPE, (3, 1, 1, 1), (4, 1, 1), (17,))
    cases: Cases = {}
    for i, layout in enumerate(LAYOUTS):
        pairs = ((layout, layout), (layout, "contiguous"), ("contiguous", layout))
        for j, layouts in enumerate(pairs):
            clamp = (None, CLAMP)[j % 2]
            case = Case(SHAPE, layouts, UPDATES[(i + j) % 2], clamp, gammas[(i + j) % 5], 7 * j, j)
            cases[" and ".join(layouts)] = partial(check_step, op, case, dtype, device)
    return cases


def not_finite(dtype: torch.dtype, device: str) -> Cases:
    """A NaN or infinity in the gradient or the state stays where it is and touches no other."""

    def case(op: str, update: str) -> float:
        z, grad = data.random((1003,), dtype), data.gradient((1003,), dtype)
        for i, value in enumerate((math.nan, math.inf, -math.inf)):
            grad[i::97], z[i + 3 :: 97] = value, value
        gamma = draw_gamma(Case((1003,), gamma=(1003,)), dtype)
        rest: dict[str, Any] = {"update": update, "clamp": CLAMP if op.endswith("_") else None}
        want = data.reference_step(op, z, grad, gamma, sf.key(5), 0, **rest)
        sizes = sf.reference.stepsize(grad.to(want.dtype), **HYPER)
        bound = data.step_bound(want, z, grad, sizes if "stanley" in op else gamma, update, dtype)
        ours = partial(data.our_step, op, z.to(device), grad.to(device), gamma.to(device))
        return data.excess(ours(sf.key(5, device), 0, **rest), want, bound)

    return {f"{op} {update}": partial(case, op, update) for op in OPS for update in UPDATES}


def rounding(sizes: tuple[int, ...], device: str) -> Cases:
    """Where z' is any float32, 0 + x (1 + 0), to the bit; whole steps to a neighbour."""
    stochastic: dict[str, Any] = {"rounding": "stochastic"}

    def alone(n: int, first: int) -> float:
        bits = torch.randint(2**31, (n,), generator=torch.Generator().manual_seed(n))
        x = bits.int().view(torch.float32)
        x[~x.isfinite()] = 1.1
        zero, where = torch.zeros(n, dtype=torch.bfloat16), {"first": first, "total": first + n}
        rest: dict[str, Any] = {"noise_scale": 0.0, "update": "script", **where, **stochastic}
        want = sf.reference.langevin_step(zero, zero + 1, x, sf.key(9), 4, **rest)
        args = (x.to(device) for x in (zero, zero + 1, x, sf.key(9)))
        return data.equal(sf.langevin_step(*args, 4, **rest), want)

    def whole(op: str, n: int) -> float:
        z, grad = data.random((n,), torch.bfloat16), data.gradient((n,), torch.bfloat16)
        stanley = op.startswith("stanley")
        gamma = draw_gamma(Case((n,), gamma=(n,)), z.dtype)
        args = (z, grad, sf.key(9)) if stanley else (z, grad, gamma, sf.key(9))
        scale: dict[str, Any] = HYPER if stanley else {}
        want = getattr(sf.reference, op.rstrip("_"))(*args, 4, **scale, **stochastic)
        got = getattr(sf, op)(*(x.to(device) for x in args), 4, **scale, **stochastic)
        sizes = sf.reference.stepsize(grad.float(), **HYPER) if stanley else gamma
        # float32's own error, much of a result near 0, may decide for the other neighbour.
        bound = data.step_bound(want, z, grad, sizes, "paper", torch.bfloat16)
        return data.excess(got, want, bound + data.rounding(want, torch.bfloat16))

    cases = {f"{n} from {i}": partial(alone, n, i) for i, n in enumerate(sizes)}
    return cases | {f"{op} {n}": partial(whole, op, n) for op in OPS for n in sizes}


# Gradients ---------------------------------------------------------------------------------------


def gradients(op: str, sizes: tuple[int, ...], dtype: torch.dtype, device: str) -> Cases:
    """Sizes, then layouts; with and without clamp, which saves z or not."""
    cases: Cases = {}
    for i, n in enumerate(sizes):
        gamma: tuple[int, ...] | None = (None, (n,), (1,))[i % 3]
        case = Case((n,), update=UPDATES[i % 2], clamp=(None, CLAMP)[i // 2 % 2], gamma=gamma)
        cases[str(n)] = partial(check_gradient, op, case, dtype, device)
    for i, layout in enumerate(LAYOUTS):
        clamp, gamma = ((CLAMP, (4, 1, 1)), (None, SHAPE))[i % 2]
        case = Case(SHAPE, (layout, layout), UPDATES[i % 2], clamp, gamma, 6, 3)
        cases[layout] = partial(check_gradient, op, case, dtype, device)
    return cases


def check_gradient(op: str, case: Case, dtype: torch.dtype, device: str) -> float:
    """By z, by the gradient and by gamma, against autograd of the reference."""
    wide = data.compute_dtype(dtype)
    z, grad = data.random(case.shape, dtype), data.gradient(case.shape, dtype)
    gamma, coming = draw_gamma(case, dtype), data.random(case.shape, dtype)
    key = sf.key(78)
    # Near a bound, a rounding decides which side a new state is on: nothing comes from there.
    moved = data.reference_step(op, z, grad, gamma, key, 2, **{**case.rest(), "clamp": None})
    for edge in case.clamp or ():
        coming[(moved - edge).abs() < 1e-3] = 0.0

    def grads(step: Callable[..., Tensor], leaves: list[Tensor], k: Tensor) -> list[Tensor]:
        leaves = [leaf.detach().requires_grad_() for leaf in leaves]
        wanted = leaves if op.startswith("langevin") and case.gamma is not None else leaves[:2]
        given: Any = leaves[2] if case.gamma is not None else float(gamma)
        out = step(op, leaves[0], leaves[1], given, k, 2, **case.rest())
        return list(torch.autograd.grad(out, wanted, coming.to(out.device, out.dtype)))

    wants = grads(data.reference_step, [z.to(wide), grad.to(wide), gamma], key)
    views = [
        Guarded(x, layout, device).view for x, layout in zip((z, grad), case.layouts, strict=True)
    ]
    with poisoned(views[0]):
        gots = grads(data.our_step, [*views, gamma.to(device)], key.to(device))

    bounds = gradient_bounds(op, case, z, grad, gamma, coming, key)
    worst = 0.0
    for got, want, bound, of in zip(gots, wants, bounds, (dtype, dtype, wide), strict=False):
        assert got.dtype == of, f"gradient in {got.dtype}, want {of}"
        worst = max(worst, data.excess(got, want, bound + data.rounding(want, of)))
    return worst


def gradient_bounds(
    op: str, case: Case, z: Tensor, grad: Tensor, gamma: Tensor, coming: Tensor, key: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """2e-5 (1e-12 in float64) of every term of the derivatives of Eqs. 4 and 5."""
    wide = data.compute_dtype(z.dtype)
    part = {name: value for name, value in case.rest().items() if name in ("first", "total")}
    xi = sf.reference.normal(z.shape, key, 2, dtype=wide, **part).double().abs()
    noise = NOISE_SCALE * (1 + xi)  # a normal near 0 is as good as its radius lets it be
    g, c = grad.double().abs(), coming.double().abs()
    stanley = op.startswith("stanley")
    gamma = sf.reference.stepsize(grad.to(wide), **HYPER) if stanley else gamma
    gamma = gamma.double()
    if case.update == "paper":
        drift, by_gamma = gamma / 2, g / 2 + noise / (2 * gamma.sqrt())
    else:
        drift, by_gamma = gamma, g + noise
    slope = torch.where(g > HYPER["threshold"], gamma / g, 0.0) if stanley else 0.0
    tol = 1e-12 if wide == torch.float64 else 2e-5
    by_all = (c * by_gamma).sum_to_size(case.gamma or ())
    return tol * c, tol * c * (drift + slope * by_gamma), tol * by_all


# The stepsize alone ------------------------------------------------------------------------------


def stepsizes(sizes: tuple[int, ...], dtype: torch.dtype, device: str) -> Cases:
    def case(shape: tuple[int, ...], layout: str) -> float:
        grad = data.gradient(shape, dtype)
        given = Guarded(grad, layout, device)
        leaf = given.view.requires_grad_()
        with poisoned(given.view):
            got = sf.stepsize(leaf, **HYPER)
            coming = torch.ones_like(got)
            (slope,) = torch.autograd.grad(got, leaf, coming)
        given.assert_untouched()
        wide = data.compute_dtype(dtype)
        assert got.dtype == wide, f"result in {got.dtype}"
        wide_leaf = grad.to(wide).requires_grad_()
        want = sf.reference.stepsize(wide_leaf, **HYPER)
        (want_slope,) = torch.autograd.grad(want, wide_leaf, torch.ones_like(want))
        tol = 1e-14 if dtype == torch.float64 else 1e-6
        bound = 3 * tol * want_slope.double().abs() + 2 * data.rounding(want_slope, dtype)
        return max(
            data.excess(got, want, tol * want.detach().double()),
            data.excess(slope, want_slope, bound),
        )

    cases: Cases = {str(n): partial(case, (n,), "offset") for n in sizes}
    return cases | {layout: partial(case, SHAPE, layout) for layout in LAYOUTS}


# The noise ---------------------------------------------------------------------------------------


def key_of(seed: int, offset: int) -> Tensor:
    """The key of any 64-bit seed and block offset."""
    signed = [x - 2**64 if x >= 2**63 else x for x in (seed, offset)]
    return torch.tensor(signed, dtype=torch.int64)


def exact_normals(
    n: int, key: Tensor, step: int, stream: int, first: int, total: int, wide: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Radius and normal of each element in float64, for the uniforms as `wide` has them."""
    w = sf.reference.words(n, key, step, stream, first, total)
    u = (w.to(wide) * 2.0**-32 + 2.0**-33).double()
    radius = torch.sqrt(-2 * torch.log(u[:, 0::2])).repeat_interleave(2, dim=1)
    turn = u[:, 1::2]
    angle = torch.where(turn > 0.5, turn - 1, turn) * (2 * math.pi)
    exact = radius * torch.stack([angle.cos(), angle.sin()], dim=-1).flatten(1)
    mine = slice(first % 4, first % 4 + n)
    return radius.flatten()[mine], exact.flatten()[mine]


def check_normal(
    n: int, key: Tensor, step: int, stream: int, first: int, total: int, dtype: torch.dtype,
    device: str,
) -> float:  # fmt: skip
    wide = data.compute_dtype(dtype)
    radius, want = exact_normals(n, key, step, stream, first, total, wide)
    where = {"stream": stream, "first": first, "total": total}
    with poisoned(torch.empty(n, dtype=dtype, device=device)):
        got = sf.normal((n,), key.to(device), step, dtype=dtype, **where)
    bound = (2e-15 if dtype == torch.float64 else 4e-7) * radius
    return data.excess(got, want, bound + data.rounding(want, dtype))


def normals(sizes: tuple[int, ...], dtype: torch.dtype, device: str) -> Cases:
    """Sizes, parts of a whole, 64-bit seeds and counters, streams, corners of Box-Muller."""
    check = partial(check_normal, dtype=dtype, device=device)
    cases: Cases = {str(n): partial(check, n, key_of(9, 0), 1, 0, 0, n) for n in sizes}
    for first in (1, 2, 3, 6, 2**31 - 1, 2**34 - 3):
        cases[f"from {first}"] = partial(check, 23, key_of(9, 5), 2, 0, first, first + 40)
    for i, edge in enumerate(EDGES):
        other = EDGES[-1 - i]
        cases[f"seed {edge}"] = partial(check, 90, key_of(edge, other), 2**20 + 1, i, 0, 90)
    cases["last stream"] = partial(check, 9, key_of(1, 1), 0, 2**32 - 1, 0, 9)
    for block in CORNERS:
        cases[f"block {block}"] = partial(check, 64, key_of(42, block - 8), 0, 0, 0, 64)
    return cases


def normal_layouts(backend: str, dtype: torch.dtype, device: str) -> Cases:
    """The operation below sf.normal fills any strides and nothing beside them."""
    ops = torch.ops.stanley_fast_triton if backend == "triton" else torch.ops.stanley_fast
    key = sf.key(12, device)

    def case(layout: str) -> float:
        out = Guarded(data.random(SHAPE, dtype), layout, device)
        ops.normal_(out.view, key, 1, 2, 5, 5000)
        out.assert_nothing_beside()
        want = sf.normal(SHAPE, key, 1, stream=2, dtype=dtype, first=5, total=5000)
        return data.equal(out.view.contiguous(), want)

    return {layout: partial(case, layout) for layout in LAYOUTS}


def words(n: int, device: str) -> Cases:
    """The Philox words, bit for bit, recovered from float64 normals: Box-Muller undone."""

    def case(step: int, stream: int) -> float:
        key = key_of(2**63 + 12345, 2**32 - 1000)
        normals = sf.normal((n,), key.to(device), step, stream=stream, dtype=torch.float64)
        pairs = normals.cpu().view(-1, 2)
        u0 = torch.exp(-pairs.square().sum(1) / 2)
        u1 = torch.atan2(pairs[:, 1], pairs[:, 0]) / (2 * math.pi) % 1.0
        got = torch.stack([u0, u1], dim=1).mul(2.0**32).sub(0.5).round().long()
        want = sf.reference.words(n, key, step, stream, 0, n).view(-1, 2)
        return data.equal(got, want)

    return {f"step {a} stream {b}": partial(case, a, b) for a, b in ((0, 0), (5, 3))}
