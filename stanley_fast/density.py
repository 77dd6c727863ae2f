"""f, evaluated: its value and gradient at a batch of states, each checked.

The gradient dominates a chain's time; what is around it here is one reduction per evaluation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from stanley_fast import conv, weights

LogDensity = Callable[[Tensor], Tensor]

_DETACHED = (
    "f must return something that depends on z through autograd, got a result detached from z "
    "(was it computed under no_grad, detached, or from a copy?)"
)


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


class Density:
    """The unnormalised log-density f as samplers see it.

    Args:
        f: (B, ...) -> (B,), any callable.
        compile: run torch.compile(f).
        autocast: torch.bfloat16 or float16: f is evaluated under torch.autocast with it. Values and
            gradients are z's dtype all the same.

    Attributes:
        differentiable: whether gradients stay in the graph, so that one can go through the chain.
        read: whether f's weights were read, by `frozen_parameters`, instead of f being called.

    Raises:
        TypeError: f is not callable.
        ValueError: another autocast.
        RuntimeError: when evaluated, f gives something else than (B,), changes z, or gives
            something that does not depend on z.

    >>> f = Density(lambda z: -z.square().sum(1) / 2)
    >>> f.value_and_grad(torch.ones(1, 2))
    (tensor([-1.]), tensor([[-1., -1.]]))
    """

    def __init__(
        self, f: LogDensity, *, compile: bool = False, autocast: torch.dtype | None = None
    ) -> None:
        if not callable(f):
            raise TypeError(f"f must be callable, (B, ...) -> (B,), got {f!r}")
        if autocast not in (None, torch.bfloat16, torch.float16):
            raise ValueError(f"autocast must be bfloat16, float16 or None, got {autocast!r}")
        self.original, self.compiled, self.autocast = f, compile, autocast
        self.f = torch.compile(f) if compile else f
        self.differentiable = False
        self._owner = getattr(f, "__self__", f)  # the module, if f is a bound method of one
        self._net: conv.Net | None = None
        self.read = False
        self.restart()

    def restart(self, *, deferred: bool = False) -> None:
        """Keeps nothing of the states so far, nor of what was found wrong with them.

        `deferred`: what is not finite is left to `products` and `finish`, as on a GPU anyway.
        """
        self._ones: Tensor | None = None
        self._state: Tensor | None = None  # the last one a gradient was asked at, and its leaf
        self._leaf: Tensor | None = None
        self._watch = _Watch(deferred)

    def start(self, z0: Tensor) -> Tensor:
        """A contiguous copy for a chain to move, in z0's graph if the chain is differentiable."""
        z0 = z0 if self.differentiable else z0.detach()
        return z0.clone(memory_format=torch.contiguous_format)

    def value(self, z: Tensor) -> Tensor:
        """f(z), (B,), without a graph: f need not be differentiable."""
        if self._net is not None and self._net.takes(z):
            return self._net(z, with_grad=False)[0]
        with torch.no_grad():
            value = self._call(z)
        return value.detach()

    def value_and_grad(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """f(z), (B,), and its gradient, like z; either may be NaN or infinite."""
        if self._net is not None and self._net.takes(z):
            return self._net(z, with_grad=True)
        if self.differentiable and z.requires_grad:
            leaf = z
        elif z is self._state and self._leaf is not None:
            leaf = self._leaf  # z may have moved since, in place: they share memory and version
        else:
            self._state, self._leaf = z, z.detach().requires_grad_()
            leaf = self._leaf
        with torch.enable_grad():
            value = self._call(leaf)
        if not value.requires_grad:
            raise RuntimeError(_DETACHED)
        if self._ones is None or self._ones.shape != value.shape:
            self._ones = torch.ones_like(value)
        (grad,) = torch.autograd.grad(
            value, leaf, self._ones, create_graph=self.differentiable, allow_unused=True
        )
        if grad is None:
            raise RuntimeError(_DETACHED)
        if self.differentiable:
            return value, grad
        return value.detach(), grad.contiguous()  # channels-last weights order it like themselves

    def finite_value_and_grad(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """`value_and_grad` where a chain is: what is not finite stops it.

        Raises:
            NonFiniteError: z or the gradient is not finite; on a GPU, raised by `finish`.
        """
        value, grad = self.value_and_grad(z)
        self._watch.step(z, grad)
        return value, grad

    def require_finite(self, tensor: Tensor, what: str) -> None:
        """NonFiniteError, of step 0, if `tensor` is not finite; it may be left to `products`."""
        self._watch.start(tensor, what)

    def finish(self, steps: int, z: Tensor) -> None:
        """NonFiniteError if a state or gradient so far, or z after all `steps`, is not finite."""
        self._watch.finish(steps, z)

    def products(self) -> Tensor | None:
        """Numbers of what was left to `finish`, not finite where a chain is not: one for each
        transition, after those for a start.
        """
        return torch.cat(self._watch.pending) if self._watch.pending else None

    def add_products(self, products: Tensor) -> None:
        """Leaves to `finish` what was computed elsewhere."""
        self._watch.pending.append(products)
        self._watch.steps += len(products)

    def _call(self, z: Tensor) -> Tensor:
        version = z._version
        if self.autocast is None:
            value = self.f(z)
        else:  # no cache of rounded weights: in a CUDA graph it would outlive their next update
            with torch.autocast(z.device.type, self.autocast, cache_enabled=False):
                value = self.f(z)
        if z._version != version:
            raise RuntimeError("f must not change z in place, but it did")
        if not isinstance(value, Tensor):
            raise RuntimeError(f"f must return a tensor of shape [{len(z)}], got {type(value)}")
        if value.shape != z.shape[:1]:
            raise RuntimeError(
                f"f must return one log-density per chain, shape [{len(z)}] for z of shape "
                f"{list(z.shape)}, got shape {list(value.shape)}"
            )
        if not value.is_floating_point():
            raise RuntimeError(f"f must return floating-point log-densities, got {value.dtype}")
        if self.autocast is None:
            return value
        return value.to(torch.promote_types(value.dtype, z.dtype))

    @contextmanager
    def eval_mode(self) -> Iterator[None]:
        """A module in eval mode, each submodule's flag put back.

        Flags alone: the train() and eval() of some modules do more (merge weights), which would
        stay.
        """
        modules = self._owner.modules() if isinstance(self._owner, nn.Module) else ()
        training = [m for m in modules if m.training]
        for module in training:
            module.training = False
        try:
            yield
        finally:
            for module in training:
                module.training = True

    @contextmanager
    def frozen_parameters(self, z: Tensor | None = None, *, alone: bool = False) -> Iterator[None]:
        """A module whose parameters ask for no gradient, so that none is computed.

        With z, a batch like those to come, f is evaluated the fastest way there is for such: by
        one operation that reads its weights, or with layers that read copies of theirs, so that
        within the module's parameters are not its own. `alone`: not with another thread's copies.
        """
        if not isinstance(self._owner, nn.Module):
            yield
            return
        with weights.frozen(self._owner):
            if z is None:
                yield
                return
            self._net = None if self.compiled or self.autocast else conv.fit(self.original, z)
            self.read = self.read or self._net is not None
            copies = None if self._net else self.copies(z)
            try:
                with nullcontext() if copies is None else copies.read(alone=alone):
                    yield
            finally:
                self._net = None

    def copies(self, z: Tensor) -> weights.Copies | None:
        """Of a module's weights, as its layers read them fastest for batches like z."""
        if self.compiled or not isinstance(self._owner, nn.Module):
            return None
        return weights.Copies(self._owner, z, self.autocast)

    @contextmanager
    def autocast_alone(self, device_type: str) -> Iterator[None]:
        """f under the autocast that is in force, unless it has its own; all else without."""
        if not torch.is_autocast_enabled(device_type):
            yield
            return
        before = self.autocast
        self.autocast = before or torch.get_autocast_dtype(device_type)
        try:
            with torch.autocast(device_type, enabled=False):
                yield
        finally:
            self.autocast = before


class _Watch:
    """Stops a chain at the first NaN or infinity, at the price of one reduction per transition.

    z . g is not finite if any element of z or g is not; in half precision, where it soon overflows,
    the sum of both in float32 takes its place. It may overflow besides, so then the exact answer is
    looked for. On a GPU the products are looked at when the chain is over: no transition waits.
    """

    def __init__(self, deferred: bool) -> None:
        self.deferred = deferred
        self.steps = 0
        self.pending: list[Tensor] = []  # of shape (transitions,)

    def start(self, tensor: Tensor, what: str) -> None:
        if self.deferred:
            self.pending.append(tensor.detach().sum(dtype=torch.float32).reshape(1))
        else:
            raise_if_not_finite(0, tensor, what)

    def step(self, z: Tensor, grad: Tensor) -> None:
        if z.dtype in (torch.float16, torch.bfloat16):
            product = z.sum(dtype=torch.float32) + grad.sum(dtype=torch.float32)
        else:
            product = torch.dot(z.reshape(-1), grad.reshape(-1))
        if self.deferred or product.is_cuda:
            self.pending.append(product.detach().reshape(1))
        elif not math.isfinite(product.item()):
            raise_if_not_finite(self.steps, z, "the state")
            raise_if_not_finite(self.steps, grad, "the gradient of f")
        self.steps += 1

    def finish(self, steps: int, z: Tensor) -> None:
        last = z.detach().sum()
        if self.pending:  # the device is waited for once
            fine = bool(torch.cat([*self.pending, last.reshape(1)]).isfinite().all())
        else:
            fine = math.isfinite(last.item())
        if fine:
            return
        if self.pending:
            bad = torch.cat(self.pending).isfinite().logical_not_().nonzero()
            if len(bad):
                raise NonFiniteError(int(bad[0]), _bad_chains(z), "the state or the gradient of f")
        raise_if_not_finite(steps, z, "the state")


def raise_if_not_finite(step: int, tensor: Tensor, what: str) -> None:
    """NonFiniteError that names the chains, rows of `tensor`, where an element is not finite."""
    chains = _bad_chains(tensor)
    if chains:
        raise NonFiniteError(step, chains, what)


def _bad_chains(tensor: Tensor) -> list[int]:
    bad = tensor.detach().isfinite().logical_not_()
    rows = bad.unsqueeze(-1).flatten(1).any(dim=1).nonzero()
    return [int(row) for row in rows]
