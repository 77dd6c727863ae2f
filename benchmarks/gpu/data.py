"""Inputs, memory that shows what was written, the reference's answers and how close is close.

The reference runs on the CPU in the compute dtype of the state: float32 for half precision, whose
results then owe one rounding more.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

import stanley_fast as sf

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
HYPER: dict[str, Any] = {"threshold": 0.3, "step_size": 0.7}
NOISE_SCALE = 0.5
CLAMP = (-0.4, 0.9)
MARGIN, SENTINEL = 64, -12344.0

_seeds = itertools.count()


def name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def random(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Fresh standard normals on the CPU, not from the noise under test."""
    generator = torch.Generator().manual_seed(next(_seeds))
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def gradient(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A gradient on both sides of the threshold, but not at it."""
    grad = random(shape, dtype) * 0.45
    th = HYPER["threshold"]
    return torch.where((grad.abs() - th).abs() < 1e-3, 1.03 * th * grad.sign(), grad)


# Memory ------------------------------------------------------------------------------------------

Shape = tuple[int, ...]

# A view of `shape` into a flat buffer of 2 n + 2 MARGIN elements. The first two take any shape.
LAYOUTS: dict[str, Callable[[Tensor, Shape], Tensor]] = {
    "contiguous": lambda b, s: b[MARGIN : MARGIN + math.prod(s)].view(s),
    "offset": lambda b, s: b[MARGIN + 1 : MARGIN + 1 + math.prod(s)].view(s),
    "channels_last": lambda b, s: _part(b, s, (0, 2, 3, 1)).permute(0, 3, 1, 2),
    "transposed": lambda b, s: _part(b, s, (3, 1, 2, 0)).transpose(0, 3),
    "every second": lambda b, s: b[MARGIN : MARGIN + 2 * math.prod(s) : 2].view(s),
    "rows": lambda b, s: b[MARGIN : MARGIN + 2 * math.prod(s)].view(*s[:3], 2 * s[3])[..., : s[3]],
}


def _part(buffer: Tensor, shape: Shape, order: tuple[int, ...]) -> Tensor:
    return buffer[MARGIN : MARGIN + math.prod(shape)].view([shape[i] for i in order])


def fits(nbytes: int, device: str) -> bool:
    """Whether the GPU has as much to give, torch's unused memory included."""
    if device == "cpu":
        return True
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info()[0] >= nbytes


class Guarded:
    """Values in a view of a larger buffer, which knows what else was written."""

    def __init__(self, values: Tensor, layout: str, device: str) -> None:
        size = 2 * values.numel() + 2 * MARGIN
        self.buffer = torch.full((size,), SENTINEL, dtype=values.dtype, device=device)
        self.layout, self.shape = layout, tuple(values.shape)
        self.view = LAYOUTS[layout](self.buffer, self.shape)
        self.view.copy_(values)
        self.before = self.buffer.clone()

    def assert_untouched(self) -> None:
        assert torch.equal(self.buffer, self.before), "an input was written"

    def assert_nothing_beside(self) -> None:
        """Only the view was written."""
        after = self.buffer.clone()
        view = LAYOUTS[self.layout](after, self.shape)
        view.copy_(LAYOUTS[self.layout](self.before, self.shape))
        assert torch.equal(after, self.before), "memory beside the tensor was written"


@contextmanager
def poisoned(like: Tensor) -> Iterator[None]:
    """New memory holds NaN, so that an element that nobody writes shows.

    torch fills what it allocates in deterministic mode; the freed tensors are for allocations that
    go past that and reuse their memory.
    """
    used = [torch.full_like(like, math.nan) for _ in range(3)]
    del used
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


# How close is close ------------------------------------------------------------------------------


def ulp(x: Tensor, dtype: torch.dtype) -> Tensor:
    """The distance between neighbours of `dtype` at x, in float64."""
    info = torch.finfo(dtype)
    exponent = torch.frexp(x.double()).exponent
    spacing = torch.ldexp(torch.full_like(x, info.eps, dtype=torch.float64), exponent - 1)
    return spacing.clamp(min=info.smallest_normal * info.eps)


def rounding(want: Tensor, dtype: torch.dtype) -> Tensor | float:
    """What storing `want` as a half-precision `dtype` may add: half an ulp."""
    return 0.0 if dtype.itemsize > 2 else ulp(want, dtype) / 2


def step_bound(
    want: Tensor, z: Tensor, grad: Tensor, gamma: Tensor, update: str, dtype: torch.dtype
) -> Tensor:
    """1e-5 (1e-12 in float64) of drift and noise each, 2 ulp of z, and the last rounding."""
    tol = 1e-12 if dtype == torch.float64 else 1e-5
    gamma = gamma.double()
    drift, noise = (gamma / 2, gamma.sqrt()) if update == "paper" else (gamma, gamma)
    moved = drift * grad.double().abs() + noise * NOISE_SCALE
    return tol * moved + 2 * ulp(z, compute_dtype(dtype)) + rounding(want, dtype)


def excess(got: Tensor, want: Tensor, bound: Tensor | float) -> float:
    """The largest |got - want| / bound, which must not pass 1; the same values not finite."""
    got, want = got.detach().cpu().double(), want.detach().cpu().double()
    assert got.shape == want.shape, f"shape {list(got.shape)}, want {list(want.shape)}"
    finite = want.isfinite()
    others = got[~finite], want[~finite]
    assert torch.equal(*(x.nan_to_num(0.5, 1.5, 2.5) for x in others)), "NaN or inf elsewhere"
    difference = (got - want).abs()
    share = torch.where(difference == 0, 0.0, difference / bound)[finite]
    if share.numel() == 0:
        return 0.0
    assert not share.isnan().any(), f"{int(share.isnan().sum())} of {share.numel()} are NaN"
    at = int(share.argmax())
    worst = float(share[at])
    wrong = int((share > 1).sum())
    assert wrong == 0, (
        f"{wrong} of {share.numel()} beyond the bound, {worst:.3g} times; at {at} "
        f"got {float(got[finite][at]):.9g}, want {float(want[finite][at]):.9g}"
    )
    return worst


def equal(got: Tensor, want: Tensor) -> float:
    """Bit for bit, NaN included."""
    assert got.dtype == want.dtype
    words = {2: torch.int16, 4: torch.int32, 8: torch.int64}[got.dtype.itemsize]
    different = int((got.view(words) != want.to(got.device).view(words)).sum())
    assert different == 0, f"{different} of {got.numel()} elements differ"
    return 0.0


# The reference -----------------------------------------------------------------------------------


def reference_step(
    op: str, z: Tensor, grad: Tensor, gamma: Tensor, key: Tensor, step: int, **rest: Any
) -> Tensor:
    """What `op`, in place or not, should give, in the compute dtype; gamma is Langevin's."""
    wide = compute_dtype(z.dtype)
    rest = {"noise_scale": NOISE_SCALE, **rest}
    if op.startswith("stanley"):
        return sf.reference.stanley_step(z.to(wide), grad.to(wide), key, step, **HYPER, **rest)
    return sf.reference.langevin_step(z.to(wide), grad.to(wide), gamma, key, step, **rest)


def our_step(
    op: str, z: Tensor, grad: Tensor, gamma: Tensor, key: Tensor, step: int, **rest: Any
) -> Tensor:
    """`op` of the backend in use, with the same arguments as `reference_step`."""
    rest = {"noise_scale": NOISE_SCALE, **rest}
    function: Callable[..., Tensor] = getattr(sf, op)
    if op.startswith("stanley"):
        return function(z, grad, key, step, **HYPER, **rest)
    return function(z, grad, gamma, key, step, **rest)
