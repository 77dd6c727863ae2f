"""A small classifier of labelled images: what class a sample is of, how surely, and its features.

For small images of known classes it says what Inception can't: whether samples are what they should
be, and whether every class is among them.
"""

from __future__ import annotations

import hashlib
import os

import torch
from torch import Tensor, nn

from stanley_fast.data import DataError, Images, cache, to_unit
from stanley_fast.threads import one_thread

STEPS, BATCH = 400, 100  # of its training: digits take five seconds of one core
FEATURES = 64
CONFIDENT = 0.9


class Classifier:
    """A convolutional net trained on images and their labels, always in the same way.

    Args:
        images: with labels; on the CPU.
        cache_folder: where its weights are kept, by the images' fingerprint and labels;
            $XDG_CACHE_HOME/stanley-fast unless told.

    Calling it: uint8 pixels (B, 3 or C, H, W) -> float32 (B, 64), the features before the last
    layer: what `fid.FeatureNet` wants.

    Raises DataError: no labels, or fewer than two classes.

    >>> from stanley_fast.data import load
    >>> net = Classifier(load("digits"))
    >>> net.accuracy(load("digits", split="test")) > 0.97
    True
    """

    def __init__(self, images: Images, *, cache_folder: str | os.PathLike[str] | None = None):
        if images.labels is None or int(images.labels.max()) < 1:
            raise DataError(
                f"{images.name} has no labels of two classes or more to train a classifier on: "
                "choose other features"
            )
        labels = images.labels
        self.channels = images.shape[0]
        self.classes = int(labels.max()) + 1
        self.net = _net(images.shape, self.classes)
        source = {
            "images": images.fingerprint,
            "labels": cache.digest(labels),
            "steps": STEPS,
            "net": str(self.net),
        }
        weights = cache.cached(
            lambda: _train(self.net, images, labels),
            name=f"classifier-{images.name}-{images.split}-{images.fingerprint[:12]}",
            source=source,
            folder=cache_folder,
        )
        _unpack(self.net, weights)
        self.net.eval()
        self.protocol = {
            "network": f"classifier of {len(images)} of {images.name} ({images.split}), "
            f"{FEATURES} features",
            "weights_sha256": hashlib.sha256(weights.numpy().tobytes()).hexdigest(),
            "resize": "none",
            "dtype": "float32 network, float64 statistics",
            "device": "cpu",
        }

    @torch.no_grad()
    @one_thread()
    def __call__(self, pixels: Tensor) -> Tensor:
        features: Tensor = self.net[:-1](to_unit(pixels[:, : self.channels]))
        return features

    @torch.no_grad()
    @one_thread()
    def probabilities(self, pixels: Tensor) -> Tensor:
        """float32 (n, classes) of uint8 pixels (n, C, H, W)."""
        parts = [self.net(to_unit(part)).softmax(1) for part in pixels.split(500)]
        return torch.cat(parts)

    def accuracy(self, images: Images) -> float:
        """The share of labelled images that it puts into their class; DataError: no labels."""
        if images.labels is None:
            raise DataError(f"{images.name} has no labels to be right about")
        found = self.probabilities(images.pixels).argmax(1)
        return float(found.eq(images.labels).float().mean())

    def shares(self, pixels: Tensor) -> dict[str, float]:
        """What it makes of images: the share it is sure of (> 0.9), and of the rarest class."""
        sure, classes = self.probabilities(pixels).max(1)
        counts = classes.bincount(minlength=self.classes)
        return {
            "confident": float((sure > CONFIDENT).float().mean()),
            "rarest_class": float(counts.min() / len(pixels)),
        }

    @staticmethod
    def frechet(a: Tensor, b: Tensor) -> float:
        """The Frechet distance of the Gaussians fitted to two sets of features (n, 64).

        pytorch-fid's, where it can't be had: it wants torchvision, and these are no Inception's
        features. The roots come from symmetric eigenvalues.

        Source: Heusel et al. 2017, Eq. 6.

        >>> x = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
        >>> round(Classifier.frechet(x, x + torch.tensor([3.0, 4.0])), 6)
        25.0
        """
        a, b = a.double(), b.double()
        cov_a, cov_b = a.T.cov(), b.T.cov()
        values, vectors = torch.linalg.eigh(cov_a)
        root = vectors * values.clamp(min=0).sqrt() @ vectors.T
        cross = torch.linalg.eigvalsh(root @ cov_b @ root).clamp(min=0).sqrt().sum()
        means = (a.mean(0) - b.mean(0)).square().sum()
        return float(means + cov_a.trace() + cov_b.trace() - 2 * cross)


def _net(shape: tuple[int, int, int], classes: int) -> nn.Sequential:
    def block(n_in: int, n_out: int) -> list[nn.Module]:
        return [nn.Conv2d(n_in, n_out, 3, padding=1), nn.BatchNorm2d(n_out), nn.ReLU()]

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            *block(shape[0], 32), *block(32, 64), nn.MaxPool2d(2), *block(64, 64),
            nn.AdaptiveMaxPool2d(4), nn.Flatten(), nn.Dropout(0.3), nn.Linear(64 * 16, FEATURES),
            nn.ReLU(), nn.Linear(FEATURES, classes),
        )  # fmt: skip


@one_thread()
def _train(net: nn.Sequential, images: Images, labels: Tensor) -> Tensor:
    """Its weights and running statistics, one after another."""
    optimizer = torch.optim.AdamW(net.parameters(), 2e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=STEPS)
    net.train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for _ in range(STEPS):
            index = torch.randint(len(images), (BATCH,))
            x = _moved(to_unit(images.pixels[index]))
            loss = nn.functional.cross_entropy(net(x), labels[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return torch.cat([value.detach().float().flatten() for value in net.state_dict().values()])


def _moved(x: Tensor) -> Tensor:
    """Images turned by up to 10 degrees, resized by 10 %, shifted by 7 %, with noise on them."""
    n = len(x)
    angle, scale = (torch.rand(n) - 0.5) * 0.35, 1 + (torch.rand(n) - 0.5) * 0.2
    shift = (torch.rand(n, 2) - 0.5) * 0.3
    cos, sin = scale * angle.cos(), scale * angle.sin()
    theta = torch.stack([cos, -sin, shift[:, 0], sin, cos, shift[:, 1]], 1).view(n, 2, 3)
    grid = nn.functional.affine_grid(theta, list(x.shape), align_corners=False)
    # 0 outside the image, so that -1, its background, must be 0 meanwhile
    moved = nn.functional.grid_sample(x + 1, grid, align_corners=False) - 1
    return moved + 0.1 * torch.randn_like(moved)


def _unpack(net: nn.Module, weights: Tensor) -> None:
    state = net.state_dict()
    parts = weights.split([value.numel() for value in state.values()])
    for value, part in zip(state.values(), parts, strict=True):
        value.copy_(part.view(value.shape))
