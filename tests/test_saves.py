"""Which checkpoints a folder keeps, and going on from any of them."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from training import assert_equal, make, rows, weights

from stanley_fast import checkpoint, saves
from stanley_fast.energies import MLPEnergy, Rings
from stanley_fast.trainer import Trainer

pytestmark = pytest.mark.usefixtures("one_thread")


def kept(folder: Path) -> list[int]:
    return sorted(int(path.stem) for path in (folder / "checkpoints").glob("*.pt"))


def iteration(path: Path) -> int:
    return checkpoint.load(path)["iteration"]


# The last n --------------------------------------------------------------------------------------


def test_the_last_few_are_kept(tmp_path: Path) -> None:
    run = make(folder=tmp_path, keep=3)
    for end, wanted in ((0, [0]), (10, [0, 10]), (35, [20, 30, 35]), (50, [35, 40, 50])):
        run.fit(end)
        assert kept(tmp_path) == wanted
        assert iteration(tmp_path / "checkpoint.pt") == end
    for path in (tmp_path / "checkpoints").iterdir():
        assert iteration(path) == int(path.stem)
    assert (tmp_path / "checkpoint.pt").samefile(tmp_path / "checkpoints" / "0000050.pt")


def test_one_alone_is_checkpoint_pt(tmp_path: Path) -> None:
    make(folder=tmp_path).fit(20)
    assert {p.name for p in tmp_path.glob("*.pt")} == {"checkpoint.pt"}
    assert not (tmp_path / "checkpoints").exists()


def test_a_file_system_without_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(*_: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", link)
    make(folder=tmp_path, keep=2).fit(20)
    assert kept(tmp_path) == [10, 20]
    one, two = (tmp_path / name for name in ("checkpoint.pt", "checkpoints/0000020.pt"))
    assert not one.samefile(two)
    assert_equal(checkpoint.load(one), checkpoint.load(two))


def test_others_files_stay(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "favourite.pt").write_text("mine")
    make(folder=tmp_path, keep=2).fit(30)
    names = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert names == {"favourite.pt", "0000020.pt", "0000030.pt"}


def test_more_iterations_than_a_name_has_digits(tmp_path: Path) -> None:
    many = saves.Saves(tmp_path, keep=2)
    for n in (9_999_998, 9_999_999, 10_000_000):
        many.save(n, {})
    assert kept(tmp_path) == [9_999_999, 10_000_000]


# The best ----------------------------------------------------------------------------------------

QUALITY = {0: 5.0, 4: 3.0, 8: math.nan, 12: 3.0, 16: 2.0, 20: 4.0}


def quality(run: Trainer) -> Mapping[str, float]:
    return {"fid": QUALITY[run.iteration]}


def test_the_best_is_of_the_smallest_figure(tmp_path: Path) -> None:
    run = make(folder=tmp_path, evaluate=quality, evaluate_every=4, best_by="fid")
    for end, best in ((0, 0), (4, 4), (12, 4), (16, 16), (20, 16)):
        run.fit(end)
        assert iteration(tmp_path / "best.pt") == best
    again = make()
    again.resume(tmp_path / "best.pt")
    until = make()
    until.fit(16)
    assert torch.equal(weights(again.f), weights(until.f))


def test_the_best_is_remembered(tmp_path: Path) -> None:
    """A resumed run does not begin again with whatever comes first."""
    settings = {"evaluate": quality, "evaluate_every": 4, "best_by": "fid", "folder": tmp_path}
    make(**settings).fit(16)
    resumed = make(**settings)
    resumed.resume()
    resumed.fit(20)
    assert iteration(tmp_path / "best.pt") == 16


def test_numpys_numbers_are_numbers(tmp_path: Path) -> None:
    """In checkpoints, where they would be code."""
    run = make(
        folder=tmp_path, evaluate=lambda t: {"fid": np.float64(QUALITY[t.iteration])},
        evaluate_every=4, best_by="fid", schedule=lambda t: np.cos(t),
    )  # fmt: skip
    run.fit(4)
    again = make(folder=tmp_path, schedule=lambda t: 1.0)
    again.resume()
    assert again.best == 3.0
    assert rows(tmp_path)[-1]["fid"] == "3.0"
    make(folder=tmp_path / "other", notes={"size": 3}).fit(1)
    with pytest.raises(TypeError, match=r"state must hold tensors, .* got numpy\S*scalar"):
        make(folder=tmp_path / "another", notes={"size": np.float32(3)}).fit(1)
    assert not list((tmp_path / "another").glob("*.pt*"))


def test_a_figure_that_evaluate_does_not_give(tmp_path: Path) -> None:
    run = make(folder=tmp_path, evaluate=quality, evaluate_every=4, best_by="kid")
    with pytest.raises(ValueError, match="best_by must be one of evaluate's fid, got 'kid'"):
        run.fit(1)


# Going on from an earlier one --------------------------------------------------------------------


def interrupted_at(when: int, folder: Path) -> Trainer:
    def data(n: int, key: Tensor) -> Tensor:
        if run.iteration == when:
            raise InterruptedError
        return Rings().sample(n, key)

    run = make(data=data, folder=folder, keep=3)
    return run


def test_going_on_from_an_earlier_one_cuts_the_later(tmp_path: Path) -> None:
    """A crash after that leaves no gap: checkpoint.pt and metrics.csv are the earlier one's."""
    whole, folder = tmp_path / "whole", tmp_path / "parts"
    make(folder=whole, keep=3).fit(50)
    make(folder=folder, keep=3).fit(50)
    run = interrupted_at(33, folder)
    run.resume(folder / "checkpoints" / "0000030.pt")
    with pytest.raises(InterruptedError):
        run.fit(50)
    assert kept(folder) == [30]
    assert iteration(folder / "checkpoint.pt") == 30
    assert [int(r["iteration"]) for r in rows(folder)] == [5, 10, 15, 20, 25, 30]
    last = make(folder=folder, keep=3)
    last.resume()
    assert last.iteration == 30
    last.fit(50)
    assert rows(folder) == rows(whole)
    assert kept(folder) == kept(whole) == [30, 40, 50]
    assert_equal(*(checkpoint.load(f / "checkpoint.pt") for f in (whole, folder)))


def test_a_crash_between_the_two_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, folder = tmp_path / "whole", tmp_path / "parts"
    make(folder=whole, keep=2).fit(30)
    run = make(folder=folder, keep=2)
    run.fit(10)

    def crash(path: Path, name: Path) -> None:
        raise InterruptedError

    with monkeypatch.context() as patch:
        patch.setattr(saves, "_second_name", crash)
        with pytest.raises(InterruptedError):
            run.fit(20)
    assert iteration(folder / "checkpoint.pt") == 10
    again = make(folder=folder, keep=2)
    again.resume()
    again.fit(30)
    assert kept(folder) == [20, 30]
    assert rows(folder) == rows(whole)
    assert_equal(*(checkpoint.load(f / "checkpoint.pt") for f in (whole, folder)))


def test_from_another_folder_it_saves_at_once(tmp_path: Path) -> None:
    make(folder=tmp_path / "one").fit(10)
    run = interrupted_at(12, tmp_path / "two")
    run.resume(tmp_path / "one" / "checkpoint.pt")
    with pytest.raises(InterruptedError):
        run.fit(20)
    assert iteration(tmp_path / "two" / "checkpoint.pt") == 10


# Files that are no checkpoint of this run --------------------------------------------------------


@pytest.mark.parametrize("name", ["checkpoint.pt", "best.pt", "checkpoints/0000010.pt"])
def test_what_is_refused_changes_nothing(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    run, before = make(folder=tmp_path), weights(make().f)
    for spoil, why in (
        (lambda state: torch.save({"stanley_fast": 1, "state": state}, path), "has format 1, this"),
        (lambda state: path.write_bytes(path.read_bytes()[:-100]), "truncated or damaged"),
        (lambda state: checkpoint.save(path, {"iteration": 3}), "of another run: 'average'"),
        (
            lambda state: checkpoint.save(path, {**state, "f": MLPEnergy((2, 8, 1)).state_dict()}),
            "of another run: .* MLPEnergy",
        ),
    ):
        state = make().state_dict()
        checkpoint.save(path, state)
        spoil(state)
        with pytest.raises(checkpoint.CheckpointError, match=why):
            run.resume(path)
        assert torch.equal(weights(run.f), before)
        assert run.iteration == 0
