"""Pictures of image chains: sheets, strips and GIFs, every pixel a crisp square.

Images are float, (n, C, H, W), C 1 (grey) or 3 (RGB), in [-1, 1]; what lies beyond is cut off.
Sheets and GIFs need Pillow, the histogram matplotlib.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from stanley_fast import checks, plots
from stanley_fast.extras import need
from stanley_fast.inpainting import check_mask, psnr

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw

GAP = 2  # pixels between images
PAPER, INK = (255, 255, 255), (34, 34, 59)
HOLE = 0.0  # the grey that a hole is shown in


def sheet(path: Path, images: Tensor, *, columns: int | None = None, scale: int = 1) -> None:
    """Images in rows, the first at the top left.

    Args:
        path: the PNG to write.
        images: (n, C, H, W).
        columns: images in a row; about a square's worth unless told.
        scale: a pixel becomes scale x scale.

    Raises:
        MissingExtraError: no Pillow. ValueError: images of another shape, or none; a count below 1.

    >>> import tempfile
    >>> sheet(Path(tempfile.mkdtemp()) / "sheet.png", torch.zeros(10, 3, 32, 32), scale=2)
    """
    _save(path, _grid(_rows(images, columns), scale))


def strip(path: Path, trace: Tensor, *, titles: Sequence[str] = (), scale: int = 1) -> None:
    """A row per chain, and in it the chain's states from left to right.

    Args:
        path: the PNG to write.
        trace: (states, B, C, H, W), as sample(keep_every=...) gives it; or samples at several
            iterations of a training, stacked.
        titles: a line above each column, such as its k; as many as states.
        scale: a pixel becomes scale x scale.

    Raises:
        MissingExtraError: no Pillow. ValueError: a trace of another shape, or empty; not a title a
            state; a scale below 1.

    >>> import tempfile
    >>> trace = torch.zeros(2, 4, 1, 8, 8)
    >>> strip(Path(tempfile.mkdtemp()) / "strip.png", trace, titles=["k = 50", "k = 100"], scale=5)
    """
    states = _states(trace)
    if titles and len(titles) != len(states):
        raise ValueError(f"titles must be {len(states)}, one a state, got {len(titles)}")
    columns = [_pixels(images) for images in states]
    _save(path, _grid([list(row) for row in zip(*columns, strict=True)], scale, titles))


def gif(
    path: Path,
    trace: Tensor,
    *,
    columns: int | None = None,
    scale: int = 1,
    milliseconds: int = 100,
) -> None:
    """Chains over k: a sheet of all of them for every state, the last one held for a second.

    Args:
        path: the GIF to write, which has 256 colours a frame.
        trace: (states, B, C, H, W).
        columns, scale: as in `sheet`.
        milliseconds: a state is shown for, 10 or more.

    Raises:
        MissingExtraError: no Pillow. ValueError: as `sheet` and `strip`.

    >>> import tempfile
    >>> gif(Path(tempfile.mkdtemp()) / "chains.gif", torch.rand(5, 4, 1, 8, 8), scale=4)
    """
    if milliseconds < 10:
        raise ValueError(f"milliseconds must be 10 or more, got {milliseconds}")
    frames = [_grid(_rows(images, columns), scale) for images in _states(trace)]
    times = [milliseconds] * (len(frames) - 1) + [max(1000, milliseconds)]
    frames[0].save(
        path, format="GIF", save_all=True, append_images=frames[1:], duration=times, loop=0
    )


def nearest(
    samples: Tensor, data: Tensor, neighbours: int = 1, *, chunk: int = 4096
) -> tuple[Tensor, Tensor]:
    """The images of `data` nearest to each sample, by Euclidean distance between pixels.

    Args:
        samples: (n, ...), float.
        data: (N, ...), images of the same shape, such as the training set; on any device.
        neighbours: how many, 1 to N.
        chunk: images of `data` compared at once.

    Returns:
        indices into data, int64 (n, neighbours), nearest first, of equals the first; distances
        (n, neighbours), float32, or float64 for float64 samples. Both on the samples' device.

    Raises:
        ValueError: shapes that differ; a count out of its range.

    >>> nearest(torch.tensor([[0.9]]), torch.tensor([[0.0], [1.0], [3.0]]), 2)
    (tensor([[1, 0]]), tensor([[0.1000, 0.9000]]))
    """
    if samples.shape[1:] != data.shape[1:]:
        raise ValueError(
            f"data must have images of the samples' shape {list(samples.shape[1:])}, got "
            f"{list(data.shape[1:])}"
        )
    if not 1 <= neighbours <= len(data):
        raise ValueError(f"neighbours must be in [1, {len(data)}], got {neighbours}")
    if chunk < 1:
        raise ValueError(f"chunk must be 1 or more, got {chunk}")
    queries = samples.detach().flatten(1).to(checks.compute_dtype(samples.dtype))
    distances = queries.new_empty(len(queries), 0)
    indices = torch.empty(len(queries), 0, dtype=torch.int64, device=queries.device)
    for first in range(0, len(data), chunk):
        part = data[first : first + chunk].detach().flatten(1).to(queries)
        # Differences, not products: the distance of a copy is 0 and does not drown in rounding.
        here = torch.cdist(queries, part, compute_mode="donot_use_mm_for_euclid_dist")
        places = torch.arange(first, first + len(part), device=queries.device)
        distances, order = torch.cat([distances, here], 1).sort(dim=1, stable=True)
        distances = distances[:, :neighbours]
        indices = torch.cat([indices, places.expand(len(queries), -1)], 1)
        indices = indices.gather(1, order[:, :neighbours])
    return indices, distances


def neighbour_sheet(
    path: Path, samples: Tensor, data: Tensor, indices: Tensor, *, scale: int = 1
) -> None:
    """A row per sample: the sample, then its nearest images.

    Args:
        path: the PNG to write.
        samples: (n, C, H, W). data: (N, C, H, W).
        indices: (n, neighbours), as `nearest` gives them.
        scale: a pixel becomes scale x scale.

    Raises:
        MissingExtraError: no Pillow. ValueError: shapes that don't fit.

    >>> import tempfile
    >>> samples, data = torch.rand(3, 1, 8, 8), torch.rand(50, 1, 8, 8)
    >>> path = Path(tempfile.mkdtemp()) / "neighbours.png"
    >>> neighbour_sheet(path, samples, data, nearest(samples, data, 5)[0], scale=4)
    """
    if indices.dim() != 2 or len(indices) != len(samples):
        raise ValueError(
            f"indices must be ({len(samples)}, neighbours), a row per sample, got "
            f"{list(indices.shape)}"
        )
    found = data[indices.to(data.device)]
    rows = [
        [*_pixels(sample[None]), *_pixels(near)]
        for sample, near in zip(samples, found, strict=True)
    ]
    _save(path, _grid(rows, scale, after_first=4 * GAP))


def inpainting_sheet(
    path: Path,
    originals: Tensor,
    mask: Tensor,
    methods: Mapping[str, Tensor],
    *,
    scale: int = 2,
) -> None:
    """Figure 6: a row per image, and in it original, masked, and each method's inpainting.

    Above a method stand its name and the PSNR on the hole, the mean over the images.

    Args:
        path: the PNG to write.
        originals: (n, C, H, W).
        mask: bool (H, W), True in the hole, which is shown grey.
        methods: a name -> its images (n, C, H, W).
        scale: a pixel becomes scale x scale.

    Raises:
        MissingExtraError: no Pillow. ValueError: shapes that differ.

    >>> import tempfile
    >>> images, mask = torch.rand(2, 3, 32, 32), torch.ones(32, 32, dtype=torch.bool)
    >>> path = Path(tempfile.mkdtemp()) / "inpainting.png"
    >>> inpainting_sheet(path, images, mask, {"STANLEY": torch.rand(2, 3, 32, 32)})
    """
    check_mask(mask, originals)
    titles = ["original", "masked"]
    for name, images in methods.items():
        if images.shape != originals.shape:
            raise ValueError(
                f"methods[{name!r}] must be like the originals, {list(originals.shape)}, got "
                f"{list(images.shape)}"
            )
        titles.append(f"{name}\n{float(psnr(images, originals, mask).mean()):.1f} dB")
    masked = originals.masked_fill(mask.to(originals.device), HOLE)
    columns = [_pixels(images) for images in (originals, masked, *methods.values())]
    _save(path, _grid([list(row) for row in zip(*columns, strict=True)], scale, titles))


def energy_histogram(path: Path, energies: Mapping[str, Tensor], *, bins: int = 60) -> None:
    """Densities of the energies E = -f of several sets of images, over common bins.

    Where the held-out data lies apart from the training data the model has overfitted; where the
    samples do, the chains don't sample the model's law.

    Args:
        path: the PNG to write.
        energies: a name, such as "data", "held out", "samples" -> its energies (n,), finite.
        bins: over the range of all.

    Raises:
        MissingExtraError: no matplotlib. ValueError: an empty set, or one that is not finite.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "energies.png"
    >>> energy_histogram(path, {"data": torch.randn(500), "samples": torch.randn(500) + 1})
    """
    need("matplotlib", "cli", "a histogram")
    if not energies:
        raise ValueError("energies must have at least one set, got none")
    sets = {name: values.detach().double().cpu() for name, values in energies.items()}
    for name, values in sets.items():
        if values.dim() != 1 or not len(values) or not values.isfinite().all():
            raise ValueError(
                f"energies[{name!r}] must be (n,), not empty and finite, got {list(values.shape)}"
                + ("" if values.isfinite().all() else " with NaN or infinity")
            )
    low = min(float(values.min()) for values in sets.values())
    high = max(float(values.max()) for values in sets.values())
    figure = plots._figure(7, 3)
    axis = figure.subplots()
    for name, values in sets.items():
        axis.hist(
            values.numpy(),
            bins=bins,
            range=(low, high),
            density=True,
            histtype="stepfilled",
            alpha=0.45,
            label=f"{name}, mean {float(values.mean()):.4g}",
        )
    axis.set_xlabel("energy -f", **plots.STYLE)
    axis.set_ylabel("density", **plots.STYLE)
    axis.legend(frameon=False, fontsize=8, labelcolor=plots.INK)
    axis.margins(x=0)
    plots._plain(axis)
    plots._write(figure, path)


def _pixels(images: Tensor) -> list[Any]:
    """uint8 arrays (H, W, 3): -1 is 0, 1 is 255, what lies beyond is cut off."""
    checks.floating("images", images)
    if images.dim() != 4 or images.shape[1] not in (1, 3) or 0 in images.shape:
        raise ValueError(
            f"images must be (n, C, H, W) with 1 or 3 channels, none of it empty, got "
            f"{list(images.shape)}"
        )
    if not images.isfinite().all():
        raise ValueError("images must be finite, got NaN or infinity")
    values = images.detach().cpu().float().clamp(-1, 1).add(1).mul(127.5).round()
    values = values.expand(-1, 3, -1, -1).to(torch.uint8)
    return list(values.permute(0, 2, 3, 1).contiguous().numpy())


def _rows(images: Tensor, columns: int | None) -> list[list[Any]]:
    found = _pixels(images)
    if columns is None:
        columns = math.ceil(math.sqrt(len(found)))
    if columns < 1:
        raise ValueError(f"columns must be 1 or more, got {columns}")
    return [found[i : i + columns] for i in range(0, len(found), columns)]


def _states(trace: Tensor) -> list[Tensor]:
    if trace.dim() != 5 or not len(trace):
        raise ValueError(
            f"trace must be (states, B, C, H, W) with at least one state, got {list(trace.shape)}"
        )
    return list(trace)


def _grid(
    rows: list[list[Any]], scale: int, titles: Sequence[str] = (), after_first: int = GAP
) -> Image:
    """Rows of arrays on white, titles above their columns, `after_first` between the first two.

    Columns are as wide as their images, or as the widest title if that is wider.
    """
    if scale < 1:
        raise ValueError(f"scale must be 1 or more, got {scale}")
    pillow = need("PIL.Image", "images", "a picture of images")
    height, width = (scale * n for n in rows[0][0].shape[:2])
    boxes = [_draw(pillow.new("L", (1, 1))).multiline_textbbox((0, 0), t) for t in titles]
    heading = max((math.ceil(box[3]) + GAP for box in boxes), default=0)
    pitch = max([width, *(math.ceil(box[2]) + GAP for box in boxes)]) + GAP
    across = max(map(len, rows))
    lefts = [GAP + i * pitch + (after_first - GAP if i else 0) for i in range(across)]
    size = lefts[-1] + pitch, heading + GAP + len(rows) * (height + GAP)
    paper: Image = pillow.new("RGB", size, PAPER)
    for i, row in enumerate(rows):
        for left, pixels in zip(lefts, row, strict=False):
            image = pillow.fromarray(pixels).resize((width, height), pillow.Resampling.NEAREST)
            paper.paste(image, (left, heading + GAP + i * (height + GAP)))
    for left, title in zip(lefts, titles, strict=False):
        _draw(paper).multiline_text((left, 0), title, fill=INK)
    return paper


def _draw(paper: Image) -> ImageDraw:
    draw: ImageDraw = need("PIL.ImageDraw", "images", "a picture's titles").Draw(paper)
    return draw


def _save(path: Path, picture: Image) -> None:
    picture.save(path, format="PNG")
