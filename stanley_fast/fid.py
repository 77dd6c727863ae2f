"""How far generated images are from real ones: FID and KID on Inception's features.

FID is pytorch-fid's: its network, its batches, its distance, so that ours is its command's number
on the same folders. What a number depends on, its protocol, is kept beside it.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import pickle
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from stanley_fast.checkpoint import first_line
from stanley_fast.data import DataError, Images, cache, pictures
from stanley_fast.extras import need
from stanley_fast.terminal import counting_bar

WEIGHTS = "pt_inception-2015-12-05-6726825d.pth"  # as in pytorch-fid's release "fid_weights"
VARIABLE = "STANLEY_FAST_INCEPTION"
BATCH = 50  # pytorch-fid's: another one changes the last digits
SUBSETS, SUBSET_SIZE = 100, 1000  # of KID (Binkowski et al. 2018)


def default_samples(device: str | torch.device) -> int:
    """Images to generate for one FID: the paper's 10 000, on a CPU 2 000.

    Inception sees about five images a second on two cores.
    """
    return 2_000 if torch.device(device).type == "cpu" else 10_000


class FeatureNet(Protocol):
    """What `features` needs of a network."""

    @property
    def protocol(self) -> dict[str, str]:
        """All about it that its features depend on."""
        ...

    def __call__(self, pixels: Tensor) -> Tensor:
        """uint8 (B, 3, H, W) on the CPU -> float32 (B, d) on the CPU."""
        ...

    def frechet(self, a: Tensor, b: Tensor) -> float:
        """The Frechet distance of the Gaussians fitted to two sets of its features."""
        ...


class Inception:
    """pytorch-fid's Inception network: 2 048 features of an image, its last average pooling.

    Args:
        weights: the file pt_inception-2015-12-05-6726825d.pth. None takes the one that the variable
            STANLEY_FAST_INCEPTION names, or else the one in torch hub's folder, where pytorch-fid
            keeps it. Nothing is downloaded.
        device: where it runs.

    Calling it: uint8 (B, 3, H, W) -> float32 (B, 2048), on the CPU.

    Raises:
        ImportError: pytorch-fid, or the torchvision it needs, is missing.
        FileNotFoundError: no weights; the message says where to put them.
        DataError: the file holds something else.
    """

    def __init__(
        self, weights: str | os.PathLike[str] | None = None, device: str | torch.device = "cpu"
    ) -> None:
        pytorch_fid = need("pytorch_fid.inception", "images", "FID")
        path = _weights_path(weights)
        state = _load_weights(path)
        # Its constructor downloads the weights; it is handed ours.
        with mock.patch.object(pytorch_fid, "load_state_dict_from_url", return_value=state):
            try:
                net = pytorch_fid.InceptionV3([pytorch_fid.InceptionV3.BLOCK_INDEX_BY_DIM[2048]])
            except (RuntimeError, TypeError) as error:
                raise DataError(f"{path} has other weights: {first_line(error)}") from error
        self.device = torch.device(device)
        self.net = net.to(self.device).eval()
        self.protocol = {
            "network": f"pytorch-fid {_version('pytorch-fid')}, Inception pool3, 2048 features",
            "weights_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "resize": "bilinear to 299x299, align_corners=False, of pixels / 255",
            "dtype": "float32 network, float64 statistics",
            "device": self.device.type,
        }

    @staticmethod
    def frechet(a: Tensor, b: Tensor) -> float:
        """pytorch-fid's distance."""
        return frechet(a, b)

    @torch.no_grad()
    def __call__(self, pixels: Tensor) -> Tensor:
        (pooled,) = self.net(pixels.to(self.device).float().div(255))
        features: Tensor = pooled.flatten(1).cpu()
        return features


def _weights_path(weights: str | os.PathLike[str] | None) -> Path:
    hub = Path(torch.hub.get_dir()) / "checkpoints" / WEIGHTS
    path = Path(weights or os.environ.get(VARIABLE) or hub)
    if not path.is_file():
        raise FileNotFoundError(
            f"Inception's weights are not at {path}: put {WEIGHTS}, from pytorch-fid's release "
            f"fid_weights, there, or say where it is by weights or {VARIABLE}"
        )
    return path


def _load_weights(path: Path) -> dict[str, Tensor]:
    try:
        state: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise DataError(
            f"{path} is truncated or no file of weights; nothing in it was run: {first_line(error)}"
        ) from error
    return state


def _version(package: str) -> str:
    from importlib.metadata import version

    return version(package)


@dataclass(frozen=True)
class Side:
    """One of the two sets that a score compares.

    Attributes:
        name, split: of the images.
        n: how many.
        shape: (C, H, W), before the network resizes them.
        fingerprint: SHA-256 of their pixels.
    """

    name: str
    split: str
    n: int
    shape: tuple[int, int, int]
    fingerprint: str

    @classmethod
    def of(cls, images: Images) -> Side:
        return cls(images.name, images.split, len(images), images.shape, images.fingerprint)


@dataclass(frozen=True)
class Score:
    """FID and KID of generated images, with all that they depend on.

    Attributes:
        fid: the Frechet Inception distance; biased upwards, the more the fewer the images: compare
            only what has the same n.
        kid, kid_sd: mean and standard deviation over subsets of the kernel Inception distance,
            which is unbiased. The sd is a subset's, not the mean's error.
        kid_subsets: their number and size.
        samples, data: what was compared.
        protocol: of the network, plain strings.
    """

    fid: float
    kid: float
    kid_sd: float
    kid_subsets: tuple[int, int]
    samples: Side
    data: Side
    protocol: dict[str, str]

    def __str__(self) -> str:
        return (
            f"FID {self.fid:.2f}, KID {self.kid:.5f} ± {self.kid_sd:.5f}: {self.samples.n} of "
            f"{self.samples.name} ({self.samples.split}) against {self.data.n} of {self.data.name} "
            f"({self.data.split})"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def compare_folders(
    samples: str | os.PathLike[str],
    data: str | os.PathLike[str],
    *,
    weights: str | os.PathLike[str] | None = None,
    device: str | torch.device | None = None,
    cache_folder: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Score:
    """FID and KID of two folders of pictures: FID as `python -m pytorch_fid samples data` has it.

    Like that command it takes the pictures of a folder without its subfolders, as they are.

    Args:
        samples, data: the folders.
        weights: see `Inception`.
        device: a GPU unless told, if there is one.
        cache_folder: for the features of `data`; see `compare`.
        progress: show progress bars.

    Raises:
        FileNotFoundError, NotADirectoryError: a folder or the weights.
        DataError: pictures that are broken or of unequal size, by name.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    net = Inception(weights, device)
    generated, real = (_folder(Path(path), progress) for path in (samples, data))
    return compare(generated, real, net, cache_folder=cache_folder, progress=progress)


def _folder(path: Path, progress: bool) -> Images:
    files = pictures.in_folder(path, nested=False)
    pixels = pictures.decode(files, size=None, channels=3, progress=progress)
    return Images(pixels, None, path.resolve().name, "all")


def compare(
    samples: Images,
    data: Images,
    net: FeatureNet,
    *,
    cache_folder: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Score:
    """FID and KID between two sets of images.

    Args:
        samples: what was generated, 2 or more.
        data: real images, 2 or more; `Images.take` draws as many as there are samples.
        net: `Inception()`.
        cache_folder: where the features of `data` are kept, by its pixels and the network's
            protocol; $XDG_CACHE_HOME/stanley-fast unless told.
        progress: show progress bars.

    Raises ValueError: a set of fewer than 2 images.

    Source: Heusel et al. 2017; Binkowski et al. 2018.
    """
    for name, images in (("samples", samples), ("data", data)):
        if len(images) < 2:
            raise ValueError(f"{name} must have 2 images or more, got {len(images)}")
    real = kept_features(data, net, cache_folder=cache_folder, progress=progress)
    generated = features(samples, net, progress=progress)
    size = kid_subset_size(len(generated), len(real))
    mean, sd = kid(generated, real)
    return Score(
        net.frechet(generated, real), mean, sd, (SUBSETS, size), Side.of(samples), Side.of(data),
        net.protocol,
    )  # fmt: skip


def kept_features(
    images: Images,
    net: FeatureNet,
    *,
    cache_folder: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Tensor:
    """`features`, from the cache if these pixels went through this network before."""
    return cache.cached(
        lambda: features(images, net, progress=progress),
        name=f"features-{images.name}-{images.split}-{len(images)}-{images.fingerprint[:12]}",
        source={"images": images.fingerprint, "protocol": net.protocol},
        folder=cache_folder,
    )


def features(images: Images, net: FeatureNet, *, progress: bool = True) -> Tensor:
    """What the network makes of each image, float32 (n, d).

    Args:
        images: grey ones are seen as RGB with three equal channels.
        net: `Inception()`.
        progress: show a progress bar.
    """
    rows = []
    with counting_bar(len(images), f"features of {images.name}", progress) as advance:
        for batch in images.pixels.split(BATCH):
            rows.append(net(batch.expand(-1, 3, -1, -1)))
            advance(len(batch))
    return torch.cat(rows)


def frechet(a: Tensor, b: Tensor) -> float:
    """The Frechet distance of the Gaussians fitted to two sets of features (n, d), by pytorch-fid.

    |mu_a - mu_b|^2 + tr(A + B - 2 (A B)^(1/2)), A and B being the covariances.

    Source: Heusel et al. 2017, Eq. 6.

    >>> x = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    >>> round(frechet(x, x + torch.tensor([3.0, 4.0])), 6)
    25.0
    """
    pytorch_fid = need("pytorch_fid.fid_score", "images", "FID")
    statistics: list[Any] = []
    for rows in (a, b):
        values = rows.double().numpy()
        statistics += [np.mean(values, axis=0), np.cov(values, rowvar=False)]
    with contextlib.redirect_stdout(io.StringIO()) as printed, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # sqrtm's disp; the extra bounds SciPy
        distance = pytorch_fid.calculate_frechet_distance(*statistics)
    if printed.getvalue():
        warnings.warn(printed.getvalue().strip(), stacklevel=2)
    return float(distance)


def kid_subset_size(n: int, m: int) -> int:
    """Features in each of KID's subsets: 1000, or half the smaller set."""
    return max(2, min(SUBSET_SIZE, n // 2, m // 2))


def kid(a: Tensor, b: Tensor, seed: int = 0) -> tuple[float, float]:
    """The kernel Inception distance of two sets of features (n, d): mean and sd over 100 subsets.

    The unbiased estimate of the squared maximum mean discrepancy with the kernel
    (x . y / d + 1)^3, so it is 0 on average for equal distributions, and may be negative.

    Args:
        a, b: 2 rows or more. seed: of the subsets, drawn without replacement.

    Source: Binkowski et al. 2018.
    """
    size = kid_subset_size(len(a), len(b))
    generator = torch.Generator().manual_seed(seed)
    values = []
    for _ in range(SUBSETS):
        x, y = (each[torch.randperm(len(each), generator=generator)[:size]] for each in (a, b))
        values.append(squared_mmd(x, y))
    all_values = torch.tensor(values, dtype=torch.float64)
    return float(all_values.mean()), float(all_values.std())


def squared_mmd(x: Tensor, y: Tensor) -> float:
    """KID's estimate from two sets (n, d) and (m, d), without the terms k(x_i, x_i).

    >>> squared_mmd(torch.zeros(3, 2), torch.ones(3, 2))  # 1 + (1 + 1)^3 - 2
    7.0
    """
    x, y = x.double(), y.double()

    def kernel(p: Tensor, q: Tensor) -> Tensor:
        return (p @ q.T / p.shape[1] + 1) ** 3

    def within(p: Tensor) -> Tensor:
        k = kernel(p, p)
        return (k.sum() - k.diagonal().sum()) / (len(p) * (len(p) - 1))

    return float(within(x) + within(y) - 2 * kernel(x, y).mean())
