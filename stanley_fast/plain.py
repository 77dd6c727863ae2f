"""Whether calling a thing does what its class says and nothing else."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad


def undisturbed() -> bool:
    """Whether operations are what they seem: nothing in torch is at work on them."""
    return (
        torch._C._functorch.maybe_current_level() is None
        and forward_ad._current_level < 0
        and not torch._C._len_torch_dispatch_stack()
        and not torch.compiler.is_compiling()
    )


def hooked(modules: Iterable[nn.Module]) -> bool:
    """Whether there is more to a call of one of the modules than its class's forward: hooks."""
    return torch.nn.modules.module._has_any_global_hook() or any(
        m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks
        for m in modules
    )


def replaced(modules: Iterable[nn.Module]) -> bool:
    """Whether one of the modules has a forward that is not its class's."""
    return any("forward" in vars(m) for m in modules)


def is_plain(tensor: object, like: Tensor) -> bool:
    """A tensor of torch's own kind, in the dtype and on the device of another."""
    return (
        type(tensor) in (Tensor, nn.Parameter)
        and isinstance(tensor, Tensor)
        and tensor.layout == torch.strided
        and (tensor.dtype, tensor.device) == (like.dtype, like.device)
    )


def flattens(layer: nn.Module, start: int) -> bool:
    """Whether it is nn.Flatten(start), to the last dimension."""
    return type(layer) is nn.Flatten and (layer.start_dim, layer.end_dim) == (start, -1)


def weight_and_bias(layer: nn.Module, like: Tensor) -> tuple[Tensor, Tensor] | None:
    """Of nn.Linear or a convolution, without a graph, zeros where it has no bias; None if they are
    not plain tensors like another.
    """
    weight, bias = layer._parameters.get("weight"), layer._parameters.get("bias")
    if weight is None or not is_plain(weight, like):
        return None
    if bias is None:
        return weight.detach(), weight.detach().new_zeros(len(weight))
    return (weight.detach(), bias.detach()) if is_plain(bias, like) else None
