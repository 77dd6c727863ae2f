"""Loads the compiled library, says which backends can run here, picks one by device."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import torch

LIBRARY = Path(__file__).with_name("_library.so")

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # Triton kernels run in Python, on the CPU

# On which devices a backend can run, and which it is chosen for, the fastest first. The reference
# runs on every device.
DEVICES = {
    "cuda": ("cuda",),
    "triton": ("cuda", "cpu") if INTERPRETED else ("cuda",),
    "cpp": ("cpu",),
}
FASTEST = {"cuda": ("cuda", "triton"), "cpu": ("cpp",)}

# Plain globals, so that torch.compile can read them and guard on them.
_asked: str | None = os.environ.get("STANLEY_FAST_BACKEND") or None
_chosen: dict[tuple[str | None, str], str] = {}


def backends() -> dict[str, str | None]:
    """Every backend by name: None where it can run here, else the reason why not.

    >>> backends()["reference"] is None
    True
    """
    return {
        name: _not_built(name) or _no_device(name)
        for name in ("cpp", "cuda", "triton", "reference")
    }


@cache
def _not_built(name: str) -> str | None:
    """Why a backend can run on no machine as it is installed; does not touch a device."""
    if name in ("cpp", "cuda"):
        reason = _load()
        if reason is None and name == "cuda":
            if not torch._C._dispatch_has_kernel_for_dispatch_key("stanley_fast::normal_", "CUDA"):
                reason = (
                    "the library was built without CUDA: there was no nvcc, or STANLEY_FAST_CUDA=0"
                )
            elif torch.version.cuda is None:
                reason = f"torch {torch.__version__} is built without CUDA"
        return reason
    if name == "triton" and importlib.util.find_spec("triton") is None:
        return "Triton is not installed: pip install triton"
    return None


def _no_device(name: str) -> str | None:
    if name not in ("cuda", "triton") or (name == "triton" and INTERPRETED):
        return None
    if torch.cuda.device_count():
        return None
    reason = "there is no GPU that torch can use"
    return (
        reason
        if name == "cuda"
        else f"{reason}; TRITON_INTERPRET=1 runs it on the CPU, very slowly"
    )


@cache
def _load() -> str | None:
    """Loads the compiled library once; the reason if that is impossible."""
    if not LIBRARY.exists():
        return (
            f"there is no compiled library in {LIBRARY.parent}: the package was installed without "
            "a C++ compiler, or this is its source folder and the installed one is elsewhere"
        )
    try:
        torch.ops.load_library(str(LIBRARY))
    except OSError as error:
        return f"{LIBRARY.name} does not load: {error}"
    return None


def vector_level() -> str:
    """Which vector code the compiled library uses on this CPU: baseline, avx2 or avx512.

    Raises:
        RuntimeError: there is no compiled library, with the reason.
    """
    reason = backends()["cpp"]
    if reason is not None:
        raise RuntimeError(f"backend 'cpp' is not available: {reason}")
    function = ctypes.CDLL(str(LIBRARY)).stanley_fast_vector_level
    function.restype = ctypes.c_char_p
    level = function()
    if level is None:
        raise RuntimeError(
            "STANLEY_FAST_VECTOR must be a vector level that this CPU has, got "
            f"{os.environ.get('STANLEY_FAST_VECTOR')!r}"
        )
    return str(level.decode())


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Inside the with block every operation of this process runs on backend `name`.

    The environment variable STANLEY_FAST_BACKEND asks for one in the same way from the start.

    Args:
        name: a key of `backends()`.

    Raises:
        ValueError: there is no such backend.
        RuntimeError: it can't run here, with the reason.

    >>> with use_backend("reference"):
    ...     pass
    """
    global _asked
    _require(name)
    before, _asked = _asked, name
    _choose_ahead()
    try:
        yield
    finally:
        _asked = before


def _require(name: str) -> None:
    available = backends()
    if name not in available:
        raise ValueError(f"backend must be one of {', '.join(available)}, got {name!r}")
    if available[name] is not None:
        raise RuntimeError(f"backend {name!r} is not available: {available[name]}")


def select(device_type: str) -> str:
    """The backend for tensors on `device_type`: the one asked for, else the fastest there is."""
    name = _chosen.get((_asked, device_type))
    return _choose(device_type) if name is None else name


def _choose(device_type: str) -> str:
    if _asked is None:
        name = next((b for b in FASTEST.get(device_type, ()) if not _not_built(b)), "reference")
        if name == "reference" and device_type in FASTEST:
            reasons = "; ".join(f"{b}: {_not_built(b)}" for b in FASTEST[device_type])
            warnings.warn(
                f"stanley_fast runs on its reference backend, slowly: {reasons}",
                RuntimeWarning,
                stacklevel=1,
            )
    else:
        _require(_asked)
        if device_type not in DEVICES.get(_asked, (device_type,)):
            wanted = " or ".join(DEVICES[_asked])
            raise RuntimeError(f"backend {_asked!r} needs tensors on {wanted}, got {device_type}")
        name = _asked
    _chosen[_asked, device_type] = name
    return name


def _choose_ahead() -> None:
    """torch.compile can read a choice but not make one. What fails here fails again in use."""
    for device_type in ("cpu", "cuda") if torch.version.cuda or torch.version.hip else ("cpu",):
        with contextlib.suppress(RuntimeError, ValueError):
            _choose(device_type)


_choose_ahead()
