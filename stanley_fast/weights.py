"""A module's weights while a chain runs: frozen, and as its operations want them.

A chain evaluates f with the same weights again and again. So what an evaluation would do to them,
torch.autocast's rounding, is done once; and convolutions get theirs in channels-last order, which
makes their activations so, where that is faster.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

_CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)
_PRODUCTS = (nn.Linear, nn.Conv1d, nn.Conv3d, *_CONVOLUTIONS)  # torch.autocast rounds their inputs
_HALVES = (torch.float16, torch.bfloat16)

# On the CPU fewer images than this are too little work to make up for the other order (measured on
# nets from 8 to 64 channels wide).
_FEWEST_IMAGES = 4


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """No parameter asks for a gradient, so that none is computed."""
    asking = [p for p in module.parameters() if p.requires_grad]
    for p in asking:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in asking:
            p.requires_grad_(True)


class Copies:
    """Copies of a module's weights, for layers to read where they are faster for a batch like z.

    The module's own parameters are never written, and are back in their places afterwards.

    Args:
        autocast: the dtype in which torch.autocast computes f, if it does.

    Attributes:
        pairs: each weight with its copy.

    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten())
    >>> with Copies(net, torch.zeros(16, 3, 8, 8), None).read():
    ...     net[0].weight.is_contiguous(memory_format=torch.channels_last)
    True
    >>> net[0].weight.is_contiguous()
    True
    """

    def __init__(self, module: nn.Module, z: Tensor, autocast: torch.dtype | None) -> None:
        self.pairs: dict[nn.Parameter, _Copy] = {}  # a tied weight has one
        self._places: list[tuple[nn.Module, str, nn.Parameter]] = []
        modules = list(module.modules())
        last = channels_last_pays(modules, z, autocast)
        if (not last and autocast is None) or any(map(_is_compiled, modules)):
            return
        for layer in modules:
            if type(layer) not in _PRODUCTS or not _is_plain(layer):
                continue
            for name, held in layer._parameters.items():
                own = held.own if isinstance(held, _Copy) else held
                if type(own) is nn.Parameter and own.layout == torch.strided:
                    self._add(layer, name, own, last and type(layer) in _CONVOLUTIONS, autocast)

    def _add(
        self,
        layer: nn.Module,
        name: str,
        own: nn.Parameter,
        channels_last: bool,
        autocast: torch.dtype | None,
    ) -> None:
        """Unless the weight is already as it should be."""
        dtype = autocast if autocast and own.dtype == torch.float32 else own.dtype
        order = torch.channels_last if channels_last and own.dim() == 4 else torch.preserve_format
        data = own.detach()
        wanted = data.to(dtype=dtype, memory_format=order)
        if wanted is not data:
            self.pairs.setdefault(own, _Copy(wanted, own))
            self._places.append((layer, name, own))

    def refresh(self) -> None:
        """The weights as they are now."""
        for own, copy in self.pairs.items():
            copy.copy_(own)

    @contextmanager
    def read(self, *, alone: bool = False) -> Iterator[None]:
        """Layers read the copies. Where another thread's are in place, those: they say the same.

        Raises:
            InUseError: that is so, and `alone`.
        """
        mine = []
        with _LOCK:
            for layer, name, own in self._places:
                if layer._parameters[name] is own:
                    layer._parameters[name] = self.pairs[own]
                    mine.append((layer, name, own))
        try:
            if alone and len(mine) < len(self._places):
                raise InUseError("another thread has f in use")
            yield
        finally:
            for layer, name, own in mine:
                layer._parameters[name] = own


class InUseError(RuntimeError):
    """Another thread's copies are in place."""


class _Copy(nn.Parameter):
    """What a layer reads in place of its `own`."""

    own: nn.Parameter

    def __new__(cls, data: Tensor, own: nn.Parameter) -> _Copy:
        copy: _Copy = super().__new__(cls, data, requires_grad=False)
        copy.own = own
        return copy


_LOCK = threading.Lock()


def own(x: Tensor) -> Tensor:
    """The weight that x is a copy of, or x itself."""
    return x.own if isinstance(x, _Copy) else x


def channels_last_pays(
    modules: Sequence[nn.Module], z: Tensor, autocast: torch.dtype | None
) -> bool:
    """Whether convolutions, forward and back to their input, are faster in channels-last order.

    On the CPU oneDNN then needs no reordering of activations: 1.1 to 1.5 times as fast for all but
    the smallest work. On a GPU tensor cores want it, which float32 convolutions use as TF32. Not
    for 1 x 1 kernels alone, which are matrix products, nor with InstanceNorm2d, which is slower.
    """
    if not any(type(m) in _CONVOLUTIONS and max(m.kernel_size) > 1 for m in modules):  # type: ignore[arg-type]
        return False
    if any(isinstance(m, nn.InstanceNorm2d) for m in modules):
        return False
    dtype = autocast if autocast and z.dtype == torch.float32 else z.dtype
    if z.is_cpu:
        return dtype in (torch.float32, *_HALVES) and len(z) >= _FEWEST_IMAGES
    if not z.is_cuda or torch.version.hip:
        return False
    tf32 = dtype == torch.float32 and torch.backends.cudnn.conv.fp32_precision != "ieee"  # type: ignore[attr-defined]
    return dtype in _HALVES or tf32


def _is_compiled(module: nn.Module) -> bool:
    """By torch.compile, which orders weights itself, and would compile again for copies."""
    return "_orig_mod" in module._modules or module._compiled_call_impl is not None


def _is_plain(layer: nn.Module) -> bool:
    """Nobody looks on who might want to see the parameters themselves."""
    return not (layer._forward_pre_hooks or layer._forward_hooks or "forward" in vars(layer))
