"""What fits the whole-chain kernel and what does not, and what its operation accepts."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_mlp_chain import KEY, mlp
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import stanley_fast as sf
from stanley_fast import fusion
from stanley_fast.chain import sample
from stanley_fast.energies import MLPEnergy
from stanley_fast.samplers import Stanley

pytestmark = pytest.mark.usefixtures("compiled")

# What does not fit -------------------------------------------------------------------------------


class Other(MLPEnergy):
    pass


def hooked() -> nn.Module:
    f = MLPEnergy()
    f.net[2].register_forward_hook(lambda module, args, output: output)
    return f


def replaced() -> nn.Module:
    f = MLPEnergy()
    f.forward = lambda z: z.sum(1)  # type: ignore[method-assign]
    return f


def other_net() -> nn.Module:
    f = MLPEnergy()
    f.net = nn.Linear(2, 1)  # type: ignore[assignment]
    return f


def parametrized() -> nn.Module:
    f = MLPEnergy()
    nn.utils.parametrizations.weight_norm(f.net[2])
    return f


LEAKY = lambda: nn.LeakyReLU(0.05)  # noqa: E731
MISFITS: dict[str, tuple[Callable[[], Callable], dict[str, Any], str]] = {
    "function": (lambda: lambda z: -z.square().sum(1), {}, "f is neither"),
    "subclass": (Other, {}, "f is neither"),
    "hook": (hooked, {}, "f has hooks"),
    "replaced": (replaced, {}, "f's forward is replaced"),
    "another net": (other_net, {}, "f is neither"),
    "weight norm": (parametrized, {}, "is not nn.Linear"),
    "double": (lambda: MLPEnergy().double(), {"error": RuntimeError}, "plain tensors like z0"),
    "one layer": (lambda: MLPEnergy((2, 1)), {}, "do not alternate"),
    "nine layers": (lambda: MLPEnergy((2, *[8] * 8, 1)), {}, "9 layers, up to 8 wide"),
    "wide": (lambda: MLPEnergy((2, 129, 1)), {}, "2 layers, up to 129 wide"),
    "negative slope": (lambda: MLPEnergy(negative_slope=-0.1), {}, "slope is -0.1"),
    "tanh": (lambda: mlp((2, 8, 1), nn.Tanh), {}, "the same LeakyReLU, ReLU or SiLU"),
    "two kinds": (
        lambda: nn.Sequential(
            *mlp((2, 8, 8), nn.ReLU)[:-1], nn.SiLU(), nn.Linear(8, 1), nn.Flatten(0)
        ),
        {},
        "the same LeakyReLU, ReLU or SiLU",
    ),
    "dropout": (lambda: mlp((2, 8, 1), nn.Dropout), {}, "the same LeakyReLU, ReLU or SiLU"),
    "column": (lambda: mlp((2, 8, 1), LEAKY)[:-1], {"error": RuntimeError}, "nn.Flatten"),
    "norm": (lambda: Stanley(0.1, norm="sample"), {}, "norm='sample'"),
    "keep_every": (MLPEnergy, {"keep_every": 2}, "keep_every asks"),
    "callback": (MLPEnergy, {"callback": print}, "callback asks"),
    "backprop": (MLPEnergy, {"backprop_steps": 1}, "backprop_steps asks"),
}


@pytest.mark.parametrize("name", MISFITS)
def test_what_does_not_fit_goes_step_by_step_and_says_why(name: str) -> None:
    make, asked, reason = MISFITS[name]
    asked = dict(asked)
    error = asked.pop("error", None)
    made = make()
    f, sampler = (MLPEnergy(), made) if isinstance(made, Stanley) else (made, Stanley(0.1))
    z0 = torch.zeros(4, 2)
    with pytest.raises(ValueError, match=f"fused must be 'auto' or False here: .*{reason}"):
        sample(f, z0, sampler, 3, key=KEY, fused=True, **asked)
    if error is not None:  # as without the kernel
        with pytest.raises(error):
            sample(f, z0, sampler, 3, key=KEY, **asked)
        return
    out = sample(f, z0, sampler, 3, key=KEY, **asked)
    assert out.rung.startswith("step: ")
    assert reason in out.rung
    assert torch.equal(out.z, sample(f, z0, sampler, 3, key=KEY, fused=False, **asked).z)


class Counts(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


def test_surroundings_that_do_not_fit() -> None:
    f, z0 = MLPEnergy(), torch.zeros(4, 2)
    run = lambda: sample(f, z0, Stanley(0.1), 1, key=KEY).rung  # noqa: E731
    assert run().startswith("chain: ")
    with torch.autocast("cpu"):
        assert "autocast" in run()
    with Counts():
        assert "a dispatch mode" in run()
    with sf.use_backend("reference"):
        assert "the backend is reference" in run()
    assert (
        "not in one kernel, because fused=False"
        in sample(f, z0, Stanley(0.1), 1, key=KEY, fused=False).rung
    )


def test_whole_chains_of_the_cuda_backend_are_tritons(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which backend serves a GPU does not matter; Triton must be there. Told so, without a GPU."""
    z0, missing = torch.zeros(4, 2), {"triton": "Triton is not installed: pip install triton"}
    monkeypatch.setattr(fusion, "select", lambda device: "cuda")
    monkeypatch.setattr(fusion, "backends", lambda: {"triton": None})
    assert fusion.namespace(z0) == "stanley_fast_triton"
    monkeypatch.setattr(fusion, "backends", lambda: missing)
    with pytest.raises(fusion.Misfit, match=r"whole chains on a GPU need Triton: .*pip install"):
        fusion.namespace(z0)


# The operation -----------------------------------------------------------------------------------


@pytest.fixture(params=["stanley_fast", "stanley_fast_triton"])
def mlp_chain(request: pytest.FixtureRequest, one_thread: None) -> Any:
    """The operation of C++, and of Triton in its interpreter."""
    if request.param == "stanley_fast_triton":
        launch_chain = pytest.importorskip("stanley_fast.kernels.launch_chain")
        if not launch_chain.triton.knobs.runtime.interpret:
            pytest.skip("these tensors are on the CPU, where Triton needs its interpreter")
    return getattr(torch.ops, request.param).mlp_chain.default


def arguments(**changed: Any) -> list[Any]:
    given: dict[str, Any] = {
        "z": torch.zeros(5, 2),
        "weights": [torch.ones(3, 2), torch.ones(1, 3)],
        "biases": [torch.ones(3), torch.ones(1)],
        "activation": "leaky_relu",
        "slope": 0.1,
        "gamma": None,
        "key": KEY,
        "step": 0,
        "steps": 4,
        "threshold": 0.1,
        "step_size": 1.0,
        "noise_scale": 0.5,
        "grad_clamp": math.inf,
        "clamp_min": -math.inf,
        "clamp_max": math.inf,
        "script": False,
        "first": 0,
        "total": None,
        "record": True,
    }
    return list((given | changed).values())


WRONG = [
    ({"z": torch.zeros(5)}, r"z must be \(B, d\), got \[5\]"),
    ({"z": torch.zeros(5, 2, dtype=torch.half)}, "z must be float32 or float64, got torch.float16"),
    ({"z": torch.zeros(5, 17)}, "z's width must be from 1 to 16, got 17"),
    ({"weights": [torch.ones(1, 2)], "biases": [torch.ones(1)]}, "layers must be from 2 to 8"),
    ({"biases": [torch.ones(3)]}, "biases must be as many as weights, 2, got 1"),
    ({"weights": [torch.ones(3, 2), torch.ones(2, 3)]}, r"weights\[1\] must be \[1, 3\]"),
    ({"weights": [torch.ones(2, 3), torch.ones(1, 3)]}, r"weights\[0\] must be \[3, 2\].*\[2, 3\]"),
    ({"biases": [torch.ones(3).double(), torch.ones(1)]}, r"biases\[0\] must be .*float64"),
    ({"biases": [torch.ones(3), torch.ones(2)]}, r"biases\[1\] must be \[1\]"),
    ({"activation": "tanh"}, "activation must be 'leaky_relu' or 'silu', got 'tanh'"),
    ({"slope": -0.1}, "slope must be 0 or more and finite, got -0.1"),
    ({"slope": math.nan}, "slope must be 0 or more and finite, got nan"),
    ({"gamma": torch.ones(3)}, r"gamma must broadcast to z's shape \[5, 2\], got \[3\]"),
    ({"key": torch.zeros(2)}, "key must be an int64 tensor"),
    ({"steps": -1}, "steps must be 0 or more, got -1"),
    ({"threshold": 0.0}, "threshold must be positive"),
    ({"step_size": math.nan}, "step_size must be positive"),
    ({"noise_scale": -1.0}, "noise_scale must be 0 or more"),
    ({"grad_clamp": 0.0}, "grad_clamp must be positive, got 0"),
    ({"clamp_min": 1.0, "clamp_max": 0.0}, "clamp must be"),
    ({"first": 1}, "total must be given"),
    ({"total": 9}, "at most total"),
]


@pytest.mark.parametrize(
    ("changed", "message"), WRONG, ids=lambda x: x if isinstance(x, str) else ""
)
def test_wrong_arguments(mlp_chain: Any, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        mlp_chain(*arguments(**changed))


@pytest.mark.parametrize("record", [False, True])
def test_opcheck(mlp_chain: Any, record: bool) -> None:
    torch.library.opcheck(mlp_chain, arguments(record=record, steps=1))


def test_has_no_gradient(mlp_chain: Any) -> None:
    z, _ = mlp_chain(*arguments(z=torch.zeros(5, 2, requires_grad=True), steps=1))
    with pytest.raises(RuntimeError, match="mlp_chain has no gradient"):
        z.sum().backward()


# Frozen stepsizes -------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["element", "channel", "sample"])
@pytest.mark.parametrize("shape", [(5, 2), (5, 2, 1, 1)])
def test_frozen_stepsizes_of_points(shape: tuple[int, ...], norm: Any) -> None:
    f, z0 = MLPEnergy((2, 8, 8, 1)), torch.randn(shape, generator=torch.Generator().manual_seed(0))
    sampler = Stanley(0.1, 0.1, 0.1, stepsize="frozen", norm=norm)
    whole, steps = (sample(f, z0, sampler, 3, key=KEY, fused=fused) for fused in (True, False))
    torch.testing.assert_close(whole.z, steps.z, rtol=1e-5, atol=1e-6)


def test_frozen_stepsizes_of_an_inference_tensor() -> None:
    with torch.inference_mode():
        z0 = torch.zeros(5, 2)
    sampler = Stanley(0.1, 0.1, 0.1, stepsize="frozen")
    assert sample(MLPEnergy((2, 8, 8, 1)), z0, sampler, 3, key=KEY).z.isfinite().all()


def test_an_empty_layer_goes_step_by_step() -> None:
    out = sample(MLPEnergy((2, 0, 1)), torch.zeros(5, 2), Stanley(0.1), 3, key=KEY)
    assert "empty" in out.rung
