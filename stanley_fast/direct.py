"""The short way of a small step on the CPU: from Python to the kernel, without torch's dispatcher.

At a few hundred elements the dispatcher is most of a call's cost. `step` leaves it out where it
would do nothing but find the CPU kernel; everything else is left to the operations, errors too.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.graph import increment_version

from stanley_fast.backends import LIBRARY


def _connect() -> tuple[Callable[..., Tensor | None], str | None]:
    """_direct.step; or one that declines and why, where this torch or installation lacks a part."""
    try:
        from stanley_fast import _direct

        function = ctypes.CDLL(str(LIBRARY)).stanley_fast_direct_step
        keys = torch._C.DispatchKeySet(torch._C.DispatchKey.BackendSelect)
        connected = _direct.connect(
            ctypes.cast(function, ctypes.c_void_p).value,
            Tensor,
            Tensor.__dlpack_c_exchange_api__,
            torch.empty_like,
            increment_version,
            torch.is_grad_enabled,
            torch._C._dispatch_tls_local_include_set,
            keys.add(torch._C.DispatchKey.ADInplaceOrView),
            torch._C._is_torch_function_mode_enabled,
            torch._C._autograd._profiler_enabled,
            forward_ad,
        )
    except (ImportError, OSError, AttributeError, TypeError, ValueError) as error:
        why_not = str(error)
    else:
        if connected:
            return _direct.step, None
        why_not = "torch offers another version of DLPack"
    return (lambda *arguments: None), why_not


step, why_not = _connect()
