"""The command line across samplers: what is sampled, and at which temperature."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest

from stanley_fast import cli, keys, runs
from stanley_fast.experiments import exact, preset

TINY = ["--steps=3", "--batch-size=8", "--iterations=4", "--evaluate-every=2"]


@pytest.fixture(autouse=True)
def in_its_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    assert cli.main(["train", "rings", "--folder", str(folder), *TINY]) == 0
    return folder


def test_an_exact_sampler_samples_what_the_unadjusted_one_learned(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It takes f / 0.15^2 at temperature 1: as many chains by hand end at the same states."""
    command = ["sample", str(trained), "--n", "50", "--folder", "s", "--sampler", "hmc"]
    assert cli.main([*command, "--steps", "20"]) == 0
    out = capsys.readouterr().out
    assert "by HMC, step size 0.15, leapfrog steps 5:" in out
    assert 0 < float(re.findall(r"acceptance +([0-9.]+)", out)[0]) <= 1
    f = runs.load_learned(trained).f
    config = dataclasses.replace(exact("rings", "hmc"), steps=20)
    key = keys.split(keys.key(0), 2)[0]
    by_hand = runs.generate(lambda z: f(z) / 0.15**2, config, 50, key)
    np.testing.assert_allclose(np.load("s/samples.npy"), by_hand.numpy(), rtol=1e-5, atol=1e-5)


def test_samplers_of_one_kind_sample_the_same_f(capsys: pytest.CaptureFixture[str]) -> None:
    command = "train rings --folder t --sampler mala"
    assert cli.main([*command.split(), *TINY]) == 0
    assert cli.main(["sample", "t", "--n", "50", "--sampler", "mh"]) == 0
    f = runs.load_learned("t").f
    config = dataclasses.replace(preset("rings", "mh"), steps=3)
    samples = runs.generate(f, config, 50, keys.split(keys.key(0), 2)[0])
    assert np.array_equal(np.load("t/samples/samples.npy"), samples.numpy())
    capsys.readouterr()
    assert cli.main(["sample", "t", "--n", "50", "--sampler", "stanley"]) == 0
    assert "by STANLEY, threshold 10, step size 0.01, noise 1:" in capsys.readouterr().out


def test_unadjusted_samplers_keep_trainings_noise(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["train", "rings", "--folder", "t", "--noise-scale", "0.3", *TINY]) == 0
    assert cli.main(["sample", "t", "--n", "5", "--sampler", "langevin"]) == 0
    assert "by Langevin, step size 0.14, noise 0.3:" in capsys.readouterr().out
    assert cli.main(["sample", str(trained), "--n", "5", "--sampler", "ascent"]) == 0
    assert "by Gradient ascent, step size 0.14:" in capsys.readouterr().out
