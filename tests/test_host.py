"""stanley_fast._host, the second oracle: the headers' arithmetic in plain loops over arrays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from conftest import (
    HYPER,
    UPDATES,
    assert_step_close,
    eq4,
    eq5,
    oracle_normal,
    philox,
    radius_and_normal,
    words,
)
from torch import Tensor

import stanley_fast as sf

host = pytest.importorskip("stanley_fast._host")

DTYPES = [torch.float32, torch.float64]
# The state's elements [first, first + n), and where its noise begins.
PLACES: dict[str, dict[str, int]] = {
    "whole": {"n": 1000, "seed": 0},
    "negative seed": {"n": 7, "seed": -(2**63)},
    "later step": {"n": 10, "seed": 42, "offset": 5, "step": 3},
    "low word wraps": {"n": 40, "seed": 1, "offset": 2**32 - 3},
    "block wraps": {"n": 40, "seed": 1, "offset": 2**63 - 1, "step": 2**60 + 7},
    "stream": {"n": 9, "seed": 2, "stream": 3},
    "part": {"n": 11, "seed": 3, "first": 6, "total": 21, "step": 2},
    "far part": {"n": 5, "seed": 4, "first": 2**40 + 3, "total": 2**41},
    "empty": {"n": 0, "seed": 5},
}


def array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().numpy()


def state(dtype: torch.dtype, n: int = 600) -> tuple[Tensor, Tensor]:
    """z, and a gradient on both sides of HYPER's threshold but 1e-3 away from it."""
    generator = torch.Generator().manual_seed(0)
    z, grad = torch.randn((2, 6, n // 6), generator=generator, dtype=torch.float64)
    grad = torch.where((grad.abs() - 0.3).abs() < 1e-3, 0.31 * grad.sign(), grad)
    return z.to(dtype), grad.to(dtype)


# Noise -------------------------------------------------------------------------------------------

KNOWN = [  # key, counter, words: Random123's known answers
    ("00000000 00000000", "00000000 " * 4, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff", "ffffffff " * 4, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    (
        "a4093822 299f31d0",
        "243f6a88 85a308d3 13198a2e 03707344",
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
]


@pytest.mark.parametrize(("key", "counter", "want"), KNOWN)
def test_known_words(key: str, counter: str, want: str) -> None:
    k, c, w = (np.array([int(x, 16) for x in y.split()], np.uint32) for y in (key, counter, want))
    assert np.array_equal(host.philox(c[None], k), w[None])


def test_words_of_any_counter_and_key() -> None:
    random = np.random.default_rng(0)
    counter = random.integers(0, 2**32, (1000, 4), dtype=np.uint32)
    k0, k1 = random.integers(0, 2**32, 2, dtype=np.uint32)
    got = host.philox(counter[::-1], np.array([k0, k1]))
    assert np.array_equal(got, philox(counter[::-1], int(k0), int(k1)))


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_normals(place: dict[str, int], dtype: torch.dtype) -> None:
    """Within 4 ulp of the radius, which bounds both the cosine's and the sine's error."""
    radius, want = radius_and_normal(words(**place), place.get("first", 0), dtype)
    got = host.normal(**place, dtype=str(dtype).removeprefix("torch."))
    assert got.dtype == np.dtype(str(dtype).removeprefix("torch."))
    assert (np.abs(got - want) <= 4 * torch.finfo(dtype).eps * radius).all()


# Steps -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_stepsize_is_eq4(dtype: torch.dtype) -> None:
    """To the bit: its operations round as IEEE 754 says."""
    grad = array(state(dtype)[1])
    threshold, step_size = grad.dtype.type(0.3), grad.dtype.type(0.7)
    want = step_size * (threshold / np.maximum(np.abs(grad), threshold))
    assert np.array_equal(host.stepsize(grad, threshold=0.3, step_size=0.7), want)


class Case:
    """A step's arguments, for _host and for the equations."""

    def __init__(self, dtype: torch.dtype, update: str, given: bool, clamp: Any) -> None:
        self.z, self.grad = state(dtype)
        self.gamma = self.grad.abs() + 0.1 if given else None
        self.update, self.clamp = update, clamp
        self.where = {"step": 2, "first": 6, "total": 1000}
        self.options = {**HYPER, "script": update == "script", "clamp": clamp, **self.where}

    def forward(self) -> Tensor:
        gamma = None if self.gamma is None else array(self.gamma)
        got = host.step(array(self.z), array(self.grad), gamma, 9, 4, **self.options)
        return torch.from_numpy(got)

    def backward(self, grad_out: Tensor) -> tuple[Tensor, ...]:
        gamma = None if self.gamma is None else array(self.gamma)
        z = array(self.z)
        got = host.step_backward(array(grad_out), z, array(self.grad), gamma, 9, 4, **self.options)
        return tuple(map(torch.from_numpy, got))

    def by(self, module: Any, z: Tensor, grad: Tensor, gamma: Tensor | None) -> Tensor:
        """The same step by stanley_fast's or the reference's functions."""
        key = torch.tensor([9, 4])
        common = {"clamp": self.clamp, "update": self.update, **self.where}
        if gamma is None:
            return module.stanley_step(z, grad, key, **HYPER, **common)
        noise_scale = HYPER["noise_scale"]
        return module.langevin_step(z, grad, gamma, key, noise_scale=noise_scale, **common)

    def derivatives(self, module: Any, grad_out: Tensor) -> tuple[Tensor, ...]:
        given = [x for x in (self.z, self.grad, self.gamma) if x is not None]
        leaves = [x.clone().requires_grad_() for x in given]
        z, grad, *gamma = leaves
        out = self.by(module, z, grad, gamma[0] if gamma else None)
        return torch.autograd.grad(out, leaves, grad_out)


@pytest.fixture(params=DTYPES, ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.fixture(params=UPDATES)
def update(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=[None, (-0.5, 0.75)], ids=["free", "clamped"])
def case(request: pytest.FixtureRequest, dtype: torch.dtype, update: str, given: bool) -> Case:
    return Case(dtype, update, given, request.param)


@pytest.fixture(params=[False, True], ids=["adaptive", "gamma"])
def given(request: pytest.FixtureRequest) -> bool:
    return request.param


def test_step_is_eq5(case: Case) -> None:
    z, grad = case.z, case.grad
    gamma = eq4(grad, 0.3, 0.7) if case.gamma is None else case.gamma.double()
    noise = oracle_normal(z.numel(), 9, offset=4, **case.where).view(z.shape)
    want = eq5(z, grad, gamma, HYPER["noise_scale"] * noise, case.update)
    want = want if case.clamp is None else want.clamp(*case.clamp)
    assert_step_close(case.forward(), want, z, grad, gamma, HYPER["noise_scale"], case.update)


def test_step_agrees_with_the_compiled_library(case: Case, compiled: None) -> None:
    gamma = eq4(case.grad, 0.3, 0.7) if case.gamma is None else case.gamma
    with sf.use_backend("cpp"):
        got = case.by(sf, case.z, case.grad, case.gamma)
    want = case.forward()
    assert_step_close(got, want, case.z, case.grad, gamma, HYPER["noise_scale"], case.update)


def test_backward_is_the_derivative(case: Case) -> None:
    """Of the reference, by autograd. In float32 its noise differs in the last bits."""
    grad_out = torch.flip(case.grad, [0]) + 1
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if case.z.dtype == torch.float32 else {}
    wants = case.derivatives(sf.reference, grad_out)
    for got, want in zip(case.backward(grad_out), wants, strict=True):
        torch.testing.assert_close(got, want, **tolerance)


def test_backward_agrees_with_the_compiled_library(case: Case, compiled: None) -> None:
    grad_out = torch.flip(case.grad, [0]) + 1
    with sf.use_backend("cpp"):
        wants = case.derivatives(sf, grad_out)
    for got, want in zip(case.backward(grad_out), wants, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


def test_any_strides() -> None:
    z, grad = (array(x) for x in state(torch.float32))
    assert np.array_equal(host.step(z.T, grad.T, None, 1), host.step(z.T.copy(), grad.T, None, 1))
    assert not np.array_equal(host.step(z.T, grad.T, None, 1).T, host.step(z, grad, None, 1))


# Errors ------------------------------------------------------------------------------------------

X = np.ones((2, 3), np.float32)
COUNTER, KEY = np.zeros((1, 4), np.uint32), np.zeros(2, np.uint32)
ERRORS: list[tuple[Callable[[], Any], str]] = [
    (
        lambda: host.philox(COUNTER.astype(int), KEY),
        r"counter must be a uint32 array \(n, 4\), got int64 \(1, 4\)",
    ),
    (lambda: host.philox(COUNTER[0], KEY), r"counter .* got uint32 \(4,\)"),
    (lambda: host.philox(COUNTER, KEY[:1]), r"key must be a uint32 array \(2,\), got uint32 \(1,"),
    (lambda: host.normal(-1, 0), "n must be 0 or more, got -1"),
    (lambda: host.normal(1, 0, dtype=int), "dtype must be float32 or float64, got int64"),
    (lambda: host.normal(5, 0, first=3), "first 3, n 5, total 5"),
    (lambda: host.normal(5, 0, first=-1, total=9), "first -1, n 5, total 9"),
    (lambda: host.normal(5, 0, first=2**63 - 1, total=2**63 - 1), "must lie in"),
    (lambda: host.stepsize(X, threshold=0), "threshold must be positive and finite, got 0"),
    (lambda: host.stepsize(X, threshold=1e-50), "threshold must be positive"),
    (lambda: host.stepsize(X, threshold=1, step_size=np.inf), "step_size must be positive"),
    (lambda: host.stepsize(X.astype(np.float16), threshold=1), "grad must be float32 or float64"),
    (
        lambda: host.step(X.T, X, None, 0),
        r"z must have grad's dtype and shape, float32 \(2, 3\), got float32 \(3, 2\)",
    ),
    (lambda: host.step(X, X, X.astype(float), 0), "gamma must have grad's .* got float64"),
    (lambda: host.step(X, X, None, 0, noise_scale=-1), "noise_scale must be 0 or more, got -1"),
    (lambda: host.step_backward(X[0], None, X, None, 0), "grad_out must have grad's"),
    (lambda: host.step_backward(X, None, X, None, 0, clamp=(0, 1)), "z must be given where clamp"),
]


@pytest.mark.parametrize(("call", "message"), ERRORS)
def test_errors(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_build_facts() -> None:
    facts = host.build_facts()
    assert set(facts) == {"compiler", "cuda", "cuda_architectures", "vector_levels", "torch"}
    assert "baseline" in facts["vector_levels"]
    assert facts["cuda"].startswith("none: ") == (facts["cuda_architectures"] == [])
