"""sample(): K transitions of a chain (Algorithm 1 lines 3 to 7), for any log-density f.

The gradient of f dominates; for the Langevin samplers everything around it is one reduction and one
fused, in-place step per transition.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from stanley_fast import checks, fusion, graphs, keys, settings
from stanley_fast.density import Density, LogDensity, NonFiniteError
from stanley_fast.diary import Diary
from stanley_fast.fusion import Misfit
from stanley_fast.transition import Sampler, State

__all__ = ["Chain", "NonFiniteError", "sample"]

_WHOLE = "chain: all transitions of all chains in one kernel"
_IN_GRAPH = "graph: {} transitions at a time in one CUDA graph; not in one kernel, because {}"
_BY_STEP = (
    "step: one transition at a time{}; not in one kernel, because {}; not in a CUDA graph, "
    "because {}"
)
_READ = ", f's value and gradient in one operation"


@dataclass(frozen=True)
class Chain:
    """What `sample` returns.

    Attributes:
        z: the last state, like z0.
        key: int64 (2,), the key moved past the noise this chain used: the next chain's key.
        stats: what `record` named, each (steps,): its value where each transition starts; where it
            ends, for samplers that accept or reject.
        trace: (steps // keep_every, B, ...), the state after every keep_every-th transition, or
            None.
        rung: how the chain was run, and why.
        acceptance: float64 (B,), each chain's mean acceptance probability over the transitions;
            None where every transition is taken; NaN of no transitions.
    """

    z: Tensor
    key: Tensor
    stats: dict[str, Tensor]
    trace: Tensor | None
    rung: str
    acceptance: Tensor | None = None


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
    autocast: torch.dtype | None = None,
    graph: bool | Literal["auto"] = "auto",
    fused: bool | Literal["auto"] = "auto",
    first: int = 0,
    total: int | None = None,
) -> Chain:
    """Runs B chains, one per row of z0, for `steps` transitions each.

    Args:
        f: the unnormalised log-density, (B, ...) -> (B,): any callable. An nn.Module runs in eval
            mode and its parameters get no gradient; both are put back, on errors too. For
            `MetropolisHastings` f need not be differentiable.
        z0: (B, ...), float32, float64, float16 or bfloat16; not changed.
        sampler: `Stanley`, `Langevin`, `GradientAscent`, `MALA`, `MetropolisHastings`, `HMC`, or
            anyone's `Sampler`.
        steps: K; 0 returns a copy of z0.
        key: int64 (2,), not changed; a torch.Generator, asked once; or None: torch's default
            generator, asked once.
        record: names of what to keep per transition: "grad_abs", the mean |g|; "log_density", the
            mean f; "stepsize", the mean stepsize; "at_max_stepsize", the share of elements at the
            largest one; "acceptance", the mean acceptance probability. Each sampler's `records`.
        keep_every: keep the state after every n-th transition, as `trace`.
        callback: called as callback(k, z) after transition k. z is the running state: clone it to
            keep it.
        backprop_steps: keep the graph through the last n transitions, so that a loss of the result
            reaches f's parameters and, if n is `steps`, z0. Not where transitions are rejected.
        compile: run torch.compile(f).
        autocast: torch.bfloat16 or float16: evaluate f under torch.autocast with it; z, the steps
            and the statistics stay z's dtype. None: as it is where `sample` is called. float16
            gradients may underflow, as nothing scales them.
        graph: on a GPU, run transitions from a CUDA graph, which later calls with the same f and
            sampler, a z0 of the same shape and so on use again. "auto" captures a chain at the
            second such call, a long one at the first, if nothing stands in the way (`rung` says
            what); True insists. Where f computes with Python's numbers, they are noticed when they
            change, if they are in its attributes, closure or globals; what else is random or
            changing in Python stays as it was when captured.
        fused: run the whole chain in one kernel, which reads f's weights: for an `MLPEnergy`, or an
            nn.Sequential like it, with nothing asked per transition but `record`.
            "auto" where possible; True insists.
        first, total: this call owns elements [first, first + z0.numel()) of a state of `total`.
            Batches sampled in parts, or by several processes, get the noise of the whole. Where
            chains are accepted or rejected both must be multiples of a chain's elements.

    Returns:
        Chain.

    Raises:
        NonFiniteError: a NaN or infinity in a state or gradient; names step and chain. A proposal
            that is not finite is no error, it is rejected.
        RuntimeError: f gives something else than (B,), or something that does not depend on z.
        TypeError, ValueError: an argument that makes no sense, or fused=True or graph=True where
            that can't be.

    Where f is a module and no callback looks on, its layers read copies of their weights while the
    chain runs: on the CPU and in a GPU's tensor cores convolutions are faster in channels-last
    order. On the CPU a `ConvEnergy`, or an nn.Sequential like it, is read instead of called, as the
    fused kernel does; its convolutions are Winograd's and round several times as much as torch's.
    float32 products on a GPU are as torch has them:
    torch.backends.cuda.matmul.fp32_precision and torch.backends.cudnn.conv.fp32_precision.

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
    if "acceptance" in sampler.records:
        _check_precision(sampler, z0, autocast)
    density = Density(f, compile=compile, autocast=autocast)
    total = checks.part(z0.numel(), first, total)
    key = key if isinstance(key, Tensor) else keys.key(key, z0.device)
    checks.key(key)
    after = keys.advance_(key.clone(), steps * ((total + 3) // 4))
    request = graphs.Request(sampler, tuple(record), steps, keep_every, first, total)
    asked = {
        "callback": callback is not None,
        "backprop_steps": backprop_steps > 0,
    }

    why_not = "graph=True" if graph is True else "fused=False"
    if fused and graph is not True:
        per_step = {"keep_every": keep_every is not None, "compile": compile}
        whole, why_not = _in_one_kernel(
            f, z0, request, key, asked | per_step | {"autocast": autocast is not None}, fused
        )
        if whole is not None:
            z, stats = whole
            return Chain(z, after, stats, None, _WHOLE)

    diary = Diary(z0, sampler, record, steps, keep_every, callback)

    def move(state: State, transitions: range) -> State:
        for k in transitions:
            state, info = sampler.step(state, density, key, k, first=first, total=total)
            diary.write(k, state.z, info)
        return state

    bare = steps - backprop_steps
    with density.eval_mode(), density.autocast_alone(z0.device.type), torch.no_grad():
        state, done, captured, why_no_graph = None, 0, None, "graph=False"
        if graph and steps:
            captured, why_no_graph = _captured(density, z0, request, key, asked, graph)
        if captured is not None:
            state, done = captured.run(z0, steps, key, diary, density)
        if done < bare or not (state or backprop_steps):
            with density.frozen_parameters(z0 if callback is None else None):
                state = move(state or sampler.init(z0, density), range(done, bare))
        if backprop_steps:
            density.differentiable = True
            with torch.enable_grad():
                state = move(state or sampler.init(z0, density), range(bare, steps))
        assert state is not None
        z = state.z if backprop_steps else state.z.detach()
        density.finish(steps, z)
    rung = _BY_STEP.format(_READ if density.read else "", why_not, why_no_graph)
    if captured is not None:
        rung = _IN_GRAPH.format(captured.transitions.length, why_not)
    return Chain(z, after, diary.stats(), diary.trace, rung, diary.acceptance())


@torch.no_grad()
def sample_without_waiting(
    f: LogDensity,
    z0: Tensor,
    sampler: Sampler,
    steps: int,
    *,
    key: Tensor,
    record: Sequence[str] = (),
) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """What `sample` computes, for a CUDA graph that is being captured: arguments are not checked.

    Returns:
        The last state; the statistics; bool, 0-dim: whether all was finite.
    """
    try:
        net = fusion.fit(f, z0, sampler, {})
    except Misfit:
        pass
    else:
        request = graphs.Request(sampler, record, steps, None, 0, z0.numel())
        z, stats = _whole_chain(net, f, z0, request, key)
        return z, stats, z.isfinite().all()
    density = Density(f)
    density.restart(deferred=True)
    diary = Diary(z0, sampler, record, steps)
    with (
        density.eval_mode(),
        density.autocast_alone(z0.device.type),
        density.frozen_parameters(z0, alone=True),  # another thread's would be gone at a replay
    ):
        state = sampler.init(z0, density)
        for k in range(steps):
            state, info = sampler.step(state, density, key, k)
            diary.write(k, state.z, info)
    finite, products = state.z.isfinite().all(), density.products()
    if products is not None:
        finite = finite & products.isfinite().all()
    return state.z, diary.stats(), finite


def _in_one_kernel(
    f: LogDensity,
    z0: Tensor,
    request: graphs.Request,
    key: Tensor,
    asked: dict[str, bool],
    fused: bool | str,
) -> tuple[tuple[Tensor, dict[str, Tensor]] | None, str]:
    """The last state and the statistics; or None, and why not."""
    try:
        net = fusion.fit(f, z0, request.sampler, asked)
    except Misfit as misfit:
        if fused is True:
            raise ValueError(f"fused must be 'auto' or False here: {misfit}") from None
        return None, str(misfit)
    z, stats = _whole_chain(net, f, z0, request, key)
    if math.isfinite(z.sum().item()):
        return (z, stats), ""
    return None, "it left the finite numbers"  # step by step it says where


def _whole_chain(
    net: fusion.Net, f: LogDensity, z0: Tensor, request: graphs.Request, key: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """By the kernel: the last state, finite or not, and the statistics."""
    sampler, record, steps, _, first, total = request
    start = sampler.init(z0, Density(f))
    z, stats = fusion.run(
        net, start.z, sampler, start.gamma, steps, key, first, total, bool(record)
    )
    return z, {name: stats[name] for name in record}


def _captured(
    density: Density,
    z0: Tensor,
    request: graphs.Request,
    key: Tensor,
    asked: dict[str, bool],
    graph: bool | str,
) -> tuple[graphs.Captured | None, str]:
    """The chain's CUDA graph; or None, and why not."""
    try:
        return graphs.fit(density, z0, request, key, asked, insist=graph is True), ""
    except Misfit as misfit:
        if graph is True:
            raise ValueError(f"graph must be 'auto' or False here: {misfit}") from misfit
        return None, str(misfit)


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
    # isinstance is slow for a protocol; a class has the methods of its objects
    if isinstance(sampler, type) or not callable(getattr(sampler, "step", None)):
        raise TypeError(f"sampler must be a Sampler such as Stanley(...), got {sampler!r}")
    settings.count("steps", steps)
    if isinstance(record, str):
        raise TypeError(f"record must be a sequence of names, got the string {record!r}")
    known = sampler.records
    unknown = [name for name in record if name not in known]
    if unknown:
        raise ValueError(f"record knows {', '.join(known)}; got {', '.join(map(repr, unknown))}")
    if keep_every is not None:
        settings.count("keep_every", keep_every, 1)
    settings.count("backprop_steps", backprop_steps)
    if backprop_steps > steps:
        raise ValueError(f"backprop_steps must be in [0, steps = {steps}], got {backprop_steps}")
    if backprop_steps and "acceptance" in known:
        raise ValueError(
            f"backprop_steps must be 0 for {type(sampler).__name__}: accepting or rejecting has no "
            f"derivative; got {backprop_steps}"
        )


def _check_precision(sampler: Sampler, z0: Tensor, autocast: torch.dtype | None) -> None:
    if autocast is not None or torch.is_autocast_enabled(z0.device.type):
        raise ValueError(
            f"autocast must be off for {type(sampler).__name__}: it accepts or rejects by "
            "differences of log-densities, which 16 bits do not resolve"
        )


def _check_rungs(compile: bool, backprop_steps: int, graph: bool | str, fused: bool | str) -> None:
    if compile and backprop_steps:
        raise ValueError(
            "backprop_steps must be 0 with compile=True: torch.compile has no double backward"
        )
    for name, value in (("graph", graph), ("fused", fused)):
        if value not in (True, False, "auto"):
            raise ValueError(f"{name} must be 'auto', True or False, got {value!r}")
    if graph is True and fused is True:
        raise ValueError("graph and fused must not both be True: a chain runs in one way")
