"""What a callable computes with, as far as Python shows it: to notice when that has changed.

A CUDA graph holds the numbers and the addresses that a function had when it was captured. Tensors
count by their address: what is written into one is read at the next replay.
"""

from __future__ import annotations

import functools
import types
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from stanley_fast.weights import own

MOST = 10_000  # things looked at, a few milliseconds

_NUMBERS = {float, complex}  # by their spelling: NaN is not equal to itself
_VALUES = {type(None), bool, int, str, bytes, types.CodeType, torch.dtype, torch.device}
_LISTS = (list, tuple, set, frozenset, types.MappingProxyType)
_CONTAINERS = {dict, OrderedDict, list, tuple, set}


class TooMuchError(Exception):
    """There is more to look at than MOST things."""


def fingerprint(roots: Iterable[object], device: torch.device) -> tuple[object, ...]:
    """Equal as long as nothing that the roots lead to was changed or replaced.

    It follows attributes, containers, closures, defaults, bound objects and the globals that a
    function names, into everything but Python modules, classes and compiled code, which count by
    identity. A tensor is its memory; one that is not on `device` counts with its version too, since
    a graph may have read its values.

    Raises:
        TooMuchError: there is too much of it.

    >>> scale = {"by": 2.0}
    >>> f = lambda z: z * scale["by"]
    >>> before = fingerprint([f], torch.device("cuda"))
    >>> before == fingerprint([f], torch.device("cuda"))
    True
    >>> scale["by"] = 3.0
    >>> before == fingerprint([f], torch.device("cuda"))
    False
    """
    found: list[object] = []
    met: dict[int, int] = {}
    waiting, alive = list(roots), []  # alive: so that no two things have the same address
    while waiting:
        x = waiting.pop()
        kind = type(x)
        if kind in _VALUES:
            found += (kind, x)
        elif kind in _NUMBERS:
            found.append(repr(x))
        elif kind in _CONTAINERS and not x:
            found.append(kind)
        elif id(x) in met:
            found.append(met[id(x)])
        else:
            met[id(x)] = len(met)
            if len(met) > MOST:
                raise TooMuchError
            alive.append(x)
            if isinstance(x, Tensor):
                found += _tensor(own(x), device)  # a chain in another thread may be at work
                continue
            parts = _parts(x)
            found += (id(kind), id(x) if parts is None else len(parts))
            waiting += parts or ()
    return tuple(found)


def _tensor(x: Tensor, device: torch.device) -> tuple[object, ...]:
    try:
        memory: tuple[object, ...] = (x.data_ptr(), x.stride(), x.storage_offset())
    except RuntimeError:  # sparse, or not a plain one
        memory = (id(x),)
    version = None if x.device == device or x.is_inference() else x._version
    return (*memory, x.shape, x.dtype, x.device, version)


def _parts(x: object) -> list[Any] | None:
    """What x computes with; None if that can't be seen."""
    if isinstance(x, dict):
        return [tuple(x), *x.values()]
    if isinstance(x, _LISTS):
        return list(x)
    if isinstance(x, types.FunctionType):
        return _of_function(x)
    if isinstance(x, types.MethodType):
        return [x.__func__, x.__self__]
    if isinstance(x, functools.partial):
        return [x.func, x.args, x.keywords]
    if isinstance(x, types.CellType):
        return [x.cell_contents] if x != types.CellType() else []
    if isinstance(x, (type, types.ModuleType)):
        return None
    slots = [s for kind in type(x).__mro__ for s in _names(vars(kind).get("__slots__", ()))]
    parts = [getattr(x, s) for s in slots if hasattr(x, s)]
    return [*parts, vars(x)] if hasattr(x, "__dict__") else parts or None


def _names(slots: str | Iterable[str]) -> Iterable[str]:
    return (slots,) if isinstance(slots, str) else slots


def _of_function(f: types.FunctionType) -> list[Any]:
    named, codes = set(), [f.__code__]
    while codes:  # functions within it name globals too
        code = codes.pop()
        named |= set(code.co_names)
        codes += [c for c in code.co_consts if isinstance(c, types.CodeType)]
    used = {name: f.__globals__[name] for name in sorted(named) if name in f.__globals__}
    return [f.__code__, f.__closure__, f.__defaults__, f.__kwdefaults__, used, f.__dict__]
