"""Toy runs in their folders: what they leave, and resuming them."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch

from stanley_fast import checkpoint, keys, metrics, run_folder, runs
from stanley_fast.checkpoint import CheckpointError
from stanley_fast.energies import Rings
from stanley_fast.experiments import preset
from stanley_fast.methods import SamplerName, SettingsError
from stanley_fast.trainer import DivergedError

TINY = dataclasses.replace(
    preset("rings", "stanley"), steps=3, batch_size=8, iterations=6, evaluate_every=2
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    runs.train(TINY, folder, progress=False)
    return folder


def names(folder: Path) -> set[str]:
    """Everything in it, without TensorBoard's files."""
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} - {
        p.relative_to(folder).as_posix() for p in folder.glob("tensorboard/*")
    }


def test_a_run_leaves_its_files(finished: Path) -> None:
    assert names(finished) == {
        "config.json",
        "metrics.csv",
        "checkpoint.pt",
        "figure1.png",
        "loss.png",
        *(f"snapshots/{i:06d}.pt" for i in (0, 2, 4, 6)),
    }
    assert runs.load_config(finished) == TINY
    assert runs.load_learned(finished).iteration == 6


def test_metrics_hold_the_quality_of_every_evaluation(finished: Path) -> None:
    rows = run_folder.read_metrics(finished)
    assert [row["iteration"] for row in rows if run_folder.qualities(row)] == [0, 2, 4, 6]
    assert run_folder.qualities(rows[0]) == ["ring_share", "radius_w1", "histogram_tv"]
    assert "gap" in rows[-1]


def test_snapshots_hold_the_models_and_samples_evaluated(finished: Path) -> None:
    shots = runs.snapshots(finished)
    assert [shot.iteration for shot in shots] == [2, 4, 6]
    last = run_folder.read_metrics(finished)[-1]
    quality = metrics.quality(Rings(), shots[-1].samples, run_folder.key_for(TINY.seed, "truth"))
    assert quality == {name: last[name] for name in quality}
    learned = runs.load_learned(finished)
    density = runs.learned_density(learned.f, TINY)
    assert torch.equal(shots[-1].density, density)
    again = runs.generate(
        learned.f, TINY, runs.EVALUATED, run_folder.key_for(TINY.seed, "evaluation")
    )
    assert torch.equal(shots[-1].samples, again)


def test_the_learned_density_is_what_the_chains_sample() -> None:
    """Of f = noise_scale^2 log p, Eq. 5 with a small stepsize samples p: so must the density be."""

    class Scaled(torch.nn.Module):
        def forward(self, z: torch.Tensor) -> torch.Tensor:
            return 0.3**2 * -z.square().sum(dim=1) / 2

    config = dataclasses.replace(preset("gmm", "langevin"), step_size=0.1, noise_scale=0.3)
    density = runs.learned_density(Scaled(), config)
    samples = runs.generate(Scaled(), config, 10_000, keys.key(0))
    # N(0, 1) in each coordinate, which the stepsize widens by the factor 1 / (1 - 0.1 * 0.09 / 4).
    # The variance of 10 000 samples has the standard error sqrt(2 / 20 000) = 0.01.
    assert float(samples.var()) == pytest.approx(1, abs=0.05)
    x = metrics.grid_log_density(lambda z: z[:, 0], 1.6, len(density))
    # log-density -x^2 / 2 up to a constant
    inside = (x[100, 180] ** 2 - x[100, 100] ** 2) / 2
    assert float((density[100, 100] / density[100, 180]).log()) == pytest.approx(
        float(inside), rel=1e-3
    )


def test_hmc_makes_the_transitions_that_its_steps_pay_for() -> None:
    config = dataclasses.replace(preset("rings", "hmc"), steps=10)
    f, key = runs.new_model(0), keys.key(0)
    chain = runs.draw(f, config, 20, key, keep_every=1)
    assert chain.trace is not None
    assert len(chain.trace) == 2
    assert torch.equal(runs.generate(f, config, 20, key), chain.z)


@pytest.mark.parametrize("sampler", ["adjusted-stanley", "mala", "mh", "hmc", "ascent"])
def test_every_sampler_trains_and_resumes(
    sampler: SamplerName, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "EVALUATED", 500)
    config = dataclasses.replace(
        preset("rings", sampler), steps=5, batch_size=8, iterations=4, evaluate_every=2
    )
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    runs.train(config, whole, progress=False)
    runs.train(dataclasses.replace(config, iterations=2), parts, progress=False)
    runs.train(config, parts, resume=True, progress=False)
    assert_same_model(whole, parts)
    columns = (whole / "metrics.csv").read_text().splitlines()[0].split(",")
    assert ("acceptance" in columns) == config.adjusted


def test_the_settings_alone_decide_the_run(finished: Path, tmp_path: Path) -> None:
    torch.manual_seed(5)
    torch.set_num_threads(2)
    state = torch.get_rng_state()
    runs.train(TINY, tmp_path, progress=False)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == 2
    assert (tmp_path / "metrics.csv").read_bytes() == (finished / "metrics.csv").read_bytes()
    assert_same_model(finished, tmp_path)


def test_another_seed_gives_another_run(finished: Path, tmp_path: Path) -> None:
    runs.train(dataclasses.replace(TINY, seed=1, iterations=2), tmp_path, progress=False)
    first, other = run_folder.read_metrics(finished)[0], run_folder.read_metrics(tmp_path)[0]
    assert first["ring_share"] != other["ring_share"]
    assert first["ring_share_floor"] != other["ring_share_floor"]


def test_a_longer_run_resumed_is_the_run_at_once(finished: Path, tmp_path: Path) -> None:
    runs.train(dataclasses.replace(TINY, iterations=4), tmp_path, progress=False)
    runs.train(TINY, tmp_path, resume=True, progress=False)
    assert (tmp_path / "metrics.csv").read_bytes() == (finished / "metrics.csv").read_bytes()
    assert names(tmp_path) == names(finished)
    assert runs.load_learned(tmp_path).config == TINY
    assert_same_model(finished, tmp_path)


def test_resuming_without_a_checkpoint_begins_anew(finished: Path, tmp_path: Path) -> None:
    """As after a crash between the first two files."""
    (tmp_path / "config.json").write_text((finished / "config.json").read_text())
    runs.train(TINY, tmp_path, resume=True, progress=False)
    assert_same_model(finished, tmp_path)


def assert_same_model(a: Path, b: Path) -> None:
    one, other = (checkpoint.load(folder / "checkpoint.pt") for folder in (a, b))
    assert one["iteration"] == other["iteration"]
    for name, value in one["f"].items():
        assert torch.equal(value, other["f"][name]), name


def test_a_folder_holds_one_run(finished: Path) -> None:
    with pytest.raises(FileExistsError, match="already holds a run"):
        runs.train(TINY, finished, progress=False)


def test_overwriting_removes_the_run_and_nothing_else(tmp_path: Path) -> None:
    for name in ("mine.txt", "snapshots/mine.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("keep")
    runs.train(TINY, tmp_path, progress=False)
    (tmp_path / "checkpoint.pt.tmp").write_text("left by a crash")
    short = dataclasses.replace(TINY, evaluate_every=6)
    runs.train(short, tmp_path, overwrite=True, progress=False)
    assert names(tmp_path) == {
        "mine.txt",
        "snapshots/mine.txt",
        "config.json",
        "metrics.csv",
        "checkpoint.pt",
        "snapshots/000000.pt",
        "snapshots/000006.pt",
        "figure1.png",
        "loss.png",
    }
    assert runs.load_learned(tmp_path).config == short


def test_resuming_needs_a_run_with_the_same_settings(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no run"):
        runs.train(TINY, tmp_path, resume=True, progress=False)
    with pytest.raises(SettingsError, match=r"the run to resume has threshold 0.1, got 0.2"):
        runs.train(dataclasses.replace(TINY, threshold=0.2), finished, resume=True, progress=False)


def test_a_diverging_run_leaves_its_pictures(tmp_path: Path) -> None:
    config = dataclasses.replace(TINY, learning_rate=1e3, iterations=100)
    with pytest.raises(DivergedError) as caught:
        runs.train(config, tmp_path, progress=False)
    assert "last good state" in str(caught.value)
    assert {"checkpoint.pt", "metrics.csv"} <= names(tmp_path)
    state = checkpoint.load(tmp_path / "checkpoint.pt")["f"]
    assert all(bool(value.isfinite().all()) for value in state.values())


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"target": "rings"}', json.dumps({"colour": "red"})]
)
def test_a_damaged_config(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match="does not hold a run's settings"):
        runs.load_config(tmp_path)


def test_load_learned_refuses_other_checkpoints(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no checkpoint at"):
        runs.load_learned(tmp_path)
    for name, state in (
        ("empty.pt", {}),
        ("notes.pt", {"f": {}, "notes": {"config": dataclasses.asdict(TINY)}, "iteration": 1}),
        ("config.pt", {"f": runs.new_model(0).state_dict(), "notes": {"config": {"a": 1}}}),
    ):
        checkpoint.save(tmp_path / name, state)
        with pytest.raises(CheckpointError, match="is not the checkpoint of a toy run"):
            runs.load_learned(tmp_path / name)


def test_generate_takes_other_steps() -> None:
    f, key = runs.new_model(0), keys.key(0)
    start = runs.generate(f, TINY, 50_000, key, steps=0)
    # The start: sd 2 in each of the 100 000 coordinates, relative standard error 1 / sqrt(2e5).
    assert float(start.std()) == pytest.approx(2, rel=5 / math.sqrt(2e5))
    assert torch.equal(runs.generate(f, TINY, 10, key, steps=3), runs.generate(f, TINY, 10, key))
    assert not torch.equal(
        runs.generate(f, TINY, 10, key, steps=4), runs.generate(f, TINY, 10, key)
    )


def test_resuming_with_fewer_iterations_than_done(finished: Path) -> None:
    before = (finished / "config.json").read_text()
    fewer = dataclasses.replace(TINY, iterations=2)
    with pytest.raises(SettingsError, match="iterations must be at least the 6 that are done"):
        runs.train(fewer, finished, resume=True, progress=False)
    assert (finished / "config.json").read_text() == before


def test_a_damaged_snapshot_does_not_stop_a_run(tmp_path: Path) -> None:
    runs.train(TINY, tmp_path, progress=False)
    (tmp_path / "snapshots" / "000002.pt").write_bytes(b"PK damaged")
    longer = dataclasses.replace(TINY, iterations=8)
    with pytest.warns(RuntimeWarning, match=r"left out of the picture: .*000002\.pt"):
        runs.train(longer, tmp_path, resume=True, progress=False)
    assert [shot.iteration for shot in runs.snapshots(tmp_path)] == [4, 6, 8]
