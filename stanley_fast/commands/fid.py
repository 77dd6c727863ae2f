"""stanley-fast fid."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from stanley_fast import fid, image_experiments, image_models, image_runs, keys, run_folder
from stanley_fast.commands.common import positional, unset
from stanley_fast.data import Images, load, to_pixels
from stanley_fast.image_quality import compared_images
from stanley_fast.methods import SettingsError


@dataclass
class Fid:
    """FID and KID of generated images against real ones, with all that they depend on.

    FID of two folders of pictures is the number that pytorch-fid's own command prints. A run is
    judged by what its training was: by Inception, or by its data's classifier.
    """

    samples: Path
    """What to judge: the folder that `train` left or a checkpoint in it, which is sampled; or a
    folder of pictures, a .zip, .npy or .npz."""
    data: Annotated[Path | None, positional(), unset("the run's own data")] = None
    """Real images: a folder of pictures, a .zip, .npy or .npz; or a run, for its training data."""
    n: Annotated[int | None, unset("10000, on a CPU 2000; all of one's own")] = None
    """How many images a run generates, and of its training data are taken."""
    weights: Annotated[Path | None, unset("where pytorch-fid keeps it")] = None
    """Inception's weights, pt_inception-2015-12-05-6726825d.pth."""
    device: Annotated[str | None, unset("a GPU if there is one")] = None
    """cpu or cuda."""
    seed: int = 0
    """Decides the samples."""
    json: Annotated[Path | None, unset("none")] = None
    """Write the score with its protocol to this file too."""

    def run(self) -> None:
        device = self.device or image_models.default_device()
        if self.n is not None and self.n < 2:
            raise SettingsError(f"n must be 2 or more, got {self.n}")
        score = self._score(device)
        print(score)
        for name, value in score.protocol.items():
            print(f"  {name:<15} {value}")
        if self.json is not None:
            run_folder.write(self.json, json.dumps(score.to_dict(), indent=1) + "\n")

    def _score(self, device: str) -> fid.Score:
        data = self.samples if self.data is None else self.data
        for path in (self.samples, data):
            if not path.exists():
                raise FileNotFoundError(f"there is nothing at {path}")
        if not image_models.is_run(data):
            if self.data is None:
                raise SettingsError(f"data must be given, since {self.samples} is no run")
            if self.samples.is_dir() and data.is_dir() and not image_models.is_run(self.samples):
                return fid.compare_folders(self.samples, data, weights=self.weights, device=device)
        n = self.n or fid.default_samples(device)
        learned = image_models.load_learned(data, device) if image_models.is_run(data) else None
        if learned is None:
            net: fid.FeatureNet = fid.Inception(self.weights, device)
            real = load(data)
        else:
            train = image_experiments.load_splits(learned.config).train
            net = image_runs.feature_net(learned.config, train, device, self.weights)
            real = compared_images(train, n, run_folder.key_for(0, "truth"))
        return fid.compare(self._samples(n, device), real, net)

    def _samples(self, n: int, device: str) -> Images:
        if not image_models.is_run(self.samples):
            return load(self.samples)
        model = image_models.load_learned(self.samples, device)
        key = keys.key(self.seed, device)
        z = image_models.generate(model.f, model.config, n, model.shape, key, progress=True)
        return Images(to_pixels(z).cpu(), None, "samples", f"iteration {model.iteration}")
