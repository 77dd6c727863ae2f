"""Loads the compiled library, says which backends can run here, and picks one for a tensor's device."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator
from contextvars import ContextVar
from functools import cache
from pathlib import Path

import torch

LIBRARY = Path(__file__).with_name("_library.so")

# Which devices a backend serves, the fastest first. The reference runs on every device.
DEVICES = {"cuda": ("cuda",), "triton": ("cuda",), "cpp": ("cpu",)}

_asked: ContextVar[str | None] = ContextVar("stanley_fast_backend", default=None)


@cache
def backends() -> dict[str, str | None]:
    """Every backend by name: None where it can run here, else the reason why not.

    >>> backends()["reference"] is None
    True
    """
    no_library = _load()
    missing = "this version has no {} kernels yet"
    return {
        "cpp": no_library,
        "cuda": missing.format("CUDA"),
        "triton": missing.format("Triton"),
        "reference": None,
    }


@cache
def _load() -> str | None:
    """Loads the compiled library once; the reason if that is impossible."""
    if not LIBRARY.exists():
        return (
            "the package was installed without its compiled library (no C++ compiler at the time?); "
            "reinstall with one: pip install --no-build-isolation --force-reinstall --no-deps ."
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
    return str(function().decode())


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Inside the with block every operation of this thread (or task) runs on backend `name`.

    The environment variable STANLEY_FAST_BACKEND asks for one in the same way for a whole process.

    Args:
        name: a key of `backends()`.

    Raises:
        ValueError: there is no such backend.
        RuntimeError: it can't run here, with the reason.

    >>> with use_backend("reference"):
    ...     pass
    """
    _require(name)
    token = _asked.set(name)
    try:
        yield
    finally:
        _asked.reset(token)


def _require(name: str) -> None:
    available = backends()
    if name not in available:
        raise ValueError(f"backend must be one of {', '.join(available)}, got {name!r}")
    if available[name] is not None:
        raise RuntimeError(f"backend {name!r} is not available: {available[name]}")


def select(device_type: str) -> str:
    """The backend for tensors on `device_type`: the one asked for, else the fastest that can run."""
    name = _asked.get()
    return _default(device_type) if name is None else _asked_for(name, device_type)


@cache
def _default(device_type: str) -> str:
    asked = os.environ.get("STANLEY_FAST_BACKEND")
    if asked:
        return _asked_for(asked, device_type)
    able = [b for b, devices in DEVICES.items() if device_type in devices and not backends()[b]]
    return able[0] if able else "reference"


@cache
def _asked_for(name: str, device_type: str) -> str:
    _require(name)
    if device_type not in DEVICES.get(name, (device_type,)):
        wanted = " or ".join(DEVICES[name])
        raise RuntimeError(f"backend {name!r} needs tensors on {wanted}, got {device_type}")
    return name
