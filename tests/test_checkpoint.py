"""Checkpoints are whole or absent, and reading one runs nothing. metrics.csv keeps step."""

from __future__ import annotations

import csv
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from stanley_fast import checkpoint
from stanley_fast.checkpoint import CheckpointError, load, save
from stanley_fast.metrics_log import MetricsLog

STATE = {"a": torch.arange(1000.0), "nested": {"b": [1, 2.5, "c", None, True]}}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "checkpoint.pt"


def test_round_trip(path: Path) -> None:
    save(path, STATE)
    state = load(str(path))
    assert torch.equal(state["a"], STATE["a"])
    assert state["nested"] == STATE["nested"]
    assert os.listdir(path.parent) == ["checkpoint.pt"]


def test_an_optimizer_state_survives(path: Path) -> None:
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.Adam([parameter])
    parameter.sum().backward()
    optimizer.step()
    save(path, {"optimizer": optimizer.state_dict()})
    again = torch.optim.Adam([parameter])
    again.load_state_dict(load(path)["optimizer"])
    assert torch.equal(again.state[parameter]["exp_avg"], optimizer.state[parameter]["exp_avg"])


class Unwritable:
    def __reduce__(self) -> tuple[object, ...]:
        raise ZeroDivisionError


def test_a_write_that_fails_leaves_the_old_file(path: Path) -> None:
    save(path, STATE)
    before = path.read_bytes()
    with pytest.raises(ZeroDivisionError):
        save(path, {"a": Unwritable()})
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == ["checkpoint.pt"]


@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_a_crash_while_writing_leaves_the_old_file(
    path: Path, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is on disk when the process dies just before `moment` is the old checkpoint."""
    save(path, STATE)

    def die(*args: object) -> None:
        assert torch.equal(load(path)["a"], STATE["a"])
        raise SystemExit

    monkeypatch.setattr(checkpoint.os, moment, die)
    with pytest.raises(SystemExit):
        save(path, {"a": torch.zeros(1)})
    assert torch.equal(load(path)["a"], STATE["a"])


def test_data_is_on_disk_before_the_name(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(checkpoint.os, "fsync", lambda f: (calls.append("fsync"), fsync(f)))
    monkeypatch.setattr(
        checkpoint.os, "replace", lambda a, b: (calls.append("replace"), replace(a, b))
    )
    save(path, STATE)
    assert calls == ["fsync", "replace", "fsync"]  # the file, its name, the folder


def test_missing(path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no checkpoint at .*checkpoint\.pt"):
        load(path)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_truncated(path: Path, share: float) -> None:
    save(path, STATE)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(CheckpointError, match=r"checkpoint\.pt is (truncated or damaged|no check)"):
        load(path)


def test_other_format(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = checkpoint.FORMAT
    monkeypatch.setattr(checkpoint, "FORMAT", ours + 1)
    save(path, STATE)
    monkeypatch.undo()
    with pytest.raises(
        CheckpointError, match=rf"has format {ours + 1}, this version reads format {ours}"
    ):
        load(path)


@pytest.mark.parametrize("content", [[1, 2], {"model": 1}, {"stanley_fast": 1}])
def test_someone_elses_file(path: Path, content: object) -> None:
    path.parent.mkdir()
    torch.save(content, path)
    with pytest.raises(CheckpointError, match="is no checkpoint of stanley-fast"):
        load(path)


class Malicious:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("write", [torch.save, lambda o, p: p.write_bytes(pickle.dumps(o))])
def test_malicious_file_runs_nothing(path: Path, write: object) -> None:
    marker = path.parent / "marker"
    path.parent.mkdir()
    write({"stanley_fast": 1, "state": Malicious(marker)}, path)
    with pytest.raises(CheckpointError, match="could run code"):
        load(path)
    assert not marker.exists()


def test_text_is_no_checkpoint(path: Path) -> None:
    path.parent.mkdir()
    path.write_text("iteration,gap\n0,1\n")
    with pytest.raises(CheckpointError, match="is"):
        load(path)


# metrics.csv ---------------------------------------------------------------------------------


def rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def write(folder: Path, upto: int, at: range) -> None:
    with MetricsLog(folder, ("gap",), upto) as log:
        for iteration in at:
            log.write(iteration, {"gap": iteration / 3})


def test_figures_read_back_exactly(tmp_path: Path) -> None:
    write(tmp_path, 0, range(1, 4))
    assert [(r["iteration"], float(r["gap"])) for r in rows(tmp_path)] == [
        ("1", 1 / 3), ("2", 2 / 3), ("3", 1.0),
    ]  # fmt: skip


def test_rows_are_there_at_once(tmp_path: Path) -> None:
    with MetricsLog(tmp_path, ("gap",), 0) as log:
        assert rows(tmp_path) == []
        log.write(1, {"gap": 0.5})
        assert rows(tmp_path) == [{"iteration": "1", "gap": "0.5"}]


def test_resuming_cuts_later_rows(tmp_path: Path) -> None:
    write(tmp_path, 0, range(10, 60, 10))
    wanted = (tmp_path / "metrics.csv").read_bytes()
    write(tmp_path, 25, range(30, 60, 10))
    assert (tmp_path / "metrics.csv").read_bytes() == wanted


def test_resuming_cuts_a_half_written_row(tmp_path: Path) -> None:
    write(tmp_path, 0, range(90, 130, 10))
    wanted = (tmp_path / "metrics.csv").read_text()
    (tmp_path / "metrics.csv").write_text(wanted[: wanted.index("120,") + 2])  # "12" of 120
    write(tmp_path, 115, range(120, 130, 10))
    assert (tmp_path / "metrics.csv").read_text() == wanted


def test_a_new_run_starts_the_file_anew(tmp_path: Path) -> None:
    write(tmp_path, 0, range(10, 60, 10))
    write(tmp_path, 0, range(10, 20, 10))
    assert len(rows(tmp_path)) == 1


def test_columns_that_come_later(tmp_path: Path) -> None:
    with MetricsLog(tmp_path, ("gap",), 0) as log:
        log.write(1, {"gap": 0.5})
        log.write(2, {"gap": 0.25, "on_ring": 0.9})
        log.write(3, {"gap": 0.125})
    with MetricsLog(tmp_path, ("gap",), 3) as log:
        log.write(4, {"gap": 0.0, "on_ring": 1.0})
    assert [(r["gap"], r["on_ring"]) for r in rows(tmp_path)] == [
        ("0.5", ""), ("0.25", "0.9"), ("0.125", ""), ("0.0", "1.0"),
    ]  # fmt: skip


def test_no_folder_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with MetricsLog(None, ("gap",), 0) as log:
        log.write(1, {"gap": 0.5})
    assert os.listdir(tmp_path) == []


def test_tensorboard_where_it_is_installed(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    write(tmp_path, 0, range(1, 4))
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("gap")] == [
        (i, pytest.approx(i / 3)) for i in (1, 2, 3)
    ]


def test_importing_the_package_does_not_import_tensorboard() -> None:
    code = "import sys, stanley_fast.trainer; assert 'tensorboard' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
