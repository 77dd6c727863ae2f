"""Presets and settings of the toy experiment."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from stanley_fast import keys
from stanley_fast.chain import sample
from stanley_fast.experiments import SAMPLERS, TARGETS, SettingsError, ToyConfig, exact, preset
from stanley_fast.samplers import Langevin, Stanley

RINGS = preset("rings", "stanley")
LANGEVIN = preset("rings", "langevin")


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("name", ["tuned", "demo", "paper"])
def test_every_preset_exists(target: Any, sampler: Any, name: Any) -> None:
    config = preset(target, sampler, name)
    assert (config.target, config.sampler, config.seed) == (target, sampler, 0)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_exact_settings_sample_the_target(target: Any, sampler: Any) -> None:
    config, density = exact(target, sampler), TARGETS[target]()
    truth = density.sample(4000, keys.key(0))
    chain = sample(density, truth, config.make_sampler(), 100, key=keys.key(1))
    # From true samples on they stay: the mean log-density within 5 standard errors and the step's
    # bias, of the order of step_size * curvature / 4 = 0.01 / 0.15^2 / 4 for each of 2 coordinates.
    found, want = density(chain.z), density(truth)
    error = 5 * float((want.var() / len(want)) ** 0.5)
    assert abs(float(found.mean() - want.mean())) < error + 2 * 0.01 / 0.15**2 / 4
    assert (config.sampler, config.temperature) == (sampler, 1.0)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_grids_name_settings_and_surround_the_tuned_ones(sampler: Any) -> None:
    method = SAMPLERS[sampler]
    assert set(method.grid) == {*method.tuned, "noise_scale"}
    for name, value in (method.tuned | {"noise_scale": 0.15}).items():
        assert min(method.grid[name]) < value <= max(method.grid[name])
        assert value in method.grid[name]
        for other in method.grid[name]:
            dataclasses.replace(preset("rings", sampler), **{name: other})


def test_paper_presets_are_the_papers_rings() -> None:
    # "Methods and Settings" of the toy example; the start is Nijkamp et al.'s.
    stanley, langevin = (preset("rings", s, "paper") for s in ("stanley", "langevin"))
    assert stanley.make_sampler() == Stanley(0.01, 1.0, 0.15)
    assert langevin.make_sampler() == Langevin(0.14, 0.15)
    for config in (stanley, langevin):
        assert (config.steps, config.batch_size, config.iterations) == (100, 100, 10_000)
        assert (config.learning_rate, config.start_scale) == (1e-4, 2.0)
        assert config.evaluate_every == 2_000


def test_the_demo_is_short() -> None:
    assert preset("rings", "stanley", "demo").iterations <= 1_500


def test_samplers_get_all_settings() -> None:
    config = dataclasses.replace(RINGS, threshold=0.3, step_size=0.7, noise_scale=0.2)
    assert config.make_sampler() == Stanley(0.3, 0.7, 0.2)
    config = dataclasses.replace(LANGEVIN, step_size=0.7, noise_scale=0.2)
    assert config.make_sampler() == Langevin(0.7, 0.2)


def test_temperature_balances_drift_and_noise() -> None:
    assert dataclasses.replace(RINGS, noise_scale=0.5).temperature == 0.25
    assert dataclasses.replace(RINGS, noise_scale=0.0).temperature == 1.0


@pytest.mark.parametrize(
    ("base", "change", "message"),
    [
        (RINGS, {"target": "squares"}, "target must be one of rings, gmm, got 'squares'"),
        (RINGS, {"sampler": "gibbs"}, "sampler must be one of stanley, langevin, got 'gibbs'"),
        (RINGS, {"threshold": None}, "threshold must be a positive number for stanley"),
        (RINGS, {"threshold": 0.0}, "threshold must be positive and finite, got 0"),
        (LANGEVIN, {"threshold": 0.1}, "threshold is not a setting of langevin, got 0.1"),
        (LANGEVIN, {"step_size": -1.0}, "step_size must be positive and finite, got -1"),
        (RINGS, {"noise_scale": float("nan")}, "noise_scale must be 0 or more and finite"),
        (RINGS, {"learning_rate": 0.0}, "learning_rate must be positive and finite, got 0"),
        (RINGS, {"start_scale": float("inf")}, "start_scale must be positive and finite, got inf"),
        (RINGS, {"steps": 0}, "steps must be 1 or more, got 0"),
        (RINGS, {"batch_size": 0}, "batch_size must be 1 or more, got 0"),
        (RINGS, {"iterations": -5}, "iterations must be 1 or more, got -5"),
        (RINGS, {"evaluate_every": 0}, "evaluate_every must be 1 or more, got 0"),
        (RINGS, {"seed": 2**64}, "seed must be in"),
    ],
)
def test_settings_out_of_range(base: ToyConfig, change: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        dataclasses.replace(base, **change)


@pytest.mark.parametrize("names", [("rings", "gibbs", "tuned"), ("rings", "stanley", "best")])
def test_unknown_preset(names: tuple[Any, Any, Any]) -> None:
    with pytest.raises(SettingsError, match="there is no preset"):
        preset(*names)
