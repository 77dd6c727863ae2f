"""The chain in a CUDA graph: transitions captured once, then replayed with no Python in between.

A graph is captured for an f, a sampler's settings, a batch's shape and whatever else its kernels
depend on, and is found again when `sample` is asked for the same. It reads f's parameters where
they are: written in place, as optimizers do, they count at the next replay; replaced, they are
noticed (`fingerprint`) and the chain is captured anew. The key lives on the device and is moved on
by the graph itself.
"""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from stanley_fast import cuda_graph, keys, plain, weights
from stanley_fast.backends import select
from stanley_fast.cuda_graph import CannotCaptureError, Recorder
from stanley_fast.density import Density
from stanley_fast.diary import Diary
from stanley_fast.fingerprint import TooMuchError, fingerprint
from stanley_fast.fusion import Misfit
from stanley_fast.hmc import HMC
from stanley_fast.metropolis import MALA, MetropolisHastings
from stanley_fast.samplers import GradientAscent, Langevin, Sampler, Stanley
from stanley_fast.transition import State

# Known to use the transition's number for its noise alone, to move the state in place, and to keep
# nothing in Python.
SAMPLERS = (Stanley, Langevin, GradientAscent, MALA, MetropolisHastings, HMC)

LONGEST = 64  # transitions in a graph; a longer chain replays it several times
WORTH_IT = 4  # replays that pay for a capture at once; else it waits for a second call
KEPT = 8  # of one f


class Request(NamedTuple):
    """A chain that is asked for."""

    sampler: Sampler
    record: Sequence[str]
    steps: int
    keep_every: int | None
    first: int
    total: int


class Pages(NamedTuple):
    """What some transitions leave: of a diary, and of the search for what is not finite."""

    stats: dict[str, Tensor]
    accepted: Tensor | None
    products: Tensor | None


class Transitions:
    """`length` transitions from memory that stays to the same memory: what a graph holds.

    Attributes:
        state, key: where a run starts; then where it has ended, as the next one starts.
        pages: of the last run.
    """

    def __init__(
        self,
        request: Request,
        length: int,
        state: State,
        key: Tensor,
        copies: weights.Copies | None,
    ) -> None:
        self.request, self.length = request, length
        self.state = _map(torch.clone, state)
        self.key = key.clone()
        self.copies = copies
        self.pages = Pages({}, None, None)
        self._settled = False

    def run(self, density: Density) -> None:
        """Makes them; kernels alone touch what the attributes hold."""
        sampler, record, *_, first, total = self.request
        state, diary = self.state, Diary(self.state.z, sampler, record, self.length)
        density.restart(deferred=True)
        with density.frozen_parameters(), self._copies():
            for k in range(self.length):
                state, info = sampler.step(state, density, self.key, k, first=first, total=total)
                diary.write(k, state.z, info)
        keys.advance_(self.key, self.length * ((total + 3) // 4))
        self.state = state  # the same tensors, without what a transition does not hand on
        self._store(Pages(diary.stats(), diary.accepted, density.products()))
        density.restart()  # what it kept is the graph's

    @contextmanager
    def _copies(self) -> Iterator[None]:
        if self.copies is None:
            yield
            return
        self.copies.refresh()
        with self.copies.read(alone=True):  # another thread's would be gone at a replay
            yield

    def _store(self, pages: Pages) -> None:
        if not self._settled:
            self.pages = pages
            return
        for mine, new in zip(_tensors(self.pages), _tensors(pages), strict=True):
            mine.copy_(new)

    def settle(self) -> None:
        """After a rehearsal: from now on runs leave their pages where those are now."""
        stats, accepted, products = self.pages
        self.pages = Pages(
            {name: values.clone() for name, values in stats.items()},
            None if accepted is None else accepted.clone(),
            None if products is None else products.clone(),
        )
        self._settled = True


@dataclass
class Captured:
    """Transitions and the graph of them, which reads `copies` of weights."""

    transitions: Transitions
    replay: Callable[[], None]
    recorder: Recorder
    copies: list[Tensor]

    def run(
        self, z0: Tensor, steps: int, key: Tensor, diary: Diary, density: Density
    ) -> tuple[State, int]:
        """As many replays as the chain takes: the state then, and how many transitions those were.

        The diary is written; what may not be finite is left to the density's `finish`.
        """
        inside, length = self.transitions, self.transitions.length
        replays = steps // length
        state = start(z0, inside.request.sampler, density)
        with self.recorder.alone():
            inside.key.copy_(key)
            for mine, new in zip(inside.state, state, strict=True):
                if mine is not None and new is not None:
                    mine.copy_(new)
            for k in range(length, replays * length + 1, length):
                self.replay()
                stats, accepted, products = inside.pages
                diary.copy(k - 1, inside.state.z, stats, accepted)
                if products is not None:
                    density.add_products(products.clone())
            return _map(torch.clone, inside.state), replays * length


@dataclass
class _Entry:
    """One kind of chain of an f: how often it was asked for, and what became of it."""

    seen: tuple[object, ...]
    asked: int = 0
    captured: Captured | None = None
    why_not: str = ""


_CACHE: weakref.WeakKeyDictionary[object, OrderedDict[tuple[object, ...], _Entry]]
_CACHE = weakref.WeakKeyDictionary()
_LOCK = threading.RLock()


def start(z0: Tensor, sampler: Sampler, density: Density) -> State:
    """The chain's first state. What was not finite there shows again in its first transition."""
    with density.frozen_parameters(z0):
        state = sampler.init(z0, density)
    density.restart()
    return state


def fit(
    density: Density,
    z0: Tensor,
    request: Request,
    key: Tensor,
    per_step: dict[str, bool],
    *,
    insist: bool,
) -> Captured:
    """The graph of this chain, from an earlier call or captured now. f is in eval mode.

    Args:
        per_step: what is asked of each transition, by argument.
        insist: capture it now. Otherwise a short chain is captured when it is asked for again.

    Raises:
        Misfit: why there is none.
    """
    for name, asked in per_step.items():
        _require(not asked, f"{name} asks for something at every transition")
    known = type(request.sampler) in SAMPLERS
    _require(known, f"{type(request.sampler).__name__} is not a sampler of this package")
    _require(z0.numel() > 0, "there are no elements")
    _require(plain.undisturbed(), "torch.func, torch.compile or a dispatch mode is at work")
    try:
        with _LOCK:
            return _find(density, z0, request, key, insist)
    except (CannotCaptureError, weights.InUseError) as error:
        raise Misfit(str(error)) from error
    except TooMuchError:
        raise Misfit("too many objects are within f's reach to see whether one changes") from None


def _find(density: Density, z0: Tensor, request: Request, key: Tensor, insist: bool) -> Captured:
    recorder = cuda_graph.recorder(z0.device)
    length = segment(request.steps, request.keep_every)
    kind = _kind(request, length, density, z0)
    seen = fingerprint([density.original], z0.device)
    entries = _entries(density.original)
    entry = entries.get(kind)
    changed = entry is not None and entry.seen != seen
    if entry is None or changed:
        entry = entries[kind] = _Entry(seen)
    entries.move_to_end(kind)
    while len(entries) > KEPT:
        entries.popitem(last=False)
    entry.asked += 1
    _require(not entry.why_not, entry.why_not)
    if entry.captured is None:
        soon = insist or entry.asked > 1 or request.steps >= WORTH_IT * length
        since = "f has changed since the last call; " if changed else ""
        _require(soon, since + "it is captured when asked for again")
        try:
            entry.captured = capture(density, z0, request, length, key, recorder)
            same = fingerprint([density.original], z0.device) == seen
            _require(same, "f is not the same after a call: it keeps something of each")
        except (Misfit, CannotCaptureError) as error:
            entry.captured, entry.why_not = None, str(error)
            raise
    return entry.captured


def capture(
    density: Density,
    z0: Tensor,
    request: Request,
    length: int,
    key: Tensor,
    recorder: Recorder,
) -> Captured:
    """Rehearsed, then captured.

    Raises:
        CannotCaptureError: why it can't be.
    """
    state, copies = start(z0, request.sampler, density), density.copies(z0)
    transitions = Transitions(request, length, state, key, copies)
    run = lambda: transitions.run(density)  # noqa: E731
    with recorder.alone():
        recorder.rehearse(run)
        transitions.settle()
        replay = recorder.capture(run)
    transitions.copies = None  # it holds f's layers; what a graph reads is in these
    read: list[Tensor] = [] if copies is None else list(copies.pairs.values())
    return Captured(transitions, replay, recorder, read)


def segment(steps: int, keep_every: int | None) -> int:
    """How many transitions one graph makes: all, or a part that leaves few to the plain way.

    >>> segment(50, None), segment(100, None), segment(127, None), segment(1000, 250)
    (50, 50, 63, 50)
    """
    if keep_every is not None and keep_every <= steps:  # a graph ends where a state is kept
        return max(n for n in range(1, min(keep_every, LONGEST) + 1) if keep_every % n == 0)
    if steps <= LONGEST:
        return steps
    return min(range(LONGEST // 2, LONGEST + 1), key=lambda n: (steps % n, -n))


def _entries(f: object) -> OrderedDict[tuple[object, ...], _Entry]:
    owner = getattr(f, "__self__", f)  # a bound method is made anew at every look
    try:
        return _CACHE.setdefault(owner, OrderedDict())
    except TypeError:
        raise Misfit(f"a {type(owner).__name__} can't be referred to weakly") from None


def _kind(request: Request, length: int, density: Density, z: Tensor) -> tuple[object, ...]:
    """What the kernels of these transitions depend on, besides f."""
    return (
        id(getattr(density.original, "__func__", None)),
        *fingerprint([request.sampler], z.device),
        length,
        tuple(request.record),
        request.first,
        request.total,
        (z.shape, z.dtype, z.device, density.compiled, density.autocast),
        *surroundings(z.device),
    )


def surroundings(device: torch.device) -> tuple[object, ...]:
    """What kernels depend on besides what they are asked for: the backend, torch's settings."""
    return (
        select(device.type),
        torch.backends.cudnn.conv.fp32_precision,  # type: ignore[attr-defined]
        torch.backends.cuda.matmul.fp32_precision,
        torch.backends.cudnn.benchmark,
        torch.backends.cudnn.enabled,
        torch.backends.cudnn.deterministic,
        torch.are_deterministic_algorithms_enabled(),
    )


def _map(change: Callable[[Tensor], Tensor], state: State) -> State:
    return State(*(None if t is None else change(t) for t in state))  # type: ignore[arg-type]


def _tensors(pages: Pages) -> list[Tensor]:
    stats, *others = pages
    return [*stats.values(), *(t for t in others if isinstance(t, Tensor))]


def _require(fits: bool, reason: str) -> None:
    if not fits:
        raise Misfit(reason)
