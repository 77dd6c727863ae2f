"""The Gaussian of the pixels has their moments, and every figure its floor and its Gaussian's."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from stanley_fast import classifier, fid, image_quality, keys
from stanley_fast.classifier import Classifier
from stanley_fast.data import Images, load, to_pixels, to_unit
from stanley_fast.image_quality import ImageQuality, gaussian_images

pytestmark = pytest.mark.usefixtures("one_thread")

DIGITS, HELD_OUT = load("digits"), load("digits", split="test")


def grey(n: int, seed: int = 0) -> Images:
    """Images (1, 4, 4) with correlated pixels, their values far from the ends."""
    generator = torch.Generator().manual_seed(seed)
    mixed = 0.1 * torch.randn(16, 16, generator=generator)
    z = 0.1 + torch.randn(n, 16, generator=generator) @ mixed / 4
    return Images(to_pixels(z).view(n, 1, 4, 4), None, "grey", "train")


class Moments:
    """Features without training: a picture's own pixels, coarsely."""

    protocol = {"network": "moments"}  # noqa: RUF012

    def __call__(self, pixels: Tensor) -> Tensor:
        return torch.nn.functional.avg_pool2d(pixels[:, :1].float() / 255, 2).flatten(1)

    def frechet(self, a: Tensor, b: Tensor) -> float:
        return Classifier.frechet(a, b)


# The Gaussian ------------------------------------------------------------------------------------


def test_the_gaussian_has_mean_and_covariance_of_the_pixels() -> None:
    images, n = grey(300), 20_000
    drawn = gaussian_images(images, n, keys.key(1))
    assert (len(drawn), drawn.shape) == (n, (1, 4, 4))
    x, y = (each.pixels.flatten(1).double() for each in (images, drawn))
    wanted, found = x.T.cov(), y.T.cov()
    assert y.min() > 0, "nothing is cut off, which would change the moments"
    assert y.max() < 255
    # Errors of n samples: of a mean sqrt(C_ii / n), of a covariance
    # sqrt((C_ii C_jj + C_ij^2) / n). Rounding to whole pixels adds 1/12 to a variance.
    variances = wanted.diagonal()
    mean_error = (variances / n).sqrt()
    assert ((y.mean(0) - x.mean(0)).abs() < 4.5 * mean_error + 0.01).all()
    error = ((torch.outer(variances, variances) + wanted.square()) / n).sqrt()
    rounding = torch.eye(16, dtype=torch.float64) / 12
    assert ((found - wanted - rounding).abs() < 4.5 * error).all()
    # and no more than that: of a normal, whose fourth moment is 3
    kurtosis = ((y - y.mean(0)) / y.std(0)).pow(4).mean(0)
    assert ((kurtosis - 3).abs() < 4.5 * math.sqrt(24 / n) + 0.02).all()


def test_its_images_are_independent() -> None:
    """Of each other, within a chunk and across: no noise is used twice."""
    drawn = gaussian_images(grey(50), 1_100, keys.key(2)).pixels.flatten(1).float()
    assert len(drawn.unique(dim=0)) == len(drawn)
    z = (drawn - drawn.mean(0)) / drawn.std(0)
    for lag in (1, 500, 501):
        products = (z[:-lag] * z[lag:]).mean(0)
        assert (products.abs() < 4.5 / math.sqrt(len(z) - lag)).all()


def test_chunks_do_not_change_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """As one product of all weights with all images has them, and however many more there are."""
    images = grey(37)
    many = gaussian_images(images, 1_200, keys.key(3)).pixels
    for n in (1, 499, 500, 501, 777):
        few = gaussian_images(images, n, keys.key(3)).pixels
        assert torch.equal(few[: 500 * (n // 500)], many[: 500 * (n // 500)])
        # The last chunk is a smaller product, and may round to the next pixel.
        off = (few.int() - many[:n].int()).abs()
        assert off.max() <= 1
        assert (off > 0).float().mean() < 1e-3
    x = images.pixels.flatten(1).double() / 127.5 - 1
    weights = image_quality.ops.normal(
        (1_200, 37), keys.key(3), stream=image_quality.STREAM_STARTS
    ).double()
    whole = x.mean(0) + weights @ (x - x.mean(0)) / math.sqrt(36)
    off = (to_pixels(whole).view_as(many).int() - many.int()).abs()
    assert off.max() <= 1
    assert (off > 0).float().mean() < 1e-3


def test_one_image_has_no_covariance() -> None:
    one = grey(1)
    assert torch.equal(gaussian_images(one, 3, keys.key(0)).pixels, one.pixels.expand(3, 1, 4, 4))


def test_the_key_decides() -> None:
    a, b, c = (gaussian_images(grey(20), 5, keys.key(seed)).pixels for seed in (0, 0, 1))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


# Figures -----------------------------------------------------------------------------------------


def test_figures_of_a_classifier(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(classifier, "STEPS", 20)
    net = Classifier(DIGITS, cache_folder=tmp_path)
    quality = ImageQuality(
        DIGITS, HELD_OUT, net, 200, keys.key(0), cache_folder=tmp_path, progress=False
    )
    samples = DIGITS.take(200, keys.key(9))
    figures, score = quality(samples)
    names = ["fid", "kid", "nearest", "confident", "rarest_class"]
    ends = ["", "_floor", "_gaussian"]
    assert list(figures) == [f"{name}{end}" for end in ends for name in names]
    assert all(map(math.isfinite, figures.values()))
    assert (figures["fid"], figures["kid"]) == (score.fid, score.kid)
    assert score.protocol == net.protocol
    assert (score.samples.n, score.data.n, score.data.name) == (200, 200, "digits")
    # Against the same images of the training set: true samples are at the floor, a Gaussian isn't.
    assert 0 < figures["fid"] < 2 * figures["fid_floor"] < figures["fid_gaussian"]
    assert figures["kid_gaussian"] > 5 * abs(figures["kid"])
    shares = net.shares(samples.pixels)
    assert {name: figures[name] for name in shares} == shares
    # Another call has the same references.
    again, _ = quality(HELD_OUT)
    references = [name for name in figures if name.endswith(("_floor", "_gaussian"))]
    assert {n: again[n] for n in references} == {n: figures[n] for n in references}


def test_figures_are_fids(tmp_path: Path) -> None:
    """Each computed again from features, by the definition; any network will do."""
    net, key = Moments(), keys.key(4)
    quality = ImageQuality(DIGITS, HELD_OUT, net, 1_000, key, cache_folder=tmp_path, progress=False)
    figures, score = quality(HELD_OUT)
    chosen = keys.split(key, 3)
    real = DIGITS.take(1_000, chosen[0])
    assert score.data == fid.Side.of(real)
    rivals = {
        "": HELD_OUT,
        "_floor": HELD_OUT.take(297, chosen[1]),  # all there are
        "_gaussian": gaussian_images(DIGITS, 297, chosen[2]),  # as many of every kind
    }
    for end, images in rivals.items():
        a, b = (fid.features(each, net, progress=False) for each in (images, real))
        assert figures[f"fid{end}"] == pytest.approx(net.frechet(a, b), rel=1e-9)
        assert figures[f"kid{end}"] == pytest.approx(fid.kid(a, b)[0], rel=1e-9)
        distances = torch.cdist(
            to_unit(images.pixels).flatten(1), to_unit(DIGITS.pixels).flatten(1)
        )
        nearest = distances[: image_quality.COMPARED].min(1).values.median()
        assert figures[f"nearest{end}"] == pytest.approx(float(nearest), rel=1e-4)
    assert "confident" not in figures


def test_copies_are_seen(tmp_path: Path) -> None:
    quality = ImageQuality(
        DIGITS, HELD_OUT, Moments(), 300, keys.key(0), cache_folder=tmp_path, progress=False
    )
    copies, _ = quality(DIGITS.take(300, keys.key(5)))
    assert copies["nearest"] == 0 < copies["nearest_floor"] < copies["nearest_gaussian"]


@pytest.mark.parametrize(
    ("train", "held_out", "n", "message"),
    [
        (1, 9, 5, "train must be 2 images or more, got 1"),
        (9, 1, 5, "held_out must be 2 images or more, got 1"),
        (9, 9, 1, "n must be 2 images or more, got 1"),
    ],
)
def test_too_few(train: int, held_out: int, n: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImageQuality(grey(train), grey(held_out), Moments(), n, keys.key(0), progress=False)
