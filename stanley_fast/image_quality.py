"""How good generated images are, beside held-out real ones and a Gaussian fitted to the pixels."""

from __future__ import annotations

import math
import os

import torch
from torch import Tensor

from stanley_fast import fid, ops
from stanley_fast.classifier import Classifier
from stanley_fast.data import Images, to_pixels, to_unit
from stanley_fast.keys import split
from stanley_fast.pictures import nearest
from stanley_fast.reference import STREAM_STARTS

COMPARED = 100  # images with all of the training set: half a minute of one core on CIFAR-10


class ImageQuality:
    """FID and KID of samples against training images; by a classifier also what they are.

    "nearest" is the median distance to the nearest training image, which of copies is 0. Beside
    every figure stand its `_floor`, of held-out real images, and its `_gaussian`, of samples from a
    Gaussian with the mean and covariance of the training pixels: what has learned no more than
    second moments.

    Args:
        train, held_out: real images.
        net: `fid.Inception()` or a `Classifier`.
        n: how many training images the others are held against. Of those as many of every kind are
            compared, n or the held-out images if they are fewer: FID depends on it.
        key: int64 (2,), of the choice and of the Gaussian.
        cache_folder: for features of real and Gaussian images.
        progress: show progress bars.

    Calling it: samples -> figures, and the score with its protocol.

    Raises ValueError: fewer than 2 images of any kind.
    """

    def __init__(
        self,
        train: Images,
        held_out: Images,
        net: fid.FeatureNet,
        n: int,
        key: Tensor,
        *,
        cache_folder: str | os.PathLike[str] | None = None,
        progress: bool = True,
    ) -> None:
        for name, count in (("train", len(train)), ("held_out", len(held_out)), ("n", n)):
            if count < 2:
                raise ValueError(f"{name} must be 2 images or more, got {count}")
        keys = split(key, 3)
        self.compared = min(n, len(held_out))
        self.net, self.cache_folder, self.progress = net, cache_folder, progress
        self.data = compared_images(train, n, key)
        self.train = train
        self.references: dict[str, float] = {}
        rivals = {
            "floor": held_out.take(self.compared, keys[1]),
            "gaussian": gaussian_images(train, self.compared, keys[2]),
        }
        real = self._features(self.data)
        for name, images in rivals.items():
            features = self._features(images)
            distance, (kid, _) = net.frechet(features, real), fid.kid(features, real)
            figures = {"fid": distance, "kid": kid, **self._looks(images)}
            self.references |= {f"{figure}_{name}": value for figure, value in figures.items()}

    def __call__(self, samples: Images) -> tuple[dict[str, float], fid.Score]:
        few = samples.part(slice(self.compared))
        score = fid.compare(
            few, self.data, self.net, cache_folder=self.cache_folder, progress=self.progress
        )
        figures = {"fid": score.fid, "kid": score.kid, **self._looks(samples)}
        return {**figures, **self.references}, score

    def _features(self, images: Images) -> Tensor:
        return fid.kept_features(
            images, self.net, cache_folder=self.cache_folder, progress=self.progress
        )

    def _looks(self, images: Images) -> dict[str, float]:
        """How far images are from copies, and by a classifier what they are."""
        # Pixels become floats a chunk at a time: all of a large data set's would take gigabytes.
        _, distances = nearest(images.pixels[:COMPARED].float(), self.train.pixels)
        shares = self.net.shares(images.pixels) if isinstance(self.net, Classifier) else {}
        return {"nearest": float(distances.median()) / 127.5, **shares}


def compared_images(train: Images, n: int, key: Tensor) -> Images:
    """The training images, n or all if they are fewer, that others are held against, by key."""
    return train.take(min(n, len(train)), split(key, 3)[0])


def gaussian_images(images: Images, n: int, key: Tensor) -> Images:
    """n images from the Gaussian with the mean and covariance of the pixels, cut to [0, 255].

    With N images X, centred, X^T w / sqrt(N - 1) has their covariance for w ~ N(0, I_N): no matrix
    of d x d pixels is needed.

    >>> from stanley_fast import keys
    >>> black = Images(torch.zeros(9, 1, 4, 4, dtype=torch.uint8), None, "black", "all")
    >>> gaussian_images(black, 2, keys.key(0)).pixels.max()
    tensor(0, dtype=torch.uint8)
    """
    total, rows = len(images), []
    mean = torch.stack([to_unit(part).sum(0) for part in images.pixels.split(5000)]).sum(0) / total
    for first in range(0, n, 500):  # memory for 500 x N weights
        size = min(500, n - first)
        rows.append(mean.flatten().repeat(size, 1))
        weights = ops.normal(
            (size, total), key, stream=STREAM_STARTS, first=first * total, total=n * total
        )
        for start in range(0, total, 5000):
            centred = (to_unit(images.pixels[start : start + 5000]) - mean).flatten(1)
            rows[-1].addmm_(
                weights[:, start : start + 5000], centred, alpha=1 / math.sqrt(max(1, total - 1))
            )
    pixels = to_pixels(torch.cat(rows)).view(n, *images.shape)
    return Images(pixels, None, f"Gaussian of {images.name}", images.split)
