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
from typing import NamedTuple

import torch
from torch import Tensor

from stanley_fast import cuda_graph, graphs, plain, weights
from stanley_fast.algorithm import FIGURES, Algorithm
from stanley_fast.cuda_graph import CannotCaptureError, Recorder
from stanley_fast.feed import BLOCKS_PER_ITERATION, Feed
from stanley_fast.fingerprint import TooMuchError, fingerprint
from stanley_fast.fusion import Misfit, fit
from stanley_fast.starts import DataStart, NoiseStart, ReplayBuffer

LONGEST = 250  # evaluations of f in a graph, unless in one kernel: tens of thousands of kernels
AT_ONCE = 0.2  # seconds of iterations between two looks at figures, and at Ctrl-C
WORTH_IT = 10  # replays that pay for a capture

# Known to keep nothing in Python from one iteration to the next.
_STARTS = (NoiseStart, DataStart, ReplayBuffer)


class Burst(NamedTuple):
    """Some iterations, one after the other.

    Attributes:
        done: how many count.
        failed: the next one was tried, and does not.
        figures: of the last that counts.
        error: what stopped the host in between.
    """

    done: int
    failed: bool
    figures: dict[str, float]
    error: BaseException | None


@dataclass
class _Captured:
    """An iteration of observations `x`; it leaves figures in `page`."""

    x: Tensor
    page: Tensor
    seen: tuple[object, ...]
    replay: Callable[[], None]
    served: int = 0


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
        self._graphs: dict[tuple[object, ...], _Captured] = {}
        self._strikes = 0  # captures that did not pay, one after the other
        self._recorder: Recorder | None = None  # its pool is the graphs'
        groups = algorithm.updates.optimizer.param_groups
        self._rates = [torch.zeros((), device=self.device) for _ in groups]
        self._good = torch.ones((), dtype=torch.int64, device=self.device)
        self._count = self._good.clone()

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
        groups = a.updates.optimizer.param_groups
        _require(len(groups) == len(self._rates), "the optimizer has got another group")
        hooked = any(p._backward_hooks or p._post_accumulate_grad_hooks for p in a.f.parameters())
        _require(not hooked, "a parameter has hooks")
        _require(plain.undisturbed(), "torch.func, torch.compile or a dispatch mode is at work")
        return recorder

    def run(self, most: int, iteration: int, feed: Feed, record: Sequence[str]) -> Burst:
        """At most `most` iterations from this one on; the trainer is then as after plain ones.

        Optimizer, average and buffer must have been in use.

        Raises:
            Misfit: why there is no graph.
        """
        recorder, a, replayed = self.check(), self.algorithm, 0
        x, error = feed.draw(a.batch_size, iteration), None
        graph = self._find(x, tuple(record), recorder)
        most, begin = min(most, int(self._at_once)), time.perf_counter()
        self._good.fill_(1)
        self._count.zero_()
        try:
            while replayed < most and _alike(x, graph.x):
                self._replay(graph, x, a.updates.rates_at(iteration + replayed), recorder)
                replayed += 1
                if replayed < most:
                    x = feed.draw(a.batch_size, iteration + replayed)
        except BaseException as stopped:  # the iterations so far count all the same
            error = stopped
        decided = torch.stack([self._good, self._count]).double()
        good, done, *figures = torch.cat([decided, graph.page]).tolist()
        graph.served += replayed
        self._at_once = max(1.0, replayed * AT_ONCE / max(time.perf_counter() - begin, 1e-6))
        a.updates.count(int(done))
        if done:
            a.updates.set_rates(a.updates.rates_at(iteration + int(done) - 1))
        names = (*FIGURES, *record)
        return Burst(int(done), not good, dict(zip(names, figures, strict=True)), error)

    def _replay(self, graph: _Captured, x: Tensor, rates: list[float], recorder: Recorder) -> None:
        with recorder.alone():
            graph.x.copy_(x)
            for mine, rate in zip(self._rates, rates, strict=True):
                mine.fill_(rate)
            graph.replay()

    def _find(self, x: Tensor, record: tuple[str, ...], recorder: Recorder) -> _Captured:
        kind = (x.shape, x.dtype, record)
        try:
            seen, graph = self._fingerprint(), self._graphs.get(kind)
            if graph is None or graph.seen != seen:
                if graph is not None:
                    self._strikes = self._strikes + 1 if graph.served < WORTH_IT else 0
                    _require(self._strikes < 3, "what it computes with changes again and again")
                graph = self._graphs[kind] = self._capture(x, seen, record, recorder)
                same = self._fingerprint() == seen
                _require(same, "f is not the same after a call: it keeps something of each")
            return graph
        except weights.InUseError as error:
            raise Misfit(str(error)) from None
        except TooMuchError:
            why_not = "too many objects are within reach to see whether one changes"
        except (CannotCaptureError, Misfit) as error:
            why_not = str(error)
        self.restart()
        self._why_not = why_not
        raise Misfit(why_not)

    def restart(self) -> None:
        """Another state was loaded: keeps nothing of what was captured, or could not be."""
        self._graphs.clear()
        self._recorder = None  # whose pool may be nobody's now
        self._strikes, self._why_not = 0, ""

    def _fingerprint(self) -> tuple[object, ...]:
        """Of all that a graph has read when it was captured."""
        a = self.algorithm
        optimizer, average = a.updates.optimizer, a.updates.average
        groups = [{k: v for k, v in g.items() if k != "lr"} for g in optimizer.param_groups]
        start: object = a.start
        if isinstance(a.start, ReplayBuffer):
            start = (a.start.chains, a.start.size, a.start.fresh, a.start.fresh_share)
        learned = [p.requires_grad for p in a.f.parameters()]
        roots = [a.f, learned, a.sampler, start, optimizer.state, groups]
        roots.append(None if average is None else average.module)
        return (*fingerprint(roots, self.device), *graphs.surroundings(self.device))

    def _capture(
        self, x: Tensor, seen: tuple[object, ...], record: tuple[str, ...], recorder: Recorder
    ) -> _Captured:
        f = self.algorithm.f
        here = all(t.device == self.device for t in (*f.parameters(), *f.buffers()))
        _require(here, f"not all of f is on {self.device}")
        x = x.clone()
        page = x.new_zeros(len(FIGURES) + len(record), dtype=torch.float64)
        run = lambda: self._iteration(x, record, page)  # noqa: E731
        with recorder.alone(), self._unchanged():
            self.transitions = self._transitions(x)
            self._good.zero_()  # nothing counts
            recorder.rehearse(run)
            return _Captured(x, page, seen, recorder.capture(run))

    def _transitions(self, x: Tensor) -> str:
        a = self.algorithm
        evaluations = a.steps * getattr(a.sampler, "leapfrog_steps", 1)
        try:
            with a.precision:
                fit(a.f, a.starts(x), a.sampler, {})
        except Misfit as misfit:
            many = f"{evaluations} evaluations of f are too many for one, and not in one kernel: "
            _require(evaluations <= LONGEST, f"{many}{misfit}")
            return f"not in one kernel, because {misfit}"
        return "in one kernel"

    def _iteration(self, x: Tensor, record: tuple[str, ...], page: Tensor) -> None:
        """As `Trainer._iteration`, with its decisions left to the device."""
        a = self.algorithm
        before = [(b, b.clone()) for b in a.f.buffers()]
        z0 = a.starts(x)
        z, stats, finite = a.chains_without_waiting(z0, record)
        figures = a.gradient(x, z)
        self._good *= finite & figures.isfinite().all() & (figures[0].abs() <= a.max_gap)
        for b, was in before:
            b.copy_(torch.where(self._good.bool(), b, was))
        a.updates.step_if(self._good, self._rates)
        if isinstance(a.start, ReplayBuffer):
            z = torch.where(self._good.bool(), z, a.start.left())
        a.start.update(z)
        a.keys[:, 1] += BLOCKS_PER_ITERATION * self._good
        self._count += self._good
        means = [stats[name].mean().double() for name in record]
        new = torch.cat([figures, *(m.view(1) for m in means)])
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
