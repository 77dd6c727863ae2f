"""The short way of a small step on the CPU: from Python to the kernel, without torch's dispatcher.

At a few hundred elements the dispatcher is most of a call's cost. It is left out where it would do
nothing but find the CPU kernel: `is_open` asks what this thread has switched on, `step` looks at
the arguments (see _direct.pyi). Everything else is left to the operations, errors too.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.graph import increment_version
from torch.compiler import is_compiling

from stanley_fast.backends import LIBRARY

__all__ = ["is_open", "step"]

try:
    from stanley_fast._direct import GRAIN, connect, step

    # What the dispatcher adds to the keys of each call in this thread. Modes (fake tensors,
    # make_fx), torch.func's transforms, torch.jit.trace, functionalization and inference mode all
    # show in it; this is the set without any.
    _Key, _included = torch._C.DispatchKey, torch._C._dispatch_tls_local_include_set
    _NOTHING = torch._C.DispatchKeySet(_Key.BackendSelect).add(_Key.ADInplaceOrView)
    _has_function_mode = torch._C._is_torch_function_mode_enabled
    _is_profiling = torch._C._autograd._profiler_enabled
    _connected = connect(
        ctypes.cast(ctypes.CDLL(str(LIBRARY)).stanley_fast_direct_step, ctypes.c_void_p).value,
        Tensor,
        Tensor.__dlpack_c_exchange_api__,  # DLPack's C exchange protocol
        torch.empty_like,
        increment_version,
        torch.is_grad_enabled,
    )
except (ImportError, OSError, AttributeError):  # no compiled library, or a torch that lacks one
    _connected = False


def is_open(z: Tensor) -> bool:
    """Whether the dispatcher would have nothing to do for a small z that asks for nothing."""
    return (
        not is_compiling()  # a constant to Dynamo, which looks no further
        and _connected
        and type(z) is Tensor  # others, fake ones too, may have a symbol for a size
        and z.is_cpu
        and z.numel() <= GRAIN
        and _included() == _NOTHING
        and not _has_function_mode()
        and not _is_profiling()  # the operation has to show
        and forward_ad._current_level < 0
    )
