"""The value and the gradient of convolutional nets on the CPU in one call.

As in `fusion`, f is read, not called. Its convolutions are computed by Winograd's F(4x4, 3x3), a
quarter of the multiplications, whose rounding is several times that of a plain sum.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from stanley_fast import plain
from stanley_fast.backends import select
from stanley_fast.library import COMPILED
from stanley_fast.networks import ConvEnergy

MOST_LAYERS = 32


class Net(NamedTuple):
    """3x3 convolutions with stride 1, each with the same (leaky) ReLU, and a linear read-out."""

    packed: Tensor
    channels: list[int]
    """Of the image, then of each layer."""
    slope: float
    shape: torch.Size
    """Of an image."""

    def __call__(self, z: Tensor, *, with_grad: bool) -> tuple[Tensor, Tensor]:
        """f (B,) at z (B, C, H, W), and its gradient like z; empty without `with_grad`."""
        op = getattr(torch.ops, COMPILED).conv_log_density.default
        with torch._C._AutoDispatchBelowAutograd():
            f, grad = op(z, self.packed, self.channels, self.slope, with_grad)
        return f, grad

    def takes(self, z: Tensor) -> bool:
        """Whether it was read for batches like z."""
        return z.shape[1:] == self.shape and plain.is_plain(z, self.packed)


def fit(f: object, z: Tensor) -> Net | None:
    """f as the operation reads it, for batches like z (B, C, H, W); None if it can't.

    A `ConvEnergy`, or an nn.Sequential of the same layers that ends in nn.Flatten(0), in float32.
    The weights are copied: what becomes of f's own does not count.

    >>> net = fit(ConvEnergy(width=8), torch.zeros(4, 3, 32, 32))
    >>> f, grad = net(torch.zeros(4, 3, 32, 32), with_grad=True)  # needs the compiled library
    >>> f.shape, grad.shape
    (torch.Size([4]), torch.Size([4, 3, 32, 32]))
    """
    if not (plain.is_plain(z, z) and z.is_cpu and z.dtype == torch.float32 and z.dim() == 4):
        return None
    if not plain.undisturbed() or torch.is_autocast_enabled("cpu") or select("cpu") != "cpp":
        return None
    layers = _layers(f)
    convolutions, activations = layers[:-2:2], layers[1:-2:2]
    if not 1 <= len(convolutions) == len(activations) <= MOST_LAYERS:
        return None
    slope = _slope(activations)
    channels = [z.shape[1], *(c.out_channels for c in convolutions if type(c) is nn.Conv2d)]
    same = all(map(_is_three_by_three, convolutions, channels))
    if slope is None or not same or not _reads_all(layers[-2:], channels[-1], z):
        return None
    given = [plain.weight_and_bias(layer, z) for layer in (*convolutions, layers[-1])]
    if any(each is None for each in given):
        return None
    (*weights, readout), (*biases, readout_bias) = zip(*given, strict=True)
    with torch._C._AutoDispatchBelowAutograd():
        packed = getattr(torch.ops, COMPILED).conv_pack.default(
            weights, biases, readout.view(channels[-1], *z.shape[2:]), readout_bias
        )
    return Net(packed, channels, slope, z.shape[1:])


def _layers(f: object) -> list[nn.Module]:
    """Those between z and (B, 1), if f is nothing else; else none."""
    if type(f) is ConvEnergy and type(f.net) is nn.Sequential:
        layers, others = list(f.net), [f, f.net]
    elif type(f) is nn.Sequential and len(f) > 1 and plain.flattens(f[-1], 0):
        layers, others = list(f)[:-1], [f, f[-1]]
    else:
        return []
    modules = [*layers, *others]
    return [] if plain.hooked(modules) or plain.replaced(modules) else layers


def _slope(activations: list[nn.Module]) -> float | None:
    """The leaky ReLU's, if all are the same one; 0 is ReLU."""
    slopes = set()
    for layer in activations:
        if type(layer) is nn.LeakyReLU:
            slopes.add(float(layer.negative_slope))
        else:
            slopes.add(0.0 if type(layer) is nn.ReLU else -1.0)
    slope = slopes.pop()
    return slope if not slopes and 0 <= slope < math.inf else None


def _is_three_by_three(layer: nn.Module, channels: int) -> bool:
    """A convolution that keeps the image's size, of so many channels."""
    if type(layer) is not nn.Conv2d:
        return False
    same = layer.padding in ((1, 1), "same") and layer.padding_mode == "zeros"
    ones = layer.stride == layer.dilation == (1, 1) and layer.groups == 1
    return layer.kernel_size == (3, 3) and same and ones and layer.in_channels == channels


def _reads_all(layers: list[nn.Module], channels: int, z: Tensor) -> bool:
    """Flatten and Linear, from the whole last feature map to one number."""
    flatten, linear = layers
    features = channels * z.shape[2] * z.shape[3]
    sizes = type(linear) is nn.Linear and (linear.in_features, linear.out_features)
    return plain.flattens(flatten, 1) and sizes == (features, 1)
