"""All that capturing takes of torch.cuda; what is captured and kept is in `graphs`."""

from __future__ import annotations

import random
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

Run = Callable[[], None]


class CannotCaptureError(RuntimeError):
    """Why work can't be captured."""


class Recorder:
    """Captures work on one GPU and replays it.

    All graphs share one pool of memory: nothing of it is read once a replay has ended, and replays
    come one after the other, on whatever streams and from whatever threads they are asked for.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.pool = torch.cuda.graph_pool_handle()
        self.stream = torch.cuda.Stream(device)
        self.idle = torch.cuda.Event()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """What is queued within comes after, and before, what others queue within."""
        with _LOCK:
            stream = torch.cuda.current_stream(self.device)
            stream.wait_event(self.idle)
            try:
                yield
            finally:
                self.idle.record(stream)

    def rehearse(self, run: Run) -> None:
        """Runs it on the stream that captures: kernels are loaded and chosen, workspaces made.

        Raises:
            CannotCaptureError: it waits for the device, or draws random numbers on the host, which
                a captured graph can't; or there is too little memory.
        """
        with self._explaining(torch.OutOfMemoryError) as outer:
            self.stream.wait_stream(outer)
            with torch.cuda.stream(self.stream):
                run()  # the first time may wait, to load and to choose
                with _noticing_waits(), _noticing_draws():
                    run()
            outer.wait_stream(self.stream)

    def capture(self, run: Run) -> Run:
        """The replay of it.

        Raises:
            CannotCaptureError: it can't be captured; nothing has run.
        """
        graph = torch.cuda.CUDAGraph()
        # Other threads, a DataLoader's among them, may go on using CUDA meanwhile.
        capturing = torch.cuda.graph(
            graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local"
        )
        try:
            with self._explaining(RuntimeError), _no_cublas_workspaces(), capturing:
                run()
        except BaseException:
            self.pool = (
                torch.cuda.graph_pool_handle()
            )  # torch may still be recording to the old one
            raise
        return graph.replay

    @contextmanager
    def _explaining(self, kind: type[RuntimeError]) -> Iterator[torch.cuda.Stream]:
        """Errors of the kind are reasons. Afterwards the stream is what it was, and is given."""
        outer = torch.cuda.current_stream(self.device)
        try:
            with torch.cuda.device(self.device):
                yield outer
        except CannotCaptureError:
            raise
        except kind as error:
            raise CannotCaptureError(str(error).strip().partition("\n")[0]) from error
        finally:
            torch.cuda.set_stream(outer)  # a capture that fails to end leaves its own behind


def recorder(device: torch.device) -> Recorder:
    """The device's, shared by all who hold it.

    Raises:
        CannotCaptureError: there are no CUDA graphs on this device, or a capture is under way.
    """
    if device.type != "cuda":
        raise CannotCaptureError(f"the device is {device.type}, not a GPU")
    if torch.cuda.is_current_stream_capturing():
        raise CannotCaptureError("a capture is under way already")
    with _LOCK:
        found = _RECORDERS.get(device)
        if found is None:
            found = _RECORDERS[device] = Recorder(device)
        return found


# One capture at a time in a process, as torch asks.
_LOCK = threading.RLock()
# A pool must not be used again once its last graph is gone.
_RECORDERS: weakref.WeakValueDictionary[torch.device, Recorder] = weakref.WeakValueDictionary()


@contextmanager
def _no_cublas_workspaces() -> Iterator[None]:
    """What is captured makes workspaces of its own, in its pool: others may clear cuBLAS's."""
    torch._C._cuda_clearCublasWorkspaces()
    try:
        yield
    finally:
        torch._C._cuda_clearCublasWorkspaces()


@contextmanager
def _noticing_draws() -> Iterator[None]:
    """CannotCaptureError at the end if a generator of the host has moved."""
    before = torch.get_rng_state(), random.getstate()
    yield
    if not torch.equal(before[0], torch.get_rng_state()) or before[1] != random.getstate():
        raise CannotCaptureError("it draws random numbers on the host")


@contextmanager
def _noticing_waits() -> Iterator[None]:
    """CannotCaptureError at the end if the host waited for the device."""
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")  # "error" would raise in other threads, too
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode(before)
    for warning in caught:
        if "synchronizing CUDA operation" in str(warning.message):
            where = f"{Path(warning.filename).name}:{warning.lineno}"
            raise CannotCaptureError(f"{where} waits for the device")
