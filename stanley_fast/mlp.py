"""The gradient of small nets by their parameters on the CPU, in one call: for a training loop whose
loss is of f's values. As in `fusion`, f is read, not called.

The same operations with a graph are torch.ops.stanley_fast.mlp_log_density, which autograd knows.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from stanley_fast import fusion


class Density(NamedTuple):
    """A net at some points, of which `values` and then `backward` are asked."""

    net: fusion.Net
    points: Tensor
    parameters: list[nn.Parameter]
    """Layer by layer the weight and the bias."""

    def values(self) -> Tensor:
        """f (B,) at the points, without a graph."""
        with torch._C._AutoDispatchBelowAutograd():
            values: Tensor = torch.ops.stanley_fast.mlp_log_density.default(self.points, *self.net)
        return values

    def backward(self, grad: Tensor) -> Tensor:
        """All parameters' gradient as one vector, which their `grad` becomes part of.

        grad: the loss's gradient by the values. Replaces what `grad` the parameters had.
        """
        with torch._C._AutoDispatchBelowAutograd():
            _, flat = torch.ops.stanley_fast.mlp_log_density_backward.default(
                grad, self.points, *self.net, False, True
            )
        sizes = [p.numel() for p in self.parameters]
        for p, piece in zip(self.parameters, flat.split(sizes), strict=True):
            p.grad = piece.view_as(p)
        return flat


def fit(f: nn.Module, points: Tensor, parameters: list[nn.Parameter]) -> Density | None:
    """f at the points (B, d), if the kernels can compute it and the gradient by `parameters`.

    These must be f's own, all of them in the order of `f.parameters()`, and have no hooks;
    otherwise None: f is to be called.

    >>> f = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 1), nn.Flatten(0))
    >>> density = fit(f, torch.zeros(5, 2), list(f.parameters()))
    >>> density.backward(torch.ones(5)).shape  # needs the compiled library
    torch.Size([33])
    """
    if not points.is_cpu:
        return None
    try:
        net = fusion.read(f, points)
    except fusion.Misfit:
        return None
    own = [p.data_ptr() for layer in zip(net.weights, net.biases, strict=True) for p in layer]
    if own != [p.data_ptr() for p in parameters]:
        return None
    for p in parameters:
        if not p.requires_grad or p._backward_hooks or p._post_accumulate_grad_hooks:
            return None
    return Density(net, points.detach().flatten(1), parameters)
