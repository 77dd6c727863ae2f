"""Inpainting: known pixels stay as they are, and the hole is sampled given them.

With the known pixels x fixed, g(h) = f(x with h put into the hole) is the unnormalised conditional
log-density of the hole's elements h. So the chain's state is h alone, and any sampler runs on g
unchanged: noise, stepsizes, norms and acceptance see the hole and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from stanley_fast import checks, keys, ops
from stanley_fast.chain import Chain, sample
from stanley_fast.density import LogDensity
from stanley_fast.extras import need
from stanley_fast.reference import STREAM_STARTS
from stanley_fast.samplers import Sampler
from stanley_fast.starts import NoiseStart

WINDOW, WIDTH = 11, 1.5  # of SSIM's Gaussian, in pixels (Wang et al. 2004)
MASKS = ("centre", "half", "random")


class Hole:
    """The pixels of a batch of images that a mask leaves open.

    Args:
        images: (B, C, H, W), float; only their known pixels matter.
        mask: bool (H, W), True in the hole: one for all images and channels.

    Raises:
        ValueError: another shape, or a mask without a hole.

    >>> hole = Hole(torch.zeros(2, 3, 4, 4), make_mask("half", 4, 4))
    >>> h = hole.take(torch.ones(2, 3, 4, 4))
    >>> h.shape, hole.fill(h)[0, 0, 0]
    (torch.Size([2, 3, 8]), tensor([0., 0., 1., 1.]))
    """

    def __init__(self, images: Tensor, mask: Tensor) -> None:
        checks.floating("images", images)
        if images.dim() != 4:
            raise ValueError(f"images must be (B, C, H, W), got {list(images.shape)}")
        check_mask(mask, images)
        self.shape = images.shape
        self.known = images.detach().flatten(2).clone()
        self.mask = mask.to(images.device)
        self.index = self.mask.flatten().nonzero()[:, 0]

    def take(self, images: Tensor) -> Tensor:
        """The hole's elements (..., C, holes) of images (..., C, H, W), row by row."""
        return images.flatten(-2)[..., self.index]

    def fill(self, h: Tensor) -> Tensor:
        """Images (..., B, C, H, W): the known pixels, and h (..., B, C, holes) in the hole."""
        known = self.known.expand(*h.shape[:-1], -1)
        filled = known.index_copy(-1, self.index, h)
        return filled.unflatten(-1, self.shape[-2:])

    def density(self, f: LogDensity) -> LogDensity:
        """g(h) = f(fill(h)): (B, C, holes) -> (B,)."""
        return _Conditional(f, self)

    def start(self, start: Literal["uniform", "mean"], key: Tensor) -> Tensor:
        """h (B, C, holes): uniform(-1, 1) by key, or the mean of the known pixels of each channel.

        Raises:
            ValueError: another start; "mean" where no pixel is known.
        """
        batch, channels = self.shape[:2]
        size = batch, channels, len(self.index)
        if start == "uniform":
            return NoiseStart(1.0, "uniform").start(batch, key, self.known.new_empty(size))
        if start != "mean":
            raise ValueError(f"start must be 'uniform' or 'mean', got {start!r}")
        if self.mask.all():
            raise ValueError("start must be 'uniform' where no pixel is known, got 'mean'")
        return self.known[..., ~self.mask.flatten()].mean(-1, keepdim=True).repeat(1, 1, size[2])


class _Conditional(nn.Module):
    """A module, so that the chain finds f's own modules: eval mode, no parameter gradients."""

    def __init__(self, f: LogDensity, hole: Hole) -> None:
        super().__init__()
        owner = getattr(f, "__self__", None)
        self.f, self.hole = f, hole
        self.owner = owner if isinstance(owner, nn.Module) else None

    def forward(self, h: Tensor) -> Tensor:
        return self.f(self.hole.fill(h))


@dataclass(frozen=True)
class Inpainting:
    """What `inpaint` returns.

    Attributes:
        images: (chains, n, C, H, W): known pixels as given, the hole as each chain left it.
        trace: (steps // keep_every, chains, n, C, H, W), or None.
        chain: the hole's chain as `sample` gave it: key, statistics, rung. Its states are
            (chains * n, C, holes), the chains of all images one after another.
    """

    images: Tensor
    trace: Tensor | None
    chain: Chain


def inpaint(
    f: LogDensity,
    images: Tensor,
    mask: Tensor,
    sampler: Sampler,
    steps: int,
    *,
    key: Tensor | torch.Generator | None = None,
    chains: int = 1,
    start: Literal["uniform", "mean"] = "uniform",
    record: tuple[str, ...] = (),
    keep_every: int | None = None,
) -> Inpainting:
    """Samples the hole of images from its conditional law under f.

    Args:
        f: the unnormalised log-density of whole images, (B, C, H, W) -> (B,).
        images: (n, C, H, W), float, in [-1, 1]; not changed. What is in the hole is not looked at.
        mask: bool (H, W), True in the hole, as `make_mask` makes it; one for all images.
        sampler: any. What it says of a chain's state holds of the hole: norm="channel" takes the
            channels of a pixel of the hole, norm="sample" the whole hole, clamp bounds it, and a
            proposal is the hole's.
        steps: K transitions; 0 returns the start.
        key: as in `sample`; the hole's start is drawn from it as well.
        chains: independent ones per image.
        start: of the hole: "uniform" on (-1, 1), or the "mean" of an image's known pixels, for each
            channel.
        record, keep_every: as in `sample`.

    Returns:
        Inpainting.

    Raises:
        ValueError: a shape, mask or setting that makes no sense.
        NonFiniteError, RuntimeError: as `sample` raises them.

    Source: the paper, Image Inpainting, which states neither mask nor start nor procedure.

    >>> from stanley_fast.samplers import Stanley
    >>> f = lambda x: -(x - 0.5).square().sum((1, 2, 3))
    >>> images, mask = torch.zeros(2, 1, 8, 8), make_mask("centre", 8, 8)
    >>> out = inpaint(f, images, mask, Stanley(0.5, 0.1), 50, key=keys.key(0), chains=3)
    >>> out.images.shape, bool((out.images == images)[..., ~mask].all())
    (torch.Size([3, 2, 1, 8, 8]), True)
    """
    checks.integer("chains", chains)
    if chains < 1:
        raise ValueError(f"chains must be 1 or more, got {chains}")
    Hole(images, mask)  # says what is wrong with them before they are repeated
    hole = Hole(images.repeat(chains, 1, 1, 1), mask)
    key = key if isinstance(key, Tensor) else keys.key(key, images.device)
    h0, g = hole.start(start, key), hole.density(f)
    chain = sample(g, h0, sampler, steps, key=key, record=record, keep_every=keep_every)
    apart = chains, len(images)
    trace = None if chain.trace is None else hole.fill(chain.trace).unflatten(1, apart)
    return Inpainting(hole.fill(chain.z).unflatten(0, apart), trace, chain)


def make_mask(
    what: str | Path, height: int, width: int, *, share: float = 0.5, key: Tensor | None = None
) -> Tensor:
    """A mask for images of one size: bool (height, width), True in the hole.

    Args:
        what: "centre", the middle half of the rows and columns; "half", the right half; "random",
            pixels drawn by key; or a picture file of this size, white in the hole (a grey of 128 or
            more), which needs Pillow.
        height, width: of the images.
        share: of the pixels, for "random": in (0, 1].
        key: int64 (2,), for "random".

    Raises:
        FileNotFoundError, OSError: the file is not there, or no picture.
        MissingExtraError: a file, and no Pillow.
        ValueError: an argument that makes no sense, or a file of another size.

    >>> make_mask("centre", 4, 4).int()[1]
    tensor([0, 1, 1, 0], dtype=torch.int32)
    """
    if height < 1 or width < 1:
        raise ValueError(f"height and width must be 1 or more, got {height} and {width}")
    mask = torch.zeros(height, width, dtype=torch.bool)
    if what == "centre":
        top, left = height // 4, width // 4
        mask[top : height - top, left : width - left] = True
    elif what == "half":
        mask[:, width // 2 :] = True
    elif what == "random":
        if not 0 < share <= 1:
            raise ValueError(f"share must be in (0, 1], got {share}")
        if key is None:
            raise ValueError("key must be given for a random mask, got None")
        drawn = ops.normal((height * width,), key, stream=STREAM_STARTS).cpu()
        mask.view(-1)[drawn.argsort()[: max(1, round(share * len(drawn)))]] = True
    else:
        mask = _mask_of_file(Path(what))
        if mask.shape != (height, width):
            raise ValueError(
                f"{what} must be {width} x {height} pixels like the images, got "
                f"{mask.shape[1]} x {mask.shape[0]}"
            )
    return mask


def psnr(
    found: Tensor, truth: Tensor, mask: Tensor | None = None, *, data_range: float = 2.0
) -> Tensor:
    """Peak signal-to-noise ratio in dB, 10 log10(data_range^2 / mean squared error).

    Args:
        found: (..., C, H, W). truth: the last dims of the same shape, such as (n, C, H, W).
        mask: bool (H, W): over its True pixels alone; None is the whole image.
        data_range: largest minus smallest possible value; 2 for [-1, 1].

    Returns:
        float64 (...), infinite where found is truth.

    >>> psnr(torch.zeros(1, 3, 8, 8), torch.full((1, 3, 8, 8), 0.2))
    tensor([20.0000], dtype=torch.float64)
    """
    _check_pair(found, truth, mask, data_range)
    error = (found.double() - truth.double()).square().flatten(-2)
    if mask is not None:
        error = error[..., mask.flatten().to(error.device)]
    return 10 * torch.log10(data_range**2 / error.mean((-2, -1)))


def ssim(
    found: Tensor, truth: Tensor, mask: Tensor | None = None, *, data_range: float = 2.0
) -> Tensor:
    """Structural similarity with the usual Gaussian window: 11 x 11 pixels, width 1.5.

    The map is taken where the whole window lies in the image, as the authors' code does, and
    averaged over those of these pixels that are in the hole. Windows near its edge see known
    pixels too.

    Args:
        found, truth, mask, data_range: as in `psnr`; at least 11 pixels high and wide.

    Returns:
        float64 (...), the mean over channels; at most 1, where found is truth.

    Raises:
        ValueError: shapes that differ, too small an image, or no window centred in the hole.

    Source: Wang et al. 2004, Eq. 13, K1 = 0.01, K2 = 0.03.

    >>> images = torch.rand(2, 3, 16, 16)
    >>> ssim(images, images)
    tensor([1., 1.], dtype=torch.float64)
    """
    _check_pair(found, truth, mask, data_range)
    height, width = found.shape[-2:]
    if min(height, width) < WINDOW:
        raise ValueError(
            f"found must be at least {WINDOW} x {WINDOW} pixels for SSIM, got {height} x {width}"
        )
    edge = WINDOW // 2
    inner = None if mask is None else mask[edge : height - edge, edge : width - edge]
    if inner is not None and not inner.any():
        raise ValueError(f"mask must have a hole {edge} pixels or more from the edge for SSIM")
    x, y = found.double(), truth.double().expand_as(found)
    mean_x, mean_y = _blur(x), _blur(y)
    var_x, var_y = _blur(x * x) - mean_x**2, _blur(y * y) - mean_y**2
    covariance = _blur(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    alike = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    alike = alike / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    alike = alike.flatten(-2)
    if inner is not None:
        alike = alike[..., inner.flatten().to(alike.device)]
    return alike.mean((-2, -1))


def check_mask(mask: Tensor, images: Tensor) -> None:
    """A mask must be bool (H, W), for these images, with a hole."""
    checks.tensor("mask", mask)
    if mask.dtype != torch.bool or mask.shape != images.shape[-2:]:
        raise ValueError(
            f"mask must be bool {list(images.shape[-2:])} like the images, got {mask.dtype} "
            f"{list(mask.shape)}"
        )
    if not mask.any():
        raise ValueError("mask must be True somewhere, in the hole, got one that is False all over")


def _blur(images: Tensor) -> Tensor:
    """SSIM's weighted mean in every window that fits, (..., H - 10, W - 10)."""
    x = torch.arange(WINDOW, dtype=images.dtype, device=images.device) - WINDOW // 2
    weights = torch.exp(-0.5 * (x / WIDTH).square())
    weights = weights / weights.sum()
    planes = images.reshape(-1, 1, *images.shape[-2:])
    planes = torch.conv2d(planes, weights[None, None, :, None])
    planes = torch.conv2d(planes, weights[None, None, None, :])
    return planes.reshape(*images.shape[:-2], *planes.shape[-2:])


def _mask_of_file(path: Path) -> Tensor:
    if not path.exists():
        raise FileNotFoundError(f"mask must be {', '.join(MASKS)} or a picture file, got {path}")
    with need("PIL.Image", "images", "reading a mask").open(path) as picture:
        grey = picture.convert("L")
    values = torch.frombuffer(bytearray(grey.tobytes()), dtype=torch.uint8)
    return values.view(grey.height, grey.width) >= 128


def _check_pair(found: Tensor, truth: Tensor, mask: Tensor | None, data_range: float) -> None:
    checks.tensor("found", found)
    checks.tensor("truth", truth)
    if truth.dim() < 3 or found.shape[-truth.dim() :] != truth.shape:
        raise ValueError(
            f"found must end in truth's shape (..., C, H, W), got {list(found.shape)} and "
            f"{list(truth.shape)}"
        )
    if not data_range > 0:
        raise ValueError(f"data_range must be positive, got {data_range}")
    if mask is not None:
        check_mask(mask, found)
