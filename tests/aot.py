"""Compiles the Triton kernels for a GPU that need not be there, and reads the machine code.

    python aot.py ARCH OPERATION-DTYPE ...

prints a JSON object: for each case registers, stack and local memory, and how often each machine
instruction occurs. An operation runs through `kernels.launch` on CPU tensors, Triton being told
that there is such a GPU and to stop where it would launch: what is read is what a GPU would run.
"""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from stanley_fast.kernels import launch, launch_chain

CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
KEY = torch.zeros(2, dtype=torch.int64)
PAPER, SCRIPT = ((0.5, -1.0, 1.0, script, 0, None) for script in (False, True))


def chain(z: Tensor, widths: tuple[int, ...], **how: Any) -> None:
    """mlp_chain of a net of these widths, like z."""
    weights = [z.new_zeros(n_out, n_in) for n_in, n_out in pairwise(widths)]
    biases = [z.new_zeros(n_out) for n_out in widths[1:]]
    given = {"activation": "leaky_relu", "gamma": None, "record": False} | how
    launch_chain.mlp_chain(
        z.new_zeros(100, widths[0]), weights, biases, given["activation"], 0.05, given["gamma"],
        KEY, 0, 100, 0.1, 1.0, 0.15, 1.0, -1.0, 1.0, False, 0, None, given["record"],
    )  # fmt: skip


TOY = (2, 32, 64, 64, 64, 1)
HALF = torch.tensor(0.5, dtype=torch.float64)


def rows(x: Tensor) -> Tensor:
    """Two chains, each of a whole block and more; 16 divides their length."""
    return x[:2944].view(2, 1472)


# z, and a stepsize for each of its elements.
OPERATIONS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "stanley_step": lambda z, gamma: launch.stanley_step(z, z, KEY, 0, 1.0, 1.0, *PAPER),
    "script_step": lambda z, gamma: launch.stanley_step(z, z, KEY, 0, 1.0, 1.0, *SCRIPT),
    "rounded_step": lambda z, gamma: launch.stanley_step(z, z, KEY, 0, 1.0, 1.0, *PAPER, True),
    "langevin_step": lambda z, gamma: launch.langevin_step(z, z, gamma[:1], KEY, 0, *PAPER),
    "frozen_step": lambda z, gamma: launch.langevin_step(z, z, gamma, KEY, 0, *PAPER),
    "stanley_backward": lambda z, gamma: launch.stanley_step_backward(
        z, None, z, KEY, 0, 1.0, 1.0, *PAPER
    ),
    "clamped_stanley_backward": lambda z, gamma: launch.stanley_step_backward(
        z, z, z, KEY, 0, 1.0, 1.0, *PAPER
    ),
    "frozen_backward": lambda z, gamma: launch.langevin_step_backward(
        z, None, z, gamma, KEY, 0, *PAPER
    ),
    "clamped_langevin_backward": lambda z, gamma: launch.langevin_step_backward(
        z, z, z, gamma[:1], KEY, 0, *PAPER
    ),
    "normal": lambda z, gamma: launch.normal_(z, KEY, 0, 0, 0, None),
    "normal_from_lane_1": lambda z, gamma: launch.normal_(z, KEY, 0, 0, 1, 4000),
    "stepsize": lambda z, gamma: launch.stepsize(z, 1.0, 1.0),
    "toy_chain": lambda z, gamma: chain(z, TOY),
    "toy_recorded_chain": lambda z, gamma: chain(z, TOY, gamma=gamma[:1], record=True),
    "silu_chain": lambda z, gamma: chain(z, (3, 20, 12, 1), activation="silu"),
    "wide_chain": lambda z, gamma: chain(z, (16, 128, 128, 1)),
    "deep_chain": lambda z, gamma: chain(z, (2, *[64] * 7, 1)),
    "log_ratio": lambda z, gamma: launch.proposal_log_ratio(
        *[rows(z)] * 4, None, None, HALF, 0.3, 1.0
    ),
    "log_ratio_one": lambda z, gamma: launch.proposal_log_ratio(
        *[rows(z)] * 4, None, None, HALF, math.inf, 1.0
    ),
    "log_ratio_given": lambda z, gamma: launch.proposal_log_ratio(
        *[rows(z)] * 4, rows(gamma), rows(gamma), None, math.inf, 1.0
    ),
    "accept": lambda z, gamma: launch.accept_(
        rows(z), None, z[:2], rows(z), None, z[:2], gamma[:2].double(), KEY, 0, 0, None
    ),
    "leapfrog": lambda z, gamma: launch.leapfrog_(
        rows(z), rows(z.clone()), rows(z), HALF, 1.0, None
    ),
    # What must not happen, to see that it would be seen.
    "unaligned_step": lambda z, gamma: OPERATIONS["stanley_step"](z[1:], gamma[1:]),
    "starved_step": lambda z, gamma: OPERATIONS["stanley_step"](z, gamma),
}


def compile_for(arch: int, operation: str, dtype: torch.dtype) -> Any:
    """The kernel that `operation` would launch."""
    triton.runtime.driver.set_active(
        SimpleNamespace(
            get_current_device=lambda: 0,
            get_current_stream=lambda device: 0,
            get_current_target=lambda: GPUTarget("cuda", arch, 32),
        )
    )
    options = {"maxnreg": 24} if operation == "starved_step" else {}
    kernels = []

    def compile_only(kernel: Any, grid: Any) -> Callable[..., None]:
        return lambda **args: kernels.append(kernel.warmup(grid=grid, **args, **options))

    JITFunction.__getitem__ = compile_only
    z = torch.zeros(3000, dtype=dtype)
    gamma = torch.ones(3000, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    OPERATIONS[operation](z, gamma)
    (kernel,) = kernels
    return kernel


def read(kernel: Any) -> dict[str, Any]:
    """What the machine code uses, from NVIDIA's own disassembler, which is in Triton's wheel."""
    path = Path(f"{kernel.hash}.cubin")
    path.write_bytes(kernel.asm["cubin"])

    def dump(what: str) -> str:
        command = [str(CUOBJDUMP), what, str(path)]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    used = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", dump("-res-usage")))
    code = re.findall(r"/\*[0-9a-f]{4,}\*/ +(?:@!?\w+ +)?([A-Z]\w*(?:\.\w+)*)", dump("-sass"))
    count = Counter(op for op in code if op != "NOP")
    resources = {name.lower(): int(n) for name, n in used.items()}
    against = len(re.findall(r"swizzled_shared<.*order = \[0, 1\]", kernel.asm["ttgir"]))
    shared = {"shared": kernel.metadata.shared, "read_against_the_order": against}
    return {**resources, **shared, "code": count}


if __name__ == "__main__":
    found = {}
    for case in sys.argv[2:]:
        operation, _, dtype = case.rpartition("-")
        found[case] = read(compile_for(int(sys.argv[1]), operation, getattr(torch, dtype)))
    print(json.dumps(found))
