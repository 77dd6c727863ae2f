"""The classifier knows digits, is always the same net, and its distance is pytorch-fid's."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
import torchvision_ops  # noqa: F401
from conftest import threads
from torch import Tensor

from stanley_fast import classifier, fid
from stanley_fast.classifier import Classifier
from stanley_fast.data import DataError, Images, load

DIGITS, HELD_OUT = load("digits"), load("digits", split="test")


@pytest.fixture(scope="module")
def net() -> Classifier:
    return Classifier(DIGITS)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """A training of a moment, where what it learns is of no interest."""
    monkeypatch.setattr(classifier, "STEPS", 3)


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """As many as there have been trainings."""
    seen: list[None] = []
    train = classifier._train

    def counting(*arguments: object) -> Tensor:
        seen.append(None)
        return train(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(classifier, "_train", counting)
    return seen


def random_images(n: int, channels: int = 1, seed: int = 0) -> Images:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (n, channels, 8, 8), generator=generator, dtype=torch.uint8)
    return Images(pixels, torch.arange(n) % 3, "random", "all")


# What it knows -----------------------------------------------------------------------------------


def test_it_knows_held_out_digits(net: Classifier) -> None:
    assert net.accuracy(HELD_OUT) >= 0.97
    probabilities = net.probabilities(HELD_OUT.pixels)
    assert probabilities.shape == (297, 10)
    assert torch.allclose(probabilities.sum(1), torch.ones(297))
    right = probabilities.argmax(1) == HELD_OUT.labels
    assert net.accuracy(HELD_OUT) == pytest.approx(float(right.float().mean()))


def test_shares(net: Classifier) -> None:
    real = net.shares(HELD_OUT.pixels)
    assert real["confident"] > 0.9
    assert 0.05 < real["rarest_class"] <= 0.1
    assert HELD_OUT.labels is not None
    ones = net.shares(HELD_OUT.pixels[HELD_OUT.labels == 1])
    assert ones["rarest_class"] == 0
    # Noise is no digit; what it takes for one varies, but it is not as sure.
    assert net.shares(random_images(297).pixels)["confident"] < real["confident"] - 0.2


def test_features_are_what_the_last_layer_sees(net: Classifier) -> None:
    features = net(HELD_OUT.pixels)
    assert features.shape == (297, 64)
    assert features.dtype == torch.float32
    logits = net.net[-1](features)
    assert torch.allclose(logits.softmax(1), net.probabilities(HELD_OUT.pixels), atol=1e-6)
    as_rgb = HELD_OUT.pixels.expand(-1, 3, -1, -1)  # how fid.features shows grey images
    assert torch.equal(net(as_rgb), features)


# Always the same ---------------------------------------------------------------------------------


def test_trained_anew_it_has_the_same_bits(short: None, tmp_path: Path) -> None:
    """Whatever torch's generator and the number of threads; and it leaves both alone."""
    nets = []
    for n, seed in ((1, 0), (2, 5)):
        with threads(n):
            torch.manual_seed(seed)
            state = torch.get_rng_state()
            nets.append(Classifier(DIGITS, cache_folder=tmp_path / str(seed)))
            assert torch.equal(torch.get_rng_state(), state)
            assert torch.get_num_threads() == n
            nets[-1].features = nets[-1](HELD_OUT.pixels)  # type: ignore[attr-defined]
    one, two = nets
    assert one.protocol == two.protocol
    for name, value in one.net.state_dict().items():
        assert torch.equal(value, two.net.state_dict()[name]), name
    assert torch.equal(one.features, two.features)  # type: ignore[attr-defined]


def test_it_is_trained_once(short: None, trainings: list[None], tmp_path: Path) -> None:
    first = Classifier(DIGITS, cache_folder=tmp_path)
    again = Classifier(DIGITS, cache_folder=tmp_path)
    assert len(trainings) == 1
    assert torch.equal(first(HELD_OUT.pixels), again(HELD_OUT.pixels))
    assert first.protocol == again.protocol
    assert DIGITS.labels is not None
    others = Images(DIGITS.pixels, DIGITS.labels.flip(0), DIGITS.name, DIGITS.split)
    for images in (HELD_OUT, others):
        Classifier(images, cache_folder=tmp_path)
    assert len(trainings) == 3


def test_the_default_cache(short: None, trainings: list[None], tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path))
        Classifier(random_images(20))
    (path,) = (tmp_path / "stanley-fast").iterdir()
    assert path.name.startswith("classifier-random-all-")
    assert os.environ["XDG_CACHE_HOME"] != str(tmp_path)


def test_the_protocol_is_of_the_weights(short: None, tmp_path: Path) -> None:
    one = Classifier(random_images(20), cache_folder=tmp_path).protocol
    two = Classifier(random_images(20, seed=1), cache_folder=tmp_path).protocol
    assert one["network"] == two["network"] == "classifier of 20 of random (all), 64 features"
    assert one["weights_sha256"] != two["weights_sha256"]


def test_colour_images(short: None, tmp_path: Path) -> None:
    images = random_images(20, channels=3)
    net = Classifier(images, cache_folder=tmp_path)
    assert net.classes == 3
    assert fid.features(images, net, progress=False).shape == (20, 64)


# Its distance ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "m"), [(400, 300), (80, 500)])
def test_its_distance_is_pytorch_fids(n: int, m: int) -> None:
    generator = torch.Generator().manual_seed(n)

    def features(count: int) -> Tensor:
        mixed = torch.randn(64, 64, generator=generator) / 8
        shift = torch.rand(64, generator=generator)
        return (torch.randn(count, 64, generator=generator) @ mixed + shift).relu()

    a, b = features(n), features(m)
    assert Classifier.frechet(a, b) == pytest.approx(fid.frechet(a, b), rel=1e-6)
    assert Classifier.frechet(a, b) == pytest.approx(Classifier.frechet(b, a), rel=1e-9)
    assert Classifier.frechet(a, a) == pytest.approx(0, abs=1e-6)


def test_features_that_are_always_0(net: Classifier) -> None:
    """Dead units make covariances singular, which pytorch-fid's root does not like."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(n, 3, generator=generator) for n in (50, 60))
    with_dead = [torch.cat([x, torch.zeros(len(x), 2)], 1) for x in (a, b)]
    assert Classifier.frechet(*with_dead) == pytest.approx(Classifier.frechet(a, b), rel=1e-9)


# What it can't do --------------------------------------------------------------------------------


@pytest.mark.parametrize("labels", [None, torch.zeros(20, dtype=torch.int64)])
def test_it_wants_labels_of_two_classes(labels: Tensor | None) -> None:
    images = Images(random_images(20).pixels, labels, "mine", "all")
    with pytest.raises(DataError, match="mine has no labels of two classes or more"):
        Classifier(images)


def test_accuracy_wants_labels(net: Classifier) -> None:
    images = Images(HELD_OUT.pixels, None, "mine", "all")
    with pytest.raises(DataError, match="mine has no labels to be right about"):
        net.accuracy(images)
