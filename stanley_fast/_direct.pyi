"""A small step of CPU tensors from Python to the kernel, without torch's dispatcher."""

from collections.abc import Callable
from types import ModuleType

from torch import Tensor

def connect(
    library_step: int | None,
    tensor: type[Tensor],
    exchange: object,
    empty_like: Callable[[Tensor], Tensor],
    increment_version: Callable[[Tensor], None],
    is_grad_enabled: Callable[[], bool],
    active_keys: Callable[[], object],
    no_keys: object,
    has_function_mode: Callable[[], bool],
    is_profiling: Callable[[], bool],
    forward_ad: ModuleType,
    /,
) -> bool:
    """Hands over the library's function, by its address, and torch's. `exchange` is the capsule of
    DLPack's C exchange protocol; `no_keys` is what `active_keys`, the dispatcher's in this thread,
    gives where nothing is switched on. False if the protocol's version is not ours."""

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
    rounding: str,
    first: int,
    total: int | None,
    in_place: bool,
    /,
) -> Tensor | None:
    """The new state: by gamma or, where that is None, by Eq. 4's stepsize. None, with nothing
    written, unless this is the plain case and in order: contiguous tensors of at most 16 384
    elements, no gradient wanted, no mode active, Python's own numbers. Any argument may be
    anything."""
