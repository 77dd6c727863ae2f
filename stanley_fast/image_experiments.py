"""Image experiments as settings: data, net, chains and training. Presets: image_presets.py."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from stanley_fast import keys, settings
from stanley_fast.data import Images, load
from stanley_fast.energies import MLPEnergy
from stanley_fast.methods import (
    SAMPLERS,
    RunConfig,
    SamplerName,
    SettingsError,
    known,
    positive,
)
from stanley_fast.networks import ConvEnergy, StridedConvEnergy
from stanley_fast.samplers import Sampler
from stanley_fast.starts import DataStart, NoiseStart, ReplayBuffer, Start

DataName = Literal["cifar10", "flowers102", "celeba", "digits", "fashion-mnist", "mnist", "folder"]
NetworkName = Literal["conv", "strided", "mlp"]
StartName = Literal["noise", "persistent", "data"]
FeaturesName = Literal["inception", "classifier", "none"]
SamplesFrom = Literal["noise", "buffer"]

DATA: tuple[DataName, ...] = (
    "cifar10", "flowers102", "celeba", "digits", "fashion-mnist", "mnist", "folder",
)  # fmt: skip
GREY: tuple[DataName, ...] = ("digits", "fashion-mnist", "mnist")
HELD_OUT = 0.1  # of a folder's images, which has no test split

# Sampler settings that only images use: which samplers take them, and the value that means none.
EXTRAS: dict[str, tuple[tuple[SamplerName, ...], Any]] = {
    "norm": (("stanley", "adjusted-stanley"), "element"),
    "update": (("stanley",), "paper"),
    "clamp": (("stanley", "langevin", "ascent"), False),
    "grad_clamp": (("langevin", "ascent"), None),
}


@dataclass(frozen=True, kw_only=True)
class ImageConfig(RunConfig):
    """All that decides an image run: what every run decides, and these.

    Attributes:
        data: a name in DATA; "folder" is one's own pictures or arrays.
        place: the data's folder, or for "folder" the path of a folder, .zip, .npy or .npz; None
            for digits.
        image_size: pictures are resized to it; None as `data.load` has it.
        limit: no more than the first so many images; None takes all.
        flip: mirror every other observation.
        network: "conv", the paper's `ConvEnergy`; "strided", ebm-anatomy's `StridedConvEnergy`;
            "mlp", an `MLPEnergy` of all pixels, for small images.
        width, negative_slope: of its layers. layers: how many; None for "strided".
        norm, update, grad_clamp: of the sampler, as `Stanley` and `Langevin` take them.
        clamp: keep pixels in [-1, 1].
        start: where chains start: uniform "noise", "persistent" chains, or the "data".
        buffer_size, fresh_share: of persistent chains.
        beta1: of Adam.
        warm_up, decay, final_rate: of the learning rate, as in `schedules.warm_up_and_decay`.
        ema: decay of the averaged weights, which are sampled from; None samples f itself.
        autocast: compute f in bfloat16.
        max_gap, rollbacks, checkpoint_every: as in `Trainer`.
        features: what FID and KID see images by: "inception"; "classifier", a small net trained on
            the data's labels; or "none" for no such figures.
        samples: images at an evaluation.
        samples_from: "noise", new chains that `sample_steps` evaluations of f take there; or
            "buffer", persistent chains as training has left them, which cost nothing.

    Raises SettingsError: a setting out of its range.
    """

    data: DataName
    place: str | None = None
    image_size: int | None = None
    limit: int | None = None
    flip: bool = False
    network: NetworkName = "strided"
    width: int = 32
    layers: int | None = None
    negative_slope: float = 0.05
    norm: Literal["element", "channel", "sample"] = "element"
    update: Literal["paper", "script"] = "paper"
    clamp: bool = False
    grad_clamp: float | None = None
    start: StartName = "noise"
    buffer_size: int = 10_000
    fresh_share: float = 0.05
    beta1: float = 0.9
    warm_up: int = 0
    decay: float = 0.25
    final_rate: float = 1.0
    ema: float | None = None
    autocast: bool = False
    max_gap: float = 1e3
    rollbacks: int = 3
    checkpoint_every: int = 100
    features: FeaturesName = "inception"
    samples: int = 2_000
    samples_from: SamplesFrom = "noise"
    sample_steps: int = 100

    def _check(self) -> None:
        known("data", self.data, dict.fromkeys(DATA))
        super()._check()
        for name, choices in (
            ("network", ("conv", "strided", "mlp")),
            ("start", ("noise", "persistent", "data")),
            ("features", ("inception", "classifier", "none")),
            ("samples_from", ("noise", "buffer")),
        ):
            settings.one_of(name, getattr(self, name), choices)
        for name in ("width", "buffer_size", "sample_steps", "checkpoint_every"):
            settings.count(name, getattr(self, name), 1)
        for name in ("image_size", "limit", "layers"):
            if getattr(self, name) is not None:
                settings.count(name, getattr(self, name), 1)
        settings.count("samples", self.samples, 2)  # of one there is no covariance
        settings.count("warm_up", self.warm_up)
        settings.count("rollbacks", self.rollbacks)
        positive("max_gap", self.max_gap)
        positive("final_rate", self.final_rate)
        for name in ("fresh_share", "decay"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}")
        for name in ("beta1", "negative_slope"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)}")
        if self.ema is not None and not 0 < self.ema < 1:
            raise ValueError(f"ema must be in (0, 1), got {self.ema}")
        self._check_data_and_net()
        self._check_chains()

    def _check_data_and_net(self) -> None:
        if (self.place is None) != (self.data == "digits"):
            wanted = "None, they come with scikit-learn" if self.place else "where the files are"
            raise ValueError(f"place must be {wanted}, for {self.data}, got {self.place}")
        if self.image_size is not None and self.data in (*GREY, "cifar10"):
            raise ValueError(
                f"image_size must be None for {self.data}, which has arrays, got {self.image_size}"
            )
        if (self.layers is None) != (self.network == "strided"):
            raise ValueError(
                f"layers must be a number for conv and mlp, None for strided, got {self.layers} "
                f"for {self.network}"
            )

    def _check_chains(self) -> None:
        for name, (takers, none) in EXTRAS.items():
            if getattr(self, name) != none and self.sampler not in takers:
                raise ValueError(
                    f"{name} is not a setting of {self.sampler}, got {getattr(self, name)}"
                )
        if self.autocast and self.adjusted:
            raise ValueError(
                f"autocast must be False for {self.sampler}, which compares values of f, got True"
            )
        if self.start == "persistent" and self.buffer_size < self.batch_size:
            raise ValueError(
                f"buffer_size must be at least the batch's {self.batch_size}, got "
                f"{self.buffer_size}"
            )
        if self.samples_from == "buffer" and self.start != "persistent":
            raise ValueError(f"samples_from must be noise for the start {self.start}, got buffer")
        if self.samples_from == "buffer" and self.samples > self.buffer_size:
            raise ValueError(
                f"samples must be at most the buffer's {self.buffer_size}, got {self.samples}"
            )
        if self.leapfrog_steps and self.sample_steps % self.leapfrog_steps:
            raise ValueError(
                f"sample_steps must be a multiple of leapfrog_steps = {self.leapfrog_steps}, got "
                f"{self.sample_steps}"
            )

    def make_sampler(self) -> Sampler:
        """The sampler that `sampler` and its settings name."""
        extras = {
            name: getattr(self, name)
            for name, (takers, none) in EXTRAS.items()
            if self.sampler in takers and getattr(self, name) != none
        }
        if extras.pop("clamp", False):
            extras["clamp"] = (-1.0, 1.0)
        return SAMPLERS[self.sampler].make(**self.settings, **extras)

    def make_start(self) -> Start:
        """Where training's chains start; a new buffer at each call."""
        if self.start == "data":
            return DataStart()
        if self.start == "persistent":
            return ReplayBuffer(self.buffer_size, UNIFORM, self.fresh_share)
        return UNIFORM

    def make_model(self, shape: tuple[int, int, int]) -> nn.Module:
        """The net for images of a shape (C, H, W), with the initial weights of `seed`.

        Torch's generator is left as it was. Raises SettingsError: no net for this shape.
        """
        if shape[1] != shape[2]:
            raise SettingsError(
                f"images must be square, got {shape[2]}x{shape[1]}: give an image_size to resize to"
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            try:
                return self._net(shape)
            except ValueError as error:
                raise SettingsError(str(error)) from error

    def _net(self, shape: tuple[int, int, int]) -> nn.Module:
        channels, size, _ = shape
        slope, layers = self.negative_slope, self.layers or 0
        if self.network == "mlp":
            widths = [math.prod(shape), *[self.width] * layers, 1]
            return nn.Sequential(nn.Flatten(), MLPEnergy(widths, slope))
        if self.network == "conv":
            return ConvEnergy(channels, self.width, layers, size, negative_slope=slope)
        return StridedConvEnergy(channels, self.width, size, negative_slope=slope)


UNIFORM = NoiseStart(1.0, "uniform")


@dataclass(frozen=True)
class Splits:
    """Observations, and images like them that training does not see."""

    train: Images
    held_out: Images


def load_splits(config: ImageConfig, *, progress: bool = True) -> Splits:
    """The images of a run. A folder has no test split: a tenth of it is held out.

    Raises: as `data.load`.
    """
    if config.data != "folder":

        def part(split: str, limit: int | None) -> Images:
            size = config.image_size
            return load(
                config.data, config.place, split=split, limit=limit, size=size, progress=progress
            )

        return Splits(part("train", config.limit), part("test", None))
    path = Path(config.place or "")
    images = load(path, limit=config.limit, size=config.image_size, progress=progress)
    if len(images) < 4:
        raise SettingsError(
            f"data must have 4 images or more, two of them to hold out, got {len(images)} in {path}"
        )
    shuffled = images.take(len(images), keys.key(0))  # the same for every seed
    held_out = max(2, round(HELD_OUT * len(images)))
    return Splits(
        replace(shuffled.part(slice(held_out, None)), split="train"),
        replace(shuffled.part(slice(held_out)), split="held out"),
    )
