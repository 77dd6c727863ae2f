"""Bad input to the Metropolis operations: an error that says what was wrong, nothing written."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from conftest import Backend
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import stanley_fast as sf
from stanley_fast import metropolis_ops

ERRORS = (RuntimeError, ValueError, TypeError)


def rows(dtype: torch.dtype = torch.float32, n: int = 3) -> Tensor:
    return (torch.arange(n * 4).view(n, 4) / 10).to(dtype)


def zeros(n: int = 3, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.zeros(n, dtype=dtype)


def right(name: str) -> dict[str, Any]:
    state = {"z": rows(), "grad": rows() - 0.5, "z_new": rows() + 1, "grad_new": -rows()}
    if name == "proposal_log_ratio":
        return {**state, "threshold": 0.3, "step_size": 0.5}
    if name == "accept_":
        densities = {"log_density": zeros(), "log_density_new": zeros() + 1}
        return {**state, **densities, "log_ratio": zeros(dtype=torch.float64), "key": sf.key(0)}
    return {"z": rows(), "momentum": rows() + 2, "grad": rows(), "step_size": 0.1}


ORDER = ["z", "grad", "log_density", "z_new", "grad_new", "log_density_new", "log_ratio", "key"]


def call(name: str, arguments: dict[str, Any]) -> Any:
    given = dict(arguments)
    order = ORDER if name != "leapfrog_" else ["z", "momentum", "grad"]
    return getattr(metropolis_ops, name)(*[given.pop(a) for a in order if a in given], **given)


DOUBLE, HALF, LONG = torch.float64, torch.float16, torch.int64
META = {"device": "meta"}
NUMBERS = [0.0, -1.0, math.nan]


def values(name: str, *bad: float) -> list[tuple[dict[str, Any], str]]:
    return [({name: v}, rf"{name} must .*{v:g}") for v in bad]


def shared(*names: str) -> list[tuple[dict[str, Any], str]]:
    """What every tensor like z may not be."""
    found: list[tuple[dict[str, Any], str]] = []
    for name in names:
        found += [
            ({name: rows(n=2)}, rf"{name} .*\[3, 4\].*\[2, 4\]"),
            ({name: rows(DOUBLE)}, rf"{name} .*float32.*float64"),
            ({name: torch.zeros(3, 4, **META)}, rf"{name} .*meta"),
        ]
    return found


STATE: list[tuple[dict[str, Any], str]] = [
    ({"z": rows(HALF)}, r"z must be float32 or float64, got torch.float16"),
    ({"z": rows(torch.bfloat16)}, r"z must be float32 or float64, got torch.bfloat16"),
    ({"z": rows(LONG)}, r"z must be float32 or float64, got torch.int64"),
    ({"z": torch.tensor(1.0)}, r"z must be \(B, \.\.\.\).*\[\]"),
    ({"z": 1.0}, r"z must be a tensor, got 1"),
]
STEP_SIZE = [
    *values("step_size", *NUMBERS, math.inf),
    ({"step_size": torch.ones(1)}, r"step_size .*shape \(\).*float32 \[1\]"),
    ({"step_size": torch.tensor(1)}, r"step_size .*int64"),
    ({"step_size": torch.tensor(1.0, **META)}, r"step_size .*meta"),
]
RATE = {"threshold": None, "step_size": None, "gamma": rows(), "gamma_new": rows()}
WRONG = {
    "proposal_log_ratio": [
        *STATE,
        *shared("grad", "z_new", "grad_new"),
        *STEP_SIZE,
        *values("threshold", *NUMBERS),
        *values("noise_scale", *NUMBERS, math.inf),
        ({"step_size": None, "threshold": None}, r"step_size must be given"),
        ({**RATE, "step_size": 0.1}, r"step_size and threshold must be None"),
        ({**RATE, "threshold": 0.1}, r"step_size and threshold must be None"),
        ({**RATE, "gamma": None}, r"gamma must be a tensor, got None"),
        ({**RATE, "gamma_new": None}, r"gamma_new must be a tensor, got None"),
        ({**RATE, "gamma": rows(DOUBLE)}, r"gamma must be .*float32.*float64"),
        ({**RATE, "gamma_new": rows(DOUBLE)}, r"gamma_new must be .*float32.*float64"),
        ({**RATE, "gamma_new": rows(n=2)}, r"gamma_new .*\[3, 4\].*\[2, 4\]"),
        ({**RATE, "gamma": torch.ones(3, 4, **META)}, r"gamma .*meta"),
    ],
    "accept_": [
        *STATE,
        *shared("grad", "z_new", "grad_new"),
        ({"grad": None}, r"grad and grad_new must be given both"),
        ({"grad_new": None}, r"grad and grad_new must be given both"),
        ({"log_density": zeros(2)}, r"log_density .*\[3\].*\[2\]"),
        ({"log_density": torch.zeros(3, 1)}, r"log_density .*\[3\].*\[3, 1\]"),
        ({"log_density": zeros(dtype=HALF)}, r"log_density .*float16"),
        ({"log_density_new": zeros(4)}, r"log_density_new .*\[3\].*\[4\]"),
        ({"log_density_new": zeros(dtype=DOUBLE)}, r"log_density_new .*float32.*float64"),
        ({"log_ratio": zeros()}, r"log_ratio must be float64, got torch.float32"),
        ({"log_ratio": zeros(2, DOUBLE)}, r"log_ratio .*\[3\].*\[2\]"),
        ({"log_ratio": torch.zeros(3, dtype=DOUBLE, **META)}, r"log_ratio .*meta"),
        ({"key": torch.zeros(2)}, r"key .*int64.*float32"),
        ({"key": torch.zeros(3).long()}, r"key .*\(2,\).*3"),
        ({"key": None}, r"key"),
        ({"step": 1.5}, r"step"),
        ({"first": -1}, r"first .*-1"),
        ({"first": 2}, r"total must be given"),
        ({"first": 2, "total": 4}, r"2 \+ 3 > 4"),
    ],
    "leapfrog_": [
        *STATE,
        *shared("momentum", "grad"),
        *STEP_SIZE,
        *values("kick", *NUMBERS, math.inf),
        ({"inverse_mass": torch.ones(4, dtype=DOUBLE)}, r"inverse_mass .*float32.*float64"),
        ({"inverse_mass": torch.ones(3)}, r"inverse_mass .*\[4\].*\[3\]"),
        ({"inverse_mass": torch.ones(3, 4)}, r"inverse_mass .*\[4\].*\[3, 4\]"),
        ({"inverse_mass": torch.ones(4, **META)}, r"inverse_mass .*meta"),
    ],
}
CASES = [
    pytest.param(name, wrong, message, id=f"{name}-{i}-{'-'.join(wrong)}")
    for name, cases in WRONG.items()
    for i, (wrong, message) in enumerate(cases)
]
WRITTEN = ["z", "grad", "log_density", "momentum"]


def placed(arguments: dict[str, Any], device: str) -> dict[str, Any]:
    """On `device`, but for meta tensors."""
    return {
        name: value.to(device) if isinstance(value, Tensor) and not value.is_meta else value
        for name, value in arguments.items()
    }


def assert_refused(name: str, arguments: dict[str, Any], message: str) -> None:
    tensors = {n: v for n, v in arguments.items() if isinstance(v, Tensor) and not v.is_meta}
    before = {n: v.detach().clone() for n, v in tensors.items()}
    with pytest.raises(ERRORS, match=message):
        call(name, arguments)
    assert all(torch.equal(v, before[n]) for n, v in tensors.items())


@pytest.mark.parametrize(("name", "wrong", "message"), CASES)
def test_bad_input(each_backend: Backend, name: str, wrong: dict[str, Any], message: str) -> None:
    arguments = right(name) | wrong
    if wrong.keys() == {"z"} and isinstance(wrong["z"], Tensor):  # the others are like it
        for other in {"grad", "z_new", "grad_new", "momentum"} & arguments.keys():
            arguments[other] = wrong["z"].clone()
    assert_refused(name, placed(arguments, each_backend.device), message)


@pytest.mark.parametrize("name", WRONG)
def test_what_they_are_wrong_against_is_right(each_backend: Backend, name: str) -> None:
    call(name, placed(right(name), each_backend.device))


@pytest.mark.parametrize("name", WRONG)
def test_shape_inference_refuses_too(compiled: None, name: str) -> None:
    wrong = {"proposal_log_ratio": "z_new", "accept_": "log_ratio", "leapfrog_": "momentum"}[name]
    with FakeTensorMode():
        arguments = right(name) | {wrong: torch.zeros(2, 4)}
        with pytest.raises(ERRORS, match=wrong):
            call(name, arguments)


@pytest.mark.parametrize("name", WRONG)
def test_no_gradient(each_backend: Backend, name: str) -> None:
    arguments = placed(right(name), each_backend.device)
    tensors = [n for n, v in arguments.items() if isinstance(v, Tensor) and v.is_floating_point()]
    for tensor in tensors:
        wants = arguments | {tensor: arguments[tensor].clone().requires_grad_()}
        assert_refused(name, wants, "have no gradient.*requires grad")
    with torch.no_grad():
        call(name, wants)


def test_the_registered_operations_refuse_too(compiled: None) -> None:
    z = rows().requires_grad_()
    size = torch.tensor(0.1)
    with pytest.raises(RuntimeError, match="have no gradient"):
        torch.ops.stanley_fast.leapfrog_(rows(), rows() + 1, z, size, 1.0, None)
    with pytest.raises(RuntimeError, match="have no gradient"):
        torch.ops.stanley_fast.proposal_log_ratio(z, z, z, z, None, None, size, 0.3, 1.0)


def expanded(x: Tensor) -> Tensor:
    return x[:1].expand(x.shape)


@pytest.mark.parametrize(
    ("name", "argument"),
    [(n, a) for n in ("accept_", "leapfrog_") for a in WRITTEN if a in right(n)],
)
def test_what_is_written_is_not_expanded(backend: Backend, name: str, argument: str) -> None:
    if name == "leapfrog_" and argument == "grad":
        return  # it is only read
    arguments = placed(right(name), backend.device)
    arguments[argument] = expanded(arguments[argument])
    assert_refused(name, arguments, rf"{argument} must not be an expanded tensor.*0")


def test_what_is_written_shares_no_memory(backend: Backend) -> None:
    buffer = torch.zeros(20, device=backend.device)
    one, other = buffer[:12].view(3, 4), buffer[4:16].view(3, 4)
    leapfrog = placed(right("leapfrog_"), backend.device)
    accept = placed(right("accept_"), backend.device)
    for message, name, arguments in (
        ("momentum must not share z's", "leapfrog_", leapfrog | {"z": one, "momentum": other}),
        ("momentum must not share z's", "leapfrog_", leapfrog | {"z": one, "momentum": one}),
        ("grad must not share a part of z's", "leapfrog_", leapfrog | {"z": one, "grad": other}),
        (
            "grad must not share a part of momentum's",
            "leapfrog_",
            leapfrog | {"momentum": one, "grad": other},
        ),
        ("z_new must not share a part of z's", "accept_", accept | {"z": one, "z_new": other}),
        (
            "grad_new must not share a part of grad's",
            "accept_",
            accept | {"grad": one, "grad_new": other},
        ),
        ("grad must not share z's", "accept_", accept | {"z": one, "grad": other}),
        ("grad_new must not share z's", "accept_", accept | {"z": one, "grad_new": one}),
        ("z_new must not share grad's", "accept_", accept | {"grad": one, "z_new": one}),
        (
            "log_density_new must not share a part of log_density's",
            "accept_",
            accept | {"log_density": buffer[1:4], "log_density_new": buffer[:3]},
        ),
    ):
        assert_refused(name, arguments, message)
