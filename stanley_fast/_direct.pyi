"""A small step of CPU tensors from Python to the kernel, without torch's dispatcher."""

from collections.abc import Callable

from torch import Tensor

GRAIN: int  # elements that one thread works on alone

def connect(
    library_step: int | None,
    tensor: type[Tensor],
    exchange: object,
    empty_like: Callable[[Tensor], Tensor],
    increment_version: Callable[[Tensor], None],
    is_grad_enabled: Callable[[], bool],
) -> bool:
    """Hands over the library's function, by its address, and torch's; `exchange` is the capsule
    of DLPack's C exchange protocol. False if its version is not ours."""

def step(
    z: Tensor,
    grad: Tensor,
    gamma: float | Tensor | None,
    key: Tensor,
    step: int,
    threshold: float | None,
    step_size: float | None,
    noise_scale: float,
    clamp: tuple[float, float] | None,
    update: str,
    first: int,
    total: int | None,
    in_place: bool,
) -> Tensor | None:
    """The new state: by gamma or, where that is None, by Eq. 4's stepsize. None, with nothing
    written, unless this is the plain case and in order: contiguous tensors of at most GRAIN
    elements, no gradient wanted, Python's own numbers. Any argument may be anything."""
