"""Image runs in their folders: training, evaluation, pictures, and reading all that back.

A folder holds config.json, checkpoint.pt (checkpoints/ and best.pt beside it), metrics.csv,
scores.json (each evaluation's FID with its protocol), snapshots/ (the weights and some samples of
each), and pictures: samples.png, training.png, chains.gif, neighbours.png, energies.png, fid.png,
loss.png.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stanley_fast import checkpoint, fid, pictures, plots, run_folder
from stanley_fast.checkpoint import CheckpointError
from stanley_fast.classifier import Classifier
from stanley_fast.data import Images, to_pixels, to_unit
from stanley_fast.image_experiments import ImageConfig, Splits, load_splits
from stanley_fast.image_models import (
    CHUNK,
    chains,
    default_device,
    generate,
    persistent_chains,
)
from stanley_fast.image_quality import ImageQuality
from stanley_fast.schedules import warm_up_and_decay
from stanley_fast.trainer import Trainer

SHOWN = 64  # samples in a picture, kept in every snapshot
FOLLOWED = 8  # chains in training.png and neighbours.png
STATES = 20  # of chains.gif


def train(
    config: ImageConfig,
    folder: str | os.PathLike[str],
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
    device: str | None = None,
    keep: int = 2,
    weights: str | os.PathLike[str] | None = None,
) -> Trainer:
    """Runs `config`, leaving in the folder what the module's text lists.

    Args:
        config: the settings.
        folder: where the run lives; made if need be.
        resume: go on from the folder's checkpoint, on a CPU bit for bit as if never interrupted.
            `config` must be the folder's, or differ in `iterations` alone, by which the learning
            rate falls.
        overwrite: begin anew, removing the run that the folder holds once all else is ready.
        progress: show progress bars.
        device: of the training; a GPU unless told, if there is one.
        keep: how many of the newest checkpoints stay.
        weights: of Inception; see `fid.Inception`.

    Returns:
        The trainer, with the learned f.

    Raises:
        FileExistsError: the folder holds a run, neither to be resumed nor overwritten.
        FileNotFoundError, DataError: the data, or Inception's weights.
        FileNotFoundError, SettingsError: it holds none to resume, or one with other settings.
        CheckpointError: the folder's run is of other data.
        DivergedError, KeyboardInterrupt: as `Trainer.fit`.
    """
    folder, device = Path(folder), device or default_device()
    run_folder.check(folder, config, resume=resume, overwrite=overwrite)
    splits = load_splits(config, progress=progress)
    f = config.make_model(splits.train.shape).to(device)
    evaluation = Evaluation(config, folder, splits, device, weights=weights, progress=progress)
    trainer = Trainer(
        f,
        near(splits.train, device).minibatches(flip=config.flip),
        config.make_sampler(),
        start=config.make_start(),
        optimizer=partial(
            torch.optim.Adam, lr=config.learning_rate, betas=(config.beta1, 0.999), fused=True
        ),
        steps=config.transitions,
        batch_size=config.batch_size,
        key=run_folder.key_for(config.seed, "training"),
        schedule=warm_up_and_decay(
            config.iterations, warm_up=config.warm_up, decay=config.decay, final=config.final_rate
        ),
        ema=config.ema,
        autocast=config.autocast,
        grad_clip=config.grad_clip,
        data_noise=config.data_noise,
        energy_l2=config.energy_l2,
        max_gap=config.max_gap,
        rollbacks=config.rollbacks,
        folder=folder,
        evaluate=evaluation,
        evaluate_every=config.evaluate_every,
        checkpoint_every=config.checkpoint_every,
        log_every=10,
        keep=keep,
        best_by=None if config.features == "none" else "fid",
        progress=progress,
        notes={
            "config": asdict(config),
            "shape": list(splits.train.shape),
            "data": splits.train.fingerprint,
        },
    )
    run_folder.begin(folder, config, trainer, resume=resume, overwrite=overwrite)
    try:
        trainer.fit(config.iterations)
    finally:
        run_folder.draw_loss(folder)
    return trainer


def near(images: Images, device: str) -> Images:
    """On the device where they leave most of it free; else where they are.

    Minibatches of images on the host come through pinned memory while the device works.
    """
    if torch.device(device).type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        if images.pixels.nbytes > free // 4:
            return images
    return images.to(device)


class Evaluation:
    """What a run does at every evaluation: samples, their quality, a snapshot, the pictures."""

    def __init__(
        self,
        config: ImageConfig,
        folder: Path,
        splits: Splits,
        device: str,
        *,
        weights: str | os.PathLike[str] | None = None,
        progress: bool = True,
    ) -> None:
        self.config, self.folder, self.splits, self.device = config, folder, splits, device
        self.progress = progress
        self.quality = None
        if config.features != "none":
            self.quality = ImageQuality(
                splits.train,
                splits.held_out,
                feature_net(config, splits.train, device, weights),
                config.samples,
                run_folder.key_for(0, "truth"),  # all runs are held against the same images
                progress=progress,
            )

    def __call__(self, trainer: Trainer) -> dict[str, float]:
        f, config = trainer.model, self.config
        key = run_folder.key_for(config.seed, "evaluation").to(self.device)
        shape = self.splits.train.shape
        if config.samples_from == "buffer":
            z = persistent_chains(trainer.start, config.samples, shape, key)
        else:
            z = generate(f, config, config.samples, shape, key, progress=self.progress)
        pixels = Images(to_pixels(z).cpu(), None, "samples", f"iteration {trainer.iteration}")
        energies = self._energies(f, z)
        figures = {f"f_{name}": float(-e.mean()) for name, e in energies.items()}
        if self.quality is not None:
            more, score = self.quality(pixels)
            figures |= more
            row = {"references": self.quality.references, **score.to_dict()}
            add_score(self.folder / "scores.json", trainer.iteration, row)
        shots = self.folder / "snapshots"
        checkpoint.save(
            shots / f"{trainer.iteration:07d}.pt",
            {
                "iteration": trainer.iteration,
                "model": f.state_dict(),
                "samples": pixels.pixels[:SHOWN],
                "notes": trainer.notes,
            },
        )
        for path in shots.glob("*.pt"):
            if path.stem.isdigit() and int(path.stem) > trainer.iteration:
                path.unlink()  # of a past that the run went back on
        self._draw(f, pixels, energies, key)
        return figures

    @torch.no_grad()
    def _energies(self, f: nn.Module, z: Tensor) -> dict[str, Tensor]:
        """E = -f of samples, training images and held-out ones, as many of each."""
        sets = {"samples": z}
        for name, images in (("train", self.splits.train), ("held_out", self.splits.held_out)):
            n = min(len(z), len(images))
            chosen = images.take(n, run_folder.key_for(0, "truth"))
            sets[name] = to_unit(chosen.pixels.to(self.device))
        return {
            name: -torch.cat([f(part) for part in images.split(CHUNK)]).float().cpu()
            for name, images in sets.items()
        }

    def _draw(
        self, f: nn.Module, samples: Images, energies: dict[str, Tensor], key: Tensor
    ) -> None:
        """The run's pictures, as far as it has come."""
        folder, train = self.folder, self.splits.train
        scale = picture_scale(samples.shape)
        first = to_unit(samples.pixels[:SHOWN])
        pictures.sheet(folder / "samples.png", first, scale=scale)
        named = {name.replace("_", " "): values for name, values in energies.items()}
        pictures.energy_histogram(folder / "energies.png", named)
        near, _ = pictures.nearest(
            samples.pixels[:FOLLOWED].float(), train.pixels, min(7, len(train))
        )
        found, places = to_unit(train.pixels[near.flatten()]), torch.arange(near.numel())
        pictures.neighbour_sheet(
            folder / "neighbours.png", first[:FOLLOWED], found, places.view_as(near), scale=scale
        )
        draw_training(folder)
        steps = self.config.transitions_of(self.config.sample_steps)
        every = max(1, steps // STATES)
        chain = chains(f, self.config, SHOWN, train.shape, key, keep_every=every)
        assert chain.trace is not None
        pictures.gif(folder / "chains.gif", chain.trace.cpu(), scale=scale)
        if self.quality is not None:
            draw_fid(folder / "fid.png", {self.config.title: folder})


def feature_net(
    config: ImageConfig,
    train: Images,
    device: str,
    weights: str | os.PathLike[str] | None = None,
) -> fid.FeatureNet:
    """What FID and KID of a run see images by."""
    if config.features == "classifier":
        return Classifier(train)
    return fid.Inception(weights, device)


# What a folder holds ------------------------------------------------------------------------------


def snapshots(folder: Path) -> dict[int, Tensor]:
    """The samples kept at each evaluation, uint8 (64, C, H, W)."""
    shots = {}
    for path in sorted((folder / "snapshots").glob("*.pt")):
        try:
            state = checkpoint.load(path)
            shots[state["iteration"]] = state["samples"]
        except (CheckpointError, KeyError) as error:  # a picture must not stop a run
            warnings.warn(f"left out of the picture: {error}", RuntimeWarning, stacklevel=2)
    return shots


def add_score(path: Path, iteration: int, score: Mapping[str, Any]) -> None:
    """Puts a score into scores.json, in the place of any of this iteration or a later one."""
    rows = [row for row in read_scores(path.parent) if row["iteration"] < iteration]
    rows.append({"iteration": iteration, **score})
    run_folder.write(path, json.dumps(rows, indent=1) + "\n")


def read_scores(folder: Path) -> list[dict[str, Any]]:
    """What is in the run's scores.json: each FID with all it depends on."""
    path = folder / "scores.json"
    rows: list[dict[str, Any]] = json.loads(path.read_text()) if path.exists() else []
    return rows


# Pictures -----------------------------------------------------------------------------------------


def picture_scale(shape: tuple[int, ...]) -> int:
    """How much pictures of small images are enlarged: to about 64 pixels."""
    return max(1, round(64 / shape[-1]))


def draw_training(folder: Path) -> None:
    """training.png: a row per chain, its sample at every evaluation from left to right."""
    shots = snapshots(folder)
    samples = torch.stack([to_unit(pixels[:FOLLOWED]) for pixels in shots.values()])
    titles = [f"{iteration}" for iteration in shots]
    pictures.strip(
        folder / "training.png", samples, titles=titles, scale=picture_scale(samples.shape)
    )


def draw_fid(path: Path, runs: dict[str, Path]) -> None:
    """FID over the iterations of runs, on one axis (the paper's Figures 4 and 5).

    Held-out images and the Gaussian of the pixels are levels, those of the first run.
    """
    curves: dict[str, tuple[list[float], list[float]]] = {}
    levels: dict[str, float] = {}
    for name, folder in runs.items():
        rows = read_scores(folder)
        if rows:
            curves[name] = [row["iteration"] for row in rows], [row["fid"] for row in rows]
            levels = levels or {
                "held-out images": rows[0]["references"]["fid_floor"],
                "Gaussian of the pixels": rows[0]["references"]["fid_gaussian"],
            }
    if curves:
        plots.curves(path, "iteration", "Fréchet distance", curves, levels)
