"""The layer over torch.cuda, on a stand-in that notes what is asked of it and in which order."""

from __future__ import annotations

import contextlib
import gc
import random
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from stanley_fast.cuda_graph import CannotCaptureError, recorder

GPU = torch.device("cuda", 0)


class Stream:
    def __init__(self, cuda: FakeCuda, name: str) -> None:
        self.cuda, self.name = cuda, name

    def wait_stream(self, other: Stream) -> None:
        self.cuda.log.append(f"{self.name} waits for {other.name}")

    def wait_event(self, event: Event) -> None:
        self.cuda.log.append(f"{self.name} waits for the event")


class Event:
    def __init__(self, cuda: FakeCuda) -> None:
        self.cuda = cuda

    def record(self, stream: Stream) -> None:
        self.cuda.log.append(f"{stream.name} records the event")


class Graph:
    def replay(self) -> None:
        raise AssertionError("nothing is captured")


class FakeCuda:
    """What `cuda_graph` uses of torch.cuda."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.main = self.current = Stream(self, "main")
        self.mode, self.fails_to_end, self.capturing = 0, False, False
        self.pools = 0

    def patch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        mine: dict[str, Callable[..., Any]] = {
            "graph_pool_handle": self.pool,
            "Stream": lambda device: Stream(self, "side"),
            "Event": lambda: Event(self),
            "CUDAGraph": Graph,
            "current_stream": lambda device: self.current,
            "set_stream": lambda stream: setattr(self, "current", stream),
            "stream": self.stream,
            "graph": self.graph,
            "device": lambda device: contextlib.nullcontext(),
            "get_sync_debug_mode": lambda: self.mode,
            "set_sync_debug_mode": lambda mode: setattr(self, "mode", mode),
            "is_current_stream_capturing": lambda: self.capturing,
        }
        for name, value in mine.items():
            monkeypatch.setattr(torch.cuda, name, value)
        clear = "_cuda_clearCublasWorkspaces"
        monkeypatch.setattr(torch._C, clear, lambda: self.log.append("clear"), raising=False)

    def pool(self) -> int:
        self.pools += 1
        return self.pools

    @contextlib.contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        before, self.current = self.current, stream
        yield
        self.current = before

    @contextlib.contextmanager
    def graph(
        self, graph: Graph, *, pool: int, stream: Stream, capture_error_mode: str
    ) -> Iterator[None]:
        """Like torch's, leaves its stream current if the capture can't be ended."""
        assert capture_error_mode == "thread_local"
        self.current = stream
        self.log.append(f"capture into pool {pool} on {stream.name}")
        try:
            yield
        finally:
            if self.fails_to_end:
                raise torch.AcceleratorError("operation failed\nmore of it")
            self.current = self.main

    def wait(self) -> None:
        if self.mode == "warn":
            warnings.warn("called a synchronizing CUDA operation", UserWarning, stacklevel=2)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    fake = FakeCuda()
    fake.patch(monkeypatch)
    return fake


def test_rehearsed_on_the_side_stream_then_captured(cuda: FakeCuda) -> None:
    found = recorder(GPU)
    where: list[tuple[str, object]] = []
    run = lambda: where.append((cuda.current.name, cuda.mode))  # noqa: E731
    with found.alone():
        found.rehearse(run)
        replay = found.capture(run)
    assert where == [("side", 0), ("side", "warn"), ("side", 0)]
    assert cuda.log == [
        "main waits for the event",
        "side waits for main",
        "main waits for side",
        "clear",
        "capture into pool 1 on side",
        "clear",
        "main records the event",
    ]
    assert cuda.current is cuda.main
    with pytest.raises(AssertionError, match="nothing is captured"):
        replay()


@pytest.mark.parametrize("before", [0, 2])
def test_work_that_waits_is_found_in_the_rehearsal(cuda: FakeCuda, before: int) -> None:
    cuda.mode = before
    found = recorder(GPU)
    with pytest.raises(CannotCaptureError, match=r"^test_cuda_graph.py:\d+ waits for the device$"):
        found.rehearse(lambda: cuda.wait())
    assert cuda.mode == before
    assert cuda.current is cuda.main
    assert not any("capture" in line for line in cuda.log)


def test_other_warnings_are_no_reason(cuda: FakeCuda) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        recorder(GPU).rehearse(lambda: warnings.warn("something else", stacklevel=1))


@pytest.mark.parametrize("draw", [random.random, lambda: torch.rand(())])
def test_random_numbers_of_the_host_are_a_reason(
    cuda: FakeCuda, draw: Callable[[], object]
) -> None:
    with pytest.raises(CannotCaptureError, match="it draws random numbers on the host"):
        recorder(GPU).rehearse(lambda: print(draw()))


def test_an_error_in_the_rehearsal_is_its_own(cuda: FakeCuda) -> None:
    found = recorder(GPU)

    def run() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), found.alone():
        found.rehearse(run)
    assert cuda.log[-1] == "main records the event"


def test_a_capture_that_fails_leaves_the_stream_as_it_was(cuda: FakeCuda) -> None:
    cuda.fails_to_end = True
    found = recorder(GPU)
    with pytest.raises(CannotCaptureError, match=r"^operation failed$"):
        found.capture(lambda: None)
    assert cuda.current is cuda.main
    assert found.pool == 2  # torch may be left recording to the first


def test_too_little_memory_is_a_reason(cuda: FakeCuda) -> None:
    def run() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate\nmuch")

    for way in (recorder(GPU).rehearse, recorder(GPU).capture):
        with pytest.raises(CannotCaptureError, match=r"^CUDA out of memory. Tried to allocate$"):
            way(run)


def test_one_recorder_a_device_as_long_as_somebody_has_it(cuda: FakeCuda) -> None:
    one = recorder(GPU)
    assert recorder(torch.device("cuda", 0)) is one
    assert recorder(torch.device("cuda", 1)) is not one
    del one
    gc.collect()
    assert recorder(GPU).pool == 3  # not the first one's, whose graphs are gone


def test_there_is_none(cuda: FakeCuda) -> None:
    with pytest.raises(CannotCaptureError, match="the device is cpu, not a GPU"):
        recorder(torch.device("cpu"))
    cuda.capturing = True
    with pytest.raises(CannotCaptureError, match="a capture is under way"):
        recorder(GPU)
