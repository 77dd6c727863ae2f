"""What a core can do at most: float32 multiply-adds on registers alone."""

from __future__ import annotations

import ctypes
import os
import shlex
import statistics
import subprocess
import tempfile
import time
from functools import cache
from pathlib import Path

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


@cache
def peak() -> float:
    """FLOP/s of one core: the median of many short runs."""
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder, "peak.cpp"), Path(folder, "peak.so")
        source.write_text(SOURCE)
        compiler = shlex.split(os.environ.get("CXX", "g++"))
        flags = ["-O3", "-march=native", "-shared", "-fPIC"]
        subprocess.run([*compiler, *flags, str(source), "-o", str(library)], check=True)
        run = ctypes.CDLL(str(library)).multiply_adds
    run.restype = ctypes.c_double
    out, rates = ctypes.c_float(0.5), []
    for _ in range(201):
        begin = time.perf_counter()
        done = run(ctypes.c_long(20_000), ctypes.byref(out))
        rates.append(done / (time.perf_counter() - begin))
    return statistics.median(rates)
