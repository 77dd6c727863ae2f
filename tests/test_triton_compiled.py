"""What the Triton kernels compile to for NVIDIA GPUs, read from the machine code. Needs no GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

pytest.importorskip("triton")
launch_chain = pytest.importorskip("stanley_fast.kernels.launch_chain")

ARCHES = [80, 90]
SIZE = {"float32": 4, "float64": 8, "float16": 2, "bfloat16": 2}
THREADS = 128


class Bounds(NamedTuple):
    """Tensors of the state's dtype and of the arithmetic's that a program reads and writes once,
    and the most instructions for a thread's 8 elements of float32, or of bfloat16 where they are
    rounded stochastically; the tail's masked path included."""

    reads: int
    writes: int
    wide_reads: int
    wide_writes: int
    instructions: int


# A step at 90 % of an H200's copy bandwidth has some 75 issue slots for an element.
OPERATIONS = {
    "stanley_step": Bounds(2, 1, 0, 0, 660),
    "script_step": Bounds(2, 1, 0, 0, 650),
    "rounded_step": Bounds(2, 1, 0, 0, 850),
    "langevin_step": Bounds(2, 1, 0, 0, 530),
    "frozen_step": Bounds(2, 1, 1, 0, 570),
    "stanley_backward": Bounds(2, 1, 0, 0, 740),
    "clamped_stanley_backward": Bounds(3, 2, 0, 0, 920),
    "frozen_backward": Bounds(2, 1, 1, 1, 690),
    "clamped_langevin_backward": Bounds(3, 2, 0, 1, 810),
    "normal": Bounds(0, 1, 0, 0, 410),
    "stepsize": Bounds(1, 0, 0, 1, 250),
}
# Tensors read and written; a thread has 4 elements of each at once, the leapfrog's 8 of float32.
METROPOLIS = {
    "log_ratio": (4, 0),
    "log_ratio_one": (4, 0),
    "log_ratio_given": (6, 0),
    "accept": (1, 1),
    "leapfrog": (3, 2),
}
ALL = [
    (operation, dtype)
    for operation in OPERATIONS
    for dtype in (SIZE if operation != "rounded_step" else ["bfloat16"])
]
SOME = [
    ("stanley_step", "float32"),
    ("stanley_step", "float64"),
    ("stanley_step", "bfloat16"),
    ("rounded_step", "bfloat16"),
    ("frozen_step", "float16"),
    ("clamped_stanley_backward", "float32"),
    ("clamped_langevin_backward", "bfloat16"),
    ("normal", "float32"),
    ("stepsize", "float32"),
]

# Whole chains: each layer's inputs. Registers: for two programs on a multiprocessor, or for one.
WIDTHS = {
    "toy_chain": (2, 32, 64, 64, 64),
    "toy_recorded_chain": (2, 32, 64, 64, 64),
    "silu_chain": (3, 20, 12),
    "wide_chain": (16, 128, 128),
    "deep_chain": (2, *[64] * 7),
}
REGISTERS = {"float32": 80, "float64": 255}
ALL_CHAINS = [(operation, "float32") for operation in WIDTHS]
ALL_CHAINS += [("toy_chain", "float64"), ("silu_chain", "float64")]
SOME_CHAINS = [
    ("toy_chain", "float32"),
    ("toy_recorded_chain", "float32"),
    ("wide_chain", "float32"),
    ("silu_chain", "float64"),
]
CHAINS = [c if c in SOME_CHAINS else pytest.param(*c, marks=pytest.mark.slow) for c in ALL_CHAINS]
CASES = [c if c in SOME else pytest.param(*c, marks=pytest.mark.slow) for c in ALL]


@pytest.fixture(scope="module")
def machine_code(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """machine_code(arch, operation, dtype): see aot.py. One process for all cases of an arch."""
    slow = request.config.getoption("--slow")
    cases = ALL + ALL_CHAINS if slow else SOME + SOME_CHAINS
    wrong = [("unaligned_step", "float32"), ("starved_step", "float32")]
    lane = [("normal_from_lane_1", dtype) for dtype in ("float32", "bfloat16")]
    chains = [(operation, dtype) for operation in METROPOLIS for dtype in ("float32", "float64")]
    names = [f"{operation}-{dtype}" for operation, dtype in [*cases, *wrong, *lane, *chains]]

    @cache
    def compiled(arch: int) -> dict[str, Any]:
        away = tmp_path_factory.mktemp(f"sm_{arch}")
        env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
        env["TRITON_CACHE_DIR"] = str(away / "cache")
        command = [sys.executable, str(Path(__file__).with_name("aot.py")), str(arch), *names]
        done = subprocess.run(command, env=env, cwd=away, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return dict(json.loads(done.stdout))

    return lambda arch, operation, dtype: compiled(arch)[f"{operation}-{dtype}"]


def count(found: dict[str, Any], *names: str) -> int:
    """How many instructions begin with one of `names`."""
    return sum(n for op, n in found["code"].items() if op.startswith(names))


def local_memory(found: dict[str, Any]) -> int:
    return found["stack"] + found["local"] + count(found, "LDL", "STL")


@pytest.mark.parametrize("arch", ARCHES, ids=lambda a: f"sm_{a}")
@pytest.mark.parametrize(("operation", "dtype"), CASES)
def test_machine_code(machine_code: Any, operation: str, dtype: str, arch: int) -> None:
    """No spills or local memory; all of a full program's memory accesses have 128 bits; short."""
    found, bounds = machine_code(arch, operation, dtype), OPERATIONS[operation]
    assert local_memory(found) == 0
    narrow, wide = SIZE[dtype], max(SIZE[dtype], 4)
    elements = 4 if dtype == "float64" else 8  # for each thread
    reads = bounds.reads * narrow + bounds.wide_reads * wide
    writes = bounds.writes * narrow + bounds.wide_writes * wide
    assert count(found, "LDG.E.128") == reads * elements // 16
    assert count(found, "STG.E.128") == writes * elements // 16
    assert found["reg"] <= 80  # at least 24 warps on a multiprocessor
    if dtype == "float32" or operation == "rounded_step":
        assert sum(found["code"].values()) <= bounds.instructions
    if dtype != "float64" and wide * bounds.wide_writes <= narrow:
        # A thread makes the noise of what it reads and writes. In float64 it reads two elements at
        # once, where a Philox block has four; half precision may have to meet float32 results.
        assert count(found, "STS", "LDS", "BAR") == 0


@pytest.mark.parametrize("arch", ARCHES, ids=lambda a: f"sm_{a}")
@pytest.mark.parametrize(("operation", "dtype"), CHAINS)
def test_whole_chains(machine_code: Any, operation: str, dtype: str, arch: int) -> None:
    """Nothing spilled; the shared memory that `fusion` reckons with; no tensor-core float32."""
    found = machine_code(arch, operation, dtype)
    assert local_memory(found) == 0
    assert found["reg"] <= REGISTERS[dtype]
    assert found["shared"] == launch_chain.memory(WIDTHS[operation], getattr(torch, dtype))
    assert count(found, "HMMA", "HGMMA") == 0
    if dtype == "float32":
        pairs = pairwise(launch_chain.padded(WIDTHS[operation]))
        products = 2 * launch_chain.CHAINS * sum(n_in * n_out for n_in, n_out in pairs)
        assert found["read_against_the_order"] == 0  # neighbouring threads, neighbouring banks
        assert count(found, "FFMA") >= products / (32 * launch_chain.WARPS)
    else:
        assert count(found, "DMMA") > 0


@pytest.mark.parametrize("arch", ARCHES, ids=lambda a: f"sm_{a}")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("operation", METROPOLIS)
def test_metropolis(machine_code: Any, operation: str, dtype: str, arch: int) -> None:
    """No spills or local memory; 128-bit accesses to rows that 16 elements divide."""
    found = machine_code(arch, operation, dtype)
    reads, writes = METROPOLIS[operation]
    each = 2 if operation == "leapfrog" else SIZE[dtype] // 4
    assert local_memory(found) == 0
    assert count(found, "LDG.E.128") >= reads * each
    assert count(found, "STG.E.128") >= writes * each
    assert found["reg"] <= 144  # at least 3 programs of 128 threads on a multiprocessor


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_part_that_begins_within_a_block(machine_code: Any, dtype: str) -> None:
    """No 128-bit accesses then, since elements and blocks don't line up, but no local memory."""
    found = machine_code(90, "normal_from_lane_1", dtype)
    assert local_memory(found) == 0
    assert count(found, "STG.E.128") == 0


def test_these_checks_can_fail(machine_code: Any) -> None:
    """On memory that is not aligned, and with too few registers."""
    assert count(machine_code(90, "unaligned_step", "float32"), "LDG.E.128") == 0
    assert local_memory(machine_code(90, "starved_step", "float32")) > 0
