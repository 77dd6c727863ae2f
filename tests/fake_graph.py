"""A CUDA graph played on the CPU: what capture does to a program, without a GPU.

Recording runs no Python again: it notes torch's operations with the memory that they read and
write, and a replay makes the same operations on the same memory. As on a GPU

- a capture changes nothing: what it wrote is put back,
- memory that the captured code did not allocate must still be there at a replay,
- memory that it did allocate holds nothing once a replay is over: other graphs use it too,
- reading a value on the host, or bringing one from there, is refused.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from stanley_fast.cuda_graph import CannotCaptureError

# Each waits for a GPU, or copies to it from memory that is not pinned.
WAITING = ("_local_scalar_dense", "nonzero", "equal", "is_nonzero", "masked_select", "lift_fresh")


class Outside:
    """A tensor whose memory the captured code did not allocate: held weakly."""

    def __init__(self, x: Tensor) -> None:
        self.storage = StorageWeakRef(x.untyped_storage())
        self.like = x.dtype, x.storage_offset(), x.shape, x.stride()

    def tensor(self) -> Tensor:
        storage = torch.UntypedStorage._new_with_weak_ptr(self.storage.cdata)
        assert storage is not None, "a replay reads memory that was freed"
        dtype, *geometry = self.like
        return torch.empty(0, dtype=dtype).set_(storage, *geometry)


class Tape(TorchDispatchMode):
    """Notes operations while they run."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, Any, Any, Any]] = []
        self.inside: dict[int, Tensor] = {}  # by storage
        self.before: list[tuple[Tensor, Tensor]] = []  # outside memory that was written

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.partition("::")[2]
        if name in WAITING:
            raise CannotCaptureError(f"{name} waits for the device")
        kwargs = kwargs or {}
        given = tree_map_only(Tensor, self.note, (args, kwargs))
        arguments = func._schema.arguments
        named = {a.name: value for a, value in zip(arguments, args, strict=False)} | kwargs
        for argument in arguments:
            if argument.alias_info is not None and argument.alias_info.is_write:
                for x in _tensors(named.get(argument.name)):
                    self.keep(x)
        out = func(*args, **kwargs)
        known = {_memory(x) for x in _tensors((args, kwargs))}
        for x in _tensors(out):
            if _memory(x) not in known:
                self.inside[_memory(x)] = x
        self.operations.append((func, *given, [self.note(x) for x in _tensors(out)]))
        return out

    def note(self, x: Tensor) -> Tensor | Outside:
        return x if _memory(x) in self.inside else Outside(x)

    def keep(self, x: Tensor) -> None:
        if _memory(x) not in self.inside:
            self.before.append((x, x.clone()))

    def undo(self) -> None:
        for x, content in reversed(self.before):
            x.copy_(content)
        self.before.clear()
        self.forget()

    def forget(self) -> None:
        """Other graphs have written over the memory."""
        for x in self.inside.values():
            x.untyped_storage().copy_(torch.full_like(_bytes(x), 255).untyped_storage())

    def play(self) -> None:
        with torch.no_grad(), torch._C._AutoDispatchBelowAutograd():
            for func, args, kwargs, out in self.operations:
                args, kwargs = tree_map_only(Outside, Outside.tensor, (args, kwargs))
                again = func(*args, **kwargs)
                given = {_memory(x) for x in _tensors((args, kwargs))}
                for old, new in zip(out, _tensors(again), strict=True):
                    if isinstance(old, Tensor) and _memory(new) not in given:
                        old.copy_(new)
            self.forget()


class FakeRecorder:
    """In place of `cuda_graph.Recorder`."""

    lock = threading.Lock()

    def __init__(self) -> None:
        self.captures = self.replays = 0
        self.busy: int | None = None  # the thread

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        assert self.busy != threading.get_ident(), "it must not be entered twice"
        with self.lock:
            self.busy = threading.get_ident()
            try:
                yield
            finally:
                self.busy = None

    def rehearse(self, run: Callable[[], None]) -> None:
        assert self.busy
        run()
        with Tape():
            run()

    def capture(self, run: Callable[[], None]) -> Callable[[], None]:
        assert self.busy
        self.captures += 1
        with Tape() as tape:
            run()
        with torch.no_grad():
            tape.undo()

        def replay() -> None:
            assert self.busy
            self.replays += 1
            tape.play()

        return replay


def _memory(x: Tensor) -> int:
    return int(x.untyped_storage()._cdata)


def _bytes(x: Tensor) -> Tensor:
    return torch.empty(0, dtype=torch.uint8).set_(x.untyped_storage())


def _tensors(values: Any) -> list[Tensor]:
    found: list[Tensor] = []
    tree_map_only(Tensor, found.append, values)
    return found
