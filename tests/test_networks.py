"""Convolutional energies: their sizes, what a unit sees, and that they serve as f everywhere."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import stanley_fast as sf
from stanley_fast.networks import ConvEnergy, StridedConvEnergy

NETS = {
    "conv": lambda **kwargs: ConvEnergy(channels=3, width=8, image_size=8, **kwargs),
    "strided": lambda **kwargs: StridedConvEnergy(channels=3, width=4, image_size=8, **kwargs),
}
each_net = pytest.mark.parametrize("net", NETS)


def images(n: int = 4, size: int = 8) -> torch.Tensor:
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def test_conv_energy_is_five_layers_and_a_read_out() -> None:
    f = ConvEnergy()
    convolutions = [m for m in f.modules() if isinstance(m, nn.Conv2d)]
    assert [(m.kernel_size, m.stride, m.padding) for m in convolutions] == 5 * [
        ((3, 3), (1, 1), (1, 1))
    ]
    assert [m.in_channels for m in convolutions] == [3, 64, 64, 64, 64]
    assert sum(isinstance(m, nn.ReLU) for m in f.modules()) == 5
    # 9 * 3 * 64 + 64, four times 9 * 64 * 64 + 64, and 64 * 32 * 32 + 1.
    assert sum(p.numel() for p in f.parameters()) == 1_792 + 4 * 36_928 + 65_537


def test_conv_energy_sees_eleven_pixels_square() -> None:
    f = ConvEnergy(channels=1, width=4, image_size=21, negative_slope=0.2)
    z = torch.randn(1, 1, 21, 21, requires_grad=True)
    features = f.net[:-2](z)  # before the read-out
    seen = torch.autograd.grad(features[0, :, 10, 10].sum(), z)[0][0, 0] != 0
    assert seen[5:16, 5:16].all()
    assert seen.sum() == 11 * 11


def test_conv_energy_reads_every_place_by_itself() -> None:
    """f is the sum over the last map of its values times weights of their own."""
    f = ConvEnergy(channels=3, width=8, image_size=8)
    z = images()
    weight, bias = f.net[-1].weight, f.net[-1].bias
    want = (f.net[:-2](z) * weight.view(1, 8, 8, 8)).sum(dim=(1, 2, 3)) + bias
    torch.testing.assert_close(f(z), want)


def test_strided_conv_energy_is_ebm_anatomys() -> None:
    f = StridedConvEnergy()
    convolutions = [m for m in f.modules() if isinstance(m, nn.Conv2d)]
    layers = [
        (m.in_channels, m.out_channels, m.kernel_size[0], m.stride[0], m.padding[0])
        for m in convolutions
    ]
    assert layers == [
        (3, 32, 3, 1, 1), (32, 64, 4, 2, 1), (64, 128, 4, 2, 1), (128, 256, 4, 2, 1),
        (256, 1, 4, 1, 0),
    ]  # fmt: skip
    slopes = [m.negative_slope for m in f.modules() if isinstance(m, nn.LeakyReLU)]
    assert slopes == 4 * [0.05]
    want: nn.Module = nn.Sequential(*f.net)
    torch.testing.assert_close(f(images(2, 32)), want(images(2, 32)).flatten())


@pytest.mark.parametrize("size", [4, 8, 16, 28, 64])
def test_strided_conv_energy_of_other_sizes(size: int) -> None:
    f = StridedConvEnergy(channels=1, width=2, image_size=size)
    assert f(torch.zeros(3, 1, size, size)).shape == (3,)


@each_net
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_shape_dtype_and_gradient(net: str, dtype: torch.dtype) -> None:
    f = NETS[net]().to(dtype)
    z = images().to(dtype).requires_grad_()
    value = f(z)
    assert value.shape == (4,)
    assert value.dtype == dtype
    (grad,) = torch.autograd.grad(value.sum(), z)
    assert grad.isfinite().all()
    assert (grad != 0).any()


@each_net
def test_gradient_is_that_of_finite_differences(net: str) -> None:
    """Along random directions: gradcheck's fast mode."""
    f = NETS[net](negative_slope=0.2).double()
    z = images(2).double().requires_grad_()
    assert torch.autograd.gradcheck(f, z, fast_mode=True)


@each_net
def test_images_do_not_mix(net: str) -> None:
    f, z = NETS[net](), images()
    torch.testing.assert_close(f(z)[1:2], f(z[1:2]))


@each_net
def test_empty_batch(net: str) -> None:
    assert NETS[net]()(images(0)).shape == (0,)


@each_net
@pytest.mark.parametrize("part", ["weights", "state", "both"])
def test_channels_last(net: str, part: str) -> None:
    f, z = NETS[net](negative_slope=0.2).double(), images().double().requires_grad_()
    want = f(z)
    (grad,) = torch.autograd.grad(want.sum(), z)
    if part in ("weights", "both"):
        f = f.to(memory_format=torch.channels_last)
    other = z.detach()
    if part in ("state", "both"):
        other = other.contiguous(memory_format=torch.channels_last)
    other.requires_grad_()
    got = f(other)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(torch.autograd.grad(got.sum(), other)[0], grad)


@each_net
def test_serves_a_chain(net: str) -> None:
    out = sf.sample(NETS[net](), images(), sf.Stanley(0.1, noise_scale=0.1), 3, key=sf.key(0))
    assert out.z.shape == (4, 3, 8, 8)
    assert out.z.isfinite().all()


@each_net
@pytest.mark.parametrize("shape", [(3, 8, 8), (4, 1, 8, 8), (4, 3, 8, 9), (4, 3), (4, 3, 16, 16)])
def test_other_shapes_are_refused(net: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"z must be \(B, 3, 8, 8\), got \[.*\]"):
        NETS[net]()(torch.zeros(shape))


@pytest.mark.parametrize("name", ["channels", "width", "layers", "image_size"])
def test_counts_are_positive(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be 1 or more, got 0"):
        ConvEnergy(**{name: 0})


@pytest.mark.parametrize("size", [1, 2, 3, 9, 33, 36])
def test_strided_sizes(size: int) -> None:
    with pytest.raises(ValueError, match=f"7 times a power of two, got {size}"):
        StridedConvEnergy(image_size=size)


@each_net
@pytest.mark.parametrize("slope", [-0.1, 1.0, float("nan")])
def test_slopes(net: str, slope: float) -> None:
    with pytest.raises(ValueError, match="negative_slope must be in"):
        NETS[net](negative_slope=slope)
