"""sample(): K transitions of a chain (Algorithm 1 lines 3 to 7), for any log-density f.

The gradient of f dominates; everything around it is kept to one reduction and one fused, in-place
step per transition.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from stanley_fast import checks, fusion, keys
from stanley_fast.samplers import Sampler

LogDensity = Callable[[Tensor], Tensor]

_BY_STEP = "step: f's gradient by autograd, then one fused transition; not in one kernel, because "
_WHOLE = "chain: all transitions of all chains in one kernel"


class NonFiniteError(RuntimeError):
    """A NaN or an infinity `step` transitions after z0, in these `chains` (rows of the batch)."""

    def __init__(self, step: int, chains: list[int], what: str) -> None:
        which = f"chain {chains[0]}" if chains else "a chain"
        others = f" and {len(chains) - 1} more" if len(chains) > 1 else ""
        super().__init__(f"NaN or infinity at step {step} in {which}{others}: {what} is not finite")
        self.step = step
        self.chains = chains
        self.what = what

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.step, self.chains, self.what)


@dataclass(frozen=True)
class Chain:
    """What `sample` returns.

    Attributes:
        z: the last state, like z0.
        key: int64 (2,), the key moved past the noise this chain used: the next chain's key.
        stats: what `record` named, each (steps,): its value where each transition starts.
        trace: (steps // keep_every, B, ...), the state after every keep_every-th transition, or
            None.
        rung: how the chain was run, and why.
    """

    z: Tensor
    key: Tensor
    stats: dict[str, Tensor]
    trace: Tensor | None
    rung: str


@torch.inference_mode(False)
def sample(
    f: LogDensity,
    z0: Tensor,
    sampler: Sampler,
    steps: int,
    *,
    key: Tensor | torch.Generator | None = None,
    record: Sequence[str] = (),
    keep_every: int | None = None,
    callback: Callable[[int, Tensor], object] | None = None,
    backprop_steps: int = 0,
    compile: bool = False,
    graph: bool | Literal["auto"] = "auto",
    fused: bool | Literal["auto"] = "auto",
    first: int = 0,
    total: int | None = None,
) -> Chain:
    """Runs B chains, one per row of z0, for `steps` transitions each.

    Args:
        f: the unnormalised log-density, (B, ...) -> (B,): any callable. An nn.Module runs in eval
            mode and its parameters get no gradient; both are put back, on errors too.
        z0: (B, ...), float32, float64, float16 or bfloat16; not changed.
        sampler: `Stanley(...)`, `Langevin(...)`, or anything with their methods.
        steps: K; 0 returns a copy of z0.
        key: int64 (2,), not changed; a torch.Generator, asked once; or None: torch's default
            generator, asked once.
        record: names of what to keep per transition: "grad_abs", the mean |g|; "log_density", the
            mean f; "stepsize", the mean stepsize; "at_max_stepsize", the share of elements at the
            largest one.
        keep_every: keep the state after every n-th transition, as `trace`.
        callback: called as callback(k, z) after transition k. z is the running state: clone it to
            keep it.
        backprop_steps: keep the graph through the last n transitions, so that a loss of the result
            reaches f's parameters and, if n is `steps`, z0.
        compile: run torch.compile(f).
        graph: "auto" or False; no chain runs in a CUDA graph yet.
        fused: run the whole chain in one kernel, which reads f's weights: for an `MLPEnergy`, or an
            nn.Sequential like it, with nothing asked per transition but `record`.
            "auto" where possible; True insists.
        first, total: this call owns elements [first, first + z0.numel()) of a state of `total`.
            Batches sampled in parts, or by several processes, get the noise of the whole.

    Returns:
        Chain.

    Raises:
        NonFiniteError: a NaN or infinity in a state or gradient; names step and chain.
        RuntimeError: f gives something else than (B,), or something that does not depend on z.
        TypeError, ValueError: an argument that makes no sense, or fused=True where that can't be.

    Source: Algorithm 1, lines 3 to 7.

    >>> from stanley_fast.keys import key
    >>> from stanley_fast.samplers import Stanley
    >>> gaussian = lambda z: -(z**2).sum(1) / 2
    >>> out = sample(gaussian, torch.zeros(100, 2), Stanley(0.5, 0.1), 50, key=key(0))
    >>> out.z.shape, out.key
    (torch.Size([100, 2]), tensor([   0, 2500]))
    """
    _check(z0, sampler, steps, record, keep_every, backprop_steps)
    _check_rungs(compile, backprop_steps, graph, fused)
    total = checks.part(z0.numel(), first, total)
    key = key if isinstance(key, Tensor) else keys.key(key, z0.device)
    checks.key(key)
    after = keys.advance_(key.clone(), steps * ((total + 3) // 4))
    run = _Run(torch.compile(f) if compile else f, sampler, key, first, total)
    diary = _Diary(z0, record, steps, keep_every, callback)

    why_not = "fused=False"
    if fused:
        asked = {
            "keep_every": keep_every is not None,
            "callback": callback is not None,
            "backprop_steps": backprop_steps > 0,
            "compile": compile,
        }
        try:
            net = fusion.fit(f, z0, sampler, asked)
        except fusion.Misfit as misfit:
            why_not = str(misfit)
            if fused is True:
                raise ValueError(f"fused must be 'auto' or False here: {why_not}") from None
        else:
            z, stats = run.whole(net, z0, steps, bool(record))
            if math.isfinite(z.sum().item()):
                return Chain(z, after, {name: stats[name] for name in record}, None, _WHOLE)
            why_not = "it left the finite numbers"  # step by step it says where

    bare = steps - backprop_steps
    owner = getattr(f, "__self__", f)  # the module, if f is a bound method of one
    with _eval_mode(owner), torch.no_grad():
        with torch.enable_grad():  # a copy that is part of z0's graph, where one is wanted
            z = z0.clone(memory_format=torch.contiguous_format)
        if bare:
            z = z.detach().requires_grad_()
        with _frozen_parameters(owner):
            for k in range(bare):
                z = run.transition(z, k, diary, differentiable=False)
        with torch.enable_grad():
            for k in range(bare, steps):
                z = run.transition(z, k, diary, differentiable=True)
        if not backprop_steps:
            z = z.detach()
        run.watch.finish(steps, z)
    return Chain(z, after, diary.stats(), diary.trace, _BY_STEP + why_not)


class _Run:
    """One chain's transitions: f, the sampler, and what the sampler keeps from the first state."""

    def __init__(
        self, f: LogDensity, sampler: Sampler, key: Tensor, first: int, total: int
    ) -> None:
        self.f, self.sampler, self.key = f, sampler, key
        self.first, self.total = first, total
        self.ones: Tensor | None = None
        self.state: Tensor | None = None
        self.watch = _Watch()

    def whole(
        self, net: fusion.Net, z0: Tensor, steps: int, record: bool
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """All transitions in one kernel: the last state, and statistics."""
        z = z0.detach()
        grad = z  # which only a frozen stepsize looks at
        if getattr(self.sampler, "stepsize", "") == "frozen":
            z = z.clone().requires_grad_()
            with torch.enable_grad():
                value = self.f(z)
            grad = self._gradient(value, z, differentiable=False)
        gamma = self.sampler.init(z, grad)
        return fusion.run(
            net, z.detach(), self.sampler, gamma, steps, self.key, self.first, self.total, record
        )

    def transition(self, z: Tensor, k: int, diary: _Diary, differentiable: bool) -> Tensor:
        if not z.requires_grad:
            z = z.detach().requires_grad_()
        version = z._version
        with torch.enable_grad():
            value = self.f(z)
        if z._version != version:
            raise RuntimeError("f must not change z in place, but it did")
        grad = self._gradient(value, z, differentiable)
        self.watch.step(k, z, grad)
        if k == 0:
            self.state = self.sampler.init(z, grad)
        diary.before(self.sampler, grad, self.state, value)
        z = self.sampler.step(
            z,
            grad,
            self.state,
            self.key,
            k,
            first=self.first,
            total=self.total,
            inplace=not differentiable,
        )
        diary.after(k, z)
        return z

    def _gradient(self, value: Tensor, z: Tensor, differentiable: bool) -> Tensor:
        _check_value(value, z)
        if self.ones is None:
            self.ones = torch.ones_like(value)
        (grad,) = torch.autograd.grad(
            value, z, self.ones, create_graph=differentiable, allow_unused=True
        )
        if grad is None:
            raise RuntimeError(_DETACHED)
        return grad


class _Watch:
    """Stops a chain at the first NaN or infinity, at the price of one reduction per transition.

    z . g is not finite if any element of z or g is not; in half precision, where it soon overflows,
    the sum of both in float32 takes its place. It may overflow besides, so then the exact answer is
    looked for. On a GPU the products are looked at when the chain is over: no transition waits.
    """

    def __init__(self) -> None:
        self.pending: list[Tensor] = []

    def step(self, k: int, z: Tensor, grad: Tensor) -> None:
        z, grad = z.detach(), grad.detach()
        if z.dtype in (torch.float16, torch.bfloat16):
            product = z.sum(dtype=torch.float32) + grad.sum(dtype=torch.float32)
        else:
            product = torch.dot(z.reshape(-1), grad.reshape(-1))
        if product.is_cuda:
            self.pending.append(product)
        elif not math.isfinite(product.item()):
            _raise_if_not_finite(k, z, "the state")
            _raise_if_not_finite(k, grad, "the gradient of f")

    def finish(self, steps: int, z: Tensor) -> None:
        if self.pending:
            bad = torch.stack(self.pending).isfinite().logical_not_().nonzero()
            if len(bad):
                raise NonFiniteError(int(bad[0]), _bad_chains(z), "the state or the gradient of f")
        if not math.isfinite(z.detach().sum().item()):
            _raise_if_not_finite(steps, z, "the state")


class _Diary:
    """What the caller asked to keep of a chain's course."""

    def __init__(
        self,
        z0: Tensor,
        record: Sequence[str],
        steps: int,
        keep_every: int | None,
        callback: Callable[[int, Tensor], object] | None,
    ) -> None:
        self.kept: dict[str, list[Tensor]] = {name: [] for name in record}
        self.keep_every, self.callback = keep_every, callback
        self.empty = z0.new_empty(0)
        self.trace = None if keep_every is None else z0.new_empty((steps // keep_every, *z0.shape))

    def before(self, sampler: Sampler, grad: Tensor, state: Tensor | None, value: Tensor) -> None:
        if not self.kept:
            return
        with torch.no_grad():
            now = sampler.stats(grad, state)
            now |= {"grad_abs": grad.abs().mean(), "log_density": value.mean()}
        for name, values in self.kept.items():
            values.append(now[name])

    def after(self, k: int, z: Tensor) -> None:
        if self.trace is not None and self.keep_every and (k + 1) % self.keep_every == 0:
            self.trace[k // self.keep_every].copy_(z.detach())
        if self.callback is not None:
            self.callback(k, z.detach())

    def stats(self) -> dict[str, Tensor]:
        return {n: torch.stack(v) if v else self.empty for n, v in self.kept.items()}


@contextmanager
def _eval_mode(f: object) -> Iterator[None]:
    """A module in eval mode, each submodule's flag put back.

    Flags alone: the train() and eval() of some modules do more (merge weights), which would stay.
    """
    training = [m for m in f.modules() if m.training] if isinstance(f, nn.Module) else []
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def _frozen_parameters(f: object) -> Iterator[None]:
    """A module whose parameters ask for no gradient, so that none is computed."""
    parameters = f.parameters() if isinstance(f, nn.Module) else ()
    asking = [p for p in parameters if p.requires_grad]
    for p in asking:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in asking:
            p.requires_grad_(True)


def _bad_chains(tensor: Tensor) -> list[int]:
    bad = tensor.detach().isfinite().logical_not_()
    rows = bad.reshape(len(bad), -1).any(dim=1).nonzero()
    return [int(row) for row in rows]


def _raise_if_not_finite(step: int, tensor: Tensor, what: str) -> None:
    chains = _bad_chains(tensor)
    if chains:
        raise NonFiniteError(step, chains, what)


_DETACHED = (
    "f must return something that depends on z through autograd, got a result detached from z "
    "(was it computed under no_grad, detached, or from a copy?)"
)


def _check_value(value: object, z: Tensor) -> None:
    if not isinstance(value, Tensor):
        raise RuntimeError(f"f must return a tensor of shape [{len(z)}], got {type(value)}")
    if value.shape != z.shape[:1]:
        raise RuntimeError(
            f"f must return one log-density per chain, shape [{len(z)}] for z of shape "
            f"{list(z.shape)}, got shape {list(value.shape)}"
        )
    if not value.requires_grad:
        raise RuntimeError(_DETACHED)


def _check(
    z0: Tensor,
    sampler: Sampler,
    steps: int,
    record: Sequence[str],
    keep_every: int | None,
    backprop_steps: int,
) -> None:
    checks.floating("z0", z0)
    if z0.dim() == 0:
        raise ValueError("z0 must have a batch dimension, shape (B, ...), got a 0-dim tensor")
    if not callable(getattr(sampler, "step", None)):  # isinstance is slow for a protocol
        raise TypeError(f"sampler must be a Sampler such as Stanley(...), got {sampler!r}")
    if steps < 0:
        raise ValueError(f"steps must be 0 or more, got {steps}")
    if isinstance(record, str):
        raise TypeError(f"record must be a sequence of names, got the string {record!r}")
    known = ("grad_abs", "log_density", *sampler.records)
    unknown = [name for name in record if name not in known]
    if unknown:
        raise ValueError(f"record knows {', '.join(known)}; got {', '.join(map(repr, unknown))}")
    if keep_every is not None and keep_every < 1:
        raise ValueError(f"keep_every must be 1 or more, or None, got {keep_every}")
    if not 0 <= backprop_steps <= steps:
        raise ValueError(f"backprop_steps must be in [0, steps = {steps}], got {backprop_steps}")


def _check_rungs(compile: bool, backprop_steps: int, graph: bool | str, fused: bool | str) -> None:
    if compile and backprop_steps:
        raise ValueError(
            "backprop_steps must be 0 with compile=True: torch.compile has no double backward"
        )
    if graph is not False and graph != "auto":
        raise ValueError(
            f"graph must be 'auto' or False, got {graph!r}: this version has no chains in a CUDA "
            "graph"
        )
    if fused not in (True, False, "auto"):
        raise ValueError(f"fused must be 'auto', True or False, got {fused!r}")
