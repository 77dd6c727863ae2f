"""The benchmarks' arithmetic, and the GPU suite's checks: they pass here, and they can fail."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from gpu import correctness, data
from gpu.rows import FAIL, Rows, failed, load, summary
from providers import NOISE_SCALE, PROVIDERS, THRESHOLD, available, ours
from report import Row, curves, table, write
from toy import by_autograd, by_backward, iteration, torchebm

import stanley_fast as sf

# Timings and their table --------------------------------------------------------------------------


def row(size: int = 1000, dtype: str = "float32", threads: int = 1) -> Row:
    bounds = {"copy": 1e-6, "triad": 2e-6, "noise": 3e-6}
    times = {"naive": 40e-6, "tuned": 20e-6, "cpp": 4e-6, "cpp, new": 5e-6}
    return Row(size, threads, dtype, bounds | times, {"torchebm": "not installed"})


def test_shares_of_the_bounds() -> None:
    assert row().share("cpp", "triad") == pytest.approx(0.5)
    assert row().binding() == "noise"
    assert row().record()["share_of_bound"]["cpp"] == pytest.approx(
        {"copy": 0.25, "triad": 0.5, "noise": 0.75}
    )
    assert dict(curves([row()])["naive, float32"]) == pytest.approx({1000: 3 / 40})


def test_table() -> None:
    head, rule, *lines = table([row(2000, "float64"), row(3000), row(1000)], "cpp").splitlines()
    assert {line.count("|") for line in (head, rule, *lines)} == {head.count("|")}
    assert [line.split(" | ")[0] for line in lines] == ["| 1,000", "| 3,000", "| 2,000"]
    cells = [cell.strip() for cell in lines[0].strip("|").split("|")]
    assert cells[3:12] == ["4.0", "4.00", "50%", "75%", "5.0", "10.0", "5.0", "", ""]


def test_results_are_written(tmp_path: Path) -> None:
    keys = ["cpu", "cores", "vector_level", "torch", "commit", "date", "malloc"]
    facts = {**dict.fromkeys(keys, "some"), "load": 0.5}
    text = write(tmp_path, "cpu", facts, [row(), row(2000), row(threads=2)], "cpp")
    assert (tmp_path / "cpu.md").read_text() == text
    assert "not run: torchebm: not installed" in text
    rows = json.loads((tmp_path / "cpu.json").read_text())["rows"]
    assert rows[0]["binding_bound"] == "noise"
    assert (tmp_path / "cpu.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", ["naive", "tuned", *ours("cpu")])
def test_providers_make_the_same_step(name: str) -> None:
    """Mean and standard deviation of z' at a known gradient, on both sides of the threshold."""
    if (why := available(name, "cpu")) is not None:
        pytest.skip(why)
    n = 100_000
    for slope in (0.5 * THRESHOLD, -4 * THRESHOLD):
        z, grad = torch.zeros(n), torch.full((n,), slope)
        moved = PROVIDERS[name].make(z, grad, sf.key(1))()
        gamma = THRESHOLD / max(THRESHOLD, abs(slope))
        sd = math.sqrt(gamma) * NOISE_SCALE
        assert isinstance(moved, torch.Tensor)
        assert abs(moved.mean() - gamma / 2 * slope) < 5 * sd / math.sqrt(n)
        assert abs(moved.std() / sd - 1) < 5 / math.sqrt(2 * n)


@pytest.mark.parametrize("chain", [by_backward, lambda f, z, k: torchebm(f, z, k)()])
def test_chains_move_every_element(chain: Callable[..., torch.Tensor]) -> None:
    """And leave z0 as it is."""
    if chain is not by_backward and (why := available("torchebm", "cpu")) is not None:
        pytest.skip(why)
    f, z = sf.MLPEnergy(), torch.randn(20, 2)
    before = z.clone()
    assert (chain(f, z, 3) != z).all()
    assert torch.equal(z, before)


def test_the_common_loop_is_the_loop_by_autograd() -> None:
    """But for the gradients of the parameters."""
    f, z = sf.MLPEnergy(), torch.randn(20, 2)
    states = []
    for chain in (by_autograd, by_backward):
        torch.manual_seed(0)
        states.append(chain(f, z, 3))
    assert torch.equal(*states)
    assert all(p.grad is not None for p in f.parameters())


def test_an_iteration_in_plain_torch_learns() -> None:
    """The gap between observations and a chain that stays at 0 grows."""
    torch.manual_seed(0)
    f = sf.MLPEnergy()
    x = torch.randn(50, 2) + 2
    step = iteration(
        f, lambda z: z, lambda: torch.zeros(50, 2), lambda: x, partial(torch.optim.Adam, lr=1e-2)
    )
    losses = [float(step()) for _ in range(30)]
    assert losses[-1] < losses[0] - 0.1


# The GPU suite ------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", data.LAYOUTS)
def test_guarded_memory_shows_what_was_written(layout: str) -> None:
    guarded = data.Guarded(data.random((3, 4, 5, 7), torch.float32), layout, "cpu")
    guarded.assert_untouched()
    guarded.view.add_(1.0)
    guarded.assert_nothing_beside()
    with pytest.raises(AssertionError, match="an input was written"):
        guarded.assert_untouched()
    flat = guarded.view.storage_offset()
    guarded.buffer[flat - 1] = 0.0
    with pytest.raises(AssertionError, match="beside the tensor"):
        guarded.assert_nothing_beside()


def test_excess() -> None:
    want = torch.tensor([1.0, 2.0, math.inf, math.nan])
    got = torch.tensor([1.0, 2.1, math.inf, math.nan])
    assert data.excess(got, want, 0.2) == pytest.approx(0.5)
    with pytest.raises(AssertionError, match="1 of 2 beyond the bound"):
        data.excess(got, want, 0.05)
    for i, value in ((0, math.nan), (2, -math.inf), (3, 0.0)):
        wrong = got.clone()
        wrong[i] = value
        with pytest.raises(AssertionError, match="NaN"):
            data.excess(wrong, want, 0.2)


@pytest.mark.parametrize("dtype", data.DTYPES)
def test_half_an_ulp_is_what_rounding_owes(dtype: torch.dtype) -> None:
    x = torch.randn(1000, generator=torch.Generator().manual_seed(0)) * 10
    owed = data.ulp(x, dtype) / 2  # from float32: torch rounds float64 to half precision twice
    assert ((x.double() - x.to(dtype).double()).abs() <= owed).all()
    neighbours = torch.tensor([1.0, 2.0, 1e-3])  # an ulp is the step up, at powers of two also
    up = torch.nextafter(neighbours, torch.tensor(math.inf))
    assert torch.equal(data.ulp(neighbours, torch.float32), (up - neighbours).double())


def test_a_failing_case_is_a_failing_row_and_the_rest_runs(tmp_path: Path) -> None:
    rows = Rows(tmp_path / "rows.jsonl", "part", "backend")
    ran = []

    def bad() -> float:
        raise RuntimeError("this one")

    def good() -> float:
        ran.append(1)
        return 0.5

    rows.check("what", {"bad": bad, "good": good})
    rows.check("other", {"good": good})
    known = load(rows.path)
    assert len(ran) == 2
    assert [r["verdict"] for r in known] == [FAIL, "pass"]
    assert "1 of 2 failed; bad: RuntimeError: this one" in known[0]["detail"]
    assert known[0]["worst"] == 0.5
    assert failed(known)
    assert not failed(known[1:])
    assert "this one" in summary(known)


def test_values_of_the_compiled_backend(compiled: None, one_thread: None, tmp_path: Path) -> None:
    """The suite's own cases, as they run on a GPU, at the dry run's sizes."""
    rows = Rows(tmp_path / "rows.jsonl", "correctness", "cpp")
    with sf.use_backend("cpp"):
        for dtype in data.DTYPES:
            correctness.run(rows, "cpp", "cpu", dtype)
    assert [r for r in load(rows.path) if r["verdict"] != "pass"] == []


def _shifted(x: torch.Tensor) -> torch.Tensor:
    return x.flatten().roll(1).view(x.shape) if x.numel() else x


def _unwritten(x: torch.Tensor) -> torch.Tensor:
    return torch.cat([x.flatten()[:-1], torch.full_like(x.flatten()[-1:], math.nan)]).view(x.shape)


def _coarse(x: torch.Tensor) -> torch.Tensor:
    return (x.view(torch.int32) & ~127).view(torch.float32)


WRONG: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "the neighbour's noise": _shifted,
    "last element not written": _unwritten,
    "seven bits lost": _coarse,
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_kernel_fails(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = sf.stanley_step

    def wrong(*args: object, **rest: object) -> torch.Tensor:
        return WRONG[name](right(*args, **rest))  # type: ignore[arg-type]

    monkeypatch.setattr(sf, "stanley_step", wrong)
    case = correctness.Case((1025,))
    with pytest.raises(AssertionError):
        correctness.check_step("stanley_step", case, torch.float32, "cpu")


def test_a_wrong_rounding_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    right = sf.langevin_step

    def nearest(*args: Any, **rest: Any) -> torch.Tensor:
        return right(*args, **rest | {"rounding": "nearest"})

    case = correctness.rounding((1025,), "cpu")["1025 from 0"]
    assert case() == 0
    monkeypatch.setattr(sf, "langevin_step", nearest)
    with pytest.raises(AssertionError, match="elements differ"):
        case()
