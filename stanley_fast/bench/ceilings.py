"""What a machine can do at most: multiply-adds on registers, matrix products, copies of memory."""

from __future__ import annotations

import ctypes
import os
import shlex
import statistics
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from time import perf_counter
from typing import Any, Literal, NamedTuple

import torch

from stanley_fast.bench.timing import Candidate, Run, by_events

Precision = Literal["float32", "tf32", "bfloat16"]


class Peak(NamedTuple):
    """Floating-point operations a second, and what did them."""

    rate: float
    how: str


def peaks(device: str) -> dict[str, Peak]:
    """By precision: of the CPU float32, on as many threads as torch has; of a GPU all three.

    >>> 1e8 < peaks("cpu")["float32"].rate < 1e15
    True
    """
    if device == "cuda":
        kinds: tuple[Precision, ...] = ("float32", "tf32", "bfloat16")
        return {kind: Peak(matrix_product(kind), "a matrix product by torch") for kind in kinds}
    threads = torch.get_num_threads()
    try:
        return {"float32": Peak(multiply_adds(threads), "multiply-adds on registers")}
    except (OSError, subprocess.CalledProcessError):
        how = f"a matrix product by torch, as there is no C++ compiler ({compiler()[0]})"
        return {"float32": Peak(_cpu_product(), how)}


# Multiply-adds on registers -----------------------------------------------------------------------

SOURCE = """
#if defined(__AVX512F__)
enum { kBytes = 64, kSums = 24 };
#elif defined(__AVX__)
enum { kBytes = 32, kSums = 12 };
#else
enum { kBytes = 16, kSums = 12 };
#endif
typedef float Vector __attribute__((vector_size(kBytes)));

extern "C" double multiply_adds(long n, float* out) {
  Vector sums[kSums], x = Vector{} + *out, y = x;
  for (int s = 0; s < kSums; ++s) sums[s] = Vector{} + (float)s;  // equal sums would be made one
  for (long i = 0; i < n; ++i)
#pragma GCC unroll 24
    for (int s = 0; s < kSums; ++s) sums[s] = sums[s] * x + y;
  for (const Vector& sum : sums)
    for (unsigned j = 0; j < kBytes / sizeof(float); ++j) *out += sum[j];
  return 2.0 * n * kSums * (kBytes / sizeof(float));
}
"""


def compiler() -> list[str]:
    return shlex.split(os.environ.get("CXX", "g++"))


@cache
def multiply_adds(threads: int = 1) -> float:
    """FLOP/s in float32 of so many cores at once: of each the median of many short runs.

    Raises OSError, CalledProcessError: there is no C++ compiler, or it fails.
    """
    with ThreadPoolExecutor(threads) as pool:  # a call by ctypes holds no lock of Python's
        return sum(pool.map(_rate, [_compiled()] * threads))


@cache
def _compiled() -> Any:
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder, "peak.cpp"), Path(folder, "peak.so")
        source.write_text(SOURCE)
        flags = ["-O3", "-march=native", "-shared", "-fPIC"]
        command = [*compiler(), *flags, str(source), "-o", str(library)]
        subprocess.run(command, check=True, capture_output=True)
        run = ctypes.CDLL(str(library)).multiply_adds
    run.restype = ctypes.c_double
    return run


def _rate(run: Any) -> float:
    out, rates = ctypes.c_float(0.5), []
    for _ in range(201):
        begin = perf_counter()
        done = run(ctypes.c_long(20_000), ctypes.byref(out))
        rates.append(done / (perf_counter() - begin))
    return statistics.median(rates)


# Matrix products ----------------------------------------------------------------------------------


@contextmanager
def products(kind: Precision) -> Iterator[None]:
    """What a GPU computes products and convolutions of float32 tensors in.

    "float32" is IEEE arithmetic; else tensor cores take 10 bits of the mantissa (TF32), as torch
    does for convolutions unless told.
    """
    matmul, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest" if kind == "float32" else "high")
    torch.backends.cudnn.allow_tf32 = kind != "float32"
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(matmul)
        torch.backends.cudnn.allow_tf32 = convolutions


@cache
def matrix_product(kind: Precision, size: int = 8192) -> float:
    """FLOP/s on a GPU; the inputs are random, as zeros draw less power and run faster."""
    a, b = (torch.randn(size, size, device="cuda") for _ in range(2))
    if kind == "bfloat16":
        a, b = a.bfloat16(), b.bfloat16()
    out = torch.empty_like(a)
    with products(kind):
        seconds = by_events({"product": Candidate(lambda: torch.mm(a, b, out=out))}, rounds=5)
    return 2 * size**3 / seconds["product"]


def _cpu_product(size: int = 1536) -> float:
    a, b = (torch.randn(size, size) for _ in range(2))
    out, times = torch.empty_like(a), []
    for _ in range(9):
        begin = perf_counter()
        torch.mm(a, b, out=out)
        times.append(perf_counter() - begin)
    return 2 * size**3 / statistics.median(times)


# Copies -------------------------------------------------------------------------------------------


def copy(nbytes: int, device: str) -> Run:
    """A call that reads and writes `nbytes` together."""
    source = torch.ones(max(1, nbytes // 8), device=device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)
