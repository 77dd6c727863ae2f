"""A whole iteration of training in one CUDA graph: chains, gradient, step, average, buffer.

Replays follow each other without waiting for the device, so it decides by itself what a trainer
decides otherwise: an iteration that is not finite or beyond `max_gap` changes nothing, and no later
one does. The trainer then makes it in the plain way, which says what is wrong.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from stanley_fast import cuda_graph, graphs, plain, weights
from stanley_fast.algorithm import FIGURES, Algorithm
from stanley_fast.cuda_graph import CannotCaptureError, Recorder
from stanley_fast.feed import BLOCKS_PER_ITERATION, Feed
from stanley_fast.fingerprint import TooMuchError, fingerprint
from stanley_fast.fusion import Misfit, fit
from stanley_fast.starts import DataStart, NoiseStart, ReplayBuffer

LONGEST = 250  # transitions one by one in a graph: tens of thousands of kernels
AT_ONCE = 0.2  # seconds until figures are read, and Ctrl-C is heard

# Known to keep nothing in Python from one iteration to the next.
_STARTS = (NoiseStart, DataStart, ReplayBuffer)


@dataclass
class _Captured:
    """An iteration with certain statistics."""

    replay: Callable[[], None]
    seen: tuple[object, ...]


class TrainingGraph:
    """Iterations of `algorithm` from CUDA graphs, captured at the first use.

    Attributes:
        transitions: how those of a chain are made.
    """

    def __init__(self, algorithm: Algorithm) -> None:
        self.algorithm = algorithm
        self.device = algorithm.keys.device
        self.transitions = ""
        self._why_not = ""
        self._at_once = 1.0
        self._graphs: dict[tuple[str, ...], _Captured] = {}
        self._recorder: Recorder | None = None  # its pool is the graphs'
        groups = algorithm.updates.optimizer.param_groups
        self._rates = [torch.zeros((), device=self.device) for _ in groups]
        self._x: Tensor | None = None
        self._good = torch.ones((), dtype=torch.int64, device=self.device)
        self._count = self._good.clone()
        self._pages: dict[tuple[str, ...], Tensor] = {}

    def check(self) -> Recorder:
        """Raises Misfit: why there can't be one, as far as that shows beforehand."""
        a = self.algorithm
        _require(not self._why_not, self._why_not)
        try:
            recorder = self._recorder = self._recorder or cuda_graph.recorder(self.device)
        except CannotCaptureError as error:
            raise Misfit(str(error)) from None
        for name, thing, known in (
            ("sampler", a.sampler, graphs.SAMPLERS),
            ("start", a.start, _STARTS),
        ):
            _require(type(thing) in known, f"the {name} is a {type(thing).__name__}")
        why_not = a.updates.needs_host()
        _require(not why_not, why_not)
        _require(plain.undisturbed(), "torch.func, torch.compile or a dispatch mode is at work")
        return recorder

    def run(
        self, most: int, iteration: int, feed: Feed, record: Sequence[str]
    ) -> tuple[int, int, dict[str, float]]:
        """Some iterations from this one on, after which the trainer is as after plain ones.

        Optimizer, average and buffer must have been in use.

        Returns:
            How many were tried, at most `most`; how many of these count, the first ones; figures
            of the last that does.

        Raises:
            Misfit: why there is no graph.
        """
        recorder = self.check()
        a, key = self.algorithm, tuple(record)
        x = feed.draw(a.batch_size, iteration)
        graph = self._find(x, key, recorder)
        tried, begin = min(most, int(self._at_once)), time.perf_counter()
        assert self._x is not None
        with recorder.alone():
            self._good.fill_(1)
            self._count.zero_()
            for i in range(iteration, iteration + tried):
                x = x if i == iteration else feed.draw(a.batch_size, i)
                if not _alike(x, self._x):
                    tried = i - iteration  # another graph's
                    break
                self._x.copy_(x)
                for mine, rate in zip(self._rates, a.updates.rates_at(i), strict=True):
                    mine.fill_(rate)
                graph.replay()
            done, *figures = torch.cat([self._count.double().view(1), self._pages[key]]).tolist()
        self._at_once = max(1.0, tried * AT_ONCE / max(time.perf_counter() - begin, 1e-6))
        a.updates.count(int(done))
        return tried, int(done), dict(zip((*FIGURES, *key), figures, strict=True))

    def _find(self, x: Tensor, record: tuple[str, ...], recorder: Recorder) -> _Captured:
        if self._x is None or not _alike(x, self._x):
            self._graphs.clear()
            self._x = x.clone()
        try:
            seen = self._fingerprint()
            graph = self._graphs.get(record)
            if graph is None or graph.seen != seen:
                graph = self._graphs[record] = _Captured(self._capture(record, recorder), seen)
                same = self._fingerprint() == seen
                _require(same, "f is not the same after a call: it keeps something of each")
            return graph
        except TooMuchError:
            self._why_not = "too many objects are within reach to see whether one changes"
        except (CannotCaptureError, weights.InUseError, Misfit) as error:
            self._why_not = str(error)
        self._graphs.clear()
        raise Misfit(self._why_not)

    def _fingerprint(self) -> tuple[object, ...]:
        """Of all that a graph has read when it was captured."""
        a = self.algorithm
        optimizer = a.updates.optimizer
        groups = [{k: v for k, v in g.items() if k != "lr"} for g in optimizer.param_groups]
        start = (a.start.chains, a.start.size) if isinstance(a.start, ReplayBuffer) else a.start
        average = None if a.updates.average is None else a.updates.average.module
        roots = [a.f, a.sampler, start, optimizer.state, groups, average]
        return (*fingerprint(roots, self.device), *graphs.surroundings(self.device))

    def _capture(self, record: tuple[str, ...], recorder: Recorder) -> Callable[[], None]:
        self._pages[record] = self._good.new_zeros(len(FIGURES) + len(record), dtype=torch.float64)
        run = lambda: self._iteration(record)  # noqa: E731
        with recorder.alone(), self._unchanged():
            self.transitions = self._transitions()
            self._good.zero_()  # nothing counts
            recorder.rehearse(run)
            return recorder.capture(run)

    def _transitions(self) -> str:
        a = self.algorithm
        z0 = a.starts(self._x) if self._x is not None else a.keys
        try:
            with a.precision:
                fit(a.f, z0, a.sampler, {})
        except Misfit as misfit:
            many = f"{a.steps} transitions are too many for one, and not in one kernel: {misfit}"
            _require(a.steps <= LONGEST, many)
            return f"not in one kernel, because {misfit}"
        return "in one kernel"

    def _iteration(self, record: tuple[str, ...]) -> None:
        """As `Trainer._iteration`, with its decisions left to the device."""
        a, x = self.algorithm, self._x
        assert x is not None
        z0 = a.starts(x)
        z, stats, finite = a.chains_without_waiting(z0, record)
        figures = a.gradient(x, z)
        self._good *= finite & figures.isfinite().all() & (figures[0].abs() <= a.max_gap)
        a.updates.step_if(self._good, self._rates)
        if isinstance(a.start, ReplayBuffer):
            z = torch.where(self._good.bool(), z, a.start.left())
        a.start.update(z)
        a.keys[:, 1] += BLOCKS_PER_ITERATION * self._good
        self._count += self._good
        means = [stats[name].mean().double() for name in record]
        page, new = self._pages[record], torch.cat([figures, *(m.view(1) for m in means)])
        page.copy_(torch.where(self._good.bool(), new, page))

    @contextmanager
    def _unchanged(self) -> Iterator[None]:
        """What rehearsals change besides what counts is put back: f's buffers, generators."""
        f, start = self.algorithm.f, self.algorithm.start
        before = [(b, b.clone()) for b in f.buffers()]
        devices = [self.device] if self.device.type == "cuda" else []
        try:
            with torch.random.fork_rng(devices=devices):
                yield
        finally:
            for b, was in before:
                b.copy_(was)
            if isinstance(start, ReplayBuffer):
                start.forget()
            self.algorithm.updates.optimizer.zero_grad()  # the gradients are the graph's


def _alike(x: Tensor, y: Tensor) -> bool:
    return (x.shape, x.dtype) == (y.shape, y.dtype)


def _require(fits: bool, reason: str) -> None:
    if not fits:
        raise Misfit(reason)
