"""The noise and the element arithmetic on NumPy arrays, from the headers that the kernels share.

Plain loops without torch: a second oracle, and facts about the build. Arrays may have any strides;
float ones are float32 or float64, the result has the argument's type. ValueError names what can't
be used. seed, offset and step wrap modulo 2^64.
"""

from typing import Any, TypedDict, type_check_only

import numpy as np
from numpy.typing import DTypeLike, NDArray

@type_check_only
class BuildFacts(TypedDict):
    compiler: str
    cuda: str  # version of the CUDA compiler, or "none: " and why
    cuda_architectures: list[str]  # in torch's notation
    vector_levels: list[str]
    torch: str

def philox(counter: NDArray[np.uint32], key: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Philox4x32-10 words of each counter: (n, 4) and (2,) to (n, 4)."""

def normal(
    n: int,
    seed: int,
    offset: int = 0,
    step: int = 0,
    *,
    stream: int = 0,
    first: int = 0,
    total: int | None = None,
    dtype: DTypeLike = "float32",
) -> NDArray[Any]:
    """The normals of elements [first, first + n) of a state of `total`: (n,)."""

def round_stochastically(x: NDArray[np.float32], words: NDArray[np.uint32]) -> NDArray[np.float32]:
    """x at one of the two bfloat16 around it, on average x over a word's lower half."""

def stepsize(grad: NDArray[Any], *, threshold: float, step_size: float = 1.0) -> NDArray[Any]:
    """Eq. 4."""

def step(
    z: NDArray[Any],
    grad: NDArray[Any],
    gamma: NDArray[Any] | None,
    seed: int,
    offset: int = 0,
    step: int = 0,
    *,
    threshold: float = 1.0,
    step_size: float = 1.0,
    noise_scale: float = 1.0,
    clamp: tuple[float, float] | None = None,
    script: bool = False,
    first: int = 0,
    total: int | None = None,
) -> NDArray[Any]:
    """Eq. 5 with gamma, of z's type and shape; without one, Eq. 4's."""

def step_backward(
    grad_out: NDArray[Any],
    z: NDArray[Any] | None,
    grad: NDArray[Any],
    gamma: NDArray[Any] | None,
    seed: int,
    offset: int = 0,
    step: int = 0,
    *,
    threshold: float = 1.0,
    step_size: float = 1.0,
    noise_scale: float = 1.0,
    clamp: tuple[float, float] | None = None,
    script: bool = False,
    first: int = 0,
    total: int | None = None,
) -> tuple[NDArray[Any], ...]:
    """What `step` passes back: (grad_z, grad_grad), and grad_gamma if one is given. z is needed
    with clamp alone."""

def build_facts() -> BuildFacts:
    """Compilers, what they compiled for, and the torch they compiled with."""
