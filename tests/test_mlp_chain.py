"""Whole chains in one kernel: the chain of the steps, for every net, sampler and size that fit."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import threads
from levels import run_at
from torch import Tensor, nn

import stanley_fast as sf
from stanley_fast import fusion
from stanley_fast.chain import Chain, NonFiniteError, sample
from stanley_fast.energies import MLPEnergy
from stanley_fast.samplers import Langevin, Sampler, Stanley

pytestmark = pytest.mark.usefixtures("compiled")

KEY = sf.key(7)
TOY = (2, 32, 64, 64, 64, 1)
SAMPLERS = {
    "adaptive": Stanley(0.1, 0.7, 0.15),
    "script": Stanley(0.1, 0.7, 0.15, update="script"),
    "clamped": Stanley(0.1, 0.7, 0.5, clamp=(-1.0, 0.9)),
    "no noise": Stanley(0.1, noise_scale=0.0),
    "frozen": Stanley(0.1, 0.7, 0.15, stepsize="frozen"),
    "frozen by sample": Stanley(0.1, 0.7, 0.15, stepsize="frozen", norm="sample"),
    "langevin": Langevin(0.14, 0.15),
    "langevin, both clamps": Langevin(0.14, 0.5, grad_clamp=0.05, clamp=(-1.0, 1.0)),
}


def mlp(widths: tuple[int, ...], activation: Callable[[], nn.Module]) -> nn.Sequential:
    """Linear layers that end in (B,)."""
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise(widths):
        layers += [nn.Linear(n_in, n_out), activation()]
    return nn.Sequential(*layers[:-1], nn.Flatten(0))


def conv(bias: bool = True) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, 24, 1), nn.LeakyReLU(0.2), nn.Conv2d(24, 1, 1, bias=bias), nn.Flatten(0)
    )


NETS: dict[str, Callable[[], nn.Module]] = {
    "toy": MLPEnergy,
    "narrow": lambda: MLPEnergy((3, 5, 1)),
    "wide": lambda: MLPEnergy((16, 128, 128, 1)),
    "odd": lambda: MLPEnergy((5, 7, 33, 1), negative_slope=0.0),
    "one unit": lambda: MLPEnergy((1, 1, 1)),
    "eight layers": lambda: MLPEnergy((2, 9, 9, 9, 9, 9, 9, 9, 1)),
    "relu": lambda: mlp((2, 20, 20, 1), nn.ReLU),
    "silu": lambda: mlp((2, 20, 12, 1), nn.SiLU),
    "conv": conv,
    "no bias": lambda: conv(bias=False),
}


def start(f: nn.Module, chains: int, dtype: torch.dtype = torch.float64) -> Tensor:
    first = next(f.parameters())
    d, point = first.shape[1], first.shape[2:]
    return 1.5 * sf.normal((chains, d, *point), sf.key(1), stream=2, dtype=dtype)


def net(name: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(0)
    return NETS[name]().to(dtype)


def both(
    f: nn.Module, z0: Tensor, sampler: Sampler, steps: int, **more: Any
) -> tuple[Chain, Chain]:
    """In one kernel, and step by step."""
    return (
        sample(f, z0, sampler, steps, key=KEY, fused=True, **more),
        sample(f, z0, sampler, steps, key=KEY, fused=False, **more),
    )


def assert_same(whole: Chain, by_step: Chain, atol: float) -> None:
    assert whole.rung.startswith("chain: ")
    assert by_step.rung.startswith("step: ")
    torch.testing.assert_close(whole.z, by_step.z, rtol=0, atol=atol)
    assert torch.equal(whole.key, by_step.key)


# The chain of the steps --------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("chains", [1, 7, 103])
def test_is_the_chain_of_the_steps(name: str, chains: int) -> None:
    f = net(name)
    assert_same(*both(f, start(f, chains), SAMPLERS["adaptive"], 20), atol=1e-10)


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("chains", [7, 103])
def test_is_the_chain_of_the_steps_in_float32(name: str, chains: int) -> None:
    f = net(name, torch.float32)
    z0 = start(f, chains, torch.float32)
    assert_same(*both(f, z0, SAMPLERS["adaptive"], 20), atol=1e-5)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("name", ["toy", "silu", "wide"])
def test_every_sampler(name: str, sampler: str) -> None:
    f = net(name)
    assert_same(*both(f, start(f, 50), SAMPLERS[sampler], 20), atol=1e-10)


def test_trained_weights_one_step_from_shared_states() -> None:
    """Steep as after training: a long chain is chaotic, each of its steps is not."""
    f = net("toy", torch.float32)
    with torch.no_grad():
        for parameter in f.parameters():
            parameter *= 3
    states = [start(f, 100, torch.float32)]
    sampler = Stanley(0.1, noise_scale=0.15)
    sample(f, states[0], sampler, 50, key=KEY, callback=lambda k, z: states.append(z.clone()))
    key = KEY.clone()
    for k in range(50):
        z = sample(f, states[k], sampler, 1, key=key, fused=True).z
        # A unit within rounding of its kink may take the other side.
        off = (z - states[k + 1]).abs().amax(dim=1)
        assert (off < 1e-5).sum() >= 99
        sf.advance_(key, 50)


def test_states_of_four_dimensions_and_other_strides() -> None:
    f = net("toy")
    z0 = start(f, 30)
    want = sample(f, z0, SAMPLERS["adaptive"], 5, key=KEY).z
    point = sample(f, z0[:, :, None, None], SAMPLERS["adaptive"], 5, key=KEY)
    assert point.z.shape == (30, 2, 1, 1)
    assert torch.equal(point.z.flatten(1), want)
    strided = z0.T.contiguous().T
    assert torch.equal(sample(f, strided, SAMPLERS["adaptive"], 5, key=KEY).z, want)
    flatten = nn.Sequential(nn.Flatten(), *f.net, nn.Flatten(0))
    flat = sample(flatten, z0[:, :, None, None], SAMPLERS["adaptive"], 5, key=KEY, fused=True)
    assert torch.equal(flat.z.flatten(1), want)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_no_step_and_one(sampler: str) -> None:
    f = net("toy")
    z0 = start(f, 7)
    none = sample(f, z0, SAMPLERS[sampler], 0, key=KEY, fused=True)
    assert torch.equal(none.z, z0)
    assert none.z.data_ptr() != z0.data_ptr()
    assert torch.equal(none.key, KEY)
    assert_same(*both(f, z0, SAMPLERS[sampler], 1), atol=1e-12)


def test_no_chains() -> None:
    f = net("toy")
    assert sample(f, start(f, 0), SAMPLERS["adaptive"], 5, key=KEY, fused=True).z.shape == (0, 2)


# Bits --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["toy", "narrow", "silu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bits_do_not_depend_on_threads_or_parts(name: str, dtype: torch.dtype) -> None:
    """Nor on which chains share a tile: parts of every size cut through tiles and Philox blocks."""
    f = net(name, dtype)
    z0 = start(f, 103, dtype)
    d, n = z0.shape[1], z0.numel()
    run = lambda z, **part: sample(f, z, SAMPLERS["adaptive"], 30, key=KEY, fused=True, **part).z  # noqa: E731
    with threads(1):
        whole = run(z0)
    for count in (2, 5):
        with threads(count):
            assert torch.equal(run(z0), whole)
    for cut in (1, 9, 40, 97):
        parts = [run(z0[:cut], total=n), run(z0[cut:], first=cut * d, total=n)]
        assert torch.equal(torch.cat(parts), whole)


def test_two_chains_in_a_row_go_on_with_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    f = net("toy", torch.float32)
    z0, sampler = start(f, 33, torch.float32), SAMPLERS["adaptive"]
    whole = sample(f, z0, sampler, 12, key=KEY, record=fusion.STATS)
    half = sample(f, z0, sampler, 5, key=KEY)
    assert torch.equal(sample(f, half.z, sampler, 7, key=half.key).z, whole.z)
    # Long chains are several calls, so that Ctrl-C is heard.
    monkeypatch.setattr(fusion, "_WORK_PER_CALL", 5 * 2 * 33 * 10_800)
    pieces = sample(f, z0, sampler, 12, key=KEY, record=fusion.STATS)
    assert torch.equal(pieces.z, whole.z)
    for name in fusion.STATS:
        assert torch.equal(pieces.stats[name], whole.stats[name])


def test_weights_are_read_at_every_call() -> None:
    f = net("toy")
    z0 = start(f, 20)
    before = sample(f, z0, SAMPLERS["adaptive"], 5, key=KEY).z
    with torch.no_grad():
        f.net[2].weight[3, 4] += 1.0
    whole, by_step = both(f, z0, SAMPLERS["adaptive"], 5)
    assert not torch.equal(whole.z, before)
    assert_same(whole, by_step, atol=1e-12)


def test_several_threads_at_once() -> None:
    f = net("toy", torch.float32)
    z0 = start(f, 100, torch.float32)
    run = lambda seed: sample(f, z0, SAMPLERS["adaptive"], 50, key=sf.key(seed), fused=True).z  # noqa: E731
    want = [run(seed) for seed in range(16)]
    with ThreadPoolExecutor(4) as pool:
        for got, wanted in zip(pool.map(run, range(16)), want, strict=True):
            assert torch.equal(got, wanted)


LEVEL = """
import sys, torch, stanley_fast as sf
from stanley_fast.backends import vector_level
chains = torch.load(sys.argv[1], weights_only=False)
run = lambda chain: sf.sample(*chain, 20, key=sf.key(7), fused=True, record=("log_density",))
outs = [run(chain) for chain in chains]
torch.save((vector_level(), [(out.z, out.stats["log_density"]) for out in outs]), sys.argv[2])
"""


@pytest.mark.parametrize("level", ["baseline", "avx2", "avx512"])
def test_every_vector_level(tmp_path: Path, level: str) -> None:
    fs = [net(name) for name in ("toy", "silu", "odd")]
    chains = [(f, start(f, 103), SAMPLERS["adaptive"]) for f in fs]
    outs = run_at(level, LEVEL, chains, tmp_path)
    for chain, (z, log_density) in zip(chains, outs, strict=True):
        want = sample(*chain, 20, key=KEY, fused=False, record=("log_density",))
        torch.testing.assert_close(z, want.z, rtol=0, atol=1e-10)
        torch.testing.assert_close(log_density, want.stats["log_density"], rtol=0, atol=1e-10)


# Statistics --------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("chains", [7, 103])
def test_statistics_of_every_step(sampler: str, chains: int) -> None:
    f = net("toy")
    whole, by_step = both(f, start(f, chains), SAMPLERS[sampler], 10, record=fusion.STATS)
    assert list(whole.stats) == list(by_step.stats) == list(fusion.STATS)
    for name, want in by_step.stats.items():
        torch.testing.assert_close(whole.stats[name], want, rtol=1e-10, atol=1e-10)


def test_recording_does_not_change_the_chain() -> None:
    f = net("toy", torch.float32)
    z0 = start(f, 100, torch.float32)
    plain = sample(f, z0, SAMPLERS["adaptive"], 30, key=KEY)
    recorded = sample(f, z0, SAMPLERS["adaptive"], 30, key=KEY, record=("stepsize", "grad_abs"))
    assert plain.rung == recorded.rung
    assert list(recorded.stats) == ["stepsize", "grad_abs"]
    assert torch.equal(plain.z, recorded.z)


def test_statistics_do_not_depend_on_threads() -> None:
    f = net("toy", torch.float32)
    z0 = start(f, 1000, torch.float32)
    kept = []
    for count in (1, 2):
        with threads(count):
            kept.append(sample(f, z0, SAMPLERS["adaptive"], 5, key=KEY, record=fusion.STATS).stats)
    for name in fusion.STATS:
        assert torch.equal(kept[0][name], kept[1][name])


# What is not finite ------------------------------------------------------------------------------


@pytest.mark.parametrize("fused", [True, "auto"])
@pytest.mark.parametrize("clamp", [None, (-1.0, 1.0)])
def test_a_parameter_that_is_nan(fused: Any, clamp: tuple[float, float] | None) -> None:
    f = net("toy")
    with torch.no_grad():
        f.net[4].weight[5, 3] = math.nan
    with pytest.raises(NonFiniteError, match="step 0 in chain 0 and 29 more: the gradient of f"):
        sample(f, start(f, 30), Stanley(0.1, clamp=clamp), 5, key=KEY, fused=fused)


@pytest.mark.parametrize("sampler", [Langevin(0.1, 0.1, grad_clamp=1.0), Stanley(0.1, 1.0, 0.1)])
def test_one_chain_that_starts_at_infinity(sampler: Sampler) -> None:
    f = net("toy")
    z0 = start(f, 30)
    z0[17, 1] = math.inf
    with pytest.raises(NonFiniteError, match="step 0 in chain 17: the state") as caught:
        sample(f, z0, sampler, 5, key=KEY, fused=True)
    assert caught.value.chains == [17]


def test_an_infinity_that_a_clamp_hides() -> None:
    """The gradient overflows, the state is brought back: still the chain has failed."""
    f = net("narrow", torch.float32)
    with torch.no_grad():
        for layer in (f.net[0], f.net[2]):
            layer.weight.fill_(1e20)
    sampler = Langevin(0.1, 0.1, grad_clamp=1.0, clamp=(-1.0, 1.0))
    with pytest.raises(NonFiniteError, match="step 0 in chain 0 and 29 more: the gradient of f"):
        sample(f, start(f, 30, torch.float32).abs(), sampler, 5, key=KEY, fused=True)


def test_numbers_beyond_the_float_range_of_a_sum_are_fine() -> None:
    f = net("narrow", torch.float32)
    z0 = torch.full((30, 3), 3e38)
    with torch.no_grad():
        for parameter in f.parameters():
            parameter *= 1e-3
    out = sample(f, z0, Langevin(0.1, 0.1), 2, key=KEY)
    assert out.z.isfinite().all()
