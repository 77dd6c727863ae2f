"""Image runs' settings: what errors name, what presets and recipes make, what is held out."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, get_args

import image_files
import numpy as np
import pytest
import torch

from stanley_fast import recipes
from stanley_fast.data import load
from stanley_fast.image_experiments import DATA, UNIFORM, ImageConfig, load_splits
from stanley_fast.image_presets import (
    CPU_SAMPLERS,
    PAPER,
    PresetName,
    preset,
    sampler_of,
    with_sampler,
)
from stanley_fast.methods import SAMPLERS, SettingsError
from stanley_fast.samplers import GradientAscent, Langevin, Stanley
from stanley_fast.starts import DataStart, ReplayBuffer

DIGITS, LANGEVIN, MALA, HMC = (
    dataclasses.replace(
        preset("digits", sampler=sampler), network="mlp", layers=3, steps=20, batch_size=64,
        start="persistent", iterations=8_000, evaluate_every=1_000,
    )
    for sampler in ("stanley", "langevin", "mala", "hmc")
)  # fmt: skip
HMC = dataclasses.replace(HMC, leapfrog_steps=5, sample_steps=10)
RECIPES = [name for name in get_args(PresetName) if name in recipes.RECIPES]
SHAPES = {
    "digits": (1, 8, 8),
    "mnist": (1, 28, 28),
    "fashion-mnist": (1, 28, 28),
    "cifar10": (3, 32, 32),
    "flowers102": (3, 32, 32),
    "celeba": (3, 64, 64),
    "folder": (3, 32, 32),
}


def place(data: str) -> str | None:
    return None if data == "digits" else "x"


def shape(config: ImageConfig) -> tuple[int, int, int]:
    """What `load_splits` gives."""
    channels, size, _ = SHAPES[config.data]
    size = config.image_size or size
    return channels, size, size


# Errors ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "settings", "message"),
    [
        (DIGITS, {"data": "cats"}, "data must be one of cifar10, .*, folder, got 'cats'"),
        (DIGITS, {"place": "x"}, "place must be None, they come with scikit-learn, for digits"),
        (DIGITS, {"data": "mnist"}, "place must be where the files are, for mnist, got None"),
        (DIGITS, {"image_size": 16}, "image_size must be None for digits, .* got 16"),
        (DIGITS, {"limit": 0}, "limit must be 1 or more, got 0"),
        (DIGITS, {"network": "unet"}, "network must be one of 'conv', .* got 'unet'"),
        (DIGITS, {"width": 0}, "width must be 1 or more, got 0"),
        (DIGITS, {"layers": None}, "layers must be a number for conv and mlp, .* got None for mlp"),
        (DIGITS, {"layers": 0}, "layers must be 1 or more, got 0"),
        (DIGITS, {"network": "strided"}, "layers must be .* None for strided, got 3 for strided"),
        (DIGITS, {"negative_slope": 1.0}, r"negative_slope must be in \[0, 1\), got 1.0"),
        (DIGITS, {"norm": "batch"}, "norm must be one of 'element', .* got 'batch'"),
        (DIGITS, {"update": "euler"}, "update must be one of 'paper', 'script', got 'euler'"),
        (DIGITS, {"grad_clamp": 0.1}, "grad_clamp is not a setting of stanley, got 0.1"),
        (LANGEVIN, {"grad_clamp": -1.0}, "grad_clamp must be positive .* got -1.0"),
        (LANGEVIN, {"norm": "sample"}, "norm is not a setting of langevin, got sample"),
        (MALA, {"clamp": True}, "clamp is not a setting of mala, got True"),
        (MALA, {"autocast": True}, "autocast must be False for mala, which compares"),
        (DIGITS, {"start": "gaussian"}, "start must be one of 'noise', .* got 'gaussian'"),
        (DIGITS, {"buffer_size": 63}, "buffer_size must be at least the batch's 64, got 63"),
        (DIGITS, {"fresh_share": 1.1}, r"fresh_share must be in \[0, 1\], got 1.1"),
        (DIGITS, {"beta1": -0.1}, r"beta1 must be in \[0, 1\), got -0.1"),
        (DIGITS, {"beta1": 1.0}, r"beta1 must be in \[0, 1\), got 1.0"),
        (DIGITS, {"decay": 2.0}, r"decay must be in \[0, 1\], got 2.0"),
        (DIGITS, {"warm_up": -1}, "warm_up must be 0 or more, got -1"),
        (DIGITS, {"final_rate": 0.0}, "final_rate must be positive and finite, got 0.0"),
        (DIGITS, {"ema": 1.0}, r"ema must be in \(0, 1\), got 1.0"),
        (DIGITS, {"max_gap": 0.0}, "max_gap must be positive and finite, got 0.0"),
        (DIGITS, {"rollbacks": -1}, "rollbacks must be 0 or more, got -1"),
        (DIGITS, {"checkpoint_every": 0}, "checkpoint_every must be 1 or more, got 0"),
        (DIGITS, {"features": "vgg"}, "features must be one of 'inception', .* got 'vgg'"),
        (DIGITS, {"samples": 1}, "samples must be 2 or more, got 1"),
        (DIGITS, {"samples_from": "data"}, "samples_from must be one of 'noise', .* got 'data'"),
        (
            DIGITS,
            {"samples_from": "buffer", "start": "noise"},
            "samples_from must be noise for the",
        ),
        (
            DIGITS,
            {"samples_from": "buffer", "samples": 101, "buffer_size": 100},
            "samples must be at most the buffer's 100, got 101",
        ),
        (DIGITS, {"sample_steps": 0}, "sample_steps must be 1 or more, got 0"),
        (HMC, {"sample_steps": 7}, "sample_steps must be a multiple of leapfrog_steps = 5, got 7"),
        (HMC, {"steps": 7}, "steps must be a multiple of leapfrog_steps = 5, got 7"),
        # what every run decides
        (DIGITS, {"sampler": "gibbs"}, "sampler must be one of stanley, .* got 'gibbs'"),
        (DIGITS, {"threshold": None}, "threshold must be a number for stanley, got None"),
        (DIGITS, {"threshold": 0.0}, "threshold must be positive and finite, got 0.0"),
        (DIGITS, {"noise_scale": -1.0}, "noise_scale must be 0 or more and finite, got -1.0"),
        (DIGITS, {"steps": 2.5}, "steps must be an integer, got 2.5"),
        (DIGITS, {"batch_size": 0}, "batch_size must be 1 or more, got 0"),
        (DIGITS, {"iterations": 8_001}, "iterations must be a multiple of evaluate_every = 1000"),
        (DIGITS, {"learning_rate": -1.0}, "learning_rate must be positive and finite, got -1.0"),
        (DIGITS, {"grad_clip": 0.0}, "grad_clip must be positive and finite, got 0.0"),
        (DIGITS, {"data_noise": -0.1}, "data_noise must be 0 or more and finite, got -0.1"),
        (DIGITS, {"energy_l2": -0.1}, "energy_l2 must be 0 or more and finite, got -0.1"),
        (DIGITS, {"seed": 2**64}, r"seed must be in \[-2\^63, 2\^64\)"),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, dict) else "",
)
def test_errors_name_the_setting(
    config: ImageConfig, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(SettingsError, match=message):
        dataclasses.replace(config, **settings)


def test_every_setting_has_an_error_or_none_to_have() -> None:
    """A new one wants a line above, unless any value of its type will do."""
    (cases,) = (
        mark.args[1]
        for mark in test_errors_name_the_setting.pytestmark  # type: ignore[attr-defined]
    )
    tried = {name for _, settings, _ in cases for name in settings}
    free = {"flip", "step_size", "leapfrog_steps", "evaluate_every"}  # tested with the samplers
    assert {field.name for field in dataclasses.fields(ImageConfig)} - tried == free


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("cats",), "there is no preset 'cpu' for data 'cats'"),
        (("digits", "best"), "there is no preset 'best'"),
        (("digits", "stanley-toy"), "there is no preset 'stanley-toy'"),
        (("digits", "cpu", "gibbs"), "sampler 'gibbs'"),
        (("digits", "paper"), "there is no preset 'paper' for digits and stanley"),
        (("cifar10", "paper", "hmc"), "there is no preset 'paper' for cifar10 and hmc"),
        (("digits", "jem", "stanley"), "the preset 'jem' is of langevin, got stanley"),
    ],
)
def test_there_is_no_such_preset(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        preset(*arguments, place=place(arguments[0]))


# Presets -----------------------------------------------------------------------------------------


def all_presets() -> list[tuple[str, str, str | None]]:
    found: list[tuple[str, str, str | None]] = []
    for data in DATA:
        found += [(data, "cpu", sampler) for sampler in SAMPLERS]
        found += [(data, name, None) for name in RECIPES]
        if data in PAPER:
            found += [(data, "paper", sampler) for sampler in ("stanley", "langevin")]
    return found


@pytest.mark.parametrize(("data", "name", "sampler"), all_presets())
def test_a_preset_makes_its_parts(data: Any, name: Any, sampler: Any) -> None:
    config = preset(data, name, sampler, place=place(data))
    assert config.sampler == (sampler or sampler_of(name))
    assert config.place == (None if data == "digits" else str(Path("x").resolve()))
    images = shape(config)
    f = config.make_model(images)
    z = torch.zeros(2, *images)
    assert f(z).shape == (2,)
    config.make_sampler()
    start = config.make_start()
    if isinstance(start, ReplayBuffer):
        assert start.size >= config.batch_size
    else:
        assert start == UNIFORM


def test_weights_are_of_the_seed_alone() -> None:
    torch.manual_seed(7)
    state = torch.get_rng_state()
    one = DIGITS.make_model((1, 8, 8)).state_dict()
    torch.manual_seed(8)
    two = DIGITS.make_model((1, 8, 8)).state_dict()
    other = dataclasses.replace(DIGITS, seed=1).make_model((1, 8, 8)).state_dict()
    torch.manual_seed(7)
    assert torch.equal(torch.get_rng_state(), state)
    for name, value in one.items():
        assert torch.equal(value, two[name])
    assert not all(torch.equal(value, other[name]) for name, value in one.items())


def test_a_net_that_does_not_fit_the_images() -> None:
    with pytest.raises(SettingsError, match="images must be square, got 20x10: give an image_size"):
        DIGITS.make_model((3, 10, 20))
    strided = preset("folder", place="x")
    with pytest.raises(SettingsError, match="image_size must be 4, 5, 6 or 7 times a power of two"):
        strided.make_model((3, 18, 18))


def test_sampler_settings_reach_the_sampler() -> None:
    config = dataclasses.replace(
        DIGITS, threshold=0.2, step_size=0.3, noise_scale=0.4, norm="channel", update="script",
        clamp=True,
    )  # fmt: skip
    assert config.make_sampler() == Stanley(
        0.2, 0.3, 0.4, norm="channel", update="script", clamp=(-1.0, 1.0)
    )
    config = dataclasses.replace(LANGEVIN, step_size=0.3, grad_clamp=0.1, clamp=False)
    assert config.make_sampler() == Langevin(0.3, 0.1, grad_clamp=0.1)
    ascent = preset("digits", sampler="ascent")
    assert ascent.make_sampler() == GradientAscent(ascent.step_size, clamp=(-1.0, 1.0))


def test_starts() -> None:
    assert dataclasses.replace(DIGITS, start="noise").make_start() is UNIFORM
    assert isinstance(dataclasses.replace(DIGITS, start="data").make_start(), DataStart)
    config = dataclasses.replace(DIGITS, start="persistent", buffer_size=77, fresh_share=0.5)
    one, two = config.make_start(), config.make_start()
    assert isinstance(one, ReplayBuffer)
    assert (one.size, one.fresh, one.fresh_share) == (77, UNIFORM, 0.5)
    assert one is not two


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_with_another_sampler(sampler: Any) -> None:
    """The rest stays, and nothing of the old sampler does."""
    config = preset("cifar10", "igebm", place="x")
    other = with_sampler(config, sampler)
    assert other.sampler == sampler
    if sampler == config.sampler:
        assert other == config
        return
    here = preset("cifar10", sampler=sampler, place="x")
    if sampler == "stanley":  # which like igebm's Langevin samples exp(f / noise_scale^2)
        here = dataclasses.replace(here, noise_scale=config.noise_scale)
    assert other.make_sampler() == here.make_sampler()
    own = {"sampler", "threshold", "step_size", "noise_scale", "leapfrog_steps"}
    own |= {"norm", "update", "clamp", "grad_clamp"}
    for field in dataclasses.fields(config):
        if field.name not in own:
            assert getattr(other, field.name) == getattr(config, field.name), field.name


def test_every_sampler_has_settings_for_images() -> None:
    assert CPU_SAMPLERS.keys() == SAMPLERS.keys()


# Recipes -----------------------------------------------------------------------------------------


def test_recipes_are_all_but_the_toy() -> None:
    assert set(RECIPES) == set(recipes.RECIPES) - {"stanley-toy"}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_the_very_same(name: Any) -> None:
    """Sampler, start, learning rate, betas and training settings: those of recipes.py."""
    recipe = recipes.RECIPES[name]
    for data in ("cifar10", "digits"):
        config = preset(data, name, place=place(data))
        assert config.make_sampler() == recipe.sampler
        assert config.transitions == recipe.steps
        wanted, start = recipe.start(), config.make_start()
        if isinstance(wanted, ReplayBuffer):
            assert isinstance(start, ReplayBuffer)
            assert (start.size, start.fresh) == (wanted.size, wanted.fresh)
            assert start.fresh_share == wanted.fresh_share
        else:
            assert start == wanted
        assert config.learning_rate == recipe.learning_rate
        assert (config.beta1, 0.999) == recipe.betas
        assert {key: getattr(config, key) for key in recipe.training} == recipe.training
        for key in {"grad_clip", "data_noise", "energy_l2"} - recipe.training.keys():
            assert not getattr(config, key), f"{key} is not of {name}"
        assert (config.warm_up, config.final_rate, config.ema) == (0, 1.0, None)


# Splits ------------------------------------------------------------------------------------------


def test_digits_have_their_own_splits() -> None:
    splits = load_splits(DIGITS)
    assert (len(splits.train), len(splits.held_out)) == (1500, 297)
    assert (splits.train.split, splits.held_out.split) == ("train", "test")
    limited = load_splits(dataclasses.replace(DIGITS, limit=100))
    assert (len(limited.train), len(limited.held_out)) == (100, 297)
    assert torch.equal(limited.train.pixels, splits.train.pixels[:100])


def arrays(path: Path, n: int, labels: bool = True, **more: Any) -> ImageConfig:
    """Images of which each is known by its first pixels and its label."""
    images = image_files.pixels(n, 8, 8, seed=1)
    images[:, 0, 0], images[:, 0, 1] = np.arange(n) % 256, np.arange(n) // 256
    parts = {"images": images} | ({"labels": np.arange(n)} if labels else {})
    np.savez(path, **parts)
    base = {"network": "mlp", "width": 8, "layers": 1}
    return dataclasses.replace(preset("folder", place=path), **base | more)


@pytest.mark.parametrize(("n", "held_out"), [(300, 30), (44, 4), (5, 2), (4, 2)])
def test_a_tenth_is_held_out(tmp_path: Path, n: int, held_out: int) -> None:
    config = arrays(tmp_path / "mine.npz", n)
    splits = load_splits(config)
    assert (len(splits.train), len(splits.held_out)) == (n - held_out, held_out)
    assert (splits.train.split, splits.held_out.split) == ("train", "held out")
    assert splits.train.name == splits.held_out.name == "mine.npz"
    seen = []
    for part in (splits.train, splits.held_out):
        number = part.pixels[:, 0, 0, 0].long() + 256 * part.pixels[:, 0, 0, 1].long()
        assert part.labels is not None
        assert torch.equal(number, part.labels)
        seen += number.tolist()
    assert sorted(seen) == list(range(n))
    again = load_splits(dataclasses.replace(config, seed=5, sampler="langevin", threshold=None))
    assert again.train.fingerprint == splits.train.fingerprint
    assert again.held_out.fingerprint == splits.held_out.fingerprint


def test_what_is_held_out_is_spread_over_the_folder(tmp_path: Path) -> None:
    """Pictures may be in the order of their classes."""
    held_out = load_splits(arrays(tmp_path / "mine.npz", 1000)).held_out.labels
    assert held_out is not None
    # 100 of 1 000 without replacement: their mean's error is 289 / sqrt(100) * sqrt(0.9) = 27.
    assert abs(held_out.double().mean() - 499.5) < 4 * 27.4


def test_labels_need_not_be_there(tmp_path: Path) -> None:
    splits = load_splits(arrays(tmp_path / "mine.npz", 20, labels=False, limit=10))
    assert splits.train.labels is splits.held_out.labels is None
    assert len(splits.train) + len(splits.held_out) == 10


def test_too_few_to_hold_out(tmp_path: Path) -> None:
    config = arrays(tmp_path / "mine.npz", 3)
    with pytest.raises(SettingsError, match="4 images or more, two of them to hold out, got 3"):
        load_splits(config)


def test_pictures_in_a_folder(tmp_path: Path) -> None:
    for i, image in enumerate(image_files.pixels(20, 8, 12, 3)):
        image_files.write_png(tmp_path / "pictures" / f"{i:02}.png", image)
    config = preset("folder", place=tmp_path / "pictures")
    splits = load_splits(config, progress=False)
    assert splits.train.shape == (3, 8, 12)
    with pytest.raises(SettingsError, match="images must be square, got 12x8: give an image_size"):
        config.make_model(splits.train.shape)
    square = dataclasses.replace(config, image_size=8)
    splits = load_splits(square, progress=False)
    assert splits.train.shape == splits.held_out.shape == (3, 8, 8)
    square.make_model(splits.train.shape)
    everything = load(tmp_path / "pictures", size=8, progress=False).pixels
    found = torch.cat([splits.train.pixels, splits.held_out.pixels])
    order = [x.flatten(1).long().sum(1).sort().values for x in (everything, found)]
    assert torch.equal(*order)
