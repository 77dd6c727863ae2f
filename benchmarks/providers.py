"""Everything that is timed, in one table: our backends, what people use without us, the bounds.

Each makes one STANLEY step of z: step size 1, threshold THRESHOLD, noise NOISE_SCALE. Where a
provider cannot run, `available` says why.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

import stanley_fast as sf
from stanley_fast.bench import baselines, ceilings
from stanley_fast.bench.timing import Run

THRESHOLD, NOISE_SCALE = 0.05, 0.1
SCALES: dict[str, Any] = {"threshold": THRESHOLD, "noise_scale": NOISE_SCALE}


class Provider(NamedTuple):
    """`make(z, grad, key)` gives a call that makes one step; `backend` is what it asks for."""

    definition: str
    make: Callable[[Tensor, Tensor, Tensor], Run]
    backend: str | None = None

    def around(self) -> AbstractContextManager[None]:
        """Entered once around many calls."""
        return nullcontext() if self.backend is None else sf.use_backend(self.backend)


# What people write without us --------------------------------------------------------------------


naive = partial(baselines.naive, **SCALES)
"""Eqs. 4 and 5 as one types them."""


def _naive(z: Tensor, grad: Tensor, key: Tensor) -> Run:
    return partial(naive, z, grad)


def _tuned(z: Tensor, grad: Tensor, key: Tensor) -> Run:
    return baselines.tuned(z, grad, **SCALES)


@cache
def _compiled() -> Callable[[Tensor, Tensor], Tensor]:
    return torch.compile(lambda z, grad: naive(z, grad), fullgraph=True, dynamic=False)


def _inductor(z: Tensor, grad: Tensor, key: Tensor) -> Run:
    return partial(_compiled(), z, grad)


def _torchebm(z: Tensor, grad: Tensor, key: Tensor) -> Run:
    integrators = importlib.import_module("torchebm.integrators")

    integrator = integrators.EulerMaruyamaIntegrator(device=z.device, dtype=z.dtype)
    state, scale = {"x": z}, {"step_size": 0.5, "noise_scale": NOISE_SCALE}
    return lambda: integrator.step(state=state, drift=lambda x, t: grad, **scale)


# Ours --------------------------------------------------------------------------------------------


def _in_place(z: Tensor, grad: Tensor, key: Tensor) -> Run:
    return partial(sf.stanley_step_, z, grad, key, **SCALES)


def _stochastic(z: Tensor, grad: Tensor, key: Tensor) -> Run:
    return partial(sf.stanley_step_, z, grad, key, rounding="stochastic", **SCALES)


def _functional(z: Tensor, grad: Tensor, key: Tensor) -> Run:
    return partial(sf.stanley_step, z, grad, key, **SCALES)


# The bounds --------------------------------------------------------------------------------------


def _copy(z: Tensor, grad: Tensor, key: Tensor) -> Run:
    return ceilings.copy(3 * z.numel() * z.element_size(), z.device.type)


def _triad(z: Tensor, grad: Tensor, key: Tensor) -> Run:
    return lambda: torch.add(z, grad, alpha=1e-3, out=z)


def _noise(z: Tensor, grad: Tensor, key: Tensor) -> Run:
    out, op = torch.empty_like(z), torch.ops.stanley_fast.normal_.default

    def fill() -> None:
        with torch._C._AutoDispatchBelowADInplaceOrView():  # as sf.normal does, without allocating
            op(out, key, 0, 0, 0, None)

    return fill


PROVIDERS = {
    "copy": Provider(
        "`target.copy_(source)` of 3/2 n elements: as many bytes read and written as the step's",
        _copy,
    ),
    "triad": Provider("`torch.add(z, g, alpha=a, out=z)`: the step's memory traffic", _triad),
    "noise": Provider("n normals by our own kernel into a kept buffer: the step's noise", _noise),
    "naive": Provider("Eqs. 4 and 5 as one types them, eager, a new z", _naive),
    "tuned": Provider("the same in place: two kept buffers, `normal_`, `addcmul_`", _tuned),
    "inductor": Provider("naive under `torch.compile(fullgraph=True, dynamic=False)`", _inductor),
    "torchebm": Provider(
        "TorchEBM's Euler-Maruyama step, the update of its LangevinDynamics, with the gradient "
        "given: one stepsize for all, so less work than STANLEY's",
        _torchebm,
    ),
}
for _name in ("cpp", "cuda", "triton"):
    PROVIDERS[_name] = Provider(f"`stanley_step_`, backend {_name}: in place", _in_place, _name)
    PROVIDERS[f"{_name}, new"] = Provider(
        f"`stanley_step`, backend {_name}: a new z", _functional, _name
    )
    PROVIDERS[f"{_name}, stochastic"] = Provider(
        f"`stanley_step_`, backend {_name}: in place, rounded stochastically to bfloat16",
        _stochastic,
        _name,
    )

BOUNDS = ("copy", "triad", "noise")
BASELINES = ("naive", "tuned", "inductor", "torchebm")
SERVES = {"cpp": ("cpu",), "cuda": ("cuda",), "triton": ("cuda",)}  # where a timing means something


def ours(device: str, dtype: str = "float32") -> list[str]:
    """Our providers for tensors of `dtype` on `device`, by name."""
    names = [n for n, p in PROVIDERS.items() if p.backend and device in SERVES[p.backend]]
    return [n for n in names if dtype == "bfloat16" or not n.endswith("stochastic")]


def available(name: str, device: str) -> str | None:
    """None where the provider can run on `device`, else the reason why not."""
    if name == "inductor":
        return _no_inductor(device)
    if name == "torchebm" and importlib.util.find_spec("torchebm") is None:
        return "TorchEBM is not installed (pip install torchebm)"
    if name == "noise" and device == "cpu":
        return sf.backends()["cpp"]
    if name == "noise":
        return sf.backends()["cuda"]
    backend = PROVIDERS[name].backend
    return None if backend is None else sf.backends()[backend]


def _no_inductor(device: str) -> str | None:
    if device == "cpu":
        compiler = os.environ.get("CXX", "g++")
        return None if shutil.which(compiler) else f"torch.compile finds no {compiler}"
    found = importlib.util.find_spec("triton")
    return None if found else "torch.compile needs Triton, which is not installed"
