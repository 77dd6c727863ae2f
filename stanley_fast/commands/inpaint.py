"""stanley-fast inpaint."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

from torch import Tensor

from stanley_fast import image_models, image_runs, inpainting, keys, pictures, run_folder
from stanley_fast.commands.common import positional, unset
from stanley_fast.data import load, to_unit
from stanley_fast.image_experiments import load_splits
from stanley_fast.methods import SAMPLERS, SamplerName, SettingsError


@dataclass
class Inpaint:
    """Fill a hole in images by sampling it, the known pixels held (Figure 6).

    Leaves inpainting.png, a row per image with original, masked and every method's, and
    inpainting.csv with PSNR and SSIM on the hole. Beside the methods stands the mean colour of the
    known pixels.
    """

    checkpoint: Path
    """The model: the folder that `train` left, or a checkpoint in it."""
    images: Annotated[Path | None, positional(), unset("held-out images of its data")] = None
    """A folder of pictures, a .zip, .npy or .npz."""
    mask: str = "centre"
    """centre, the middle half of rows and columns; half, the right half; random, scattered pixels;
    or a picture of the images' size, white in the hole."""
    share: float = 0.5
    """Of the pixels, for random."""
    n: int = 8
    """How many images."""
    samplers: Annotated[tuple[SamplerName, ...], unset("training's")] = ()
    """Methods: what samples the hole. Others than training's have settings of their own."""
    others: tuple[Path, ...] = ()
    """More models, each with its training's sampler: a method each."""
    steps: Annotated[int | None, unset("as training's evaluations")] = None
    """Evaluations of f per chain, 100 to 1000."""
    start: Literal["uniform", "mean"] = "uniform"
    """Of the hole: uniform noise, or the mean colour of the known pixels."""
    device: Annotated[str | None, unset("a GPU if there is one")] = None
    """cpu or cuda."""
    seed: int = 0
    """Decides noise, and which images."""
    folder: Annotated[Path | None, unset("inpainting, beside the checkpoint")] = None
    """Where to leave everything."""

    def run(self) -> None:
        if self.n < 1:
            raise SettingsError(f"n must be 1 or more, got {self.n}")
        if len({path.resolve() for path in (self.checkpoint, *self.others)}) <= len(self.others):
            raise SettingsError(f"others must differ from the first and each other: {self.others}")
        device = self.device or image_models.default_device()
        models = [image_models.load_learned(p, device) for p in (self.checkpoint, *self.others)]
        for path, model in zip(self.others, models[1:], strict=True):
            if model.shape != models[0].shape:
                raise SettingsError(
                    f"{path} must be of images {models[0].shape} like the first, got {model.shape}"
                )
        if self.samplers:
            first = models.pop(0)
            models = [image_models.by_sampler(first, name) for name in self.samplers] + models
        image_key, mask_key, chain_key = keys.split(keys.key(self.seed), 3)
        images = self._images(models[0], image_key).to(device)
        try:
            mask = inpainting.make_mask(
                self.mask, *models[0].shape[1:], share=self.share, key=mask_key
            )
        except ValueError as error:
            raise SettingsError(str(error)) from error
        methods = {"mean colour": mean_colour(images, mask)}
        for model, name in zip(models, self._names(models), strict=True):
            steps = model.config.sample_steps if self.steps is None else self.steps
            config = replace(model.config, steps=steps, sample_steps=steps)
            methods[name] = inpainting.inpaint(
                model.f, images, mask, config.make_sampler(), config.transitions,
                key=chain_key.to(device), start=self.start,
            ).images[0]  # fmt: skip
        self._report(images, mask, methods)

    def _images(self, model: image_models.Learned, key: Tensor) -> Tensor:
        """(n, C, H, W) in [-1, 1]: the user's first n, or as many held-out ones by key."""
        if self.images is None:
            found = load_splits(model.config).held_out
            found = found.take(min(self.n, len(found)), key)
        else:
            arrays = self.images.suffix in (".npy", ".npz")
            size = None if arrays else model.shape[1]
            channels = None if arrays else model.shape[0]
            found = load(self.images, limit=self.n, size=size, channels=channels)
        if found.shape != model.shape:
            raise SettingsError(f"images must be {model.shape} like the model's, got {found.shape}")
        return to_unit(found.pixels)

    def _names(self, models: Sequence[image_models.Learned]) -> list[str]:
        """Of the methods: the samplers, and where two are the same their run's folder too."""
        titles = [SAMPLERS[model.config.sampler].title for model in models]
        paths = [self.checkpoint] * (len(models) - len(self.others)) + list(self.others)
        return [
            f"{path.name}, {title}" if titles.count(title) > 1 else title
            for path, title in zip(paths, titles, strict=True)
        ]

    def _report(self, images: Tensor, mask: Tensor, methods: Mapping[str, Tensor]) -> None:
        beside = self.checkpoint if self.checkpoint.is_dir() else self.checkpoint.parent
        folder = self.folder or beside / "inpainting"
        folder.mkdir(parents=True, exist_ok=True)
        left = folder / "inpainting.png", folder / "inpainting.csv"
        pictures.inpainting_sheet(
            left[0], images, mask, methods, scale=image_runs.picture_scale(images.shape)
        )
        figures = {name: _figures(found, images, mask) for name, found in methods.items()}
        with left[1].open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["method", "image", *next(iter(figures.values()))])
            for name, found in figures.items():
                for i, row in enumerate(zip(*found.values(), strict=True)):
                    writer.writerow([name, i, *row])
        lines = [["on the hole", *next(iter(figures.values()))]]
        for name, found in figures.items():
            lines.append([name, *(f"{statistics.fmean(v):.3f}" for v in found.values())])
        print(run_folder.columns(lines))
        if "SSIM" not in lines[0]:
            print(f"SSIM wants images of {inpainting.WINDOW} pixels or more, and a hole inside")
        print(f"Left {left[0]} and {left[1]}")


def mean_colour(images: Tensor, mask: Tensor) -> Tensor:
    """The images with the hole filled by the mean of an image's known pixels, for each channel."""
    hole = inpainting.Hole(images, mask)
    return hole.fill(hole.start("mean", keys.key(0)))


def _figures(found: Tensor, images: Tensor, mask: Tensor) -> dict[str, list[float]]:
    """PSNR and, where it is defined, SSIM of each image's hole."""
    figures = {"PSNR": inpainting.psnr(found, images, mask).tolist()}
    edge = inpainting.WINDOW // 2
    if mask[edge:-edge, edge:-edge].any():
        figures["SSIM"] = inpainting.ssim(found, images, mask).tolist()
    return figures
