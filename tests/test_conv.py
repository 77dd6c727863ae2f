"""Convolutional nets in one operation: autograd's value and gradient, to Winograd's rounding."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import threads
from levels import run_at
from torch import Tensor, nn

import stanley_fast as sf
from stanley_fast import conv, sample

pytestmark = pytest.mark.usefixtures("compiled", "one_thread")

OPS = torch.ops.stanley_fast
SAMPLER = sf.Stanley(0.3, noise_scale=0.1)
# Of an image's gradient, and of its value with it: what f changes by over the image's own size. A
# layer adds some 1e-6.
TOLERANCE = 1e-5


def energy(slope: float = 0.0, **options: Any) -> sf.ConvEnergy:
    """A slope of 1 is no kink at all, so that rounding can't decide on a side of it."""
    torch.manual_seed(0)
    f = sf.ConvEnergy(**{"width": 8, "layers": 3, "image_size": 8} | options)
    for i in range(1, len(f.net) - 2, 2):
        f.net[i] = nn.LeakyReLU(slope) if slope else nn.ReLU()
    return f


def images(f: sf.ConvEnergy, n: int = 3, seed: int = 1) -> Tensor:
    return torch.randn(n, *f.shape, generator=torch.Generator().manual_seed(seed))


def exact(f: nn.Module, z: Tensor) -> tuple[Tensor, Tensor]:
    """Value and gradient in float64."""
    f, leaf = f.double(), z.double().requires_grad_()
    value = f(leaf)
    (grad,) = torch.autograd.grad(value.sum(), leaf)
    f.float()
    return value.detach(), grad


def off_kinks(f: sf.ConvEnergy, n: int = 3) -> Tensor:
    """Images whose activations all stay away from zero."""
    nearest: list[float] = []
    hooks = [
        layer.register_forward_pre_hook(
            lambda m, x: nearest.append(float(x[0].detach().abs().min()))
        )
        for layer in list(f.net)[1:-2:2]
    ]
    for seed in range(100):
        z = images(f, n, seed)
        nearest.clear()
        exact(f, z)
        if min(nearest) > 1e-5:
            break
    for hook in hooks:
        hook.remove()
    assert min(nearest) > 1e-5
    return z


def assert_close(got: tuple[Tensor, Tensor], want: tuple[Tensor, Tensor]) -> None:
    value, grad = got
    size = want[1].flatten(1).norm(dim=1)
    assert value.dtype == grad.dtype == torch.float32
    assert ((value - want[0]).abs() <= TOLERANCE * (want[0].abs() + size)).all()
    assert ((grad - want[1]).flatten(1).norm(dim=1) <= TOLERANCE * size).all()


def assert_right(f: nn.Module, z: Tensor) -> None:
    net = conv.fit(f, z)
    assert net is not None
    value, grad = net(z, with_grad=True)
    assert_close((value, grad), exact(f, z))
    alone, none = net(z, with_grad=False)
    assert torch.equal(alone, value)
    assert none.numel() == 0


SHAPES: dict[str, dict[str, Any]] = {
    "two tiles": {},
    "tiles and a rest": {"image_size": 13},
    "less than a tile": {"image_size": 3},
    "a pixel": {"image_size": 1},
    "one layer": {"layers": 1},
    "many layers": {"layers": 9, "image_size": 6},
    "grey": {"channels": 1},
    "a vector and one": {"width": 17},
    "six vectors and one": {"width": 97, "layers": 2, "image_size": 5},
    "wide": {"width": 300, "layers": 2, "image_size": 3},
    "many channels": {"channels": 40, "layers": 2, "image_size": 5},
    "the paper's": {"width": 64, "layers": 5, "image_size": 32},
}


@pytest.mark.parametrize("name", SHAPES)
def test_convolutions_are_what_autograd_gives(name: str) -> None:
    f = energy(1.0, **SHAPES[name])
    assert_right(f, images(f))


@pytest.mark.parametrize("slope", [0.0, 0.2, 3.0])
@pytest.mark.parametrize("name", ["two tiles", "less than a tile", "a vector and one"])
def test_activations_are_what_autograd_gives(name: str, slope: float) -> None:
    f = energy(slope, **SHAPES[name])
    assert_right(f, off_kinks(f))


def test_images_that_are_not_square_and_a_net_of_one_s_own() -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 5, 3, padding="same", bias=False), nn.LeakyReLU(1.0)]
    f = nn.Sequential(*layers, nn.Flatten(), nn.Linear(5 * 7 * 10, 1, bias=False), nn.Flatten(0))
    assert_right(f, torch.randn(3, 2, 7, 10))


def test_an_image_s_bits_are_its_own() -> None:
    """In any batch, for any number of threads, in any order of memory."""
    f = energy(width=20, image_size=13)
    z = images(f, 7)
    net = conv.fit(f, z)
    assert net is not None
    value, grad = net(z, with_grad=True)
    for i in range(7):
        one = net(z[i : i + 1], with_grad=True)
        assert torch.equal(one[0], value[i : i + 1])
        assert torch.equal(one[1], grad[i : i + 1])
    with threads(3):
        assert torch.equal(net(z, with_grad=True)[1], grad)
    other = z.contiguous(memory_format=torch.channels_last)
    assert torch.equal(net(other, with_grad=True)[1], grad)
    assert [t.shape for t in net(z[:0], with_grad=True)] == [(0,), (0, *f.shape)]


LEVEL = """
import sys, torch, stanley_fast as sf
from stanley_fast.backends import vector_level
cases = torch.load(sys.argv[1])
outs = [torch.ops.stanley_fast.conv_log_density(
    z, torch.ops.stanley_fast.conv_pack(*given), *rest, True) for z, given, rest in cases]
torch.save((vector_level(), outs), sys.argv[2])
"""


def arguments(f: sf.ConvEnergy) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """What conv_pack takes, and what conv_log_density takes after z and packed."""
    layers = [m for m in f.net if isinstance(m, nn.Conv2d)]
    width, side = layers[-1].out_channels, f.shape[1]
    readout = f.net[-1].weight.detach().view(width, side, side)
    pack = [m.weight.detach() for m in layers], [m.bias.detach() for m in layers], readout
    channels = [f.shape[0], *(m.out_channels for m in layers)]
    return (*pack, f.net[-1].bias.detach()), (channels, getattr(f.net[1], "negative_slope", 0.0))


@pytest.mark.parametrize("level", ["baseline", "avx2", "avx512"])
def test_every_vector_level(tmp_path: Path, level: str) -> None:
    fs = [energy(1.0, **SHAPES[name]) for name in ("tiles and a rest", "a vector and one", "wide")]
    outs = run_at(level, LEVEL, [(images(f), *arguments(f)) for f in fs], tmp_path)
    for f, got in zip(fs, outs, strict=True):
        assert_close(got, exact(f, images(f)))


# Which f it is for --------------------------------------------------------------------------------


class Own(sf.ConvEnergy):
    """Another class may compute something else."""


def sequential(*layers: nn.Module, end: bool = True) -> nn.Sequential:
    tail = [nn.Flatten(), nn.Linear(4 * 64, 1)]
    return nn.Sequential(*layers, *tail, *([nn.Flatten(0)] if end else []))


def convolution(**options: Any) -> nn.Conv2d:
    return nn.Conv2d(3, 4, **{"kernel_size": 3, "padding": 1} | options)


def hooked() -> nn.Module:
    f = energy()
    f.net[0].register_forward_hook(lambda *_: None)
    return f


def replaced() -> nn.Module:
    f = energy()
    f.forward = lambda z: z.sum((1, 2, 3))  # type: ignore[method-assign]
    return f


OTHERS: dict[str, Callable[[], object]] = {
    "another class": lambda: Own(width=4, layers=1, image_size=8),
    "a function": lambda: energy().forward,
    "hooks": hooked,
    "a forward of its own": replaced,
    "float64": lambda: energy().double(),
    "another size": lambda: energy(image_size=9),
    "no read-out of (B,)": lambda: sequential(convolution(), nn.ReLU(), end=False),
    "1 x 1": lambda: sequential(convolution(kernel_size=1, padding=0), nn.ReLU()),
    "no padding": lambda: sequential(convolution(padding=0), nn.ReLU()),
    "reflections": lambda: sequential(convolution(padding_mode="reflect"), nn.ReLU()),
    "dilation": lambda: sequential(convolution(dilation=2, padding=2), nn.ReLU()),
    "another activation": lambda: sequential(convolution(), nn.SiLU()),
    "two activations": lambda: sequential(
        convolution(), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.LeakyReLU(0.1)
    ),
    "a negative slope": lambda: sequential(convolution(), nn.LeakyReLU(-0.1)),
    "no activation": lambda: sequential(convolution()),
    "groups": lambda: sequential(
        convolution(), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1, groups=2), nn.ReLU()
    ),
    "a pool": lambda: nn.Sequential(convolution(), nn.ReLU(), nn.AvgPool2d(8), nn.Flatten(0)),
    "nothing": nn.Sequential,
    "no convolution": lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 1), nn.Flatten(0)),
}


@pytest.mark.parametrize("name", OTHERS)
def test_another_f_is_called(name: str) -> None:
    assert conv.fit(OTHERS[name](), torch.zeros(4, 3, 8, 8)) is None


def test_it_is_for_plain_states_on_the_cpp_backend() -> None:
    f = energy()
    z = images(f)
    assert conv.fit(f, z) is not None
    assert conv.fit(sequential(convolution(), nn.ReLU()), z) is not None
    with sf.use_backend("reference"):
        assert conv.fit(f, z) is None
    with torch.autocast("cpu", torch.bfloat16):
        assert conv.fit(f, z) is None
    assert conv.fit(f, z.double()) is None
    assert conv.fit(f, z[0]) is None


# In a chain ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sampler",
    [SAMPLER, sf.Langevin(0.1, 0.1), sf.MALA(1e-3), sf.MetropolisHastings(0.01)],
    ids=repr,
)
def test_a_chain_reads_f(sampler: sf.Sampler) -> None:
    f = energy(0.2)
    z0, before = images(f), [p.detach().clone() for p in f.parameters()]
    got = sample(f, z0, sampler, 5, key=sf.key(3), record=["log_density"])
    assert "f's value and gradient in one operation" in got.rung
    want = sample(lambda z: f(z), z0, sampler, 5, key=sf.key(3), record=["log_density"])
    assert "in one operation" not in want.rung
    torch.testing.assert_close(got.z, want.z, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(got.stats, want.stats, rtol=1e-4, atol=1e-4)
    for p, value in zip(f.parameters(), before, strict=True):
        assert p.requires_grad
        assert p.grad is None
        assert torch.equal(p, value)


def test_the_next_chain_has_the_weights_as_they_are_then() -> None:
    f = energy(0.2)
    z0 = images(f)
    first = sample(f, z0, SAMPLER, 3, key=sf.key(3)).z
    with torch.no_grad():
        f.net[0].weight.mul_(2)
    second = sample(f, z0, SAMPLER, 3, key=sf.key(3)).z
    assert not torch.equal(first, second)
    want = sample(lambda z: f(z), z0, SAMPLER, 3, key=sf.key(3)).z
    torch.testing.assert_close(second, want, rtol=1e-4, atol=1e-4)


def test_where_f_must_be_called() -> None:
    f = energy(0.2)
    z0 = images(f)
    calls: dict[str, dict[str, Any]] = {
        "callback": {"callback": lambda k, z: None},
        "autocast": {"autocast": torch.bfloat16},
        "backprop": {"backprop_steps": 1},
    }
    for arguments in calls.values():
        out = sample(f, z0, SAMPLER, 1, key=sf.key(3), **arguments)
        assert "in one operation" not in out.rung
    for compile in (False, True):
        density = sf.Density(f, compile=compile)
        with density.frozen_parameters(z0):
            assert density.read == (not compile)


def test_weights_that_are_not_finite() -> None:
    f = energy()
    f.net[2].weight.data[0, 0, 0, 0] = math.nan
    with pytest.raises(sf.NonFiniteError, match="step 0 in chain 0 and 2 more: the gradient of f"):
        sample(f, images(f), SAMPLER, 3, key=sf.key(7))


# As operations of torch ---------------------------------------------------------------------------


def test_opcheck() -> None:
    f = energy()
    pack, rest = arguments(f)
    torch.library.opcheck(OPS.conv_pack, pack)
    packed = OPS.conv_pack(*pack)
    for with_grad in (True, False):
        torch.library.opcheck(OPS.conv_log_density, (images(f), packed, *rest, with_grad))


def test_there_is_no_second_derivative() -> None:
    f = energy()
    pack, rest = arguments(f)
    z = images(f).requires_grad_()
    value, _ = OPS.conv_log_density(z, OPS.conv_pack(*pack), *rest, True)
    with pytest.raises(RuntimeError, match="conv_log_density has no gradient; call f itself"):
        value.sum().backward()


def changed(given: tuple[Any, ...], i: int, value: Any) -> tuple[Any, ...]:
    return (*given[:i], value, *given[i + 1 :])


def test_bad_arguments() -> None:
    f = energy()
    pack, rest = arguments(f)
    weights, biases, readout, _ = pack
    bad_packs = [
        (1, biases[:2], "biases must be as many as weights, 3, got 2"),
        (0, [], "biases must be as many as weights, 0, got 3"),
        (0, [weights[0][:, :, :2], *weights[1:]], r"weights\[0\] must be \[8, 3, 3, 3\], got"),
        (0, [weights[0][0], *weights[1:]], r"weights\[0\] must be \(O, I, 3, 3\), got"),
        (0, [weights[0], weights[1][:, :7], weights[2]], r"weights\[1\] must be \[8, 8, 3, 3\]"),
        (1, [biases[0][:7], *biases[1:]], r"biases\[0\] must be \[8\], got \[7\]"),
        (
            1,
            [biases[0].double(), *biases[1:]],
            r"biases\[0\] must be float32 on cpu, got torch.float64",
        ),
        (2, readout[0], r"readout must be \(C, H, W\), got"),
        (2, readout[:7], r"readout must be \[8, 8, 8\], got"),
        (3, torch.zeros(2), r"readout_bias must be \[1\], got \[2\]"),
    ]
    for i, value, message in bad_packs:
        with pytest.raises(RuntimeError, match=message):
            OPS.conv_pack(*changed(pack, i, value))
    call = (images(f), OPS.conv_pack(*pack), *rest, True)
    offset = torch.cat([call[1][:1], call[1]])[1:]
    bad_calls = [
        (0, call[0][0], r"z must be \(B, C, H, W\), got"),
        (0, call[0].double(), "z must be float32 on cpu, got torch.float64"),
        (0, call[0][:, :2], "z must have as many channels as the net, got"),
        (0, call[0][:, :, :7], r"packed must be \[\d+\], got \[\d+\]"),
        (1, call[1][1:], r"packed must be \[\d+\], got \[\d+\]"),
        (1, offset, "packed must be as conv_pack gave it"),
        (2, [3], "the number of layers must be from 1 to 32, got 0"),
        (2, [3, 8, 0, 8], "channels must be from 1 to 4096, got 0"),
        (3, -0.5, "slope must be 0 or more and finite, got -0.5"),
    ]
    for i, value, message in bad_calls:
        with pytest.raises(RuntimeError, match=message):
            OPS.conv_log_density(*changed(call, i, value))
