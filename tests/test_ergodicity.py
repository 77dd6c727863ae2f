"""The ergodicity study against what is known exactly: Langevin on Gaussians is an AR(1) process."""

from __future__ import annotations

import csv
import dataclasses
import doctest
import importlib
import json
import math
import pkgutil
import re
from pathlib import Path

import matplotlib.image
import pytest
import torch

from stanley_fast import cli, ergodicity, keys
from stanley_fast.distances import Law, energy_distance
from stanley_fast.energies import GaussianMixture, gaussian_ring
from stanley_fast.ergodicity import drift, report
from stanley_fast.ergodicity.convergence import Bench, Convergence, measure, recorded
from stanley_fast.ergodicity.limit_law import limit_law, variances
from stanley_fast.ergodicity.problems import PROBLEMS, Entry, Problem
from stanley_fast.ergodicity.rates import efold, fit_rate
from stanley_fast.ergodicity.study import study
from stanley_fast.metropolis import MALA
from stanley_fast.samplers import GradientAscent, Langevin, Stanley
from stanley_fast.targets import Banana, Funnel, Gaussian

STEP = 0.2  # of Langevin on the standard normal: z' = 0.9 z + sqrt(0.2) noise
ROUND = Gaussian([1.0, 1.0])
NORMAL = Problem(
    ROUND,
    budget=400,
    beta=0.1,
    samplers={
        "Langevin": Entry(Langevin(STEP)),
        "MALA": Entry(MALA(1.0), exact=True),
        "ascent": Entry(GradientAscent(STEP)),
    },
)


@pytest.fixture(scope="module")
def normal(one_thread: None) -> dict[str, Convergence]:
    bench = Bench(NORMAL, 1000, keys.key(0))
    return {name: measure(bench, "normal", name, NORMAL.budget) for name in NORMAL.samplers}


def test_the_rate_of_an_ar1_process(normal: dict[str, Convergence]) -> None:
    rate = normal["Langevin"].rate
    assert rate is not None
    assert rate.low < 0.9 < rate.high
    assert rate.rho == pytest.approx(0.9, abs=0.02)
    assert rate.first * 3 >= rate.last > rate.first
    assert 0.97 < rate.r_squared <= 1


def test_the_limit_law_of_an_ar1_process(normal: dict[str, Convergence]) -> None:
    limit = normal["Langevin"].limit
    assert limit is not None
    # tau = (1 + 0.9) / (1 - 0.9); 1 000 chain means know their variance to 4.5 %.
    assert limit.time == pytest.approx(19, rel=4 * math.sqrt(2 / 1000) + 0.05)
    assert limit.bias < 2 * limit.floor.upper  # its variance is 1.05
    assert limit.seconds > 0


def test_the_distance_falls_to_the_floor(normal: dict[str, Convergence]) -> None:
    row = normal["Langevin"]
    assert row.limit is not None
    assert row.k == recorded(400)
    assert len(row.k) == len(row.wasserstein) == len(row.energy) == len(row.to_target)
    assert row.wasserstein[0] > 1.5  # 2 sd away and twice as wide
    # A mean of 2 falls below the floor of about 0.05 in ln(40) / -ln(0.9) transitions.
    assert row.reached is not None
    assert 20 < row.reached < 60
    assert row.diverged == ""
    assert row.acceptance is None


def test_an_exact_sampler_ends_at_the_target(normal: dict[str, Convergence]) -> None:
    row = normal["MALA"]
    assert row.limit is not None
    assert row.acceptance is not None
    assert 0.5 < row.acceptance < 0.99
    floor, energy_floor = Bench(NORMAL, 1000, keys.key(0)).floors()
    assert row.limit.bias < 1.5 * floor.upper
    assert row.limit.energy_bias < 2 * energy_floor.upper


def test_ascent_ends_in_a_point(normal: dict[str, Convergence]) -> None:
    row = normal["ascent"]
    assert row.limit is not None
    assert row.limit.floor.upper < 1e-6
    # The mean distance of a standard normal from 0, in every direction.
    assert row.limit.bias == pytest.approx(math.sqrt(2 / math.pi), abs=0.05)
    assert math.isnan(row.limit.time)


def test_ascent_forgets_no_mode(one_thread: None) -> None:
    problem = Problem(gaussian_ring(), 200, 0.1, {"ascent": Entry(GradientAscent(0.01))})
    row = measure(Bench(problem, 300, keys.key(0)), "modes", "ascent", problem.budget)
    assert row.reached is None
    assert row.wasserstein[-1] > 0.4  # the starts lie on one side
    assert row.rate is not None
    assert row.rate.rho > 0.999


def test_a_sampler_that_diverges(one_thread: None) -> None:
    problem = Problem(Banana(), 50, 0.1, {"Langevin": Entry(Langevin(0.05))})
    row = measure(Bench(problem, 300, keys.key(0)), "banana", "Langevin", problem.budget)
    assert "at step" in row.diverged
    assert row.k[-1] < 10
    assert len(row.k) == len(row.to_target)
    assert row.rate is None
    assert row.limit is not None  # from exact samples it stays


def test_evaluations_make_the_chain_shorter(one_thread: None) -> None:
    problem = Problem(ROUND, 100, 0.1, {"x": Entry(Langevin(STEP), evaluations=5)})
    assert measure(Bench(problem, 50, keys.key(0)), "normal", "x", 100).k[-1] == 20


def test_a_decay_too_short_to_fit() -> None:
    x = Gaussian([1.0]).sample(200, keys.key(0))
    states = [x + 1, x, x]
    law = Law(Gaussian([1.0]).sample(200, keys.key(1)))
    energy = [energy_distance(z, law.y) for z in states]
    assert fit_rate([0, 1, 2], states, energy, law, 0.01, torch.Generator()) is None


def test_efold() -> None:
    assert efold(math.exp(-0.25)) == pytest.approx(4)
    assert efold(1.0) == math.inf


# Condition (9) -----------------------------------------------------------------------------------


def test_drift_of_an_ar1_process() -> None:
    """For z' = a z + N(0, s), V = exp(beta |z|^2 / 2): a Gaussian integral in each coordinate."""
    beta, a = 0.3, 1 - STEP / 2
    spread = 1 - beta * STEP
    for shell in drift.shells(ROUND, Langevin(STEP), beta, keys.key(0))[:2]:
        growth = (a**2 / spread - 1) * beta * shell.radius**2 / 2
        assert shell.ratio == pytest.approx(math.exp(growth) / spread, abs=5 * shell.error)
        assert shell.holds


def test_the_ball_is_the_innermost_from_which_it_holds() -> None:
    found = [
        drift.Shell(float(r), ratio, 0.01) for r, ratio in enumerate((0.9, 1.1, 0.99, 0.5, 0.1))
    ]
    assert drift.ball(found) == found[3]  # 0.99 is not below 1 by two standard errors
    assert drift.ball(found[:3]) is None
    assert drift.ball([]) is None


def test_drift_fails_where_langevin_explodes() -> None:
    found = drift.shells(Banana(), Langevin(0.05), 0.1, keys.key(0))
    assert drift.ball(found) is None
    assert found[-1].ratio == math.inf


def test_drift_stops_where_float64_does() -> None:
    assert 0 < len(drift.shells(Funnel(2, 1.5), Langevin(0.05), 0.1, keys.key(0))) < drift.SPHERES


def test_h1_is_seen() -> None:
    # For two precisions 1 and 4 the least cosine of z and -grad f is 2 sqrt(4) / (1 + 4).
    assert drift.outward(Gaussian([1.0, 0.5]), keys.key(0)) == pytest.approx(-0.8, abs=1e-3)
    assert drift.outward(gaussian_ring(), keys.key(0)) < -0.99
    assert drift.outward(Banana(), keys.key(0)) > 0
    assert drift.outward(Funnel(2, 1.5), keys.key(0)) > 0


@pytest.mark.parametrize("beta", [0.0, 1.0, math.nan])
def test_drift_refuses(beta: float) -> None:
    with pytest.raises(ValueError, match=r"beta must be in \(0, 1\)"):
        drift.shells(ROUND, Langevin(STEP), beta, keys.key(0))


# The closed form ----------------------------------------------------------------------------------


def test_limit_laws_by_hand() -> None:
    f = GaussianMixture(torch.zeros(1, 1), 1.0)
    assert limit_law(f, 12.0).variance == pytest.approx(1, abs=1e-6)
    assert limit_law(f, 12.0, noise_scale=0.5).variance == pytest.approx(0.25, abs=1e-6)
    # |z| exp(-z^2 / 2): z^2 / 2 is exponential.
    assert limit_law(f, 12.0, threshold=1e-6).variance == pytest.approx(2, abs=1e-4)
    law = limit_law(f, 12.0, threshold=0.5)
    assert law.mean(torch.ones_like) == pytest.approx(1, abs=1e-9)
    z = law.sample(50_000, keys.key(0)).double()
    fourth = law.mean(lambda z: z**4)
    error = math.sqrt((fourth - law.variance**2) / len(z))
    assert abs(float(z.square().mean()) - law.variance) < 5 * error


def test_stanley_samples_its_closed_form(one_thread: None) -> None:
    for cell in variances(keys.key(0), 1000, 300, thresholds=(0.3,)):
        # 5 standard errors, and a few percent for a step size that is not 0.
        assert abs(cell.seen - cell.closed_form) < 5 * cell.error + 0.04 * cell.closed_form, cell
        assert abs(cell.closed_form - cell.tempered) > 0.2 * cell.tempered


# The whole ----------------------------------------------------------------------------------------


def test_every_problem_is_set_up() -> None:
    for problem in PROBLEMS.values():
        assert list(problem.samplers) == list(PROBLEMS["ring"].samplers)
        for name, entry in problem.samplers.items():
            assert entry.exact == ("acceptance" in entry.sampler.records), name
            assert entry.evaluations == getattr(entry.sampler, "leapfrog_steps", 1)
        stanley = problem.samplers["STANLEY"].sampler
        assert isinstance(stanley, Stanley)
        assert 2 * problem.beta < 1


def test_recorded_transitions() -> None:
    assert recorded(10)[0] == 0
    assert recorded(3000)[-1] == 3000
    assert len([k for k in recorded(3000) if 500 <= k <= 1500]) in (8, 9)


def test_a_study_follows_its_key_alone(one_thread: None) -> None:
    def run(seed: int) -> list[Convergence]:
        found = study(["n"], keys.key(seed), chains=50, budget=20, problems={"n": NORMAL}).rows
        still = [dataclasses.replace(r.limit, seconds=0.0, time=0.0) for r in found if r.limit]
        return [dataclasses.replace(r, limit=s) for r, s in zip(found, still, strict=True)]

    assert run(0) == run(0)
    assert run(0)[0].wasserstein != run(1)[0].wasserstein


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


SMALL = ["--targets", "banana", "--chains", "60", "--steps", "20"]


def test_command(here: None, one_thread: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["ergodicity", *SMALL, "--jobs", "2", "--folder", "f"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("banana: two exact sets lie ")
    assert "so H1 does not hold" in out
    for name in PROBLEMS["banana"].samplers:
        assert f"\n  {name} " in out
    assert "closed form" in out
    assert out.splitlines()[-1].startswith("Left f/convergence.png, f/limit_law.png")
    for picture in ("convergence.png", "limit_law.png"):
        assert matplotlib.image.imread(f"f/{picture}").std() > 0.05
    rows = list(csv.DictReader(Path("f/ergodicity.csv").read_text().splitlines()))
    assert [row["sampler"] for row in rows] == list(PROBLEMS["banana"].samplers)
    text = Path("f/ergodicity.json").read_text()
    found = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert found["rows"][0]["entry"]["sampler"].startswith("Stanley(")

    assert cli.main(["ergodicity", *SMALL, "--jobs", "1", "--folder", "f"]) == 1
    assert "f already holds a study: add --overwrite" in capsys.readouterr().err
    assert cli.main(["ergodicity", *SMALL, "--jobs", "1", "--folder", "f", "--overwrite"]) == 0
    again = json.loads(Path("f/ergodicity.json").read_text())
    for one, other in zip(found["rows"], again["rows"], strict=True):  # whatever the processes
        assert one["wasserstein"] == pytest.approx(other["wasserstein"], rel=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--chains 9", "chains must be 10 or more, got 9"),
        ("--steps 9", "steps must be 10 or more, got 9"),
        ("--jobs 0", "jobs must be 1 or more, got 0"),
        ("--targets ring ring", "targets must be one or more, all different, got ('ring', 'ring')"),
        ("--seed -9223372036854775809", "seed must be in [-2^63, 2^64), got -9223372036854775809"),
    ],
)
def test_mistakes_are_one_line(
    options: str, message: str, here: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["ergodicity", *options.split()]) == 2
    assert capsys.readouterr().err.strip() == f"stanley-fast: {message}"
    assert not Path("runs").exists()


def test_an_unknown_problem() -> None:
    with pytest.raises(ValueError, match=r"targets must be of gaussian, mixture.*, got 'rings'"):
        study(["rings"], keys.key(0))


def test_a_rate_that_is_not_over_is_marked(normal: dict[str, Convergence]) -> None:
    row = normal["Langevin"]
    assert row.rate is not None
    assert f" {row.rate.rho:.5f}" in " ".join(report._line(row))
    short = dataclasses.replace(row, k=[*row.k[:-1], row.rate.last])
    assert f"~{row.rate.rho:.5f}" in " ".join(report._line(short))


@pytest.mark.parametrize("name", [m.name for m in pkgutil.iter_modules(ergodicity.__path__)])
def test_docstrings(name: str) -> None:
    module = importlib.import_module(f"stanley_fast.ergodicity.{name}")
    assert doctest.testmod(module).failed == 0


def test_every_option_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["ergodicity", "--help"])
    assert caught.value.code == 0
    out = " ".join(capsys.readouterr().out.replace("│", " ").replace("|", " ").split())
    assert "None" not in out
    options = re.findall(r"(--[a-z]+) (.*?)\(default: ", out)
    assert len(options) == 7
    for name, text in options:
        assert len(re.findall("[A-Za-z]+", text)) >= 3, name
