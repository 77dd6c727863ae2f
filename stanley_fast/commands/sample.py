"""stanley-fast sample."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from torch import Tensor

from stanley_fast import diagnostics, image_models, image_runs, keys, metrics, pictures, plots, runs
from stanley_fast.commands.common import given, print_figures, unset
from stanley_fast.data import to_pixels
from stanley_fast.density import LogDensity
from stanley_fast.experiments import TARGETS, ToyConfig, exact, preset
from stanley_fast.image_experiments import ImageConfig
from stanley_fast.methods import SamplerName, SettingsError

IMAGES, SHOWN = 64, 256  # generated unless told; at most in samples.png


@dataclass
class Sample:
    """Draw samples from a trained model, or from a target itself.

    Leaves samples.npy and samples.png in its folder. Of points samples.npy is an array (n, 2), and
    how good they are is printed; with diagnostics also how well the chains mixed, and trace.png is
    left. Of images it is uint8 (n, C, H, W); with --keep-every chains.gif and chains.png show how
    chains came there.
    """

    source: str
    """What to sample: the folder that `train` left, a checkpoint in it, or a target itself: rings
    or gmm."""
    n: Annotated[int | None, unset("10000 points, 64 images")] = None
    """How many samples: the last states of as many chains."""
    steps: Annotated[int | None, unset("as in training; 500 for a density itself")] = None
    """Evaluations of f per chain (K), burn-in's among them: as many transitions, of hmc steps /
    leapfrog-steps; 50 to 500."""
    sampler: Annotated[SamplerName | None, unset("as in training; stanley for a target")] = None
    """Another one than in training comes with settings of its own. Where one of the two accepts or
    rejects (adjusted-stanley, mala, mh, hmc) and the other doesn't, it samples the learned density
    itself, exp(f / T) of training's T = noise-scale^2, with the settings for a target."""
    threshold: Annotated[float | None, unset("as in training; the sampler's for a target")] = None
    """Of stanley and adjusted-stanley: gradients beyond it get a smaller stepsize; 0.01 to 1, for a
    target 1 to 30."""
    step_size: Annotated[float | None, unset("as in training; the sampler's for a target")] = None
    """Stepsize, STANLEY's largest; hmc's leapfrog and mh's proposal as lengths; 0.01 to 1."""
    noise_scale: Annotated[float | None, unset("as in training; 1 for a target")] = None
    """Of stanley, adjusted-stanley and langevin: multiplies the chain's noise, 0 to 1."""
    leapfrog_steps: Annotated[int | None, unset("as in training; 5 for a target")] = None
    """Of hmc: gradients per transition, 1 to 20; steps must be a multiple."""
    start_scale: Annotated[float | None, unset("as in training")] = None
    """Standard deviation of the noise that chains start at."""
    diagnostics: bool = False
    """Keep the states after burn-in as draws; report R-hat, effective sample sizes, Monte Carlo
    errors and autocorrelation. Any of the next three options does so too."""
    burn_in: Annotated[int | None, unset("half the steps")] = None
    """Transitions before the first draw is kept."""
    keep_every: Annotated[int | None, unset("1")] = None
    """Transitions from one draw to the next; of images from one state to the next in chains.gif."""
    inference_data: Annotated[Path | None, unset("none")] = None
    """Write the draws to this netCDF file (.nc) too, as ArviZ's InferenceData."""
    seed: int = 0
    """Decides the samples."""
    folder: Annotated[Path | None, unset("samples, beside the checkpoint or in runs/TARGET")] = None
    """Where to leave them."""

    def run(self) -> None:
        if self.n is not None and self.n < 1:
            raise SettingsError(f"n must be 1 or more, got {self.n}")
        if self.source not in TARGETS and image_models.of_images(self.source):
            self._images()
        else:
            self._points(10_000 if self.n is None else self.n)

    def _images(self) -> None:
        """Samples of an image model."""
        for name in ("sampler", "start_scale", "burn_in", "inference_data"):
            if getattr(self, name) is not None or self.diagnostics:
                name = "diagnostics" if self.diagnostics else name
                raise SettingsError(f"{name} is for models of points, {self.source} is of images")
        if self.keep_every is not None and self.keep_every < 1:
            raise SettingsError(f"keep_every must be 1 or more, got {self.keep_every}")
        path, device = Path(self.source), image_models.default_device()
        model = image_models.load_learned(path, device)
        steps = model.config.sample_steps if self.steps is None else self.steps
        own = {**given(self, ImageConfig), "steps": steps, "sample_steps": steps}
        config, key = replace(model.config, **own), keys.key(self.seed, device)
        n = IMAGES if self.n is None else self.n
        z = image_models.generate(model.f, config, n, model.shape, key, progress=True)
        folder = self.folder or _beside(path)
        folder.mkdir(parents=True, exist_ok=True)
        left = [folder / "samples.npy", folder / "samples.png"]
        np.save(left[0], to_pixels(z).cpu().numpy())
        scale = image_runs.picture_scale(z.shape)
        pictures.sheet(left[1], z[:SHOWN], scale=scale)
        if self.keep_every is not None:
            chain = image_models.chains(
                model.f, config, min(n, IMAGES), model.shape, key,
                keep_every=self.keep_every,
            )  # fmt: skip
            assert chain.trace is not None
            left += [folder / "chains.gif", folder / "chains.png"]
            pictures.gif(left[2], chain.trace.cpu(), scale=scale)
            pictures.strip(left[3], chain.trace[:, :8].cpu(), scale=scale)
        print(f"{n} samples after {model.iteration} iterations, by {config.title}")
        print(f"Left {', '.join(map(str, left[:-1]))} and {left[-1]}")

    def _points(self, n: int) -> None:
        """Samples of a toy model or target."""
        source = self._source()
        f, config = source.f, source.config
        burn_in, keep_every = self._draws(config.transitions)
        sample_key, truth_key = keys.split(keys.key(config.seed), 2)
        chain = runs.draw(f, config, n, sample_key, burn_in=burn_in, keep_every=keep_every)
        samples = chain.z
        folder = self.folder or source.folder
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / "samples.npy", samples.numpy())
        target = TARGETS[config.target]()
        panels = {
            "true density": metrics.grid_density(target, target.extent),
            **source.learned,
            f"{n} samples": plots.sample_density(samples, target.extent),
        }
        plots.densities(folder / "samples.png", panels)
        print(f"{n} samples {source.what}, by {config.title}:")
        print_figures(metrics.quality(target, samples, truth_key))
        if chain.acceptance is not None:
            print(f"  {'acceptance':<15} {chain.acceptance.mean():.3f}")
        left = [folder / "samples.npy", folder / "samples.png"]
        if chain.trace is not None and keep_every is not None:
            print(f"After a burn-in of {burn_in} transitions, {keep_every} from draw to draw:")
            left += self._diagnose(chain.trace, keep_every, folder)
        print(f"Left {', '.join(map(str, left[:-1]))} and {left[-1]}")

    def _source(self) -> _Source:
        """What to sample; of a trained model by the training's settings with the user's."""
        if self.source in TARGETS:
            base = exact(self.source, self.sampler or "stanley")
            config = replace(base, **given(self, ToyConfig))
            folder = Path("runs", self.source, "samples")
            return _Source(TARGETS[self.source](), config, f"of the true {self.source}", {}, folder)
        path = Path(self.source)
        model = runs.load_learned(path)
        f, config = self._sampled(model)
        return _Source(
            f,
            config,
            f"after {model.iteration} iterations",
            {"learned density": runs.learned_density(model.f, model.config)},
            _beside(path),
        )

    def _sampled(self, model: runs.Learned) -> tuple[LogDensity, ToyConfig]:
        """What to sample of a trained model and how."""
        config, own = model.config, given(self, ToyConfig)
        kept: dict[str, Any] = {"start_scale": config.start_scale, "seed": config.seed}
        if self.sampler in (None, config.sampler):
            return model.f, replace(config, **own)
        other = preset(config.target, self.sampler)
        if other.adjusted != config.adjusted:  # at temperature 1, whatever training's was
            target = exact(config.target, self.sampler)
            return runs.log_density(model.f, config), replace(target, **{**kept, **own})
        if not other.adjusted and None not in (other.noise_scale, config.noise_scale):
            kept["noise_scale"] = config.noise_scale
        return model.f, replace(other, **{"steps": config.steps, **kept, **own})

    def _draws(self, transitions: int) -> tuple[int, int | None]:
        """Burn-in and transitions from draw to draw; 0 and None where nobody asked for either."""
        asked = (self.burn_in, self.keep_every, self.inference_data)
        if not self.diagnostics and asked == (None, None, None):
            return 0, None
        diagnostics.require()
        burn_in = transitions // 2 if self.burn_in is None else self.burn_in
        keep_every = 1 if self.keep_every is None else self.keep_every
        for name, value, least in (("burn_in", burn_in, 0), ("keep_every", keep_every, 1)):
            if value < least:
                raise SettingsError(f"{name} must be {least} or more, got {value}")
        if (transitions - burn_in) // keep_every < diagnostics.MIN_DRAWS:
            raise SettingsError(
                f"diagnostics need {diagnostics.MIN_DRAWS} draws or more, got {transitions} "
                f"transitions with burn_in {burn_in} and keep_every {keep_every}"
            )
        if self.inference_data is not None and self.inference_data.suffix != ".nc":
            raise SettingsError(f"inference_data must end in .nc, got {self.inference_data}")
        return burn_in, keep_every

    def _diagnose(self, trace: Tensor, keep_every: int, folder: Path) -> list[Path]:
        """Prints the summary; the files it left."""
        print(diagnostics.text(diagnostics.summary(trace)))
        left = [folder / "trace.png"]
        plots.traces(left[0], trace, diagnostics.autocorrelation(trace), keep_every)
        if self.inference_data is not None:
            self.inference_data.parent.mkdir(parents=True, exist_ok=True)
            data = diagnostics.to_inference_data(trace)
            data.to_netcdf(self.inference_data, engine="h5netcdf")
            left.append(self.inference_data)
        return left


def _beside(path: Path) -> Path:
    """Where the samples of a run or a checkpoint go unless told."""
    return (path if path.is_dir() else path.parent) / "samples"


@dataclass(frozen=True)
class _Source:
    """A log-density, how its chains run, what it is, its picture, and where its samples go."""

    f: LogDensity
    config: ToyConfig
    what: str
    learned: Mapping[str, Tensor]
    folder: Path
