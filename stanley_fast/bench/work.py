"""What a job takes at least: bytes read and written, floating-point operations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from stanley_fast.density import Density

# Floating-point operations of Eqs. 4 and 5 for an element whose noise is there: |g|, max and a
# division; two products; a root and two products; two sums. Making the noise is mostly integer work
# and is not counted.
STEP_FLOPS = 10
# Of an element in the acceptance ratio, for each of the two directions: three of Eq. 4, three of
# the mean, a difference, its square, a division, a logarithm, a sum.
ACCEPT_FLOPS = 22


class Work(NamedTuple):
    """Bytes read and written, and floating-point operations."""

    bytes: int
    flops: int


def step(elements: int, itemsize: int = 4) -> Work:
    """A STANLEY step: z and its gradient read, z' written.

    >>> step(1000)
    Work(bytes=12000, flops=10000)
    """
    return Work(3 * itemsize * elements, STEP_FLOPS * elements)


def accept(elements: int, itemsize: int = 4) -> Work:
    """Adjusted STANLEY's acceptance where all are accepted: two states and gradients read, one
    of each written.
    """
    return Work(6 * itemsize * elements, ACCEPT_FLOPS * elements)


def counted(run: Callable[[], object]) -> Work:
    """What a call does in eager torch.

    FLOPs are those of matrix products and convolutions. Bytes: every operation reads its arguments
    and writes its results once.

    >>> import torch
    >>> x = torch.ones(10, 10)
    >>> counted(lambda: x @ x + x)
    Work(bytes=2400, flops=2000)
    """
    counter = _Counter()
    with counter:
        run()
    return Work(counter.bytes, counter.flops)


def gradient(f: nn.Module, z: Tensor) -> Work:
    """`counted`, of f and its gradient at z.

    >>> import torch
    >>> from stanley_fast.networks import ConvEnergy
    >>> work = gradient(ConvEnergy(), torch.zeros(1, 3, 32, 32))
    >>> round(work.flops / 1e6), round(work.bytes / 1e6)
    (611, 15)
    """
    density = Density(f)
    with density.eval_mode(), density.frozen_parameters():
        return counted(lambda: density.value_and_grad(z))


class _Counter(TorchDispatchMode):
    """Adds up what operations read, write and compute; a view does nothing.

    torch's FlopCounterMode has the same formulas, but hooks modules in a way that fails where a
    module's input is the leaf of autograd.grad.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = self.flops = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if not func.is_view:
            for value in tree_leaves((args, kwargs, result)):
                if isinstance(value, Tensor):
                    self.bytes += value.numel() * value.element_size()
        if (formula := flop_registry.get(func._overloadpacket)) is not None:
            self.flops += formula(*args, **kwargs, out_val=result)
        return result


def chain(f: nn.Module, z: Tensor, steps: int) -> Work:
    """Weights and z read once, z written once; every gradient's FLOPs and every step's."""
    weights = sum(p.numel() * p.element_size() for p in f.parameters())
    moved = 2 * z.numel() * z.element_size() + weights
    return Work(moved, steps * (gradient(f, z).flops + STEP_FLOPS * z.numel()))
