"""A module's weights while a chain runs: frozen, and as its operations want them.

A chain evaluates f with the same weights again and again. So what an evaluation would do to them,
torch.autocast's rounding, is done once; and convolutions get theirs in channels-last order, which
makes their activations so, where that is faster.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
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


@contextmanager
def laid_out(module: nn.Module, z: Tensor, autocast: torch.dtype | None) -> Iterator[None]:
    """Layers read copies of their weights, where that is faster for a batch like z.

    The module's own parameters are back in their places afterwards, on errors too, and are never
    written; within, they are not what `module.parameters()` gives.

    Args:
        autocast: the dtype in which torch.autocast computes f, if it does.

    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten())
    >>> with laid_out(net, torch.zeros(16, 3, 8, 8), None):
    ...     net[0].weight.is_contiguous(memory_format=torch.channels_last)
    True
    >>> net[0].weight.is_contiguous()
    True
    """
    layers = [m for m in module.modules() if type(m) in _PRODUCTS and _is_plain(m)]
    last = channels_last_pays(module.modules(), z, autocast)
    copies: dict[nn.Parameter, nn.Parameter] = {}  # a tied weight has one
    replaced: list[tuple[nn.Module, str, nn.Parameter]] = []
    try:
        for layer in layers:
            for name, own in list(layer._parameters.items()):
                if type(own) is not nn.Parameter or own.layout != torch.strided:
                    continue  # not ours to copy, or another thread's copy
                if own not in copies:
                    copies[own] = _copy(own, last and type(layer) in _CONVOLUTIONS, autocast)
                if copies[own] is not own:
                    layer._parameters[name] = copies[own]
                    replaced.append((layer, name, own))
        yield
    finally:
        for layer, name, own in replaced:
            layer._parameters[name] = own


def channels_last_pays(
    modules: Iterable[nn.Module], z: Tensor, autocast: torch.dtype | None
) -> bool:
    """Whether convolutions, forward and back to their input, are faster in channels-last order.

    On the CPU oneDNN then needs no reordering of activations: 1.1 to 1.5 times as fast for all but
    the smallest work. On a GPU tensor cores want it, which float32 convolutions use as TF32. Not
    for 1 x 1 kernels alone, which are matrix products, nor with InstanceNorm2d, which is slower.
    """
    kinds = list(modules)
    if any(isinstance(m, nn.InstanceNorm2d) for m in kinds):
        return False
    if not any(type(m) in _CONVOLUTIONS and max(m.kernel_size) > 1 for m in kinds):  # type: ignore[arg-type]
        return False
    dtype = autocast if autocast and z.dtype == torch.float32 else z.dtype
    if z.is_cpu:
        return dtype in (torch.float32, *_HALVES) and len(z) >= _FEWEST_IMAGES
    if not z.is_cuda or torch.version.hip:
        return False
    tf32 = dtype == torch.float32 and torch.backends.cudnn.conv.fp32_precision != "ieee"  # type: ignore[attr-defined]
    return dtype in _HALVES or tf32


def _is_plain(layer: nn.Module) -> bool:
    """Nobody looks on who might want to see the parameters themselves."""
    return not (layer._forward_pre_hooks or layer._forward_hooks or "forward" in vars(layer))


def _copy(own: nn.Parameter, channels_last: bool, autocast: torch.dtype | None) -> nn.Parameter:
    """`own` itself where it is already as it should be."""
    dtype = autocast if autocast and own.dtype == torch.float32 else own.dtype
    order = torch.channels_last if channels_last and own.dim() == 4 else torch.preserve_format
    data = own.detach()
    wanted = data.to(dtype=dtype, memory_format=order)
    return own if wanted is data else _Copy(wanted, requires_grad=False)


class _Copy(nn.Parameter):
    """Told from a module's own parameters by its class."""
