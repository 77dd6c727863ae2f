"""Values and gradients of small nets: autograd's, to rounding, as operations and in the trainer."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import threads
from levels import run_at
from test_mlp_chain import NETS, net, start
from torch import Tensor, nn
from training import make, weights

import stanley_fast as sf
from stanley_fast import fusion, mlp

pytestmark = pytest.mark.usefixtures("compiled")

OPS = torch.ops.stanley_fast
# Largest error relative to the largest entry. A float32 sum over 1 000 points has some 30 roundings
# in its standard deviation; entries are of the size of their sum's terms.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5}


def arguments(f: nn.Module, z: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor], str, float]:
    read = fusion.read(f, z)
    return z.flatten(1), *read


def by_autograd(f: nn.Module, z: Tensor, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Values, the gradient by z, and the parameters' as one vector with zeros for no bias."""
    z = z.clone().requires_grad_()
    values = f(z)
    layers = [m for m in f.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    grad_z, *grads = torch.autograd.grad(values, [z, *f.parameters()], grad)
    found = dict(zip(f.parameters(), grads, strict=True))
    pieces: list[Tensor] = []
    for layer in layers:
        pieces.append(found[layer.weight].flatten())
        if layer.bias is None:  # its derivative is the output's; only the last layer has none here
            pieces.append(grad.sum().reshape(1))
        else:
            pieces.append(found[layer.bias])
    return values.detach(), grad_z.flatten(1), torch.cat(pieces)


def assert_close(got: Tensor, want: Tensor, tolerance: float) -> None:
    assert got.shape == want.shape
    scale = float(want.abs().max()) if want.numel() else 0.0
    torch.testing.assert_close(got, want, rtol=0, atol=tolerance * max(scale, 1e-30))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("points", [0, 1, 7, 103, 1000])
@pytest.mark.parametrize("name", NETS)
def test_is_what_autograd_gives(name: str, points: int, dtype: torch.dtype) -> None:
    f = net(name, dtype)
    z = start(f, points, dtype)
    grad = sf.normal((points,), sf.key(3), dtype=dtype)
    values, grad_z, parameters = by_autograd(f, z, grad)
    given = arguments(f, z)
    got_z, got = OPS.mlp_log_density_backward(grad, *given, True, True)
    assert_close(OPS.mlp_log_density(*given), values, TOLERANCE[dtype])
    assert_close(got_z, grad_z, TOLERANCE[dtype])
    assert_close(got, parameters, TOLERANCE[dtype])


def test_what_is_not_wanted_is_empty() -> None:
    f = net("toy")
    z, grad = start(f, 20), torch.ones(20, dtype=torch.float64)
    both = OPS.mlp_log_density_backward(grad, *arguments(f, z), True, True)
    none = OPS.mlp_log_density_backward(grad, *arguments(f, z), False, False)
    only_z = OPS.mlp_log_density_backward(grad, *arguments(f, z), True, False)
    only_parameters = OPS.mlp_log_density_backward(grad, *arguments(f, z), False, True)
    assert [each.numel() for each in none] == [0, 0]
    assert torch.equal(only_z[0], both[0])
    assert torch.equal(only_parameters[1], both[1])
    assert only_z[1].numel() == only_parameters[0].numel() == 0


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("points", [7, 200, 5000])
def test_bits_do_not_depend_on_threads(points: int, dtype: torch.dtype) -> None:
    f = net("toy", dtype)
    z, grad = start(f, points, dtype), sf.normal((points,), sf.key(3), dtype=dtype)
    run = lambda: (  # noqa: E731
        OPS.mlp_log_density(*arguments(f, z)),
        *OPS.mlp_log_density_backward(grad, *arguments(f, z), True, True),
    )
    with threads(1):
        want = run()
    for count in (2, 5):
        with threads(count):
            assert all(map(torch.equal, run(), want))


def test_strides_do_not_matter() -> None:
    f = net("odd")
    z, grad = start(f, 33), torch.ones((), dtype=torch.float64).expand(33)
    z0, ws, bs, *rest = arguments(f, z)
    want = OPS.mlp_log_density_backward(grad.contiguous(), z0, ws, bs, *rest, True, True)
    other = [w.T.contiguous().T for w in ws]
    got = OPS.mlp_log_density_backward(grad, z0.T.contiguous().T, other, bs, *rest, True, True)
    assert all(map(torch.equal, got, want))


def test_lanes_without_a_point_do_not_reach_the_gradient() -> None:
    """They are computed at 0, where this net overflows."""
    f = net("narrow", torch.float32)
    with torch.no_grad():
        f.net[0].bias.fill_(3 * 2.0**126)
        f.net[0].weight.fill_(-(2.0**126))
        f.net[2].weight.fill_(2.0)
    z = torch.ones(3, 3)  # where the first layer is 0
    grad = torch.ones(3)
    assert not f(torch.zeros(1, 3)).isfinite()
    _, got = OPS.mlp_log_density_backward(grad, *arguments(f, z), False, True)
    torch.testing.assert_close(got, by_autograd(f, z, grad)[2])
    assert got.isfinite().all()


def test_several_threads_at_once() -> None:
    f = net("toy", torch.float32)
    zs = [start(f, 200, torch.float32) + i for i in range(16)]
    grad = torch.ones(200)
    run = lambda z: OPS.mlp_log_density_backward(grad, *arguments(f, z), True, True)  # noqa: E731
    want = [run(z) for z in zs]
    with ThreadPoolExecutor(4) as pool:
        for got, wanted in zip(pool.map(run, zs), want, strict=True):
            assert all(map(torch.equal, got, wanted))


LEVEL = """
import sys, torch, stanley_fast
from stanley_fast.backends import vector_level
calls = torch.load(sys.argv[1])
run = torch.ops.stanley_fast.mlp_log_density_backward
torch.save((vector_level(), [run(*call, True, True) for call in calls]), sys.argv[2])
"""


@pytest.mark.parametrize("level", ["baseline", "avx2", "avx512"])
def test_every_vector_level(tmp_path: Path, level: str) -> None:
    cases = []
    for name in ("toy", "silu", "odd"):
        for dtype in TOLERANCE:
            f = net(name, dtype)
            z, grad = start(f, 103, dtype), sf.normal((103,), sf.key(3), dtype=dtype)
            cases.append((f, z, grad))
    outs = run_at(level, LEVEL, [(grad, *arguments(f, z)) for f, z, grad in cases], tmp_path)
    for (f, z, grad), (grad_z, parameters) in zip(cases, outs, strict=True):
        _, want_z, want = by_autograd(f, z, grad)
        assert_close(grad_z, want_z, TOLERANCE[z.dtype])
        assert_close(parameters, want, TOLERANCE[z.dtype])


# As operations of torch --------------------------------------------------------------------------


def operands(
    name: str = "silu", points: int = 6
) -> tuple[Tensor, list[Tensor], list[Tensor], str, float]:
    """Of a smooth net unless told, all requiring grad."""
    f = net(name)
    z, ws, bs, *rest = arguments(f, start(f, points))
    ask = lambda tensors: [t.clone().requires_grad_() for t in tensors]  # noqa: E731
    return ask([z])[0], ask(ws), ask(bs), *rest  # type: ignore[return-value]


def test_gradcheck() -> None:
    z, ws, bs, *rest = operands()
    n = len(ws)
    call = lambda z, *p: OPS.mlp_log_density(z, p[:n], p[n:], *rest)  # noqa: E731
    assert torch.autograd.gradcheck(call, (z, *ws, *bs))


@pytest.mark.parametrize("asking", ["z", "weights", "biases", "one weight", "all"])
def test_gradients_for_those_that_ask(asking: str) -> None:
    z, ws, bs, *rest = operands("toy")
    wanted = {"z": [z], "weights": ws, "biases": bs, "one weight": ws[1:2], "all": [z, *ws, *bs]}
    for tensor in (z, *ws, *bs):
        tensor.requires_grad_(any(tensor is each for each in wanted[asking]))
    OPS.mlp_log_density(z, ws, bs, *rest).square().sum().backward()
    got = [t.grad for t in (z, *ws, *bs)]
    for tensor in (z, *ws, *bs):
        tensor.grad = None
    x = z
    for w, b in zip(ws, bs, strict=True):
        x = nn.functional.leaky_relu(x @ w.T + b, rest[1]) if len(b) > 1 else x @ w.T + b
    x.square().sum().backward()
    for tensor, grad in zip((z, *ws, *bs), got, strict=True):
        assert (grad is None) == (tensor.grad is None)
        if grad is not None:
            torch.testing.assert_close(grad, tensor.grad, rtol=1e-10, atol=1e-12)


def test_opcheck() -> None:
    given = operands()
    torch.library.opcheck(OPS.mlp_log_density, given)
    z, ws, bs, *rest = given
    plain = [t.detach() for t in ws], [t.detach() for t in bs]
    grad = torch.ones(6, dtype=torch.float64)
    for wanted in ((True, True), (False, True), (True, False)):
        torch.library.opcheck(
            OPS.mlp_log_density_backward, (grad, z.detach(), *plain, *rest, *wanted)
        )


def test_compiles_in_one_graph() -> None:
    z, ws, bs, *rest = operands()
    call = lambda z, ws, bs: OPS.mlp_log_density(z, ws, bs, *rest).square()  # noqa: E731
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    want = torch.autograd.grad(call(z, ws, bs).sum(), [z, *ws, *bs])
    got = torch.autograd.grad(compiled(z, ws, bs).sum(), [z, *ws, *bs])
    assert all(map(torch.equal, got, want))


def test_double_backward_says_no() -> None:
    z, ws, bs, *rest = operands()
    value = OPS.mlp_log_density(z, ws, bs, *rest).sum()
    (grad,) = torch.autograd.grad(value, z, create_graph=True)
    with pytest.raises(RuntimeError, match="mlp_log_density is differentiable once"):
        grad.sum().backward()


def bad(**change: Any) -> tuple[Any, ...]:
    z, ws, bs, activation, slope = operands("odd")
    given = {"z": z.detach(), "weights": ws, "biases": bs, "activation": activation, "slope": slope}
    return tuple((given | change).values())


F64 = torch.float64
BAD: dict[str, tuple[Callable[[], dict[str, Any]], str]] = {
    "half": (lambda: {"z": torch.zeros(3, 5).half()}, "z must be float32 or float64, got torch.f"),
    "1-d": (lambda: {"z": torch.zeros(5, dtype=F64)}, r"z must be \(B, d\), got \[5\]"),
    "wide": (
        lambda: {"z": torch.zeros(3, 17, dtype=F64)},
        "z's width must be from 1 to 16, got 17",
    ),
    "width": (lambda: {"z": torch.zeros(3, 4, dtype=F64)}, r"weights\[0\] must be \[7, 4\]"),
    "dtype": (lambda: {"z": torch.zeros(3, 5)}, r"biases\[0\] must be \[7\].*torch.float64"),
    "one layer": (
        lambda: {"weights": [torch.zeros(1, 5)], "biases": [torch.zeros(1)]},
        "the number of layers must be from 2 to 8, got 1",
    ),
    "biases": (lambda: {"biases": []}, "biases must be as many as weights, 3, got 0"),
    "activation": (lambda: {"activation": "tanh"}, "activation must be .* got 'tanh'"),
    "slope": (lambda: {"slope": -1.0}, "slope must be 0 or more and finite, got -1"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments(case: str) -> None:
    change, message = BAD[case]
    given = bad(**change())
    with pytest.raises(RuntimeError, match=message):
        OPS.mlp_log_density(*given)
    grad = torch.ones(len(given[0]), dtype=given[0].dtype)
    with pytest.raises(RuntimeError, match=message):
        OPS.mlp_log_density_backward(grad, *given, True, True)


def test_bad_grad_out() -> None:
    given = bad()
    with pytest.raises(RuntimeError, match=r"grad_out must be \[6\].*got \[5\]"):
        OPS.mlp_log_density_backward(torch.ones(5, dtype=F64), *given, True, True)


# In the trainer ----------------------------------------------------------------------------------


def parts(f: nn.Module, points: int = 20) -> tuple[nn.Module, Tensor, list[nn.Parameter]]:
    dtype = next(f.parameters()).dtype
    return f, start(f, points, dtype), list(f.parameters())


@pytest.mark.parametrize("name", ["toy", "silu", "conv", "odd"])
def test_density_is_autograds(name: str) -> None:
    f, z, parameters = parts(net(name))
    grad = torch.linspace(-1, 1, 20, dtype=F64)
    density = mlp.fit(f, z, parameters)
    assert density is not None
    values = density.values()
    assert values.is_leaf
    assert not values.requires_grad
    flat = density.backward(grad)
    got = [p.grad for p in parameters]
    want = torch.autograd.grad(f(z), parameters, grad)
    torch.testing.assert_close(values.detach(), f(z).detach(), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(got, list(want), rtol=1e-10, atol=1e-12)
    flat.zero_()
    assert all(not p.grad.any() for p in parameters)


class Other(sf.MLPEnergy):
    pass


def frozen() -> nn.Module:
    f = net("toy")
    f.net[2].bias.requires_grad_(False)
    return f


def hooked() -> nn.Module:
    f = net("toy")
    f.net[0].weight.register_hook(lambda grad: 2 * grad)
    return f


def hooked_later() -> nn.Module:
    f = net("toy")
    f.net[0].weight.register_post_accumulate_grad_hook(lambda p: None)
    return f


def module_hook() -> nn.Module:
    f = net("toy")
    f.net[0].register_forward_hook(lambda module, given, output: output)
    return f


def tied() -> nn.Module:
    f = net("toy")
    f.net[6].weight = f.net[4].weight
    return f


CALLED = {
    "subclass": lambda: Other().double(),
    "no bias": lambda: net("no bias"),
    "frozen": frozen,
    "hook": hooked,
    "hook after": hooked_later,
    "module's hook": module_hook,
    "tied": tied,
}


@pytest.mark.parametrize("case", CALLED)
def test_what_autograd_still_does(case: str) -> None:
    assert mlp.fit(*parts(CALLED[case]())) is None


def test_an_optimizer_of_some_parameters() -> None:
    f, z, parameters = parts(net("toy"))
    assert mlp.fit(f, z, parameters[:-1]) is None
    assert mlp.fit(f, z, [*parameters, nn.Parameter(torch.zeros(1))]) is None
    assert mlp.fit(f, z, parameters[::-1]) is None
    assert mlp.fit(f, z, parameters) is not None


def test_autocast_and_another_backend() -> None:
    given = parts(net("toy"))
    with torch.autocast("cpu"):
        assert mlp.fit(*given) is None
    with sf.use_backend("reference"):
        assert mlp.fit(*given) is None


@pytest.mark.parametrize("settings", [{}, {"energy_l2": 0.5}, {"grad_clip": 0.01}])
def test_training_is_what_it_is_by_autograd(
    settings: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A few iterations, before roundings grow."""
    sgd = lambda parameters: torch.optim.SGD(parameters, 0.1)  # noqa: E731
    fused = make(optimizer=sgd, **settings)
    fused.fit(5)
    flat = fused.updates.parameters[0].grad._base
    assert flat is not None
    assert flat.numel() == weights(fused.f).numel()
    monkeypatch.setattr(mlp, "fit", lambda *given: None)
    plain = make(optimizer=sgd, **settings)
    plain.fit(5)
    assert plain.updates.parameters[0].grad._base is None
    torch.testing.assert_close(weights(fused.f), weights(plain.f), rtol=1e-5, atol=1e-7)
    assert fused.metrics == pytest.approx(plain.metrics, rel=1e-4, abs=1e-6)


def test_training_has_the_same_bits_for_any_number_of_threads() -> None:
    learned = []
    for count in (1, 2, 3):
        torch.manual_seed(0)
        trainer = make(sf.MLPEnergy(), batch_size=100, steps=10)
        with threads(count):
            trainer.fit(5)
        learned.append(weights(trainer.f))
    assert torch.equal(learned[0], learned[1])
    assert torch.equal(learned[0], learned[2])
