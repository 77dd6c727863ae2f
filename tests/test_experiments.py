"""Presets and settings of the toy experiment."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from stanley_fast import keys
from stanley_fast.chain import sample
from stanley_fast.experiments import TARGETS, ToyConfig, exact, preset
from stanley_fast.hmc import HMC
from stanley_fast.methods import SAMPLERS, SettingsError
from stanley_fast.metropolis import MALA, MetropolisHastings
from stanley_fast.samplers import GradientAscent, Langevin, Stanley

RINGS = preset("rings", "stanley")
LANGEVIN = preset("rings", "langevin")
MALA_, MH, HMC_ = (preset("rings", name) for name in ("mala", "mh", "hmc"))
ADJUSTED = preset("rings", "adjusted-stanley")


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("name", ["tuned", "demo", "paper"])
def test_every_preset_exists(target: Any, sampler: Any, name: Any) -> None:
    if name == "paper" and sampler not in ("stanley", "langevin"):
        with pytest.raises(SettingsError, match=f"no preset 'paper' for {sampler}: the paper"):
            preset(target, sampler, name)
        return
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
    # Ascent leaves them, upwards; the others that move less than all are exact.
    error = 5 * float((want.var() / len(want)) ** 0.5)
    if sampler == "ascent":
        assert float((found - want).min()) > -1e-4
        assert float(found.mean() - want.mean()) > error
    else:
        bias = 0 if config.adjusted else 2 * 0.01 / 0.15**2 / 4
        assert abs(float(found.mean() - want.mean())) < error + bias
    assert (config.sampler, config.temperature) == (sampler, 1.0)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_grids_name_settings_and_surround_the_tuned_ones(sampler: Any) -> None:
    method = SAMPLERS[sampler]
    assert set(method.grid) == method.takes - {"leapfrog_steps"}
    for name in method.grid:
        value = method.tuned[name]
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
    config = dataclasses.replace(ADJUSTED, threshold=3.0, step_size=0.7, noise_scale=0.9)
    assert config.make_sampler() == Stanley(3.0, 0.7, 0.9, adjusted=True)
    for base, sampler in (
        (MALA_, MALA(0.7)),
        (MH, MetropolisHastings(0.7)),
        (HMC_, HMC(0.7, 5)),
        (preset("rings", "ascent"), GradientAscent(0.7)),
    ):
        assert dataclasses.replace(base, step_size=0.7).make_sampler() == sampler


@pytest.mark.parametrize("target", TARGETS)
def test_every_sampler_evaluates_f_as_often(target: Any) -> None:
    for sampler in SAMPLERS:
        for config in (preset(target, sampler), exact(target, sampler)):
            each = config.leapfrog_steps or 1
            assert config.transitions * each == config.steps
    assert (HMC_.steps, HMC_.transitions) == (RINGS.steps, 20)


def test_settings_of_earlier_runs_are_still_settings() -> None:
    old = dataclasses.asdict(RINGS)
    del old["leapfrog_steps"]
    assert ToyConfig(**old) == RINGS


def test_temperature_balances_drift_and_noise() -> None:
    assert dataclasses.replace(RINGS, noise_scale=0.5).temperature == 0.25
    assert dataclasses.replace(RINGS, noise_scale=0.0).temperature == 1.0
    assert dataclasses.replace(ADJUSTED, noise_scale=0.5).temperature == 1.0
    assert {c.temperature for c in (MALA_, MH, HMC_, preset("rings", "ascent"))} == {1.0}


@pytest.mark.parametrize(
    ("base", "change", "message"),
    [
        (RINGS, {"target": "squares"}, "target must be one of rings, gmm, got 'squares'"),
        (RINGS, {"sampler": "gibbs"}, "sampler must be one of stanley, langevin, .*, got 'gibbs'"),
        (RINGS, {"threshold": None}, "threshold must be a number for stanley, got None"),
        (RINGS, {"threshold": 0.0}, "threshold must be positive and finite, got 0"),
        (LANGEVIN, {"threshold": 0.1}, "threshold is not a setting of langevin, got 0.1"),
        (RINGS, {"leapfrog_steps": 3}, "leapfrog_steps is not a setting of stanley, got 3"),
        (MALA_, {"noise_scale": 0.3}, "noise_scale is not a setting of mala, got 0.3"),
        (MH, {"step_size": 0.0}, "step_size must be positive and finite, got 0"),
        (HMC_, {"leapfrog_steps": None}, "leapfrog_steps must be a number for hmc, got None"),
        (HMC_, {"leapfrog_steps": 0}, "leapfrog_steps must be 1 or more, got 0"),
        (HMC_, {"steps": 12}, "steps must be a multiple of leapfrog_steps = 5, got 12"),
        (ADJUSTED, {"noise_scale": 0.0}, "noise_scale must be positive and finite, got 0"),
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
