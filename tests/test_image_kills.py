"""An image run that is killed at any moment goes on as if it had not been."""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from child_runs import Runs
from image_training import same_files

from stanley_fast import run_folder

RUNS = f"""
    sys.path.insert(0, {str(Path(__file__).parent)!r})
    import signal
    from dataclasses import replace
    from image_training import CLASSIFIER_STEPS, TINY
    from stanley_fast import checkpoint, classifier, image_runs, metrics_log, pictures, plots
    from stanley_fast import run_folder, saves, updates
    from stanley_fast.image_experiments import load_splits
    from stanley_fast.trainer import Trainer

    classifier.STEPS = CLASSIFIER_STEPS
    load_splits(TINY)  # imports what every child would
    import matplotlib.backends.backend_agg, matplotlib.figure, PIL.GifImagePlugin

    def kill_before(place, calls):
        owner, name = place.rsplit(".", 1)
        owner = eval(owner)
        original = getattr(owner, name)

        def counting(*arguments, **settings):
            nonlocal calls
            calls -= 1
            if calls == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*arguments, **settings)

        setattr(owner, name, counting)

    def run(folder, how, place, calls):
        config = TINY
        if place == "pictures":  # a longer run, all of it drawn
            config = replace(TINY, iterations=24, evaluate_every=8)
        else:
            kill_before(place, int(calls))
            for owner, name in (
                (plots, "curves"), (plots, "loss_curve"), (pictures, "energy_histogram"),
            ):
                setattr(owner, name, lambda *arguments: None)
        iteration = Trainer._iteration

        def telling(trainer):
            tell("iteration", trainer.iteration)
            iteration(trainer)

        Trainer._iteration = telling
        torch.manual_seed(0)
        image_runs.train(config, folder, resume=how == "resume", progress=False)
"""


@pytest.fixture
def runs() -> Iterator[Runs]:
    with Runs(RUNS) as runs:
        yield runs


# In the order in which one run meets them: a function, and before which call of it the kill comes.
MOMENTS = [
    ("checkpoint.save", 2),  # the first evaluation: samples are written, best.pt is not
    ("metrics_log.MetricsLog.write", 1),  # the evaluation is done, its row is not written
    ("os.replace", 5),  # a file is written and has not got its name
    ("updates.Updates.step", 2),  # in iteration 2
    ("saves._second_name", 1),  # the checkpoint of 2 has one of its two names
    ("image_runs.add_score", 1),  # the evaluation at 3: figures are computed, nothing is written
    ("pictures.gif", 1),  # scores and samples are written, pictures half so
    ("saves.Saves.save", 1),  # the row is written, the checkpoint of 4 isn't
    ("saves.Saves._tidy", 1),  # old checkpoints are not removed
    ("metrics_log.MetricsLog.write", 1),  # the evaluation at 6
]


def test_kill_9_at_many_places(tmp_path: Path, runs: Runs) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    runs.start(whole, "anew", "os.kill", 1)  # which nothing calls
    assert runs.wait_for("ended") == 0
    for n, (place, calls) in enumerate(MOMENTS):
        runs.start(killed, "resume" if n else "anew", place, calls)
        assert runs.wait_for("ended") == -signal.SIGKILL, (place, calls)
    runs.start(killed, "resume", "os.kill", 1)
    assert runs.wait_for("ended") == 0
    same_files(killed, whole)
    rows = run_folder.read_metrics(killed)
    assert [row["iteration"] for row in rows] == [0, 3, 6]


@pytest.mark.slow
def test_kill_9_at_ten_random_moments(tmp_path: Path, runs: Runs) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    runs.start(whole, "anew", "pictures", 0)
    assert runs.wait_for("ended") == 0
    moments = random.Random(3)
    for n, iteration in enumerate(sorted(moments.sample(range(24), 10))):
        pid = runs.start(killed, "resume" if n else "anew", "pictures", 0)
        runs.wait_for("iteration", iteration)
        # An iteration takes some 10 ms, an evaluation with its pictures a second or two.
        threading.Event().wait(moments.choice([0.005, 0.5]) * moments.random())
        os.kill(pid, signal.SIGKILL)
        assert runs.wait_for("ended") == -signal.SIGKILL
    runs.start(killed, "resume", "pictures", 0)
    assert runs.wait_for("ended") == 0
    same_files(killed, whole)
