"""Convolutional log-densities f of images, (B, C, H, W) -> (B,)."""

from __future__ import annotations

from torch import Tensor, nn


class _ImageEnergy(nn.Module):
    """f = net(z), for images of one shape; net ends in (B, 1) or (B, 1, 1, 1)."""

    def __init__(self, channels: int, image_size: int, net: nn.Sequential) -> None:
        super().__init__()
        self.shape = (channels, image_size, image_size)
        self.net = net

    def forward(self, z: Tensor) -> Tensor:
        if tuple(z.shape[1:]) != self.shape:
            wanted = ", ".join(map(str, self.shape))
            raise ValueError(f"z must be (B, {wanted}), got {list(z.shape)}")
        f: Tensor = self.net(z)
        return f.flatten()


class ConvEnergy(_ImageEnergy):
    """f of an image by 3x3 convolutions with stride 1: the paper's net for CIFAR-10 and Flowers.

    The paper states five 3x3 layers with stride 1 and ReLU, but neither their width nor how an
    energy comes out of them. Taken here: width 64, as in the author's script; zero padding, so that
    every layer keeps the image's size; and one linear read-out of the whole last feature map, which
    like the top layer of ebm-anatomy's net sees every place by itself.

    Args:
        channels: of the image.
        width: channels of every layer.
        layers: convolutions, each with its activation. A unit of the last sees (2 layers + 1)^2
            pixels: 11 x 11 of five.
        image_size: height and width.
        negative_slope: of LeakyReLU; 0 is ReLU. The author's script has 0.2.

    Calling it: z (B, channels, image_size, image_size), any memory format -> f (B,), z's dtype.
    Raises ValueError: an argument below 1, or a negative slope; z of another shape.
    Source: the paper, Image Generation. 215 041 parameters, 306 MFLOP an image as it stands.

    >>> import torch
    >>> f = ConvEnergy()
    >>> f(torch.zeros(2, 3, 32, 32)).shape, sum(p.numel() for p in f.parameters())
    (torch.Size([2]), 215041)
    """

    def __init__(
        self,
        channels: int = 3,
        width: int = 64,
        layers: int = 5,
        image_size: int = 32,
        *,
        negative_slope: float = 0.0,
    ) -> None:
        _check(channels=channels, width=width, layers=layers, image_size=image_size)
        _check_slope(negative_slope)
        net: list[nn.Module] = []
        for n_in in (channels, *[width] * (layers - 1)):
            net += [nn.Conv2d(n_in, width, 3, padding=1), _activation(negative_slope)]
        net += [nn.Flatten(), nn.Linear(width * image_size**2, 1)]
        super().__init__(channels, image_size, nn.Sequential(*net))


class StridedConvEnergy(_ImageEnergy):
    """f of an image by strided convolutions: ebm-anatomy's net, a sixth of `ConvEnergy`'s work.

    A 3x3 layer with stride 1; 4x4 layers with stride 2 that halve the image and double the width
    until 4x4 pixels are left (4 to 7, as the size has it); a layer that reads f from all of those.

    Args:
        channels: of the image.
        width: channels of the first layer.
        image_size: height and width, 4, 5, 6 or 7 times a power of two.
        negative_slope: of LeakyReLU; 0 is ReLU.

    Calling it: z (B, channels, image_size, image_size), any memory format -> f (B,), z's dtype.
    Raises ValueError: an argument out of its range; z of another shape.
    Source: Nijkamp et al. 2020. 693 569 parameters, 52 MFLOP an image as it stands.

    >>> import torch
    >>> f = StridedConvEnergy()
    >>> f(torch.zeros(2, 3, 32, 32)).shape, sum(p.numel() for p in f.parameters())
    (torch.Size([2]), 693569)
    """

    def __init__(
        self,
        channels: int = 3,
        width: int = 32,
        image_size: int = 32,
        *,
        negative_slope: float = 0.05,
    ) -> None:
        _check(channels=channels, width=width, image_size=image_size)
        _check_slope(negative_slope)
        halvings = image_size.bit_length() - 3
        left = image_size >> max(halvings, 0)
        if halvings < 0 or image_size != left << halvings:
            raise ValueError(
                f"image_size must be 4, 5, 6 or 7 times a power of two, got {image_size}"
            )
        net: list[nn.Module] = [nn.Conv2d(channels, width, 3, padding=1)]
        for i in range(halvings):
            wide = width << i
            net += [_activation(negative_slope), nn.Conv2d(wide, 2 * wide, 4, 2, padding=1)]
        net += [_activation(negative_slope), nn.Conv2d(width << halvings, 1, left)]
        super().__init__(channels, image_size, nn.Sequential(*net))


class Tempered(nn.Module):
    """f / temperature: what exp(f / temperature) is the law of, at temperature 1.

    >>> import torch
    >>> Tempered(nn.Flatten(0), 0.5)(torch.ones(2, 1))
    tensor([2., 2.])
    """

    def __init__(self, f: nn.Module, temperature: float) -> None:
        super().__init__()
        self.f, self.temperature = f, temperature

    def forward(self, z: Tensor) -> Tensor:
        f: Tensor = self.f(z)
        return f / self.temperature


def _activation(negative_slope: float) -> nn.Module:
    return nn.LeakyReLU(negative_slope) if negative_slope else nn.ReLU()


def _check(**counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name} must be 1 or more, got {count}")


def _check_slope(negative_slope: float) -> None:
    if not 0 <= negative_slope < 1:
        raise ValueError(f"negative_slope must be in [0, 1), got {negative_slope}")
