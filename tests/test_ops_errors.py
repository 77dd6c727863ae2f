"""Bad input: an error that names the argument and what it got, and nothing is written."""

from __future__ import annotations

import itertools
import math
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from conftest import HALVES, Backend
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import stanley_fast as sf
from stanley_fast.backends import select

ERRORS = (RuntimeError, ValueError, TypeError)
STEPS = {
    "stanley_step": {"threshold": 0.3, "step_size": 0.5},
    "stanley_step_": {"threshold": 0.3, "step_size": 0.5},
    "langevin_step": {"gamma": 0.1},
    "langevin_step_": {"gamma": 0.1},
}


def six(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.arange(6).to(dtype)


def run_step(name: str, device: str, wrong: dict[str, Any]) -> None:
    """Calls a step whose arguments are right but for `wrong`; on `device`, but for meta tensors."""
    given = {"z": six(), "grad": six() / 10, "key": sf.key(0), "step": 1, **STEPS[name], **wrong}
    for argument, value in given.items():
        if isinstance(value, Tensor) and value.device.type != "meta":
            given[argument] = value.to(device)
    order = [a for a in ("z", "grad", "gamma", "key", "step") if a in given]
    getattr(sf, name)(*[given.pop(argument) for argument in order], **given)


def values(name: str, *bad: float) -> list[Any]:
    """Each bad value of a number, and the error that names both."""
    return [pytest.param({name: v}, rf"{name} must .*{v:g}", id=f"{name}={v}") for v in bad]


WRONG = [
    pytest.param({"grad": six(torch.float64)}, r"grad .*float32.*float64", id="grad-float64"),
    pytest.param({"grad": six(torch.int64)}, r"grad .*float32.*int64", id="grad-int64"),
    pytest.param({"grad": torch.zeros(5)}, r"grad .*\[6\].*\[5\]", id="grad-short"),
    pytest.param({"grad": torch.zeros(1)}, r"grad .*\[6\].*\[1\]", id="grad-would-broadcast"),
    pytest.param({"grad": torch.zeros(6, 1)}, r"grad .*\[6\].*\[6, 1\]", id="grad-column"),
    pytest.param({"grad": torch.zeros(6, device="meta")}, r"grad .*meta", id="grad-meta"),
    pytest.param({"grad": None}, r"grad", id="grad-None"),
    pytest.param({"key": torch.zeros(2)}, r"key .*int64.*float32", id="key-float32"),
    pytest.param({"key": torch.zeros(2).int()}, r"key .*int64.*int32", id="key-int32"),
    pytest.param({"key": torch.zeros(3).long()}, r"key .*\(2,\).*3", id="key-of-3"),
    pytest.param({"key": torch.zeros(1, 2).long()}, r"key .*\(2,\).*1, 2", id="key-of-1x2"),
    pytest.param({"key": torch.zeros(2).long().to("meta")}, r"key .*meta", id="key-meta"),
    pytest.param({"key": None}, r"key", id="key-None"),
    pytest.param({"step": 1.5}, r"step", id="step-1.5"),
    *values("noise_scale", -1.0, -0.001, math.nan, math.inf),
    pytest.param({"clamp": (1.0, -1.0)}, r"clamp .*1.*-1", id="clamp-reversed"),
    pytest.param({"clamp": (math.nan, 1.0)}, r"clamp .*nan", id="clamp-nan-lo"),
    pytest.param({"clamp": (0.0, math.nan)}, r"clamp .*nan", id="clamp-nan-hi"),
    pytest.param({"clamp": (0.0, 1.0, 2.0)}, r"clamp", id="clamp-of-3"),
    pytest.param({"clamp": (0.5,)}, r"clamp", id="clamp-of-1"),
    pytest.param({"clamp": 1.0}, r"clamp", id="clamp-number"),
    pytest.param({"update": "papre"}, r"update .*'papre'", id="update"),
    pytest.param({"first": -1, "total": 10}, r"first .*-1", id="first-negative"),
    pytest.param({"first": 2}, r"total .*first.* 2", id="first-without-total"),
    pytest.param({"first": 5, "total": 10}, r"total, got 5 \+ 6 > 10", id="beyond-total"),
    pytest.param({"total": 5}, r"total, got 0 \+ 6 > 5", id="total-small"),
]  # fmt: skip
WRONG_STANLEY = [
    *values("threshold", 0.0, -0.1, math.nan, math.inf),
    *values("step_size", 0.0, -2.0, math.nan, math.inf),
]
# Positive and finite numbers that are neither in the float32 that the state is computed in.
WRONG_FLOAT32 = [
    pytest.param({name: v}, rf"{name} must be positive and finite in .*float32", id=f"{name}={v}")
    for name, v in itertools.product(["threshold", "step_size"], [1e-50, 1e50])
]
WRONG_LANGEVIN = [
    *values("gamma", 0.0, -0.1, math.nan, math.inf),
    pytest.param({"gamma": six(torch.float64)}, r"gamma .*float32.*float64", id="gamma-float64"),
    pytest.param({"gamma": six(torch.int64)}, r"gamma .*float32.*int64", id="gamma-int64"),
    pytest.param({"gamma": torch.ones(5)}, r"gamma .*\[6\].*\[5\]", id="gamma-short"),
    pytest.param({"gamma": torch.ones(0)}, r"gamma .*\[6\].*\[0\]", id="gamma-empty"),
    pytest.param({"gamma": torch.ones(1, 6)}, r"gamma .*\[6\].*\[1, 6\]", id="gamma-more-dims"),
    pytest.param({"gamma": torch.ones(6, 1)}, r"gamma .*\[6\].*\[6, 1\]", id="gamma-column"),
    pytest.param({"gamma": torch.ones(6, device="meta")}, r"gamma .*meta", id="gamma-meta"),
    pytest.param({"gamma": None}, r"gamma", id="gamma-None"),
    pytest.param({"gamma": "0.1"}, r"gamma", id="gamma-str"),
]
WRONG_DTYPES = [torch.int64, torch.int32, torch.uint8, torch.bool, torch.complex64]
FLOATING = "float32, float64, float16 or bfloat16"


def check_refused(name: str, device: str, wrong: dict[str, Any], match: str) -> None:
    z, key = six().to(device), sf.key(0, device)
    with pytest.raises(ERRORS, match=match):
        run_step(name, device, {"z": z, "key": key, **wrong})
    assert torch.equal(z, six().to(device))
    assert z._version == 0
    assert key.tolist() == [0, 0]


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize(("wrong", "match"), WRONG)
def test_either_step(each_backend: Backend, name: str, wrong: dict[str, Any], match: str) -> None:
    check_refused(name, each_backend.device, wrong, match)


@pytest.mark.parametrize("name", ["stanley_step", "stanley_step_"])
@pytest.mark.parametrize(("wrong", "match"), WRONG_STANLEY + WRONG_FLOAT32)
def test_stanley_step(each_backend: Backend, name: str, wrong: dict[str, Any], match: str) -> None:
    check_refused(name, each_backend.device, wrong, match)


@pytest.mark.parametrize("name", ["langevin_step", "langevin_step_"])
@pytest.mark.parametrize(("wrong", "match"), WRONG_LANGEVIN)
def test_langevin_step(each_backend: Backend, name: str, wrong: dict[str, Any], match: str) -> None:
    check_refused(name, each_backend.device, wrong, match)


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("dtype", WRONG_DTYPES, ids=str)
def test_dtype_of_the_state(each_backend: Backend, name: str, dtype: torch.dtype) -> None:
    wrong = {"z": six(dtype), "grad": six(dtype)}
    with pytest.raises(RuntimeError, match=rf"(z|grad) must be {FLOATING}, got {dtype}"):
        run_step(name, each_backend.device, wrong)


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_state_and_gradient_of_different_dtypes(
    each_backend: Backend, name: str, dtype: torch.dtype
) -> None:
    for other in {*HALVES, torch.float32} - {dtype}:
        with pytest.raises(RuntimeError, match=rf"grad must .*{dtype}, got {other}"):
            run_step(name, each_backend.device, {"z": six(dtype), "grad": six(other)})


@pytest.mark.parametrize("name", ["langevin_step", "langevin_step_"])
@pytest.mark.parametrize("dtype", [*HALVES, torch.float64], ids=str)
def test_gamma_of_a_dtype_that_is_not_computed_in(
    each_backend: Backend, name: str, dtype: torch.dtype
) -> None:
    wanted = torch.float64 if dtype == torch.float64 else torch.float32
    for other in {*HALVES, torch.float32, torch.float64} - {wanted}:
        wrong = {"z": six(dtype), "grad": six(dtype), "gamma": torch.ones((), dtype=other)}
        match = f"gamma must be {wanted} for a {dtype} z, got {other}"
        with pytest.raises(RuntimeError, match=match):
            run_step(name, each_backend.device, wrong)


@pytest.mark.parametrize("name", ["stanley_step", "stanley_step_"])
@pytest.mark.parametrize(("wrong", "match"), WRONG_FLOAT32)
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_limits_of_halves_are_those_of_float32(
    each_backend: Backend, name: str, dtype: torch.dtype, wrong: dict[str, Any], match: str
) -> None:
    state = {"z": six(dtype), "grad": six(dtype) / 10}
    with pytest.raises(RuntimeError, match=match):
        run_step(name, each_backend.device, {**state, **wrong})
    assert torch.equal(state["z"], six(dtype))
    run_step(name, each_backend.device, {**state, "threshold": 1e-12, "step_size": 1e38})


@pytest.mark.parametrize("name", STEPS)
def test_state_on_another_device(each_backend: Backend, name: str) -> None:
    meta = torch.zeros(6, device="meta")
    with pytest.raises(RuntimeError, match=r"(key|tensors) .*meta"):
        run_step(name, each_backend.device, {"z": meta, "grad": meta})


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize(("wrong", "match"), [p for p in WRONG if "clamp" not in p.id])
def test_shape_inference_refuses_too(
    compiled: None, name: str, wrong: dict[str, Any], match: str
) -> None:
    """Under torch.compile a mistake is found while tracing, with the same words."""
    with FakeTensorMode(allow_non_fake_inputs=True), pytest.raises(ERRORS, match=match):
        run_step(name, "cpu", {"z": six(), **wrong})


# In place ----------------------------------------------------------------------------------------

IN_PLACE = ["stanley_step_", "langevin_step_"]


@pytest.mark.parametrize("name", IN_PLACE)
@pytest.mark.parametrize("which", ["z", "grad"])
def test_in_place_has_no_gradient(each_backend: Backend, name: str, which: str) -> None:
    tensors = {"z": six().to(each_backend.device), "grad": six().to(each_backend.device)}
    tensors[which].requires_grad_()
    with pytest.raises(RuntimeError, match=r"requires grad.*no_grad"):
        run_step(name, each_backend.device, tensors)
    assert torch.equal(tensors["z"].detach(), six().to(each_backend.device))
    for mode in (torch.no_grad, torch.inference_mode):
        before = tensors["z"].detach().clone()
        with mode():
            run_step(name, each_backend.device, tensors)
        assert not torch.equal(tensors["z"].detach(), before)
        assert tensors[which].requires_grad
        assert tensors[which].is_leaf


def test_in_place_gamma_has_no_gradient(each_backend: Backend) -> None:
    gamma = torch.ones((), device=each_backend.device, requires_grad=True)
    with pytest.raises(RuntimeError, match="requires grad"):
        run_step("langevin_step_", each_backend.device, {"gamma": gamma})


@pytest.mark.parametrize("name", IN_PLACE)
@pytest.mark.parametrize("shape", [(6, 2), (2, 6)])
def test_z_that_overlaps_itself(each_backend: Backend, name: str, shape: tuple[int, int]) -> None:
    memory = six().to(each_backend.device)
    z = (memory[:, None] if shape[1] == 2 else memory).expand(shape)
    with pytest.raises(RuntimeError, match=r"overlap|expand|single memory location"):
        run_step(name, each_backend.device, {"z": z, "grad": torch.zeros(shape)})
    assert torch.equal(memory, six().to(each_backend.device))


@pytest.mark.parametrize("name", IN_PLACE)
@pytest.mark.parametrize("which", ["grad", "gamma"])
def test_z_that_overlaps_what_is_read(backend: Backend, name: str, which: str) -> None:
    """Written in place, a shifted grad or gamma would change while it is read."""
    if which not in ("grad", *STEPS[name]):
        return
    memory = torch.arange(7.0, device=backend.device)
    with pytest.raises(RuntimeError, match=rf"{which} .*(overlap|memory)"):
        run_step(name, backend.device, {"z": memory[1:], which: memory[:-1]})
    assert torch.equal(memory, torch.arange(7.0, device=backend.device))


# stepsize and normal -----------------------------------------------------------------------------


@pytest.mark.parametrize(("wrong", "match"), WRONG_STANLEY + WRONG_FLOAT32)
def test_stepsize(each_backend: Backend, wrong: dict[str, Any], match: str) -> None:
    for dtype in (torch.float32, *HALVES):
        with pytest.raises(RuntimeError, match=match):
            sf.stepsize(six(dtype).to(each_backend.device), **{"threshold": 0.3, **wrong})


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64], ids=str)
def test_stepsize_dtype(each_backend: Backend, dtype: torch.dtype) -> None:
    with pytest.raises(RuntimeError, match=f"grad must be {FLOATING}, got {dtype}"):
        sf.stepsize(six(dtype).to(each_backend.device), threshold=0.3)


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"dtype": torch.int64}, f"dtype must be {FLOATING}, got torch.int64"),
        ({"dtype": torch.complex64}, f"dtype must be {FLOATING}, got torch.complex64"),
        ({"key": torch.zeros(2)}, r"key .*int64.*float32"),
        ({"key": torch.zeros(3).long()}, r"key .*\(2,\).*3"),
        ({"key": 42}, r"key"),
        ({"stream": -1}, r"stream .*-1"),
        ({"stream": 2**32}, rf"stream .*{2**32}"),
        ({"first": -4, "total": 10}, r"first .*-4"),
        ({"first": 4}, r"total .*4"),
        ({"first": 4, "total": 9}, r"total, got 4 \+ 6 > 9"),
        ({"shape": (2, -3)}, r"-3|negative|shape"),
    ],
    ids=str,
)
def test_normal(each_backend: Backend, wrong: dict[str, Any], match: str) -> None:
    given = {"shape": (6,), "key": sf.key(0, each_backend.device), **wrong}
    with pytest.raises(ERRORS, match=match):
        sf.normal(**given)


# Backends ----------------------------------------------------------------------------------------


def test_backends_says_why_not() -> None:
    known = sf.backends()
    assert {"reference", "cpp", "cuda", "triton"} <= known.keys()
    assert known["reference"] is None
    assert all(why is None or len(why) > 10 for why in known.values())


@pytest.mark.parametrize("name", [n for n, why in sf.backends().items() if why is not None])
def test_backend_that_cannot_run(name: str) -> None:
    before = select("cpu")
    with pytest.raises(RuntimeError) as error, sf.use_backend(name):
        pass
    assert name in str(error.value)
    assert str(sf.backends()[name]) in str(error.value)
    assert select("cpu") == before


def test_backend_that_does_not_exist() -> None:
    with pytest.raises(ValueError, match=r"reference.*'quantum'"), sf.use_backend("quantum"):
        pass


def test_use_backend_ends() -> None:
    before = select("cpu")
    with sf.use_backend("reference"):
        assert select("cpu") == "reference"
    assert select("cpu") == before
    with pytest.raises(KeyError), sf.use_backend("reference"):
        raise KeyError
    assert select("cpu") == before


def in_a_process(backend: str, code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", f"import torch, stanley_fast as sf\n{code}"],
        env={**os.environ, "STANLEY_FAST_BACKEND": backend, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


STEP = "z = torch.ones(3)\nsf.stanley_step_(z, z.clone(), sf.key(0), threshold=0.3)"


def test_environment_chooses_the_backend() -> None:
    code = f"{STEP}\nfrom stanley_fast.backends import select\nprint(select('cpu'))"
    ran = in_a_process("reference", code)
    assert ran.stdout.strip() == "reference", ran.stderr


@pytest.mark.parametrize(("name", "error"), [("cuda", "RuntimeError"), ("quantum", "ValueError")])
def test_environment_asks_for_what_cannot_run(name: str, error: str) -> None:
    if sf.backends().get(name, "no such backend") is None and torch.cuda.is_available():
        pytest.skip(f"{name} can run here")
    ran = in_a_process(name, STEP)
    assert ran.returncode != 0
    last = ran.stderr.strip().splitlines()[-1]
    assert last.startswith(error)
    assert repr(name) in last


def test_environment_asks_for_vector_code_that_cannot_run(compiled: None) -> None:
    code = "from stanley_fast.backends import vector_level\nprint(vector_level())"
    ran = in_a_process("cpp", code, STANLEY_FAST_VECTOR="quantum")
    assert ran.returncode != 0
    assert "STANLEY_FAST_VECTOR" in ran.stderr.strip().splitlines()[-1]
