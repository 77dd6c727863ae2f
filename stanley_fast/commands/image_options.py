"""Options of commands that train on images: their data, and the settings of `ImageConfig`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from stanley_fast.commands.common import (
    TOYS,
    TrainingOptions,
    called,
    given,
    unset,
    variants,
    yes_or_no,
)
from stanley_fast.image_experiments import (
    EXTRAS,
    DataName,
    FeaturesName,
    ImageConfig,
    NetworkName,
    SamplesFrom,
    StartName,
)
from stanley_fast.image_presets import PresetName, preset
from stanley_fast.methods import SamplerName, with_settings


@dataclass
class NetOptions:
    network: Annotated[NetworkName | None, unset("the preset's")] = None
    """conv: the paper's 3x3 layers with stride 1; strided: ebm-anatomy's, a sixth of the work at 32
    pixels; mlp: all pixels at once, for small images."""
    width: Annotated[int | None, unset("the preset's")] = None
    """Channels of conv's layers and of strided's first, units of mlp's; 32 to 256."""
    layers: Annotated[int | None, unset("the preset's")] = None
    """Of conv and mlp, 3 to 5."""
    negative_slope: Annotated[float | None, unset("the preset's")] = None
    """Of LeakyReLU, 0 to 0.2; 0 is ReLU."""
    autocast: Annotated[bool | None, yes_or_no(), unset("False")] = None
    """Compute f in bfloat16, for hardware that gains by it."""


@dataclass
class ImageTrainingOptions(TrainingOptions):
    beta1: Annotated[float | None, unset("the preset's")] = None
    """Of Adam; 0 or 0.9."""
    warm_up: Annotated[int | None, unset("the preset's")] = None
    """Iterations over which the learning rate rises from 0."""
    decay: Annotated[float | None, unset("0.25")] = None
    """Share of the iterations, at the end, over which the learning rate falls."""
    final_rate: Annotated[float | None, unset("the preset's")] = None
    """What it falls to, as a share of the full one; 1 is constant."""
    ema: Annotated[float | None, unset("the preset's")] = None
    """Decay of the averaged weights, which are sampled from; 0.99 to 0.9999."""
    max_gap: Annotated[float | None, unset("the preset's")] = None
    """An energy gap beyond this means that the run has diverged."""
    rollbacks: Annotated[int | None, unset("3")] = None
    """How often a run that diverges goes back to its last checkpoint and on with half the learning
    rate."""
    checkpoint_every: Annotated[int | None, unset("the preset's")] = None
    """Iterations from one checkpoint to the next: the most a crash loses."""


@dataclass
class ImageChainOptions:
    norm: Annotated[Literal["element", "channel", "sample"] | None, unset("the preset's")] = None
    """Of stanley: what |gradient| in Eq. 4 is of: each element, a pixel's channels, an image."""
    update: Annotated[Literal["paper", "script"] | None, unset("the preset's")] = None
    """Of stanley: Eq. 5 as printed, or as in the author's script."""
    clamp: Annotated[bool | None, yes_or_no(), unset("the preset's")] = None
    """Of stanley, langevin and ascent: keep pixels in [-1, 1]."""
    grad_clamp: Annotated[float | None, unset("the preset's")] = None
    """Of langevin and ascent: bound of each element of the gradient."""
    start: Annotated[StartName | None, unset("the preset's")] = None
    """Where chains start: uniform noise, where earlier ones ended (persistent), or data."""
    buffer_size: Annotated[int | None, unset("the preset's")] = None
    """Persistent chains kept."""
    fresh_share: Annotated[float | None, unset("the preset's")] = None
    """Share of persistent chains that start anew."""


@dataclass
class EvaluationOptions:
    features: Annotated[FeaturesName | None, unset("the preset's")] = None
    """What FID and KID see images by: inception; classifier, a small net trained on the data's
    labels; or none, which leaves the figures out."""
    samples: Annotated[int | None, unset("the preset's")] = None
    """Images generated at every evaluation, and as many real ones; FID depends on it."""
    samples_from: Annotated[SamplesFrom | None, unset("the preset's")] = None
    """noise: new chains; buffer: persistent ones as training has left them."""
    sample_steps: Annotated[int | None, unset("the preset's")] = None
    """Evaluations of f per new chain; they have further to go than persistent ones."""
    weights: Annotated[Path | None, unset("where pytorch-fid keeps it")] = None
    """Inception's weights, pt_inception-2015-12-05-6726825d.pth."""


@dataclass
class ImageOptions(EvaluationOptions, ImageChainOptions, ImageTrainingOptions, NetOptions):
    """What commands on images share. Subclasses say which data they are for."""

    data: ClassVar[DataName]

    preset: PresetName = "cpu"
    """Settings to begin with: cpu, for two cores; paper, what the paper prints (cifar10,
    flowers102, celeba; weeks on a CPU); or a published recipe. The options below change single
    ones."""
    image_size: Annotated[int | None, unset("the preset's, or the data's")] = None
    """Pictures' central squares are resized to this."""
    limit: Annotated[int | None, unset("the preset's")] = None
    """Use no more than the first so many images."""
    flip: Annotated[bool | None, yes_or_no(), unset("the preset's")] = None
    """Mirror every other observation."""
    device: Annotated[str | None, unset("a GPU if there is one")] = None
    """cpu or cuda."""


@dataclass(kw_only=True)
class PlacedImageOptions(ImageOptions):
    """Of data that are not at hand by themselves."""

    place: Annotated[Path, called("PLACE")]
    """Where the data is."""


IMAGES: dict[DataName, str] = {
    "digits": "Scikit-learn's 1 797 digits, 8x8, which need no files: minutes on two cores.",
    "cifar10": "CIFAR-10. PLACE holds cifar-10-batches-bin or cifar-10-batches-py.",
    "flowers102": "Oxford Flowers 102. PLACE holds jpg/, imagelabels.mat and setid.mat.",
    "celeba": "CelebA. PLACE holds img_align_celeba/ and list_eval_partition.txt.",
    "fashion-mnist": "Fashion-MNIST. PLACE holds its idx files, plain or .gz.",
    "mnist": "MNIST. PLACE holds its idx files, plain or .gz.",
    "folder": "Your own images. PLACE is a folder or .zip of pictures, an .npy or an .npz.",
}


def subjects(toy: type, images: type, placed: type) -> Any:
    """A subcommand for each thing to learn: of points, of digits, of images that lie elsewhere."""
    toys = variants("target", {name: (toy, text) for name, text in TOYS.items()})
    return toys | variants(
        "data",
        {name: (images if name == "digits" else placed, text) for name, text in IMAGES.items()},
    )


def image_config(
    options: ImageOptions, sampler: SamplerName | None, *, lenient: bool = False
) -> ImageConfig:
    """The preset of this sampler with the settings that the user gave.

    `lenient`: settings of other samplers, which it doesn't take, are left out.
    """
    base = preset(options.data, options.preset, sampler, place_of(options))
    own = image_settings(options)
    if lenient:
        not_taken = [name for name, (takers, _) in EXTRAS.items() if base.sampler not in takers]
        own = {name: value for name, value in own.items() if name not in not_taken}
    return with_settings(base, own)


def image_settings(options: ImageOptions) -> dict[str, Any]:
    """The settings that the user gave; the place of the data whole."""
    place = place_of(options)
    found = given(options, ImageConfig)
    return found if place is None else {**found, "place": str(place.resolve())}


def place_of(options: ImageOptions) -> Path | None:
    """Where the data is; None where it is at hand by itself."""
    return options.place if isinstance(options, PlacedImageOptions) else None
