"""Whole chains in the Triton kernel: the chain of the steps. In Triton's interpreter without a GPU.

Nets, samplers and what is compared are test_mlp_chain's; a step takes the interpreter 0.1 s.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from test_mlp_chain import KEY, NETS, SAMPLERS, assert_same, both, net
from test_mlp_chain import start as start_on_cpu
from torch import Tensor, nn

import stanley_fast as sf
from stanley_fast import fusion
from stanley_fast.chain import NonFiniteError, sample
from stanley_fast.energies import MLPEnergy
from stanley_fast.samplers import Langevin, Stanley

triton = pytest.importorskip("triton")
launch_chain = pytest.importorskip("stanley_fast.kernels.launch_chain")

DEVICE = "cpu" if triton.knobs.runtime.interpret else "cuda"

# int() of an array of one element: an error in NumPy 2.4.
pytestmark = pytest.mark.skipif(
    DEVICE == "cpu"
    and triton.__version__ < "3.7"
    and np.lib.NumpyVersion(np.__version__) >= "2.4.0",
    reason="the interpreter of Triton 3.6 has no loops with NumPy 2.4",
)
ADAPTIVE = SAMPLERS["adaptive"]


@pytest.fixture(autouse=True)
def on_triton(one_thread: None) -> Iterator[None]:
    with sf.use_backend("triton"):
        yield


@pytest.fixture
def small_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of as many chains as on a GPU, so that the interpreter too runs several."""
    monkeypatch.setattr(launch_chain, "INTERPRETED_CHAINS", launch_chain.CHAINS)


def make(name: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    return net(name, dtype).to(DEVICE)


def start(f: nn.Module, chains: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return start_on_cpu(f, chains, dtype).to(DEVICE)


# The chain of the steps --------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETS)
def test_is_the_chain_of_the_steps(name: str) -> None:
    """With widths that are powers of two and not, and one chain, a few, and many."""
    dtype = torch.float32 if name == "wide" else torch.float64  # in which it does not fit
    f = make(name, dtype)
    chains = (1, 7, 103)[list(NETS).index(name) % 3]
    atol = 1e-5 if name == "wide" else 1e-11
    assert_same(*both(f, start(f, chains, dtype), ADAPTIVE, 3), atol=atol)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_twenty_steps(dtype: torch.dtype) -> None:
    f = make("toy", dtype)
    atol = 1e-5 if dtype == torch.float32 else 1e-10
    assert_same(*both(f, start(f, 103, dtype), ADAPTIVE, 20), atol=atol)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_and_its_statistics(sampler: str, small_programs: None) -> None:
    """In two programs, the second of them not full."""
    f = make("narrow")
    whole, by_step = both(f, start(f, 13), SAMPLERS[sampler], 2, record=fusion.STATS)
    assert_same(whole, by_step, atol=1e-12)
    for name, want in by_step.stats.items():
        torch.testing.assert_close(whole.stats[name], want, rtol=1e-12, atol=1e-12)


def test_statistics_in_float32() -> None:
    f = make("silu", torch.float32)
    whole, by_step = both(f, start(f, 50, torch.float32), ADAPTIVE, 2, record=fusion.STATS)
    for name, want in by_step.stats.items():
        torch.testing.assert_close(whole.stats[name], want, rtol=1e-5, atol=1e-6)


def test_parts_and_layouts() -> None:
    """A part cuts through a Philox block; z is a view, of four dimensions or transposed."""
    f = make("narrow")
    z0 = start(f, 11)
    whole = sample(f, z0, ADAPTIVE, 2, key=KEY, fused=True).z
    for cut in (1, 6):
        for z, first in ((z0[:cut], 0), (z0[cut:, :, None, None], 3 * cut)):
            part = sample(f, z, ADAPTIVE, 2, key=KEY, fused=True, first=first, total=33).z
            rows = slice(first // 3, first // 3 + len(z))
            torch.testing.assert_close(part.flatten(1), whole[rows], rtol=0, atol=1e-13)
    strided = sample(f, z0.T.contiguous().T, ADAPTIVE, 2, key=KEY, fused=True).z
    assert torch.equal(strided, whole)


@pytest.mark.parametrize("sampler", ["adaptive", "frozen", "langevin"])
def test_no_step_one_step_no_chain(sampler: str) -> None:
    f = make("narrow")
    z0 = start(f, 7)
    none = sample(f, z0, SAMPLERS[sampler], 0, key=KEY, fused=True)
    assert torch.equal(none.z, z0)
    assert none.z.data_ptr() != z0.data_ptr()
    assert_same(*both(f, z0, SAMPLERS[sampler], 1), atol=1e-13)
    empty = sample(f, z0[:0], SAMPLERS[sampler], 2, key=KEY, fused=True, record=fusion.STATS)
    assert empty.z.shape == (0, 3)
    assert [len(empty.stats[name]) for name in fusion.STATS] == [2] * 4


@pytest.mark.parametrize("key", [(0, 0), (2**32 - 1, -1), (-1, 2**32 - 2), (42, 2**63 - 2)])
@pytest.mark.parametrize("first", [0, 2**34 + 3])
def test_noise_of_any_key_and_part(key: tuple[int, int], first: int) -> None:
    """f is constant, so that z moves by the noise alone: that of the steps, block numbers wrap."""
    with torch.no_grad():
        f = MLPEnergy((3, 2, 1)).double().to(DEVICE)
        for parameter in f.parameters():
            parameter.zero_()
    k = torch.tensor(key, device=DEVICE)
    part = {"first": first, "total": first + 27}
    z0 = torch.zeros(7, 3, dtype=torch.float64, device=DEVICE)
    got = sample(f, z0, Langevin(1.0), 2, key=k, fused=True, **part).z
    noise = [sf.reference.normal((7, 3), k, i, dtype=torch.float64, **part) for i in range(2)]
    torch.testing.assert_close(got, sum(noise), rtol=0, atol=1e-13)


# What is not finite ------------------------------------------------------------------------------


def test_nan_weights() -> None:
    f = make("narrow")
    with torch.no_grad():
        f.net[2].weight[0, 3] = math.nan
    with pytest.raises(NonFiniteError, match="step 0"):
        sample(f, start(f, 5), Stanley(0.1, clamp=(-1.0, 1.0)), 2, key=KEY, fused=True)


@pytest.mark.parametrize("sampler", [ADAPTIVE, SAMPLERS["langevin, both clamps"]])
def test_one_chain_that_starts_at_infinity(sampler: Stanley | Langevin) -> None:
    f = make("narrow")
    z0 = start(f, 13)
    z0[8, 1] = math.inf
    read = fusion.fit(f, z0, sampler, {})
    z, _ = fusion.run(read, z0, sampler, None, 2, KEY.to(DEVICE), 0, 39, False)
    assert z.isnan().any(dim=1).nonzero().flatten().tolist() == [8]


def test_an_infinite_unit_stays_out_of_the_padding() -> None:
    """f overflows, its gradient does not: the units that fill a layer up must not become NaN."""
    f = MLPEnergy((1, 3, 3, 3, 1)).to(DEVICE)
    with torch.no_grad():
        for parameter in f.parameters():
            parameter.fill_(1.0)
        f.net[0].weight.fill_(2e38)
        f.net[4].weight.fill_(1e-38)
    z0 = torch.full((5, 1), 3.0, device=DEVICE)
    whole, by_step = both(f, z0, Langevin(0.01, 0.1), 2)
    assert whole.rung.startswith("chain: ")
    torch.testing.assert_close(whole.z, by_step.z, rtol=1e-5, atol=0)


# What fits ---------------------------------------------------------------------------------------


def test_a_net_too_large_for_shared_memory_goes_step_by_step() -> None:
    f, z0 = make("wide"), torch.zeros(3, 16, dtype=torch.float64, device=DEVICE)
    with pytest.raises(ValueError, match=r"weights need 296 KB of shared memory, of which there"):
        sample(f, z0, ADAPTIVE, 1, key=KEY, fused=True)
    out = sample(f, z0, ADAPTIVE, 1, key=KEY)
    assert "shared memory" in out.rung


def test_a_call_on_a_gpu_takes_all_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU several calls; the steps go on where the last call ended."""
    f = make("narrow")
    z0 = start(f, 5)
    whole = sample(f, z0, ADAPTIVE, 3, key=KEY, record=fusion.STATS)
    monkeypatch.setattr(fusion, "_WORK_PER_CALL", 1)
    pieces = sample(f, z0, ADAPTIVE, 3, key=KEY, record=fusion.STATS)
    assert torch.equal(pieces.z, whole.z)
    for name in fusion.STATS:
        assert torch.equal(pieces.stats[name], whole.stats[name])
