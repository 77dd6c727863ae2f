"""f's weights while a chain runs, and f under autocast: copies within, everything back after."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import stanley_fast as sf
from stanley_fast import sample, weights
from stanley_fast.networks import StridedConvEnergy

pytestmark = pytest.mark.usefixtures("one_thread")

LAST = torch.channels_last
SAMPLER = sf.Stanley(0.3, noise_scale=0.1)


class Net(sf.ConvEnergy):
    """Called, not read: no operation knows its class."""


def conv_net(**options: Any) -> Net:
    torch.manual_seed(0)
    return Net(width=8, layers=3, image_size=8, **options)


def images(n: int = 5, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(n, 3, 8, 8, generator=torch.Generator().manual_seed(1)).to(dtype)


def in_last_order(module: nn.Module) -> list[bool]:
    every = [m for m in module.modules() if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d))]
    return [m.weight.is_contiguous(memory_format=LAST) for m in every]


class Snapshot:
    """What a module must be again."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.parameters = list(module.named_parameters())
        self.values = [p.detach().clone() for _, p in self.parameters]
        self.asks = [p.requires_grad for _, p in self.parameters]

    def assert_back(self) -> None:
        now = list(self.module.named_parameters())
        assert [name for name, _ in now] == [name for name, _ in self.parameters]
        for (_, p), (_, own), value, asks in zip(
            now, self.parameters, self.values, self.asks, strict=True
        ):
            assert p is own
            assert p.requires_grad == asks
            assert p.stride() == value.stride()
            assert torch.equal(p, value)
            assert p.grad is None


# Layout -------------------------------------------------------------------------------------------


def test_convolutions_read_copies_and_get_their_own_back() -> None:
    f = conv_net()
    f.net[0].bias.requires_grad_(False)
    before = Snapshot(f)
    with sf.Density(f).frozen_parameters(images()):
        assert in_last_order(f) == [True] * 3
        assert not any(p.requires_grad for p in f.parameters())
        assert f.net[-1].weight is before.parameters[-2][1]  # a product's needs no copy
    before.assert_back()
    with pytest.raises(ZeroDivisionError), sf.Density(f).frozen_parameters(images()):
        _ = 1 / 0
    before.assert_back()
    with sf.Density(f).frozen_parameters():
        assert in_last_order(f) == [False] * 3


@pytest.mark.parametrize("make", [conv_net, lambda: StridedConvEnergy(width=8, image_size=8)])
def test_the_chain_is_the_same_but_for_rounding(make: Callable[[], nn.Module]) -> None:
    f, z0 = make(), images()
    before = Snapshot(f)
    got = sample(f, z0, SAMPLER, 5, key=sf.key(3), record=["log_density"])
    before.assert_back()
    want = sample(lambda z: f(z), z0, SAMPLER, 5, key=sf.key(3), record=["log_density"])
    torch.testing.assert_close(got.z, want.z, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(got.stats, want.stats, rtol=1e-4, atol=1e-4)
    assert got.z.is_contiguous()


def with_norm() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.InstanceNorm2d(4))


PAYS: dict[str, tuple[Callable[[], nn.Module], Tensor, bool]] = {
    "conv": (conv_net, images(), True),
    "transposed": (lambda: nn.ConvTranspose2d(3, 4, 3), images(), True),
    "bfloat16": (lambda: nn.Conv2d(3, 4, 3).bfloat16(), images(dtype=torch.bfloat16), True),
    "few": (conv_net, images(3), False),
    "float64": (lambda: nn.Conv2d(3, 4, 3).double(), images(dtype=torch.float64), False),
    "one by one": (lambda: nn.Conv2d(3, 4, 1), images(), False),
    "instance norm": (with_norm, images(), False),
    "no convolution": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 1)), images(), False),
}


@pytest.mark.parametrize("name", PAYS)
def test_where_it_pays(name: str) -> None:
    make, z, pays = PAYS[name]
    f = make()
    assert weights.channels_last_pays(f.modules(), z, None) == pays
    before = Snapshot(f)
    with weights.Copies(f, z, None).read():
        changed = any(
            p is not own for p, (_, own) in zip(f.parameters(), before.parameters, strict=True)
        )
        assert changed == pays
    before.assert_back()


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_on_a_gpu_for_tensor_cores(half: torch.dtype) -> None:
    modules, before = list(conv_net().modules()), torch.backends.cudnn.conv.fp32_precision
    with torch._subclasses.FakeTensorMode():
        z = torch.empty(1, 3, 8, 8, device="cuda")
    assert weights.channels_last_pays(modules, z, half)
    try:
        for precision, pays in (("tf32", True), ("ieee", False)):
            torch.backends.cudnn.conv.fp32_precision = precision
            assert weights.channels_last_pays(modules, z, None) == pays
    finally:
        torch.backends.cudnn.conv.fp32_precision = before


def test_a_tied_weight_has_one_copy() -> None:
    f = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1))
    f[1].weight = f[0].weight
    before = Snapshot(f)
    with weights.Copies(f, images(), None).read():
        assert f[1].weight is f[0].weight
        assert f[0].weight is not before.parameters[0][1]
    before.assert_back()
    assert f[1].weight is f[0].weight


def test_what_others_look_at_is_left_alone() -> None:
    f = conv_net()
    f.net[0].register_forward_pre_hook(lambda module, args: None)
    f.net[2].forward = f.net[2].forward
    with weights.Copies(f, images(), None).read():
        assert in_last_order(f) == [False, False, True]
    parametrizations.spectral_norm(f.net[4])
    sample(f, images(), SAMPLER, 2, key=sf.key(3))
    own = {name: p.clone() for name, p in f.state_dict().items()}
    seen: list[dict[str, Tensor]] = []
    sample(
        f, images(), SAMPLER, 2, key=sf.key(3), callback=lambda k, z: seen.append(f.state_dict())
    )
    for state in seen:
        assert all(torch.equal(state[name], p) for name, p in own.items())
        assert all(state[name].stride() == p.stride() for name, p in own.items())


def test_a_compiled_module_is_left_alone() -> None:
    f = conv_net()
    for g in (torch.compile(f), nn.Sequential(torch.compile(f, backend="eager"))):
        with sf.Density(g).frozen_parameters(images()):
            assert in_last_order(f) == [False] * 3
    with sf.Density(f, compile=True).frozen_parameters(images()):
        assert in_last_order(f) == [False] * 3


def test_two_threads_leave_a_module_as_it_was() -> None:
    """One enters while the other is within, and stays longer."""
    f = conv_net()
    before = Snapshot(f)
    inside, leave = threading.Event(), threading.Event()

    def first() -> None:
        with weights.Copies(f, images(), None).read():
            inside.set()
            leave.wait(60)

    thread = threading.Thread(target=first)
    thread.start()
    assert inside.wait(60)
    with weights.Copies(f, images(), None).read():
        assert in_last_order(f) == [True] * 3
        leave.set()
        thread.join()
    before.assert_back()


# Autocast -----------------------------------------------------------------------------------------


class Notes(nn.Module):
    """Two products, and what each call saw."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(2, 16), nn.SiLU(), nn.Linear(16, 1))
        self.seen: list[tuple[torch.dtype, torch.dtype]] = []

    def forward(self, z: Tensor) -> Tensor:
        value = self.net(z).squeeze(1)
        self.seen.append((z.dtype, value.dtype))
        return value


def points(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(10, 2, generator=torch.Generator().manual_seed(1)).to(dtype)


def autocast(enabled: bool = True) -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16, enabled=enabled)


@pytest.mark.parametrize("sampler", [SAMPLER, sf.Langevin(0.1), sf.GradientAscent(0.1)], ids=repr)
def test_f_alone_is_computed_in_bfloat16(sampler: sf.Sampler) -> None:
    f, z0 = Notes(), points()
    before = Snapshot(f)
    arguments = {"steps": 4, "key": sf.key(3), "record": sampler.records}
    asked = sample(f, z0, sampler, autocast=torch.bfloat16, **arguments)
    before.assert_back()
    assert set(f.seen) == {(torch.float32, torch.bfloat16)}
    assert asked.z.dtype == torch.float32
    assert {s.dtype for s in asked.stats.values()} <= {torch.float32, torch.float64}
    with autocast():
        ambient = sample(f, z0, sampler, **arguments)
        assert torch.is_autocast_enabled("cpu")
    assert torch.equal(ambient.z, asked.z)
    # The law of a chain's steps in full precision, f's rounded alone.
    rounded = copy.deepcopy(f)

    def by_hand(z: Tensor) -> Tensor:
        with autocast():
            return rounded(z).float()

    assert torch.equal(sample(by_hand, z0, sampler, **arguments).z, asked.z)
    assert not torch.equal(sample(f, z0, sampler, fused=False, **arguments).z, asked.z)


@pytest.mark.parametrize("sampler", [sf.MALA(0.1), sf.HMC(0.1, 2)], ids=repr)
def test_samplers_that_compare_values_want_them_whole(sampler: sf.Sampler) -> None:
    message = f"autocast must be off for {type(sampler).__name__}: it accepts or rejects"
    with pytest.raises(ValueError, match=message):
        sample(Notes(), points(), sampler, 1, autocast=torch.bfloat16)
    with autocast(), pytest.raises(ValueError, match=message):
        sample(Notes(), points(), sampler, 1)


def test_what_is_asked_overrides_what_is_around() -> None:
    f, z0 = Notes(), points()
    with autocast():
        sample(f, z0, SAMPLER, 2, key=sf.key(3), autocast=torch.float16)
    assert f.seen[0][1] == torch.float16
    with autocast(enabled=False):
        sample(f, z0, SAMPLER, 1, key=sf.key(3))
    assert f.seen[-1][1] == torch.float32


def test_weights_are_rounded_once_a_chain() -> None:
    f = conv_net()
    with sf.Density(f, autocast=torch.bfloat16).frozen_parameters(images()):
        assert {p.dtype for p in f.parameters()} == {torch.bfloat16}
        assert in_last_order(f) == [True] * 3
    f = nn.Sequential(
        nn.Linear(2, 4), nn.LayerNorm(4), nn.Embedding(3, 3), nn.Linear(4, 1).double()
    )
    with weights.Copies(f, points(), torch.bfloat16).read():
        dtypes = [p.dtype for p in f.parameters()]
    assert dtypes == [torch.bfloat16] * 2 + [torch.float32] * 3 + [torch.float64] * 2


def test_gradients_through_a_chain_under_autocast() -> None:
    f = Notes()
    out = sample(f, points(), SAMPLER, 3, key=sf.key(3), backprop_steps=2, autocast=torch.bfloat16)
    out.z.sum().backward()
    assert {p.grad.dtype for p in f.parameters() if p.grad is not None} == {torch.float32}
    assert f.net[0].weight.grad.abs().sum() > 0


def test_the_kernel_for_whole_chains_has_no_autocast() -> None:
    out = sample(sf.MLPEnergy(), points(), SAMPLER, 1, key=sf.key(3), autocast=torch.bfloat16)
    assert "not in one kernel, because autocast" in out.rung
    with pytest.raises(ValueError, match="fused must be 'auto' or False here: autocast"):
        sample(sf.MLPEnergy(), points(), SAMPLER, 1, autocast=torch.bfloat16, fused=True)


def test_half_precision_states_and_large_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under autocast z . g would overflow in float16, where a chain would seem not to be finite."""
    z0 = torch.full((4, 3), 500.0)
    with torch.autocast("cpu", torch.float16):
        out = sample(lambda z: (z * 90).sum(1), z0, SAMPLER, 2, key=sf.key(3))
    assert out.z.isfinite().all()
