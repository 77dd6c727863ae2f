"""The operations as PyTorch's citizens: opcheck, version counters, torch.compile, torch.func."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import (
    AVAILABLE,
    DTYPES,
    HALVES,
    HYPER,
    LAYOUTS,
    Backend,
    random,
    state,
)
from torch import Tensor

import stanley_fast as sf

INF = math.inf
CLAMP = (-0.4, 0.9)
CPU = Backend("cpp", "cpu")


def asks_grad(*tensors: Tensor) -> list[Tensor]:
    return [t.detach().clone().requires_grad_() for t in tensors]


# torch.library -----------------------------------------------------------------------------------

OPS = torch.ops.stanley_fast
FREE = (-INF, INF)
TRITON = next((b for b in AVAILABLE if b.name == "triton"), None)


def samples() -> list[Any]:
    """(id, op, arguments): each op with small, strided, clamped, broadcast and partial inputs."""
    key = sf.key(7)
    found = []
    for dtype in DTYPES + HALVES:
        z, grad, _ = state((2, 3, 4, 5), CPU, dtype)
        last, transposed = LAYOUTS["channels_last"](z), LAYOUTS["transposed"](grad)
        gamma = (z.abs() + 0.1).to(torch.float32 if dtype in HALVES else dtype)
        row = gamma[0, 0, 0]
        cases = {
            "plain": (z, grad, gamma, *FREE, False, 0, None),
            "clamp-strides": (last, transposed, row, *CLAMP, False, 0, None),
            "script-part": (z, transposed, row[:1], *CLAMP, True, 5, 500),
            "scalar": (z[0, 0, 0, 0], grad[0, 0, 0, 0], row[0], *FREE, True, 0, None),
            "empty": (z[:0], grad[:0], row, -INF, 0.5, False, 0, None),
        }
        for name, (z, grad, gamma, lo, hi, *rest) in cases.items():
            stanley = (grad, key, 3, 0.3, 0.7, 0.5, lo, hi, *rest)
            langevin = (grad, gamma, key, 3, 0.5, lo, hi, *rest)
            state_or_none = None if (lo, hi) == FREE else z
            calls = {
                "stanley_step": (z, *stanley),
                "stanley_step_": (z.clone(), *stanley),
                "stanley_step_backward": (grad.exp(), state_or_none, *stanley),
                "langevin_step": (z, *langevin),
                "langevin_step_": (z.clone(), *langevin),
                "langevin_step_backward": (grad.exp(), state_or_none, *langevin),
                "normal_": (z.clone(), key, 3, 2, *rest[1:]),
                "stepsize": (grad, 0.3, 0.7),
            }
            for op, args in calls.items():
                found.append(pytest.param(op, args, id=f"{op}-{name}-{str(dtype)[6:]}"))
    return found


@pytest.mark.parametrize(("op", "args"), samples())
@pytest.mark.parametrize("wants_grad", [False, True], ids=["no-grad", "grad"])
def test_opcheck(compiled: None, op: str, args: tuple[Any, ...], wants_grad: bool) -> None:
    if wants_grad and (op.endswith(("_", "backward"))):
        return
    if wants_grad:
        args = tuple(
            x.detach().requires_grad_() if isinstance(x, Tensor) and x.is_floating_point() else x
            for x in args
        )
    torch.library.opcheck(getattr(OPS, op).default, args)


@pytest.mark.skipif(TRITON is None, reason=str(sf.backends()["triton"]))
@pytest.mark.parametrize(
    ("op", "args"), [p for p in samples() if p.id.endswith(("strides-bfloat16", "empty-float64"))]
)
def test_opcheck_triton(op: str, args: tuple[Any, ...]) -> None:
    args = tuple(x.to(TRITON.device) if isinstance(x, Tensor) else x for x in args)
    torch.library.opcheck(getattr(torch.ops.stanley_fast_triton, op).default, args)


def test_torch_ops_and_public_functions_are_one(compiled: None) -> None:
    z, grad, key = state((3, 4), CPU, torch.float32)
    got = OPS.stanley_step(z, grad, key, 2, 0.3, 0.7, 0.5, *CLAMP, True, 1, 50)
    where = {"first": 1, "total": 50}
    want = sf.stanley_step(z, grad, key, 2, clamp=CLAMP, update="script", **where, **HYPER)
    assert torch.equal(got, want)
    got = OPS.langevin_step(z, grad, z.abs(), key, 2, 0.5, *FREE, False, 1, 50)
    assert torch.equal(got, sf.langevin_step(z, grad, z.abs(), key, 2, noise_scale=0.5, **where))
    assert OPS.stanley_step_(z, grad, key, 2, 0.3, 0.7, 0.5, *CLAMP, True, 1, 50) is None
    assert torch.equal(z, want)


# Version counters, views, inference mode ----------------------------------------------------------


def in_place_calls(z: Tensor, grad: Tensor, key: Tensor) -> dict[str, Callable[[], object]]:
    stanley = (grad, key, 0, 0.3, 1.0, 1.0, *FREE, False, 0, None)
    langevin = (grad, grad.abs(), key, 0, 1.0, *FREE, False, 0, None)
    return {
        "stanley_step_": lambda: sf.stanley_step_(z, grad, key, threshold=0.3),
        "langevin_step_": lambda: sf.langevin_step_(z, grad, 0.1, key),
        "ops.stanley_step_": lambda: OPS.stanley_step_(z, *stanley),
        "ops.langevin_step_": lambda: OPS.langevin_step_(z, *langevin),
        "ops.normal_": lambda: OPS.normal_(z, key, 0, 0, 0, None),
    }


CALLS = list(in_place_calls(torch.zeros(1), torch.zeros(1), torch.zeros(2)))


@pytest.mark.parametrize("call", CALLS)
def test_in_place_bumps_the_version(compiled: None, call: str) -> None:
    z, grad, key = state((6,), CPU, torch.float32)
    view, inputs = z[:3], [grad._version, key._version]
    version = z._version
    in_place_calls(view, grad[:3], key)[call]()
    assert z._version > version  # a view shares its base's
    assert [grad._version, key._version] == inputs


@pytest.mark.parametrize("call", CALLS)
def test_in_place_on_a_saved_tensor_is_noticed(compiled: None, call: str) -> None:
    z, grad, key = state((6,), CPU, torch.float32)
    weight = torch.ones(6, requires_grad=True)
    loss = (weight * z).sum()  # saves z
    in_place_calls(z, grad, key)[call]()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("call", CALLS)
def test_in_place_asks_for_no_grad_mode(compiled: None, call: str) -> None:
    z, grad, key = state((6,), CPU, torch.float32)
    leaf = z.clone().requires_grad_()
    run = in_place_calls(leaf, grad, key)[call]
    with pytest.raises(RuntimeError, match="requires grad"):
        run()
    assert torch.equal(leaf, z)
    assert leaf._version == 0
    with torch.no_grad():
        run()
    assert not torch.equal(leaf, z)
    assert leaf._version > 0
    assert leaf.requires_grad
    assert leaf.is_leaf


@pytest.mark.parametrize("call", CALLS)
def test_inference_mode(compiled: None, call: str) -> None:
    z, grad, key = state((6,), CPU, torch.float32)
    normal, ours = z.clone(), z.clone()
    in_place_calls(normal, grad, key)[call]()
    with torch.inference_mode():
        inference = z.clone()
        in_place_calls(inference, grad, key)[call]()
        in_place_calls(ours, grad, key)[call]()  # a normal tensor within inference mode
        out = sf.stanley_step(inference, grad, key, **HYPER)
        assert out.is_inference()
    assert torch.equal(inference, normal)
    assert torch.equal(ours, normal)
    assert ours._version > 0


def test_the_common_loop(each_backend: Backend) -> None:
    """A leaf z that autograd asks for f's gradient and that the step moves under no_grad."""
    key = sf.key(0, each_backend.device)
    z = torch.nn.Parameter(random((8, 2), 1, each_backend, torch.float32))
    expected = z.detach().clone()
    for k in range(5):
        (grad,) = torch.autograd.grad(-0.5 * z.square().sum(), z)
        with torch.no_grad():
            assert sf.stanley_step_(z, grad, key, k, **HYPER) is z
        expected = sf.stanley_step(expected, -expected, key, k, **HYPER)
    assert torch.equal(z.detach(), expected)


# torch.compile -----------------------------------------------------------------------------------


def functional_chain(z: Tensor, key: Tensor) -> Tensor:
    for k in range(10):
        z = sf.stanley_step(z, -z, key, k, clamp=(-2.0, 2.0), **HYPER)
        z = sf.langevin_step(z, -z, 0.1, key, k)
    return z


def in_place_chain(z: Tensor, key: Tensor) -> Tensor:
    for k in range(10):
        sf.stanley_step_(z, -z, key, k, clamp=(-2.0, 2.0), **HYPER)
        sf.langevin_step_(z, -z, sf.stepsize(z, threshold=0.3), key, k, update="script")
    return z + sf.normal(z.shape, key, stream=2)


CHAINS = [functional_chain, in_place_chain]


@pytest.fixture
def fresh_dynamo() -> None:
    torch._dynamo.reset()


@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
def test_compiled_loop_is_the_eager_loop(
    compiled: None, fresh_dynamo: None, chain: Callable[..., Tensor], compiler: str
) -> None:
    z, _, key = state((33,), CPU, torch.float32)
    want = chain(z.clone(), key)
    run = torch.compile(chain, fullgraph=True, backend=compiler)
    start = z.clone()
    assert torch.equal(run(start, key), want)
    if chain is in_place_chain:
        eager = z.clone()
        in_place_chain(eager, key)
        assert torch.equal(start, eager)
    else:
        assert torch.equal(start, z)
    # The key is read when the compiled function runs, not when it is traced.
    moved = sf.advance_(key.clone(), 5)
    assert torch.equal(run(z.clone(), moved), chain(z.clone(), moved))


@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize("dtype", HALVES)
def test_compiled_loop_of_halves(
    compiled: None, fresh_dynamo: None, chain: Callable[..., Tensor], dtype: torch.dtype
) -> None:
    z, _, key = state((33,), CPU, dtype)
    run = torch.compile(chain, fullgraph=True, backend="aot_eager")
    got, want = z.clone(), z.clone()
    assert torch.equal(run(got, key), chain(want, key))
    assert torch.equal(got, want)


@pytest.mark.parametrize("chain", CHAINS)
def test_compiled_for_any_size(
    compiled: None, fresh_dynamo: None, chain: Callable[..., Tensor]
) -> None:
    key = sf.key(0)
    run = torch.compile(chain, fullgraph=True, dynamic=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for shape in ((5, 3), (9, 7), (130, 2)):
            z = random(shape, 1, CPU, torch.float32)
            assert torch.equal(run(z.clone(), key), chain(z.clone(), key))


def test_compiled_step_number_and_part(compiled: None, fresh_dynamo: None) -> None:
    """step, first and total are symbols: no recompilation when they count."""

    @torch.compile(fullgraph=True, dynamic=True, backend="aot_eager")
    def run(z: Tensor, key: Tensor, k: int, first: int, total: int) -> Tensor:
        return sf.stanley_step(z, -z, key, k, first=first, total=total, **HYPER)

    z, _, key = state((12,), CPU, torch.float32)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for k, first, total in ((2, 3, 50), (3, 7, 51), (40, 11, 1000)):
            want = sf.stanley_step(z, -z, key, k, first=first, total=total, **HYPER)
            assert torch.equal(run(z, key, k, first, total), want)


@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
def test_compiled_gradients(compiled: None, fresh_dynamo: None, compiler: str) -> None:
    z, grad, key = state((4, 5), CPU, torch.float64)

    def loss(z: Tensor, grad: Tensor, gamma: Tensor) -> Tensor:
        one = sf.stanley_step(z, grad, key, 1, clamp=CLAMP, **HYPER)
        two = sf.langevin_step(one, grad, gamma, key, 2)
        return (two * sf.stepsize(grad, threshold=0.3)).square().sum()

    leaves = asks_grad(z, grad, z[:, :1].abs() + 0.1)
    want = torch.autograd.grad(loss(*leaves), leaves)
    run = torch.compile(loss, fullgraph=True, backend=compiler)
    for found, wanted in zip(torch.autograd.grad(run(*leaves), leaves), want, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


def test_compiled_with_the_reference(fresh_dynamo: None) -> None:
    """The reference is plain torch, and use_backend is heeded while tracing."""
    z, grad, key = state((6,), CPU, torch.float64)
    step = lambda z: sf.stanley_step(z, grad, key, 1, **HYPER)  # noqa: E731
    with sf.use_backend("reference"):
        run = torch.compile(step, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(run(z), step(z))


# torch.func --------------------------------------------------------------------------------------


def test_func_grad_and_vjp(each_backend: Backend) -> None:
    z, grad, key = state((3, 4), each_backend, torch.float64)

    def loss(z: Tensor, grad: Tensor) -> Tensor:
        return sf.stanley_step(z, grad, key, clamp=CLAMP, **HYPER).square().sum()

    leaves = asks_grad(z, grad)
    want = torch.autograd.grad(loss(*leaves), leaves)
    if each_backend.name != "reference":  # torch.library's autograd can't: loud, not wrong
        with pytest.raises(RuntimeError, match="functorch transforms"):
            torch.func.grad(loss)(z, grad)
        return
    assert all(map(torch.equal, torch.func.grad(loss, argnums=(0, 1))(z, grad), want))
    value, pull = torch.func.vjp(loss, z, grad)
    assert torch.equal(value, loss(z, grad))
    assert all(map(torch.equal, pull(torch.ones_like(value)), want))


def test_func_grad_of_the_energy(each_backend: Backend) -> None:
    """The usual functional style: f's gradient by torch.func.grad, then a step outside it."""
    z, _, key = state((3, 4), each_backend, torch.float64)
    grad = torch.func.grad(lambda z: -0.5 * z.square().sum())(z)
    got = sf.stanley_step(z, grad, key, **HYPER)
    assert torch.equal(got, sf.stanley_step(z, -z, key, **HYPER))


@pytest.mark.parametrize("step", ["stanley", "langevin", "stepsize"])
def test_forward_mode_is_never_silently_zero(each_backend: Backend, step: str) -> None:
    """Only reverse mode is promised; forward mode must be right or an error."""
    z, grad, key = state((3, 4), each_backend, torch.float64)
    run = {
        "stanley": lambda z, g: sf.stanley_step(z, g, key, **HYPER),
        "langevin": lambda z, g: sf.langevin_step(z, g, 0.1, key),
        "stepsize": lambda z, g: z + sf.stepsize(g, threshold=0.3),
    }[step]
    along = (random((3, 4), 8, each_backend, z.dtype), random((3, 4), 9, each_backend, z.dtype))
    try:
        found = torch.func.jvp(run, (z, grad), along)[1]
    except (RuntimeError, NotImplementedError):
        assert each_backend.name != "reference"
        return
    h = 1e-6
    ahead, behind = (run(z + s * along[0], grad + s * along[1]) for s in (h, -h))
    torch.testing.assert_close(found, (ahead - behind) / (2 * h), rtol=1e-6, atol=1e-6)


def test_vmap_over_chains_that_have_a_key_each(each_backend: Backend) -> None:
    z, grad, _ = state((3, 4), each_backend, torch.float64)
    keys = sf.split(sf.key(0, each_backend.device), 3)
    step = lambda z, grad, key: sf.stanley_step(z, grad, key, **HYPER)  # noqa: E731
    want = torch.stack([step(*chain) for chain in zip(z, grad, keys, strict=True)])
    torch.testing.assert_close(torch.func.vmap(step)(z, grad, keys), want)
