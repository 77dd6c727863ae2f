"""The paper's toy and CIFAR-10 runs as `Trainer` makes them: iterations per second once steady.

The settings are the package's presets "paper". Data of the CIFAR-10 run are images that a seed
makes, or the user's own. A run goes on for as long as asked, or to its end; what the whole of it
would take is then extrapolated, and its row says so.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

import stanley_fast as sf
from gpu.rows import MISS, PASS, Rows
from stanley_fast import image_models
from stanley_fast.bench import work
from stanley_fast.bench.ceilings import Precision, peaks, products
from stanley_fast.bench.timing import synchronize
from stanley_fast.data import Images, load, to_pixels
from stanley_fast.experiments import TARGETS
from stanley_fast.experiments import preset as toy_preset
from stanley_fast.image_experiments import ImageConfig
from stanley_fast.image_presets import preset as image_preset
from stanley_fast.methods import RunConfig
from stanley_fast.runs import new_model
from stanley_fast.starts import Start

Kind = Literal["toy", "cifar"]
ENOUGH = 180.0  # seconds of steady iterations from which a whole run may be extrapolated
CHUNKS = 30
# Seconds for a whole run: CIFAR-10 within an hour of an H200; the toy's as on two CPU cores.
TARGETS_S = {"toy": 40.0, "cifar": 3600.0}


@dataclass(frozen=True)
class Job:
    """A run: its settings, and how its parts are made."""

    config: RunConfig
    net: Callable[[], nn.Module]
    data: Callable[[int, Tensor], Tensor]
    start: Start
    device: str

    def trainer(self, precision: Precision, graph: bool | Literal["auto"] = "auto") -> sf.Trainer:
        config = self.config
        return sf.Trainer(
            self.net(),
            self.data,
            config.make_sampler(),
            start=self.start,
            optimizer=partial(torch.optim.Adam, lr=config.learning_rate, fused=True),
            steps=config.transitions,
            batch_size=config.batch_size,
            key=sf.key(config.seed),
            autocast=precision == "bfloat16",
            data_noise=config.data_noise,
            graph=graph,
            log_every=10,
            progress=False,
        )

    def observations(self) -> Tensor:
        return self.data(self.config.batch_size, sf.key(0, self.device))


def job(kind: Kind, device: str, images: Images | None = None) -> Job:
    """The paper's; on the CPU a small one, only to see that it runs."""
    return _toy(device) if kind == "toy" else _cifar(device, images)


def _toy(device: str) -> Job:
    config = toy_preset("rings", "stanley", "paper")
    if device == "cpu":
        config = replace(config, batch_size=8, steps=2, iterations=2, evaluate_every=2)
    start, data = sf.NoiseStart(config.start_scale), TARGETS[config.target]().sample
    return Job(config, lambda: new_model(config.seed).to(device), data, start, device)


def _cifar(device: str, images: Images | None) -> Job:
    config = image_preset("cifar10", "paper", place=".")
    images = images or synthetic(2_000, 32 if device == "cuda" else 8)
    if device == "cpu":
        small = {"width": 4, "layers": 2, "batch_size": 2, "steps": 2, "sample_steps": 2}
        config = replace(config, **small, iterations=2, evaluate_every=2)
    data, start = images.to(device).minibatches(), config.make_start()
    return Job(config, lambda: config.make_model(images.shape).to(device), data, start, device)


def synthetic(n: int, size: int) -> Images:
    """Smooth colours with some grain, of a fixed seed: images' speed without images."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(n, 3, 4, 4, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (size, size), mode="bicubic")
    grain = torch.randn(n, 3, size, size, generator=generator)
    pixels = to_pixels(0.4 * smooth + 0.05 * grain)
    return Images(pixels, None, "synthetic, seed 0", "all")


# The run -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Options:
    """What the user asks of the long runs."""

    steady: float  # seconds
    data: Path | None
    samples: int
    out: Path


def run(rows: Rows, kind: Kind, precision: Precision, device: str, options: Options) -> None:
    images = load(options.data) if kind == "cifar" and options.data else None
    here = job(kind, device, images)
    seconds = options.steady if device == "cuda" else 0.5
    with products(precision):
        trainer = here.trainer(precision)
        speeds, done, took = steady(trainer, seconds, here.config.iterations, device)
        row: dict[str, Any] = {
            "dtype": precision,
            "iterations_per_s": done / took,
            "slowest": min(speeds),
            "fastest": max(speeds),
            "iterations": done,
            "seconds": round(took, 1),
            "gap": trainer.metrics["gap"],
            "rung": trainer.rung,
        }
        if kind == "cifar":
            row["data"] = "synthetic" if images is None else f"{len(images)} of {images.name}"
        if kind == "cifar" and options.samples:
            path = options.out / f"cifar_{precision}_samples.npy"
            np.save(path, draw(here, trainer, precision, options.samples))
            row["samples"] = path.name
    if device != "cuda":
        rows.add(f"a small {kind} run", "", **row)
        return
    row |= whole(here, done, took)
    rate = _flops(here) * done / took
    row["of_peak"] = round(rate / peaks(device)[precision].rate, 3)
    verdict = ""  # too short to tell
    if took >= ENOUGH or not row["extrapolated"]:
        verdict = PASS if row["whole_run_s"] <= TARGETS_S[kind] else MISS
    target = f"whole_run_s<={TARGETS_S[kind]:g}"
    rows.add(f"the paper's {kind} run", verdict, **row, target=target)


def steady(
    trainer: sf.Trainer, seconds: float, most: int, device: str
) -> tuple[list[float], int, float]:
    """Iterations per second of each stretch; iterations and seconds of all.

    Stretches take about `seconds` / CHUNKS each, until that many seconds or `most` iterations are
    over. Those before are not counted: three compile what compiles, five say how long they take.
    """

    def timed(iterations: int) -> float:
        synchronize(device)
        begin = time.perf_counter()
        trainer.fit(trainer.iteration + iterations)
        synchronize(device)
        return time.perf_counter() - begin

    timed(3)
    n = max(1, int(seconds / CHUNKS / (timed(5) / 5)))
    speeds, done, took = [], 0, 0.0
    while took < seconds and done < most:
        count = min(n, most - done)
        stretch = timed(count)
        speeds.append(count / stretch)
        done, took = done + count, took + stretch
    return speeds, done, took


def whole(here: Job, done: int, took: float) -> dict[str, Any]:
    """Seconds of the paper's run, without evaluations and pictures."""
    iterations = here.config.iterations
    return {
        "whole_run_iterations": iterations,
        "whole_run_s": iterations * took / done,
        "extrapolated": done < iterations,
    }


def _flops(here: Job) -> int:
    """Of an iteration: the chain, and the parameters' gradient at observations and chains."""
    f, x = here.net(), here.observations()
    learn = work.counted(lambda: f(torch.cat([x, x])).mean().backward())
    return work.chain(f, x, here.config.transitions).flops + learn.flops


def draw(here: Job, trainer: sf.Trainer, precision: Precision, n: int) -> np.ndarray[Any, Any]:
    """Samples as the run draws them, uint8 (n, H, W, C)."""
    assert isinstance(here.config, ImageConfig)
    config = replace(here.config, autocast=precision == "bfloat16")
    shape = here.observations().shape
    z = image_models.generate(
        trainer.model, config, n, (shape[1], shape[2], shape[3]), sf.key(2, here.device)
    )
    return to_pixels(z).permute(0, 2, 3, 1).cpu().numpy()
