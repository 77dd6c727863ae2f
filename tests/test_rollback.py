"""A run that diverges goes back to its newest checkpoint and on from there, more slowly."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from training import assert_equal, by_step, make, rows, weights

from stanley_fast import checkpoint
from stanley_fast.chain import NonFiniteError
from stanley_fast.energies import Rings
from stanley_fast.trainer import DivergedError, Trainer

pytestmark = pytest.mark.usefixtures("one_thread")

AT = 13  # the iteration that diverges; the newest checkpoint is of 10


def fragile(
    folder: Path, *, largest: float, stop: tuple[int, int] | None = None, **more: object
) -> Trainer:
    """Its data are NaN at iteration AT while the learning rate, 1e-3 at first, is above `largest`.

    It is killed at `stop`: iterations done, and rollbacks.
    """

    def data(n: int, key: Tensor) -> Tensor:
        if (run.iteration, run.rolled_back) == stop:
            raise InterruptedError
        x = Rings().sample(n, key)
        rate = run.optimizer.param_groups[0]["lr"]
        return x * torch.nan if run.iteration == AT - 1 and rate > largest else x

    given = {"data": data, "folder": folder, "log_every": 1, "ema": 0.9} | more
    run = make(**given)
    return run


def rate(run: Trainer) -> float:
    return run.optimizer.param_groups[0]["lr"]


def test_it_goes_back_and_on_with_half_the_rate(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = fragile(tmp_path / "one", largest=0.9e-3, rollbacks=3)
    run.fit(20)
    assert (run.iteration, run.rolled_back, rate(run)) == (20, 1, 0.5e-3)
    out, err = capfd.readouterr()
    assert out == ""
    assert "training diverged at iteration 13: NaN or infinity among" in err
    assert "Rolled back to iteration 10, learning rate halved to 0.0005 (1 of 3 rollbacks)." in err
    assert [int(r["iteration"]) for r in rows(tmp_path / "one")] == list(range(1, 21))
    # The same by hand: rows of what was gone back on are not in the file, nor its weights in these.
    whole = fragile(tmp_path / "two", largest=1, checkpoint_every=5)
    whole.fit(10)
    whole.optimizer.param_groups[0]["lr"] = 0.5e-3
    whole.fit(20)
    assert torch.equal(weights(run.f), weights(whole.f))
    assert torch.equal(weights(run.model), weights(whole.model))
    assert rows(tmp_path / "one") == rows(tmp_path / "two")


def test_halvings_add_up_from_one_checkpoint(tmp_path: Path) -> None:
    """Also where the checkpoint is from before the first of them."""
    run = fragile(tmp_path, largest=0.2e-3, rollbacks=3)
    run.fit(20)
    assert (run.rolled_back, rate(run)) == (3, 0.125e-3)
    assert checkpoint.load(tmp_path / "checkpoint.pt")["rolled_back"] == 3


def test_halvings_add_up_from_a_later_checkpoint(tmp_path: Path) -> None:
    """Which has the first halving."""
    run = fragile(tmp_path, largest=0.9e-3, rollbacks=2, checkpoint_every=5)
    run.fit(15)
    assert rate(run) == 0.5e-3
    data, run.feed.data = run.feed.data, lambda n, key: torch.full((n, 2), torch.nan)
    with pytest.raises(DivergedError):
        run.fit(20)  # again and again, until it may not go back any more
    assert (run.rolled_back, rate(run), run.iteration) == (2, 0.25e-3, 15)
    run.feed.data = data
    run.fit(20)
    assert rate(run) == 0.25e-3


def test_no_more_often_than_told(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = fragile(tmp_path, largest=0.2e-3, rollbacks=2)
    with pytest.raises(DivergedError, match="at iteration 13") as caught:
        run.fit(20)
    assert caught.value.last_good == tmp_path / "last_good.pt"
    assert capfd.readouterr().err.count("Rolled back") == 2
    assert run.rolled_back == 2


def test_without_rollbacks_it_stops(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DivergedError):
        fragile(tmp_path, largest=0.9e-3).fit(20)
    assert capfd.readouterr().err == ""


def test_a_schedule_is_of_the_halved_rate(tmp_path: Path) -> None:
    run = fragile(tmp_path, largest=0.6e-3, rollbacks=2, schedule=lambda t: 1.0 if t < 15 else 0.1)
    run.fit(14)
    assert rate(run) == 0.5e-3
    run.fit(20)
    assert rate(run) == pytest.approx(0.05e-3)
    resumed = fragile(tmp_path, largest=1, schedule=lambda t: 1.0)
    resumed.resume()
    resumed.fit(21)
    assert rate(resumed) == 0.5e-3


@pytest.mark.parametrize("stop", [(11, 0), (11, 1), (12, 1), (11, 2), (14, 2), (17, 2)])
def test_killed_after_a_rollback_it_ends_as_if_not(tmp_path: Path, stop: tuple[int, int]) -> None:
    """Before the next checkpoint, at 15, what is resumed goes back again; after it, it doesn't."""
    settings = {"largest": 0.3e-3, "rollbacks": 2, "checkpoint_every": 5, "keep": 2}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    fragile(whole, **settings).fit(20)
    with pytest.raises(InterruptedError):
        fragile(parts, stop=stop, **settings).fit(20)
    resumed = fragile(parts, **settings)
    resumed.resume()
    assert resumed.rolled_back == (2 if stop[0] > 15 else 0)
    resumed.fit(20)
    assert (whole / "metrics.csv").read_bytes() == (parts / "metrics.csv").read_bytes()
    for name in ("checkpoint.pt", "checkpoints/0000015.pt", "checkpoints/0000020.pt"):
        assert_equal(*(checkpoint.load(folder / name) for folder in (whole, parts)))


def test_two_runs_are_the_same(tmp_path: Path) -> None:
    for name in ("one", "two"):
        fragile(tmp_path / name, largest=0.3e-3, rollbacks=2).fit(20)
    one, two = (tmp_path / name for name in ("one", "two"))
    assert (one / "metrics.csv").read_bytes() == (two / "metrics.csv").read_bytes()
    assert_equal(*(checkpoint.load(folder / "checkpoint.pt") for folder in (one, two)))


def test_a_net_that_truly_diverges(tmp_path: Path) -> None:
    """Plain descent whose rate is far too large: the gap grows beyond its bound."""

    def sgd(parameters: object) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, 3.0)  # type: ignore[arg-type]

    settings = {"optimizer": sgd, "max_gap": 20.0, "energy_l2": 0.1}
    with pytest.raises(DivergedError):
        make(by_step(), folder=tmp_path / "stops", **settings).fit(200)
    run = make(by_step(), folder=tmp_path / "goes on", rollbacks=8, **settings)
    run.fit(200)
    assert 1 <= run.rolled_back <= 8
    assert rate(run) == 3.0 * 0.5**run.rolled_back
    assert weights(run.f).isfinite().all()


def test_the_step_to_a_checkpoint_that_ruins_the_weights(tmp_path: Path) -> None:
    run = make(folder=tmp_path, rollbacks=1)
    run.fit(10)
    run.fit(19)

    step = run.optimizer.step

    def ruin(*args: object) -> None:
        step()
        if rate(run) > 0.9e-3:
            run.updates.parameters[0].data.fill_(torch.inf)

    run.optimizer.step = ruin  # type: ignore[method-assign]
    run.fit(20)
    assert (run.iteration, run.rolled_back) == (20, 1)
    assert weights(run.f).isfinite().all()


# Evaluations -------------------------------------------------------------------------------------


def fails_at(iteration: int, above: float = 0.0) -> Callable[[Trainer], dict[str, float]]:
    """An evaluation that leaves the finite numbers while the rate is above a bound."""

    def evaluate(run: Trainer) -> dict[str, float]:
        if run.iteration == iteration and rate(run) > above:
            raise NonFiniteError(0, [0], "the state")
        return {"fid": 100.0 - run.iteration}

    return evaluate


def test_an_evaluation_that_fails(tmp_path: Path) -> None:
    run = make(folder=tmp_path, evaluate=fails_at(16, 0.9e-3), evaluate_every=4, rollbacks=1)
    run.fit(20)
    assert (run.rolled_back, rate(run)) == (1, 0.5e-3)
    evaluated = [int(r["iteration"]) for r in rows(tmp_path) if r["fid"]]
    assert evaluated == [0, 4, 8, 12, 16, 20]


def test_the_first_evaluation_has_nothing_to_go_back_to(tmp_path: Path) -> None:
    run = make(folder=tmp_path, evaluate=fails_at(0), rollbacks=3)
    with pytest.raises(DivergedError, match="at iteration 0: evaluation: NaN") as caught:
        run.fit(20)
    assert caught.value.last_good is None
    assert "last good" not in str(caught.value)
    assert run.rolled_back == 0


def test_the_best_of_what_was_gone_back_on_stays_the_best(tmp_path: Path) -> None:
    """best.pt is on disk: a later, worse one must not take its place."""
    figures = iter([9.0, 5.0, 6.0, 1.0, 7.0, 6.0, 4.0])
    run = fragile(
        tmp_path, largest=0.9e-3, rollbacks=1, evaluate=lambda t: {"fid": next(figures)},
        evaluate_every=4, best_by="fid",
    )  # fmt: skip
    run.fit(20)  # evaluated at 0, 4, 8; 12, diverged; 12, 16, 20
    assert run.best == 1.0
    assert checkpoint.load(tmp_path / "best.pt")["iteration"] == 12
    assert checkpoint.load(tmp_path / "checkpoint.pt")["best"] == 1.0


def test_notes_stay_those_of_the_run(tmp_path: Path) -> None:
    """Not those of the checkpoint, of when a resumed run was to be shorter."""
    make(folder=tmp_path, notes={"iterations": 10}).fit(10)
    run = fragile(tmp_path, largest=0.9e-3, rollbacks=1, ema=None)
    run.resume()
    run.notes = {"iterations": 20}
    run.fit(20)
    assert run.rolled_back == 1
    assert checkpoint.load(tmp_path / "checkpoint.pt")["notes"] == {"iterations": 20}
