"""What an image run has learned: reading it back, and sampling it."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stanley_fast import checkpoint, keys, ops
from stanley_fast.chain import Chain, sample
from stanley_fast.checkpoint import CheckpointError
from stanley_fast.image_experiments import UNIFORM, ImageConfig
from stanley_fast.image_presets import with_sampler
from stanley_fast.methods import SamplerName, SettingsError
from stanley_fast.networks import Tempered
from stanley_fast.reference import STREAM_STARTS
from stanley_fast.starts import ReplayBuffer, Start
from stanley_fast.terminal import counting_bar

CHUNK = 250  # chains at a time: what a conv net needs for more does not fit everywhere


def default_device() -> str:
    """A GPU if there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


@dataclass(frozen=True)
class Learned:
    """An image model and where it comes from."""

    f: nn.Module
    config: ImageConfig
    shape: tuple[int, int, int]
    iteration: int
    samples: Tensor | None
    """uint8 (64, C, H, W), in snapshots."""


def is_run(path: str | os.PathLike[str]) -> bool:
    """Whether it is a run's folder, or a checkpoint or snapshot: a .pt file."""
    path = Path(path)
    return (path / "config.json").exists() or (path.is_file() and path.suffix == ".pt")


def of_images(path: str | os.PathLike[str]) -> bool:
    """Whether a run's folder or checkpoint is of images.

    Raises: as `checkpoint.load`.
    """
    path = Path(path)
    state = checkpoint.load(path / "checkpoint.pt" if path.is_dir() else path)
    notes = state.get("notes")
    return isinstance(notes, dict) and "shape" in notes


def load_learned(path: str | os.PathLike[str], device: str | torch.device = "cpu") -> Learned:
    """The model, with averaged weights if it has them, in a run's folder, checkpoint or snapshot.

    Raises FileNotFoundError, CheckpointError: as `checkpoint.load`, or not of an image run.
    """
    path = Path(path)
    state = checkpoint.load(path / "checkpoint.pt" if path.is_dir() else path)
    try:
        config = ImageConfig(**state["notes"]["config"])
        channels, height, width = state["notes"]["shape"]
        f = config.make_model((channels, height, width))
        f.load_state_dict(_model_state(state))
        shape = (channels, height, width)
        return Learned(f.to(device), config, shape, state["iteration"], state.get("samples"))
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = checkpoint.first_line(error)
        raise CheckpointError(
            f"{path} is not the checkpoint of an image run of this version: {reason}"
        ) from error


def by_sampler(model: Learned, sampler: SamplerName) -> Learned:
    """The model for another sampler's chains, with that one's settings for two cores.

    Training by chains without rejections learns exp(f / noise_scale^2), by others exp(f): between
    the two f is scaled, so that both sample the same.

    Raises SettingsError: training kept pixels in [-1, 1] and the sampler can't: beyond, f has
    learned nothing.
    """
    config = with_sampler(model.config, sampler)
    if model.config.clamp and not config.clamp:
        raise SettingsError(
            f"sampler must keep pixels in [-1, 1] like training's, which {sampler} can't: train "
            "a model with it"
        )
    if config.adjusted == model.config.adjusted:
        return replace(model, config=config)
    temperature = model.config.temperature / config.temperature
    return replace(model, config=config, f=Tempered(model.f, temperature))


def _model_state(state: dict[str, Any]) -> dict[str, Tensor]:
    """The weights to sample from, in a snapshot or a checkpoint."""
    if "model" in state:
        return state["model"]
    if state["average"] is None:
        return state["f"]
    prefix = "module."  # torch's AveragedModel keeps them under it
    return {
        name.removeprefix(prefix): value
        for name, value in state["average"].items()
        if name.startswith(prefix)
    }


# Sampling -----------------------------------------------------------------------------------------


def persistent_chains(start: Start, n: int, shape: tuple[int, ...], key: Tensor) -> Tensor:
    """n of a replay buffer's chains (n, C, H, W), drawn by key without replacement.

    Before training has begun they are where its chains will start.
    """
    assert isinstance(start, ReplayBuffer)
    if start.chains is None:
        return start.fresh.start(n, key, torch.empty(0, *shape, device=key.device))
    order = ops.normal((len(start.chains),), key, stream=STREAM_STARTS).argsort()
    return start.chains[order[:n]]


def generate(
    f: nn.Module,
    config: ImageConfig,
    n: int,
    shape: tuple[int, int, int],
    key: Tensor,
    *,
    steps: int | None = None,
    progress: bool = False,
) -> Tensor:
    """n samples (n, C, H, W) of f, on the key's device: chains from uniform noise.

    Args:
        steps: evaluations of f per chain; config's `sample_steps` unless told.
        progress: show a progress bar.
    """
    parts = []
    with counting_bar(n, "sampling", progress) as advance:
        for chain in _chains_in_parts(f, config, n, shape, key, steps, None):
            parts.append(chain.z)
            advance(len(chain.z))
    return torch.cat(parts)


def chains(
    f: nn.Module,
    config: ImageConfig,
    n: int,
    shape: tuple[int, int, int],
    key: Tensor,
    *,
    steps: int | None = None,
    keep_every: int = 1,
) -> Chain:
    """The first n of the chains that `generate` runs, with their trace; n is at most 250."""
    return next(_chains_in_parts(f, config, n, shape, key, steps, keep_every))


def _chains_in_parts(
    f: nn.Module,
    config: ImageConfig,
    n: int,
    shape: tuple[int, int, int],
    key: Tensor,
    steps: int | None,
    keep_every: int | None,
) -> Iterator[Chain]:
    """Chains of CHUNK each, every part with keys of its own. Whatever n is, they are the same: the
    last part draws as a whole one would.
    """
    transitions = config.transitions_of(config.sample_steps if steps is None else steps)
    parts = keys.split(key, 2 * -(-n // CHUNK)).unflatten(0, (-1, 2))
    amp = torch.autocast(key.device.type, torch.bfloat16, enabled=config.autocast)
    for i, (start_key, chain_key) in enumerate(parts):
        size = min(CHUNK, n - i * CHUNK)
        z0 = UNIFORM.start(size, start_key, torch.empty(0, *shape, device=key.device))
        with amp:
            chain = sample(
                f, z0, config.make_sampler(), transitions, key=chain_key, keep_every=keep_every,
                total=CHUNK * math.prod(shape),
            )  # fmt: skip
        yield chain
