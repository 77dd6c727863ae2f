"""Diagnostics: known answers of AR(1), independent and stuck chains; ArviZ on the same draws."""

from __future__ import annotations

import math
import sys

import arviz_stats
import pytest
import torch
from torch import Tensor

import stanley_fast as sf
from stanley_fast import diagnostics, extras


def ar1(phi: float, draws: int, chains: int) -> Tensor:
    """x_t = phi x_{t-1} + noise, stationary from the start, variance 1; autocorrelation phi^t."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(draws, chains, generator=generator, dtype=torch.float64)
    x = noise.clone()
    for t in range(1, draws):
        x[t] = phi * x[t - 1] + math.sqrt(1 - phi**2) * noise[t]
    return x


@pytest.mark.parametrize("phi", [-0.3, 0.0, 0.5, 0.9])
def test_ess_and_mcse_of_ar1(phi: float) -> None:
    draws, chains = 5000, 4
    tau = (1 + phi) / (1 - phi)
    row = diagnostics.summary(ar1(phi, draws, chains))["z"]
    # Sokal: the relative variance of tau is 2 (2M + 1) / N, with a window M of about 5 tau.
    bound = 4 * math.sqrt(2 * (10 * max(tau, 1) + 1) / (draws * chains))
    assert row["ess_bulk"] == pytest.approx(draws * chains / tau, rel=bound)
    assert row["mcse"] == pytest.approx(math.sqrt(tau / (draws * chains)), rel=bound)
    assert abs(row["mean"]) < 4 * math.sqrt(tau / (draws * chains))
    assert row["sd"] == pytest.approx(1, abs=4 * math.sqrt(tau / (draws * chains)))
    assert 0.999 < row["r_hat"] < 1.01


def test_autocorrelation_of_many_short_chains_is_not_biased() -> None:
    phi, draws, chains = 0.9, 50, 2000
    rho = diagnostics.autocorrelation(ar1(phi, draws, chains))
    assert rho.shape == (draws,)
    want = phi ** torch.arange(draws, dtype=torch.float64)
    # v_t is a mean over chains of means of squares: relative sd at most sqrt(2 / chains), V alike.
    assert ((rho - want).abs() <= 4 * 2 * math.sqrt(2 / chains) * (1 - want) + 1e-12).all()


def test_autocorrelation_by_hand() -> None:
    x = torch.tensor([[1.0, 5.0], [2.0, 3.0], [4.0, 3.0], [4.0, 9.0]])
    centred = x.double() - x.double().mean(dim=0)
    total = (centred**2).mean() + x.double().mean(dim=0).var()
    for lag in range(1, 4):
        v = ((x[lag:] - x[:-lag]) ** 2).double().mean()
        assert float(diagnostics.autocorrelation(x)[lag]) == pytest.approx(float(1 - v / 2 / total))


def test_chains_that_disagree() -> None:
    """Each around a place of its own: every chain looks fine alone."""
    trace = ar1(0.0, 100, 50) * 0.1 + torch.arange(50) / 10
    row = diagnostics.summary(trace)["z"]
    assert row["r_hat"] > 3
    assert row["ess_bulk"] < 2 * 50  # about one a chain
    assert float(diagnostics.autocorrelation(trace)[1]) > 0.99
    # The spread of the chains' means is sqrt(1 / 12) * 5; 50 of them give the mean.
    assert row["mcse"] == pytest.approx(5 / math.sqrt(12 * 50), rel=0.3)


def test_chains_that_never_move() -> None:
    trace = ar1(0.0, 1, 20).expand(10, 20)
    assert diagnostics.summary(trace)["z"]["r_hat"] > 1e3
    assert torch.equal(diagnostics.autocorrelation(trace), torch.ones(10).double())
    assert diagnostics.autocorrelation(torch.ones(10, 3)).isnan().all()


def test_arviz_says_the_same_of_the_inference_data() -> None:
    trace = torch.stack([ar1(0.5, 40, 6), ar1(0.9, 40, 6) + torch.arange(6)], dim=-1)
    table = diagnostics.summary(trace)
    data = diagnostics.to_inference_data(trace)
    assert data.posterior.z.shape == (6, 40, 2)
    rows = {
        "r_hat": arviz_stats.rhat(data),
        "ess_bulk": arviz_stats.ess(data, method="bulk"),
        "ess_tail": arviz_stats.ess(data, method="tail", prob=(0.05, 0.95)),
        "mcse": arviz_stats.mcse(data, method="mean"),
    }
    for name, theirs in rows.items():
        values = theirs["z"].to_numpy() if "z" in theirs else theirs.posterior.z.to_numpy()
        ours = [table[f"z[{i}]"][name] for i in range(2)]
        assert ours == pytest.approx(values.tolist()), name
    assert diagnostics.ess(trace).tolist() == [table[f"z[{i}]"]["ess_bulk"] for i in range(2)]
    tail = diagnostics.ess(trace, "tail").tolist()
    assert tail == [table[f"z[{i}]"]["ess_tail"] for i in range(2)]


def test_shapes_and_names() -> None:
    trace = torch.randn(8, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    assert list(diagnostics.summary(trace)) == ["z[0,0]", "z[0,1]", "z[1,0]", "z[1,1]"]
    assert diagnostics.summary(trace)["z[1,0]"] == diagnostics.summary(trace[:, :, 1, 0])["z"]
    assert diagnostics.ess(trace).shape == (2, 2)
    rho = diagnostics.autocorrelation(trace)
    assert rho.shape == (8, 2, 2)
    torch.testing.assert_close(rho[:, 1, 0], diagnostics.autocorrelation(trace[:, :, 1, 0]))
    assert diagnostics.ess(trace[:, :, 0, 0]).shape == ()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_dtypes(dtype: torch.dtype) -> None:
    trace = ar1(0.5, 50, 4).to(dtype)
    assert diagnostics.summary(trace) == diagnostics.summary(trace.double())


def test_one_chain_has_no_r_hat() -> None:
    row = diagnostics.summary(ar1(0.0, 1000, 1))["z"]
    assert math.isnan(row["r_hat"])
    assert row["ess_bulk"] == pytest.approx(1000, rel=0.3)


def test_a_chains_trace_is_taken() -> None:
    f, z0, key = sf.GaussianMixture(torch.zeros(1, 2), 1.0), torch.zeros(20, 2), sf.key(0)
    chain = sf.sample(f, z0, sf.Langevin(0.5), 40, key=key, keep_every=2)
    assert chain.trace is not None
    assert sf.diagnostics.summary(chain) == diagnostics.summary(chain.trace)


def test_bad_traces() -> None:
    out = sf.sample(sf.Rings(), torch.ones(2, 2), sf.Langevin(0.01), 1, key=sf.key(0))
    with pytest.raises(ValueError, match="chain has no trace: sample with keep_every=1 or more"):
        diagnostics.summary(out)
    for shape in ((3, 5), (10,), (10, 0)):
        with pytest.raises(ValueError, match="4 draws or more of 1 chain or more, got shape"):
            diagnostics.autocorrelation(torch.zeros(shape))
    with pytest.raises(ValueError, match="trace must be finite"):
        diagnostics.ess(torch.full((5, 2), math.inf))


def test_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "arviz_base", None)
    with pytest.raises(extras.MissingExtraError, match=r"stanley-fast\[diagnostics\]"):
        diagnostics.to_inference_data(ar1(0.0, 5, 2))
