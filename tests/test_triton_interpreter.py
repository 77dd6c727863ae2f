"""The Triton kernels against the reference: where programs, threads and tails begin and end.

The tests of the operations run on this backend too; here are the sizes, dtypes and offsets that
matter to how it divides the work. In Triton's interpreter where there is no GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from conftest import LAYOUTS
from torch import Tensor

import stanley_fast as sf

triton = pytest.importorskip("triton")
launch = pytest.importorskip("stanley_fast.kernels.launch")

DEVICE = "cpu" if triton.knobs.runtime.interpret else "cuda"
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
HALVES = [torch.float16, torch.bfloat16]
BLOCK = 1024  # the GPU's, so that the interpreter too runs several programs
SIZES = [0, 1, 2, 3, 4, 5, 8, 15, 16, 17, 63]
EDGES = [BLOCK // 2 + 1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 5]

HYPER = (0.3, 0.7, 0.5)  # threshold, step_size, noise_scale
NO_CLAMP, CLAMP = (-torch.inf, torch.inf), (-0.8, 0.9)


@pytest.fixture(autouse=True)
def gpu_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "BLOCK", BLOCK)


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Results are made within larger tensors of a sentinel: nothing beside them may be written."""
    spaces: list[tuple[Tensor, int]] = []

    def empty(shape: Any, dtype: torch.dtype, device: torch.device) -> Tensor:
        n = torch.Size(shape).numel()
        space = torch.full((64 + n + 64,), 12345.0, dtype=dtype, device=device)
        spaces.append((space, n))
        return space[64 : 64 + n].view(shape)

    def empty_like(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        return empty(x.shape, dtype or x.dtype, x.device)

    def new_empty(x: Tensor, shape: Any, **how: Any) -> Tensor:
        if "device" in how:  # the interpreter's own
            return original(x, shape, **how)
        return empty(shape, how.get("dtype", x.dtype), x.device)

    original = Tensor.new_empty

    with monkeypatch.context() as patch:
        patch.setattr(torch, "empty_like", empty_like)
        patch.setattr(Tensor, "new_empty", new_empty)
        yield
    assert spaces
    for space, n in spaces:
        beside = torch.cat([space[:64], space[64 + n :]])
        assert (beside == torch.tensor(12345.0, dtype=space.dtype)).all()


def data(n: int, dtype: torch.dtype, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """z, a gradient on both sides of the threshold, a stepsize for each."""
    generator = torch.Generator().manual_seed(seed)
    z, grad, gamma = torch.randn(3, n, generator=generator, dtype=torch.float64).to(DEVICE)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    return z.to(dtype), (0.45 * grad).to(dtype), (0.1 + gamma.abs()).to(wide)


def rest(
    step: int = 3,
    update: str = "paper",
    clamp: tuple[float, float] = NO_CLAMP,
    first: int = 0,
    total: int | None = None,
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments after the key but the first two numbers: for the schema, for the reference."""
    where = {"first": first, "total": total}
    schema = (HYPER[2], *clamp, update == "script", first, total)
    named = {"noise_scale": HYPER[2], "clamp": clamp, "update": update, **where}
    return schema, named


def assert_close(got: Tensor, want: Tensor, scale: float = 1.0) -> None:
    """Within 1e-5 (1e-12) of what a step adds, plus two ulp, or one where halves were rounded."""
    assert got.dtype == want.dtype
    ulps = {torch.float32: 2, torch.float64: 2}.get(got.dtype, 1)
    atol = scale * (1e-12 if got.dtype == torch.float64 else 5e-6)
    rtol = ulps * torch.finfo(got.dtype).eps
    torch.testing.assert_close(got, want, rtol=rtol, atol=atol)


Forward = Callable[..., tuple[Tensor, Tensor]]


def stanley(z: Tensor, grad: Tensor, gamma: Tensor, key: Tensor, **how: Any) -> Any:
    """What Triton makes of a step and what the reference makes of it."""
    schema, named = rest(**how)
    got = launch.stanley_step(z, grad, key, 3, *HYPER[:2], *schema)
    want = sf.reference.stanley_step(
        z, grad, key, 3, threshold=HYPER[0], step_size=HYPER[1], **named
    )
    return got, want


def langevin(z: Tensor, grad: Tensor, gamma: Tensor, key: Tensor, **how: Any) -> Any:
    schema, named = rest(**how)
    got = launch.langevin_step(z, grad, gamma, key, 3, *schema)
    return got, sf.reference.langevin_step(z, grad, gamma, key, 3, **named)


def one_gamma(z: Tensor, grad: Tensor, gamma: Tensor, key: Tensor, **how: Any) -> Any:
    return langevin(z, grad, gamma.flatten()[:1].sum(), key, **how)


STEPS = [stanley, langevin, one_gamma]


# Sizes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("step", STEPS, ids=lambda f: f.__name__)
def test_step_of_every_size(poisoned: None, step: Forward, dtype: torch.dtype) -> None:
    key = sf.key(1, DEVICE)
    for n in SIZES + EDGES:
        assert_close(*step(*data(n, dtype), key))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_normal_and_stepsize_of_every_size(poisoned: None, dtype: torch.dtype) -> None:
    key = sf.key(2, DEVICE)
    for n in SIZES + EDGES:
        out = torch.empty_like(data(n, dtype)[0])
        launch.normal_(out, key, 5, 2, 0, None)
        assert_close(out, sf.reference.normal((n,), key, 5, stream=2, dtype=dtype))
        grad = data(n, dtype)[1]
        got = launch.stepsize(grad, *HYPER[:2])
        assert_close(got, sf.reference.stepsize(grad, threshold=HYPER[0], step_size=HYPER[1]))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_in_place_writes_nothing_beside_z(dtype: torch.dtype) -> None:
    """Aligned or not."""
    for n, at in [(n, at) for n in (1, 16, BLOCK + 9) for at in (0, 1, 2, 8)]:
        z, grad, _ = data(n, dtype)
        space = torch.full((n + 32,), 12345.0, dtype=dtype, device=DEVICE)
        view = space[at : at + n].copy_(z)
        launch.stanley_step_(view, grad, sf.key(3, DEVICE), 3, *HYPER[:2], *rest()[0])
        want = stanley(z, grad, z, sf.key(3, DEVICE))[1]
        assert_close(view, want)
        beside = torch.cat([space[:at], space[at + n :]])
        assert (beside == torch.tensor(12345.0, dtype=dtype)).all()


# Parts of a state --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("first", [1, 2, 3, 4, 5, 6, 7, 8, 2**34 + 3])
def test_any_part(poisoned: None, first: int, dtype: torch.dtype) -> None:
    """A part may begin at any of the four lanes, and at either half of a thread's eight."""
    key = sf.key(4, DEVICE)
    for n in (1, 9, BLOCK):
        part = {"first": first, "total": first + n + 6}
        assert_close(*stanley(*data(n, dtype), key, **part))
        out = torch.empty_like(data(n, dtype)[0])
        launch.normal_(out, key, 3, 0, first, first + n + 6)
        assert_close(out, sf.reference.normal((n,), key, 3, dtype=dtype, **part))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("step", [-1, 1, 16, 2**31, 2**32 + 1, 2**62 + 3, 2**63 - 1, -(2**63)])
def test_blocks_wrap(step: int, dtype: torch.dtype) -> None:
    """Step numbers of any size; Triton passes small and large integers differently."""
    key = torch.tensor([-5, 2**63 - 3], device=DEVICE)
    out = torch.empty(70, dtype=dtype, device=DEVICE)
    launch.normal_(out, key, step, 2**32 - 1, 0, None)
    assert_close(out, sf.reference.normal((70,), key, step, stream=2**32 - 1, dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_programs_do_not_matter(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    arguments = (*data(600, dtype), sf.key(5, DEVICE))
    results = []
    for block in (128, 512, 2048):
        monkeypatch.setattr(launch, "BLOCK", block)
        results.append([step(*arguments, clamp=CLAMP)[0] for step in STEPS])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


# Half precision ----------------------------------------------------------------------------------


@pytest.mark.parametrize("update", ["paper", "script"])
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_halves_are_rounded_once(dtype: torch.dtype, update: str) -> None:
    """Bit for bit the float32 result in `dtype`, to nearest even."""
    z, grad, gamma = data(2 * BLOCK + 3, dtype)
    key = sf.key(6, DEVICE)
    for step in STEPS:
        for clamp in (NO_CLAMP, CLAMP):
            how = {"update": update, "clamp": clamp, "first": 6, "total": 4 * BLOCK}
            half = step(z, grad, gamma, key, **how)[0]
            assert torch.equal(half, step(z.float(), grad.float(), gamma, key, **how)[0].to(dtype))
    half, single = (torch.empty_like(z, dtype=t) for t in (dtype, torch.float32))
    for out in (half, single):
        launch.normal_(out, key, 1, 3, 2, 4 * BLOCK)
    assert torch.equal(half, single.to(dtype))
    assert torch.equal(launch.stepsize(grad, 0.3, 0.7), launch.stepsize(grad.float(), 0.3, 0.7))


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_ties_go_to_even(dtype: torch.dtype) -> None:
    """z + grad / 2 half way between neighbours 1 + k eps."""
    eps = torch.finfo(dtype).eps
    z = 1 + torch.arange(8, device=DEVICE).to(dtype) * eps
    grad, gamma = torch.full_like(z, eps), torch.ones((), device=DEVICE)
    ascent = (0.0, *NO_CLAMP, False, 0, None)  # without noise
    got = launch.langevin_step(z, grad, gamma, sf.key(0, DEVICE), 0, *ascent)
    assert ((got.double() - 1) / eps).tolist() == [0, 2, 2, 4, 4, 6, 6, 8]


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_halves_beyond_their_range(dtype: torch.dtype) -> None:
    most = torch.finfo(dtype).max
    z = torch.tensor([most, -most, torch.nan, torch.inf, 1.0], dtype=dtype, device=DEVICE)
    grad = torch.tensor([most, -most, 0.0, 0.0, torch.nan], dtype=dtype, device=DEVICE)
    got, want = one_gamma(z, grad, torch.ones(1, device=DEVICE), sf.key(0, DEVICE))
    assert want.isinf().tolist() == [True, True, False, True, False]
    torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)


# Derivatives -------------------------------------------------------------------------------------


def leaves(*tensors: Tensor) -> list[Tensor]:
    """In the dtype of the arithmetic, so that what the reference sums is not rounded between."""
    return [t.to(t.dtype if t.itemsize > 2 else torch.float32).requires_grad_() for t in tensors]


@pytest.mark.parametrize("clamp", [NO_CLAMP, CLAMP], ids=["free", "clamped"])
@pytest.mark.parametrize("update", ["paper", "script"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_backward(
    poisoned: None, dtype: torch.dtype, update: str, clamp: tuple[float, float]
) -> None:
    key = sf.key(7, DEVICE)
    for n, first in ((1, 0), (17, 0), (63, 6), (BLOCK + 5, 3)):
        schema, named = rest(update=update, clamp=clamp, first=first, total=first + n)
        z, grad, gamma = data(n, dtype)
        incoming = data(n, dtype, seed=1)[0]
        state = z if clamp == CLAMP else None

        got = launch.stanley_step_backward(incoming, state, grad, key, 3, *HYPER[:2], *schema)
        inputs = leaves(z.clone(), grad.clone())
        hyper = {"threshold": HYPER[0], "step_size": HYPER[1]}
        check_gradients(
            got,
            sf.reference.stanley_step(*inputs, key, 3, **hyper, **named),
            inputs,
            incoming,
            state,
        )

        for given in (gamma, gamma[:1]):
            got = launch.langevin_step_backward(incoming, state, grad, given, key, 3, *schema)
            inputs = leaves(z.clone(), grad.clone(), given.expand(n).clone())
            check_gradients(
                got, sf.reference.langevin_step(*inputs, key, 3, **named), inputs, incoming, state
            )


def check_gradients(
    got: tuple[Tensor, ...],
    moved: Tensor,
    inputs: list[Tensor],
    incoming: Tensor,
    state: Tensor | None,
) -> None:
    wanted = torch.autograd.grad(moved, inputs, incoming.to(moved.dtype))
    pairs = list(zip(got, wanted, strict=True))
    if state is None:  # grad_z is grad_out then
        assert pairs.pop(0)[0].numel() == 0
    for mine, want in pairs:
        assert_close(mine, want.to(mine.dtype), scale=8.0)


# Strides -----------------------------------------------------------------------------------------


LAID_OUT = {name: layout for name, layout in LAYOUTS.items() if name != "negative"}  # torch's task


@pytest.mark.parametrize("layout", LAID_OUT.values(), ids=LAID_OUT)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_strides(dtype: torch.dtype, layout: Callable[[Tensor], Tensor]) -> None:
    z, grad, gamma = (t.view(3, 4, 5, 7) for t in data(420, dtype))
    key = sf.key(8, DEVICE)
    got, want = langevin(layout(z), grad, gamma[:, :, :1], key)
    assert got.stride() == torch.empty_like(layout(z)).stride()
    assert_close(got, want)
    mine = layout(z)
    launch.langevin_step_(mine, layout(grad), layout(gamma), key, 3, *rest()[0])
    assert_close(mine, langevin(z, grad, gamma, key)[1])
    got = launch.langevin_step_backward(layout(mine), None, layout(grad), gamma, key, 3, *rest()[0])
    want = launch.langevin_step_backward(mine, None, grad, gamma, key, 3, *rest()[0])
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    gamma = launch.stepsize(layout(grad), *HYPER[:2])
    assert gamma.stride() == torch.empty_like(layout(grad)).stride()
    assert torch.equal(gamma, launch.stepsize(grad, *HYPER[:2]))
    launch.normal_(mine, key, 3, 0, 0, None)
    assert_close(mine, sf.reference.normal(z.shape, key, 3, dtype=dtype))


# Memory shared with z ----------------------------------------------------------------------------


@pytest.mark.parametrize("at", [0, -1])
def test_gamma_within_z_is_read_before_z_is_written(at: int) -> None:
    """Every program reads it, and the first or the last one writes it."""
    z, grad, gamma = data(3 * BLOCK, torch.float32)
    z[at] = gamma[0]
    key = sf.key(9, DEVICE)
    want = one_gamma(z, grad, gamma, key)[1]
    launch.langevin_step_(z, grad, z[at], key, 3, *rest()[0])
    assert_close(z, want)


def test_in_place_refusals() -> None:
    space, key = torch.zeros(20, device=DEVICE), sf.key(0, DEVICE)
    z, apart = space[:10], torch.ones(10, device=DEVICE)
    schema = rest()[0]
    with pytest.raises(RuntimeError, match="grad must not share a part of z's memory"):
        launch.stanley_step_(z, space[5:15], key, 0, 1.0, 1.0, *schema)
    with pytest.raises(RuntimeError, match="gamma must not share a part of z's memory"):
        launch.langevin_step_(z, apart, space[9:19], key, 0, *schema)
    with pytest.raises(RuntimeError, match=r"z must not be an expanded tensor .* dimension 0"):
        launch.stanley_step_(space[:1].expand(10), apart, key, 0, 1.0, 1.0, *schema)
    assert (space == 0).all()
    launch.stanley_step_(z, z, key, 0, 1.0, 1.0, *schema)  # z as its own gradient
    assert (z != 0).all()


# Chains ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_fifty_steps_are_those_of_the_cpu(compiled: None, dtype: torch.dtype) -> None:
    """On a standard normal target, where a step shrinks a difference: rounding does not pile up."""
    start, key = data(BLOCK + 2, dtype)[0], sf.key(10, DEVICE)
    mine, theirs = start.clone(), start.cpu().clone()
    schema, named = rest()
    for k in range(50):
        launch.langevin_step_(mine, -mine, torch.full_like(mine, 0.7), key, k, *schema)
        with sf.use_backend("cpp"):
            sf.langevin_step_(theirs, -theirs, 0.7, key.cpu(), k, **named)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-14
    assert (mine.cpu() - theirs).abs().max() <= tolerance
    assert (mine - start).abs().mean() > 0.1
