"""The CUDA kernels in the library as built, read with NVIDIA's disassembler: no GPU needed."""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from stanley_fast.backends import LIBRARY

triton = pytest.importorskip("triton", reason="its wheel has the disassembler: install triton")
CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"

HAS_CUDA = torch._C._dispatch_has_kernel_for_dispatch_key("stanley_fast::normal_", "CUDA")
pytestmark = pytest.mark.skipif(not HAS_CUDA, reason="the library was built without CUDA")

DTYPES = {"f": "float32", "d": "float64", "NS_4HalfE": "float16", "NS_8BFloat16E": "bfloat16"}
KERNEL = re.compile(rf"(step|backward|normal|stepsize)_kernelI({'|'.join(DTYPES)})Lb([01])E")
METROPOLIS = re.compile(r"(log_ratio|accept|leapfrog)_kernelI(f|d)Lb([01])E")
ARCHITECTURES = ["sm_80", "sm_90"]


class Kernel(NamedTuple):
    operation: str
    dtype: str
    vector: bool  # for states that are aligned and begin with a Philox block
    form: str  # the rest of the name: the kind of stepsize, the update
    registers: int
    stack: int
    local: int
    code: Counter[str]

    def __str__(self) -> str:
        return f"{self.operation} {self.dtype} {'vector' if self.vector else 'scalar'} {self.form}"


def dump(what: str, architecture: str) -> str:
    command = [str(CUOBJDUMP), what, "-arch", architecture, str(LIBRARY)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@cache
def kernels(architecture: str) -> list[Kernel]:
    usage = re.findall(
        r"Function (\S+):\s+REG:(\d+) STACK:(\d+).*?LOCAL:(\d+)", dump("-res-usage", architecture)
    )
    code = {}
    for part in dump("-sass", architecture).split("Function : ")[1:]:
        name, _, listing = part.partition("\n")
        ops = re.findall(r"/\*[0-9a-f]{4,}\*/ +(?:@!?\w+ +)?([A-Z]\w*(?:\.\w+)*)", listing)
        code[name.strip()] = Counter(op for op in ops if op != "NOP")
    found = []
    for name, *numbers in usage:
        if match := KERNEL.search(name) or METROPOLIS.search(name):
            operation, dtype, vector = match.groups()
            form = name[match.end() :].split("EEv")[0]
            found.append(
                Kernel(
                    operation, DTYPES[dtype], vector == "1", form, *map(int, numbers), code[name]
                )
            )
    return found


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_kernel_is_there(architecture: str) -> None:
    """3 kinds of stepsize by 2 updates, forward and backward, bfloat16's by 2 roundings forward;
    the noise; the stepsize."""
    count = Counter((k.operation, k.dtype, k.vector) for k in kernels(architecture))
    for dtype in DTYPES.values():
        for vector in (True, False):
            found = [count[op, dtype, vector] for op in ("step", "backward", "normal", "stepsize")]
            forward = 12 if dtype == "bfloat16" else 6
            assert found == [forward, 6, 1, 1], f"{dtype}, vector {vector}"
            wide = dtype in ("float32", "float64")
            found = [count[op, dtype, vector] for op in ("log_ratio", "accept", "leapfrog")]
            assert found == ([3, 1, 1] if wide else [0, 0, 0]), f"{dtype}, vector {vector}"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_no_kernel_spills_or_uses_local_memory(architecture: str) -> None:
    for kernel in kernels(architecture):
        assert (kernel.stack, kernel.local) == (0, 0), kernel
        assert not [op for op in kernel.code if op.startswith(("LDL", "STL"))], kernel
        # 65 536 registers: at least 3 blocks of 256 threads on a multiprocessor, mostly 5 or more;
        # of the log ratio, whose blocks have up to 512, one at least.
        assert kernel.registers <= (96 if kernel.operation == "log_ratio" else 80), kernel
        if kernel.vector and kernel.dtype != "float64" and kernel.operation == "step":
            assert kernel.registers <= 48, kernel


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_memory_is_moved_128_bits_at_a_time(architecture: str) -> None:
    """A thread has 8 elements of float32 and half precision, 4 of float64: each tensor of theirs
    takes this many accesses. The scalar kernels, where 128 bits can't be, show that it is seen."""
    tensors = {"step": (2, 1), "backward": (2, 1), "normal": (0, 1), "stepsize": (1, 1)}
    # Here a thread takes 4 elements at once. Rows are copied whatever the log-density's dtype is.
    four = {"log_ratio": (4, 0), "accept": (1, 1), "leapfrog": (3, 2)}
    for kernel in kernels(architecture):
        wide = [sum(n for op, n in kernel.code.items() if op.startswith(kind) and ".128" in op)
                for kind in ("LDG", "STG")]  # fmt: skip
        if not kernel.vector:
            assert wide == [0, 0], kernel
            continue
        if kernel.operation in four:
            each = 2 if kernel.dtype == "float64" and kernel.operation != "accept" else 1
            least = [each * n for n in four[kernel.operation]]
            assert all(a >= b for a, b in zip(wide, least, strict=True)), f"{kernel}: {wide}"
            continue
        # The backward's loop over two groups of float32 is not unrolled.
        looped = kernel.operation == "backward" and kernel.dtype == "float32"
        each = 1 if looped or kernel.dtype in ("float16", "bfloat16") else 2
        least = [each * n for n in tensors[kernel.operation]]
        assert all(a >= b for a, b in zip(wide, least, strict=True)), f"{kernel}: {wide}"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_step_stays_within_its_instructions(architecture: str) -> None:
    """At 90 % of an H200's copy bandwidth there is time for some 90 instructions per element of
    float32. Stochastic rounding may take a second Philox block for every 4 more.

    Counted with the code for the state's last elements, of which most threads execute nothing.
    """
    steps = [k for k in kernels(architecture) if k.operation == "step" and k.vector]
    for kernel in steps:
        if kernel.dtype != "float64":
            most = 95 + 25 * kernel.form.endswith("Lb1E")
            assert kernel.code.total() / 8 <= most, f"{kernel}: {kernel.code.total()}"
