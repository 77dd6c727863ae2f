"""Images in memory: what every reader gives, and the minibatches a trainer draws from them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from stanley_fast import ops
from stanley_fast.data import cache
from stanley_fast.reference import STREAM_STARTS


class DataError(RuntimeError):
    """Files that are not the data they should be; the message names the file and says why."""


@dataclass(frozen=True, eq=False)
class Images:
    """A set of images, and where it is from.

    Attributes:
        pixels: uint8 (n, C, H, W).
        labels: int64 (n,), classes from 0; None where the data has none.
        name: of the data, "cifar10" or a file's or folder's name.
        split: "train", "test", "valid", or "all".

    Raises TypeError, ValueError: pixels or labels of another dtype or shape.

    >>> from stanley_fast import keys
    >>> images = Images(torch.zeros(10, 3, 8, 8, dtype=torch.uint8), None, "black", "all")
    >>> images.minibatches()(2, keys.key(0)).shape
    torch.Size([2, 3, 8, 8])
    """

    pixels: Tensor
    labels: Tensor | None
    name: str
    split: str

    def __post_init__(self) -> None:
        if self.pixels.dtype != torch.uint8:
            raise TypeError(f"pixels must be uint8, got {self.pixels.dtype}")
        if self.pixels.dim() != 4 or self.pixels.numel() == 0:
            raise ValueError(f"pixels must be (n, C, H, W), none 0, got {list(self.pixels.shape)}")
        if self.labels is not None and tuple(self.labels.shape) != (len(self),):
            raise ValueError(f"labels must be ({len(self)},), got {list(self.labels.shape)}")

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        channels, height, width = self.pixels.shape[1:]
        return channels, height, width

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of shape and pixels, in hex: equal for equal images in the same order."""
        return cache.digest(self.pixels)

    def to(self, device: str | torch.device) -> Images:
        """The same on another device, where minibatches are then made."""
        labels = None if self.labels is None else self.labels.to(device)
        return replace(self, pixels=self.pixels.to(device), labels=labels)

    def take(self, n: int, key: Tensor) -> Images:
        """n of them without replacement, in the key's order.

        Raises ValueError: n is not in [1, len(self)].
        """
        if not 1 <= n <= len(self):
            raise ValueError(f"n must be from 1 to the {len(self)} images, got {n}")
        order = ops.normal((len(self),), key.cpu(), stream=STREAM_STARTS, dtype=torch.float64)
        index = order.argsort()[:n].to(self.pixels.device)
        labels = None if self.labels is None else self.labels[index]
        return replace(self, pixels=self.pixels[index], labels=labels)

    def part(self, which: slice) -> Images:
        """Those at the places of a slice."""
        labels = None if self.labels is None else self.labels[which]
        return replace(self, pixels=self.pixels[which], labels=labels)

    def minibatches(self, *, flip: bool = False) -> Minibatches:
        """What `Trainer` takes as its data: (n, key) -> float32 (n, C, H, W) in [-1, 1].

        Images are drawn with replacement, by the key alone, on the images' device. The key may lie
        elsewhere. Noise on the data is the trainer's `data_noise`.

        Args:
            flip: mirror every other image left to right, at random. Not for digits.
        """

        return Minibatches(self, flip)


@dataclass(frozen=True)
class Minibatches:
    """Some images drawn at a time; see `Images.minibatches`."""

    images: Images
    flip: bool

    @property
    def device(self) -> torch.device:
        """Where they are drawn."""
        return self.images.pixels.device

    def __call__(self, n: int, key: Tensor) -> Tensor:
        most = len(self.images) - 1
        key = key.to(self.device)
        draws = ops.normal((2, n), key, stream=STREAM_STARTS, dtype=torch.float64)
        index = (torch.special.ndtr(draws[0]) * len(self.images)).long().clamp_(max=most)
        batch = to_unit(self.images.pixels[index])
        if self.flip:
            batch = torch.where(draws[1].view(-1, 1, 1, 1) < 0, batch.flip(3), batch)
        return batch


def to_unit(pixels: Tensor) -> Tensor:
    """uint8 pixels as float32 in [-1, 1], the states that chains move in: 0 is -1 and 255 is 1.

    >>> to_unit(torch.tensor([0, 255], dtype=torch.uint8))
    tensor([-1.,  1.])
    """
    return pixels.float() / 127.5 - 1


def to_pixels(z: Tensor) -> Tensor:
    """States as uint8 pixels, the inverse of `to_unit`: rounded, and cut to [0, 255].

    Raises ValueError: z has NaN.

    >>> to_pixels(torch.tensor([-1.2, 0.0, 1.0]))
    tensor([  0, 128, 255], dtype=torch.uint8)
    """
    if z.isnan().any():
        raise ValueError("z must not have NaN")
    return ((z.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
