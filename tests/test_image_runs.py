"""Image runs in their folders: what they leave, going on with them, and what is no image run."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import image_files
import numpy as np
import pytest
import torch
from image_training import CLASSIFIER_STEPS, TINY, names, same_files
from torch import Tensor, nn
from training import assert_equal

from stanley_fast import (
    checkpoint,
    classifier,
    experiments,
    image_models,
    image_runs,
    keys,
    run_folder,
    runs,
)
from stanley_fast.checkpoint import CheckpointError
from stanley_fast.data import DataError, to_pixels, to_unit
from stanley_fast.image_experiments import ImageConfig, load_splits
from stanley_fast.image_models import CHUNK, chains, generate, load_learned
from stanley_fast.image_presets import preset
from stanley_fast.methods import SettingsError
from stanley_fast.starts import ReplayBuffer
from stanley_fast.trainer import DivergedError, Trainer

pytestmark = pytest.mark.usefixtures("one_thread")

PLAIN = dataclasses.replace(TINY, features="none", evaluate_every=6)
SHAPE = (1, 8, 8)


@pytest.fixture(autouse=True, scope="module")
def quick_classifier() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classifier, "STEPS", CLASSIFIER_STEPS)
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)  # whose state is in checkpoints, though nothing here draws from it
    image_runs.train(TINY, folder, progress=False)
    return folder


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where they are not the point: they take most of a small run's time."""
    monkeypatch.setattr(image_runs.Evaluation, "_draw", lambda *_: None)
    monkeypatch.setattr(run_folder, "draw_loss", lambda _: None)


# What a run leaves -------------------------------------------------------------------------------


def test_a_run_leaves_its_files(finished: Path) -> None:
    assert names(finished) == {
        "config.json", "metrics.csv", "scores.json", "checkpoint.pt", "best.pt",
        "checkpoints/0000004.pt", "checkpoints/0000006.pt",
        *(f"snapshots/{i:07}.pt" for i in (0, 3, 6)),
        "samples.png", "training.png", "chains.gif", "neighbours.png", "energies.png", "fid.png",
        "loss.png",
    }  # fmt: skip
    assert run_folder.load_config(finished, ImageConfig) == TINY
    assert image_models.is_run(finished)
    assert image_models.of_images(finished)


def test_figures_have_floors_and_references(finished: Path) -> None:
    rows = [row for row in run_folder.read_metrics(finished) if "fid" in row]
    assert [row["iteration"] for row in rows] == [0, 3, 6]
    for row in rows:
        assert run_folder.qualities(row)[:2] == ["fid", "kid"]
        assert {"nearest", "confident", "rarest_class"} <= set(run_folder.qualities(row))
        for name in run_folder.qualities(row):
            assert {f"{name}_floor", f"{name}_gaussian"} <= row.keys()
        assert all(map(math.isfinite, row.values()))
    assert rows[0]["fid_floor"] == rows[-1]["fid_floor"]


def test_energies_are_of_samples_training_and_held_out_images(finished: Path) -> None:
    learned, row = load_learned(finished), run_folder.read_metrics(finished)[-1]
    splits, truth = load_splits(TINY), run_folder.key_for(0, "truth")
    z = generate(learned.f, TINY, 20, SHAPE, run_folder.key_for(TINY.seed, "evaluation"))
    for name, images in (
        ("samples", z),
        ("train", to_unit(splits.train.take(20, truth).pixels)),
        ("held_out", to_unit(splits.held_out.take(20, truth).pixels)),
    ):
        with torch.no_grad():
            assert row[f"f_{name}"] == pytest.approx(float(learned.f(images).mean()), rel=1e-5)


def test_scores_have_their_protocol(finished: Path) -> None:
    scores = json.loads((finished / "scores.json").read_text())
    rows = {row["iteration"]: row for row in run_folder.read_metrics(finished)}
    assert [score["iteration"] for score in scores] == [0, 3, 6]
    for score in scores:
        assert score["fid"] == rows[score["iteration"]]["fid"]
        assert score["kid"] == rows[score["iteration"]]["kid"]
        assert score["samples"]["n"] == score["data"]["n"] == 20
        assert score["samples"]["split"] == f"iteration {score['iteration']}"
        assert (score["data"]["name"], score["data"]["split"]) == ("digits", "train")
        assert score["protocol"]["network"].startswith("classifier of 200 of digits (train)")
        assert len(score["protocol"]["weights_sha256"]) == 64


def test_snapshots_hold_the_averaged_model_and_its_samples(finished: Path) -> None:
    shots = image_runs.snapshots(finished)
    assert list(shots) == [0, 3, 6]
    learned = load_learned(finished)  # the checkpoint's average
    snapshot = load_learned(finished / "snapshots" / "0000006.pt")
    assert snapshot.iteration == learned.iteration == 6
    assert_equal(learned.f.state_dict(), snapshot.f.state_dict())
    state = checkpoint.load(finished / "checkpoint.pt")
    assert not torch.equal(state["f"]["1.net.0.weight"], learned.f.state_dict()["1.net.0.weight"])
    assert snapshot.samples is not None
    assert torch.equal(snapshot.samples, shots[6])
    z = generate(learned.f, TINY, 20, SHAPE, run_folder.key_for(TINY.seed, "evaluation"))
    assert torch.equal(to_pixels(z), shots[6])
    assert learned.config == TINY
    assert learned.shape == SHAPE


def test_best_is_of_the_smallest_fid(finished: Path) -> None:
    rows = [row for row in run_folder.read_metrics(finished) if "fid" in row]
    best = min(rows, key=lambda row: row["fid"])
    state = checkpoint.load(finished / "best.pt")
    assert (state["iteration"], state["best"]) == (best["iteration"], best["fid"])
    assert load_learned(finished / "best.pt").iteration == best["iteration"]


def test_without_features_or_average(tmp_path: Path) -> None:
    config = dataclasses.replace(PLAIN, ema=None, autocast=True, start="noise")
    image_runs.train(config, tmp_path, progress=False, keep=1)
    assert not {"scores.json", "best.pt", "fid.png"} & names(tmp_path)
    assert not any(name.startswith("checkpoints/") for name in names(tmp_path))
    row = run_folder.read_metrics(tmp_path)[-1]
    assert run_folder.qualities(row) == []
    assert {"f_samples", "f_train", "f_held_out", "gap"} <= row.keys()
    state = checkpoint.load(tmp_path / "checkpoint.pt")
    assert_equal(load_learned(tmp_path).f.state_dict(), state["f"])


@pytest.mark.parametrize("sampler", ["langevin", "mala", "mh", "hmc", "adjusted-stanley", "ascent"])
@pytest.mark.usefixtures("no_pictures")
def test_every_sampler_trains(sampler: Any, tmp_path: Path) -> None:
    base = preset("digits", sampler=sampler)
    own = ("sampler", "threshold", "step_size", "noise_scale", "leapfrog_steps", "clamp")
    config = dataclasses.replace(
        PLAIN, steps=10, sample_steps=10, iterations=10, evaluate_every=10,
        **{name: getattr(base, name) for name in own},
    )  # fmt: skip
    trainer = image_runs.train(config, tmp_path, progress=False)
    assert trainer.iteration == 10
    assert trainer.algorithm.steps == config.transitions
    (row,) = (row for row in run_folder.read_metrics(tmp_path) if row["iteration"] == 10)
    assert ("acceptance" in row) == config.adjusted


@pytest.mark.usefixtures("no_pictures")
def test_the_settings_alone_decide_the_run(finished: Path, tmp_path: Path) -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    image_runs.train(TINY, tmp_path, progress=False)
    assert torch.equal(torch.get_rng_state(), state)
    for name in ("metrics.csv", "scores.json"):
        assert (tmp_path / name).read_bytes() == (finished / name).read_bytes()
    states = [checkpoint.load(folder / "checkpoint.pt") for folder in (tmp_path, finished)]
    assert not torch.equal(*(state.pop("torch_rng") for state in states))
    assert_equal(*states)


@pytest.mark.usefixtures("no_pictures")
def test_trainer_gets_every_setting(tmp_path: Path) -> None:
    config = dataclasses.replace(PLAIN, grad_clip=0.5, max_gap=77.0, beta1=0.3, autocast=True)
    trainer = image_runs.train(config, tmp_path, progress=False)
    for name in ("grad_clip", "energy_l2", "max_gap", "batch_size"):
        assert getattr(trainer.algorithm, name) == getattr(config, name), name
    for name in ("rollbacks", "checkpoint_every", "evaluate_every"):
        assert getattr(trainer, name) == getattr(config, name), name
    assert trainer.feed.noise == config.data_noise
    assert trainer.optimizer.param_groups[0]["betas"] == (0.3, 0.999)
    assert trainer.updates.rates == [config.learning_rate]
    # The sixth iteration's rate, where the fall from 3 to 6 is two thirds done.
    factor = 1 - 0.9 * (1 + math.cos(math.pi / 3)) / 2
    rate = trainer.optimizer.param_groups[0]["lr"]
    assert rate == pytest.approx(config.learning_rate * factor)


# Going on ----------------------------------------------------------------------------------------


class Stopped(Exception):
    pass


@pytest.fixture
def stop(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """stop(n): the next run stops when n iterations are done."""

    def at(n: int) -> None:
        def iteration(trainer: Trainer) -> None:
            if trainer.iteration == n:
                monkeypatch.setattr(Trainer, "_iteration", original)
                raise Stopped
            original(trainer)

        original = Trainer._iteration
        monkeypatch.setattr(Trainer, "_iteration", iteration)

    return at


def test_resumed_it_ends_as_the_whole(finished: Path, tmp_path: Path, stop: Any) -> None:
    """Stopped behind an evaluation that no checkpoint knows of: it is done again."""
    torch.manual_seed(0)
    for n in (1, 3, 5):
        stop(n)
        with pytest.raises(Stopped):
            image_runs.train(TINY, tmp_path, resume=n > 1, progress=False)
    assert list(image_runs.snapshots(tmp_path)) == [0, 3]
    image_runs.train(TINY, tmp_path, resume=True, progress=False)
    same_files(tmp_path, finished)


@pytest.mark.usefixtures("no_pictures")
def test_going_back_cuts_scores_and_snapshots(tmp_path: Path, finished: Path) -> None:
    """Of evaluations that are gone back on, once another is done."""
    longer = dataclasses.replace(TINY, iterations=12)
    image_runs.train(longer, tmp_path, progress=False, keep=9)
    for path in (tmp_path / "checkpoints").glob("*.pt"):
        if int(path.stem) > 4:
            path.unlink()
    os.replace(tmp_path / "checkpoints" / "0000004.pt", tmp_path / "checkpoint.pt")
    seen: list[set[str]] = []
    evaluate = image_runs.Evaluation.__call__

    def looking(self: image_runs.Evaluation, trainer: Trainer) -> dict[str, float]:
        figures = evaluate(self, trainer)
        scores = json.loads((tmp_path / "scores.json").read_text())
        assert [score["iteration"] for score in scores] == list(image_runs.snapshots(tmp_path))
        seen.append({path.stem for path in (tmp_path / "snapshots").iterdir()})
        return figures

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(image_runs.Evaluation, "__call__", looking)
        image_runs.train(longer, tmp_path, resume=True, progress=False)
    assert seen[0] == {"0000000", "0000003", "0000006"}
    assert list(image_runs.snapshots(tmp_path)) == [0, 3, 6, 9, 12]


@pytest.mark.usefixtures("no_pictures")
def test_a_longer_run(tmp_path: Path) -> None:
    image_runs.train(PLAIN, tmp_path, progress=False)
    longer = dataclasses.replace(PLAIN, iterations=12)
    trainer = image_runs.train(longer, tmp_path, resume=True, progress=False)
    assert trainer.iteration == 12
    assert run_folder.load_config(tmp_path, ImageConfig) == longer
    assert load_learned(tmp_path).config == longer
    with pytest.raises(SettingsError, match="iterations must be at least the 12 that are done"):
        image_runs.train(PLAIN, tmp_path, resume=True, progress=False)


@pytest.mark.usefixtures("no_pictures")
def test_a_run_that_diverges_goes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """And after as many rollbacks as its settings have, it stops."""
    check = Trainer._check

    def failing(trainer: Trainer, metrics: dict[str, float]) -> None:
        check(trainer, metrics | ({"gap": 1e9} if trainer.iteration == 4 else {}))

    monkeypatch.setattr(Trainer, "_check", failing)
    config = dataclasses.replace(PLAIN, rollbacks=2)
    with pytest.raises(DivergedError, match="at iteration 5: the energy gap 1e"):
        image_runs.train(config, tmp_path, progress=False)
    assert capfd.readouterr().err.count("Rolled back to iteration 4") == 2
    assert checkpoint.load(tmp_path / "checkpoint.pt")["iteration"] == 4


# Folders and data that do not fit ----------------------------------------------------------------


def test_a_folder_holds_one_run(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(FileExistsError, match="already holds a run"):
        image_runs.train(TINY, finished, progress=False)
    other = dataclasses.replace(TINY, threshold=0.2)
    with pytest.raises(SettingsError, match=r"the run to resume has threshold 0.4, got 0.2"):
        image_runs.train(other, finished, resume=True, progress=False)
    with pytest.raises(FileNotFoundError, match="holds no run"):
        image_runs.train(TINY, tmp_path, resume=True, progress=False)


@pytest.mark.usefixtures("no_pictures")
def test_overwriting(tmp_path: Path) -> None:
    image_runs.train(TINY, tmp_path, progress=False)
    (tmp_path / "mine.txt").write_text("keep")
    shorter = dataclasses.replace(PLAIN, iterations=2, evaluate_every=2)
    image_runs.train(shorter, tmp_path, overwrite=True, progress=False, keep=1)
    assert names(tmp_path) == {
        "mine.txt", "config.json", "metrics.csv", "checkpoint.pt", "snapshots/0000000.pt",
        "snapshots/0000002.pt",
    }  # fmt: skip


@pytest.mark.usefixtures("no_pictures")
def test_overwriting_waits_until_all_is_ready(tmp_path: Path) -> None:
    """Data that are not there, or do not fit, cost no run."""
    folder = tmp_path / "run"
    image_runs.train(PLAIN, folder, progress=False)
    before = {name: (folder / name).read_bytes() for name in names(folder)}
    images = image_files.pixels(20, 8, 12)
    np.save(tmp_path / "oblong.npy", images)
    np.save(tmp_path / "unlabelled.npy", images[:, :, :8])
    for place, more, error, message in (
        ("nowhere.npz", {}, FileNotFoundError, "source must be one of .* got .*nowhere.npz"),
        ("oblong.npy", {}, SettingsError, "images must be square, got 12x8"),
        ("unlabelled.npy", {"features": "classifier"}, DataError, "has no labels of two classes"),
    ):
        config = dataclasses.replace(PLAIN, data="folder", place=str(tmp_path / place), **more)
        with pytest.raises(error, match=message):
            image_runs.train(config, folder, overwrite=True, progress=False)
        assert {name: (folder / name).read_bytes() for name in names(folder)} == before


@pytest.mark.usefixtures("no_pictures")
def test_other_data_do_not_go_on_with_a_run(tmp_path: Path) -> None:
    place, folder = tmp_path / "mine.npy", tmp_path / "run"
    config = dataclasses.replace(PLAIN, data="folder", place=str(place), iterations=6)
    np.save(place, image_files.pixels(20, 8, 8))
    image_runs.train(config, folder, progress=False)
    saved = (folder / "config.json").read_text()
    np.save(place, image_files.pixels(20, 8, 8, seed=1))
    longer = dataclasses.replace(config, iterations=12)
    with pytest.raises(CheckpointError, match=r"the run in .* has data [0-9a-f]{64}, got [0-9a-f]"):
        image_runs.train(longer, folder, resume=True, progress=False)
    assert (folder / "config.json").read_text() == saved
    np.save(place, image_files.pixels(20, 16, 16))
    with pytest.raises(CheckpointError, match="is of another run: Error"):
        image_runs.train(config, folder, resume=True, progress=False)
    np.save(place, image_files.pixels(20, 8, 8))
    assert image_runs.train(longer, folder, resume=True, progress=False).iteration == 12


def test_a_damaged_snapshot_does_not_stop_a_run(finished: Path, tmp_path: Path) -> None:
    shots = tmp_path / "snapshots"
    shots.mkdir()
    for path in (finished / "snapshots").iterdir():
        (shots / path.name).write_bytes(path.read_bytes())
    (shots / "0000003.pt").write_bytes(b"PK damaged")
    (shots / "favourite.pt").write_bytes(b"")
    with pytest.warns(RuntimeWarning, match=r"left out of the picture: .*\.pt"):
        assert list(image_runs.snapshots(tmp_path)) == [0, 6]


# What is no image run ----------------------------------------------------------------------------


class Malicious:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch was_run",)


def toy_checkpoint(folder: Path) -> Path:
    config = experiments.preset("rings", "stanley")
    state = {
        "f": runs.new_model(0).state_dict(), "average": None, "iteration": 1,
        "notes": {"config": dataclasses.asdict(config)},
    }  # fmt: skip
    checkpoint.save(folder / "toy.pt", state)
    return folder / "toy.pt"


def changed(finished: Path, folder: Path, **config: Any) -> Path:
    state = checkpoint.load(finished / "checkpoint.pt")
    state["notes"]["config"] |= config
    checkpoint.save(folder / "changed.pt", state)
    return folder / "changed.pt"


def test_load_learned_refuses_other_files(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    good = (finished / "checkpoint.pt").read_bytes()
    (tmp_path / "truncated.pt").write_bytes(good[: len(good) // 2])
    (tmp_path / "malicious.pt").write_bytes(pickle.dumps(Malicious()))
    torch.save({"stanley_fast": 2, "state": Malicious()}, tmp_path / "zipped.pt")
    state = checkpoint.load(finished / "checkpoint.pt")
    torch.save({"stanley_fast": 1, "state": state}, tmp_path / "old.pt")
    checkpoint.save(tmp_path / "list.pt", [1, 2])  # type: ignore[arg-type]
    bare = {name: value for name, value in state.items() if name != "average"}
    checkpoint.save(tmp_path / "bare.pt", bare)
    no_run = "is not the checkpoint of an image run of this version: "
    for path, message in (
        (tmp_path / "truncated.pt", "is truncated or damaged"),
        (tmp_path / "malicious.pt", "loading anything else could run code"),
        (tmp_path / "zipped.pt", "loading anything else could run code"),
        (tmp_path / "old.pt", "has format 1, this version reads format 2"),
        (tmp_path / "list.pt", "is no checkpoint of stanley-fast"),
        (tmp_path / "bare.pt", f"{no_run}'average'"),
        (toy_checkpoint(tmp_path), f"{no_run}.*unexpected keyword argument 'target'"),
        (changed(finished, tmp_path, width=32), f"{no_run}Error.* loading state_dict"),
    ):
        with pytest.raises(CheckpointError, match=message):
            load_learned(path)
    with pytest.raises(CheckpointError, match=f"{no_run}width must be 1 or more, got 0"):
        load_learned(changed(finished, tmp_path, width=0))
    with pytest.raises(FileNotFoundError, match="there is no checkpoint at"):
        load_learned(tmp_path)
    assert not (tmp_path / "was_run").exists()


def test_a_run_of_images_is_no_toy_run(finished: Path, tmp_path: Path) -> None:
    for path in (finished, finished / "best.pt", finished / "snapshots" / "0000003.pt"):
        with pytest.raises(CheckpointError, match="is not the checkpoint of a toy run"):
            runs.load_learned(path)
    with pytest.raises(CheckpointError, match="does not hold a run's settings"):
        runs.load_config(finished)
    toy = toy_checkpoint(tmp_path)
    assert runs.load_learned(toy).iteration == 1
    assert not image_models.of_images(toy)
    (tmp_path / "config.json").write_text(json.dumps(checkpoint.load(toy)["notes"]["config"]))
    with pytest.raises(CheckpointError, match="does not hold a run's settings"):
        image_runs.train(TINY, tmp_path, resume=True, progress=False)


# Samples -----------------------------------------------------------------------------------------


class Normal(nn.Module):
    """An f whose rounding does not depend on the batch."""

    def forward(self, z: Tensor) -> Tensor:
        return -z.square().flatten(1).sum(1) / 2


@pytest.mark.parametrize("sampler", ["stanley", "mala", "hmc"])
def test_samples_do_not_depend_on_their_number(sampler: Any) -> None:
    leapfrog = 2 if sampler == "hmc" else None
    config = dataclasses.replace(
        preset("digits", sampler=sampler), steps=4, sample_steps=4, leapfrog_steps=leapfrog
    )
    f, key, shape = Normal(), keys.key(3), (1, 3, 3)  # 9 elements: chains share blocks of noise
    most = generate(f, config, 2 * CHUNK + 37, shape, key)
    assert len(most.flatten(1).unique(dim=0)) == len(most)
    for n in (1, 5, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 2 * CHUNK + 1):
        torch.testing.assert_close(generate(f, config, n, shape, key), most[:n], rtol=0, atol=1e-6)
    for n in (1, 64, CHUNK):
        chain = chains(f, config, n, shape, key, keep_every=2)
        torch.testing.assert_close(chain.z, most[:n], rtol=0, atol=1e-6)
        assert chain.trace is not None
        assert len(chain.trace) == config.transitions // 2
        assert torch.equal(chain.trace[-1], chain.z)


def test_samples_of_a_net_do_not_depend_on_their_number() -> None:
    """But for the rounding of a product of another size."""
    f = TINY.make_model(SHAPE)
    most = generate(f, TINY, CHUNK + 30, SHAPE, keys.key(0), steps=20)
    few = generate(f, TINY, 30, SHAPE, keys.key(0), steps=20)
    torch.testing.assert_close(few, most[:30], rtol=0, atol=1e-4)


def test_samples_start_at_uniform_noise_and_take_their_steps() -> None:
    f, key = TINY.make_model(SHAPE), keys.key(0)
    start = generate(f, TINY, 600, SHAPE, key, steps=0)
    assert start.abs().max() < 1
    # 38 400 uniforms on (-1, 1): variance 1/3, and its error sqrt(4/45 / n).
    assert float(start.mean()) == pytest.approx(0, abs=4.5 * math.sqrt(1 / 3 / start.numel()))
    assert float(start.var()) == pytest.approx(1 / 3, abs=4.5 * math.sqrt(4 / 45 / start.numel()))
    usual = generate(f, TINY, 9, SHAPE, key)
    assert torch.equal(usual, generate(f, TINY, 9, SHAPE, key, steps=TINY.sample_steps))
    assert not torch.equal(usual, generate(f, TINY, 9, SHAPE, key, steps=TINY.sample_steps + 1))


@pytest.mark.usefixtures("no_pictures")
def test_evaluations_of_persistent_chains(tmp_path: Path) -> None:
    """As training left them, without repetition; at the beginning noise like theirs."""
    config = dataclasses.replace(PLAIN, samples_from="buffer", samples=30)
    trainer = image_runs.train(config, tmp_path, progress=False)
    assert isinstance(trainer.start, ReplayBuffer)
    chains = trainer.start.chains
    assert chains is not None
    shots = {i: shot.flatten(1) for i, shot in image_runs.snapshots(tmp_path).items()}
    matches = (shots[6][:, None] == to_pixels(chains).flatten(1)).all(2)
    assert matches.sum(1).tolist() == [1] * 30
    assert matches.sum(0).max() == 1
    assert len(shots[0].unique(dim=0)) == 30


def test_autocast_ends_with_each_chain(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the chains' alone, not of who consumes them."""
    seen: list[bool] = []

    class Watching(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            seen.append(torch.is_autocast_enabled("cpu"))
            return -z.flatten(1).square().sum(1)

    config = dataclasses.replace(TINY, autocast=True)
    run = image_models._chains_in_parts
    parts = run(Watching(), config, 2 * CHUNK, SHAPE, keys.key(0), 2, None)
    for _ in parts:
        assert not torch.is_autocast_enabled("cpu")
    assert set(seen) == {True}
