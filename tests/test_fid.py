"""FID is pytorch-fid's to the last digit; KID is its definition; what they depend on is kept.

Inception's real weights are not needed: pytorch-fid's network gets weights that the tests make.
Where torch hub's folder has the real ones the slow comparison runs with them too.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import image_files
import numpy as np
import pytest
import torch
import torchvision_ops
from PIL import Image
from pytorch_fid import fid_score, inception
from torch import Tensor, nn

import stanley_fast as sf
from stanley_fast import fid
from stanley_fast.data import DataError, Images, to_pixels


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "stanley-fast"


class Few:
    """A stand-in for Inception: six figures of an image. Counts the images it sees."""

    frechet = staticmethod(fid.frechet)

    def __init__(self, name: str = "few") -> None:
        self.protocol = {"network": name}
        self.seen = 0

    def __call__(self, pixels: Tensor) -> Tensor:
        self.seen += len(pixels)
        x = pixels.float() / 255
        return torch.cat([x.mean((2, 3)), x.std((2, 3))], dim=1)


def images(n: int, seed: int = 0, name: str = "made", high: int = 256) -> Images:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, high, (n, 3, 8, 8), generator=generator, dtype=torch.uint8)
    return Images(pixels, None, name, "all")


def normal(n: int, d: int, seed: int) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# The distances -----------------------------------------------------------------------------------


def test_frechet_of_scaled_and_moved_features() -> None:
    """Of N(0, I) and N(m, diag s^2) it is |m|^2 + sum (1 - s)^2."""
    x = normal(100, 4, seed=1)
    x = x - x.mean(0)
    x = x @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(x.T))).T  # covariance exactly I
    scale, move = torch.tensor([1.0, 2.0, 0.5, 3.0]), torch.tensor([0.0, 1.0, -2.0, 0.5])
    want = move.square().sum() + (1 - scale).square().sum()
    assert fid.frechet(x, x * scale + move) == pytest.approx(float(want), rel=1e-6)
    assert fid.frechet(x, x) == pytest.approx(0, abs=1e-6)


def test_frechet_of_covariances_that_do_not_commute() -> None:
    x, y = normal(300, 5, 1) @ normal(5, 5, 2), normal(200, 5, 3) @ normal(5, 5, 4)
    a, b = torch.cov(x.T), torch.cov(y.T)
    root = torch.linalg.eigvals(a @ b).real.sqrt().sum()
    want = (x.mean(0) - y.mean(0)).square().sum() + a.trace() + b.trace() - 2 * root
    assert fid.frechet(x, y) == pytest.approx(float(want), rel=1e-9)
    assert fid.frechet(y, x) == pytest.approx(float(want), rel=1e-9)


def test_what_pytorch_fid_prints_is_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    def distance(*_: object) -> float:
        print("singular product")
        return 1.0

    with (
        mock.patch.object(fid_score, "calculate_frechet_distance", distance),
        pytest.warns(UserWarning, match="singular product"),
    ):
        fid.frechet(torch.zeros(2, 2), torch.zeros(2, 2))
    assert capsys.readouterr().out == ""


def test_squared_mmd_is_its_definition() -> None:
    x, y = normal(6, 3, 1), normal(4, 3, 2) + 1

    def k(a: Tensor, b: Tensor) -> float:
        return (float(a @ b) / 3 + 1) ** 3

    within_x = sum(k(x[i], x[j]) for i in range(6) for j in range(6) if i != j) / 30
    within_y = sum(k(y[i], y[j]) for i in range(4) for j in range(4) if i != j) / 12
    between = sum(k(a, b) for a in x for b in y) / 24
    assert fid.squared_mmd(x, y) == pytest.approx(within_x + within_y - 2 * between, rel=1e-12)


def test_squared_mmd_is_unbiased() -> None:
    values = torch.tensor(
        [fid.squared_mmd(normal(20, 4, 2 * i), normal(30, 4, 2 * i + 1)) for i in range(500)]
    )
    assert abs(values.mean()) < 4 * values.std() / len(values) ** 0.5
    assert (values < 0).any()


def test_kid() -> None:
    x, y = normal(300, 8, 1), normal(300, 8, 2)
    same, sd = fid.kid(x, y)
    moved, _ = fid.kid(x, y + 0.5)
    assert abs(same) < sd < 0.1 < moved
    # For all 300, the subsets' mean is the estimate up to what 100 of them vary.
    whole = fid.squared_mmd(x, y + 0.5)
    assert moved == pytest.approx(whole, abs=5 * fid.kid(x, y + 0.5)[1] / 10)
    assert fid.kid(x, y) == (same, sd)
    assert fid.kid(x, y, seed=1) != (same, sd)


@pytest.mark.parametrize(
    ("n", "m", "size"), [(50_000, 10_000, 1000), (2000, 9000, 1000), (300, 41, 20), (2, 9, 2)]
)
def test_kid_subset_size(n: int, m: int, size: int) -> None:
    assert fid.kid_subset_size(n, m) == size


# compare -----------------------------------------------------------------------------------------


def test_compare() -> None:
    samples, data = images(120, 1, "ours"), images(130, 2, "real", high=200)
    score = fid.compare(samples, data, Few(), progress=False)
    a, b = Few()(samples.pixels), Few()(data.pixels)
    assert score.fid == fid.frechet(a, b)
    assert (score.kid, score.kid_sd) == fid.kid(a, b)
    assert score.kid_subsets == (100, 60)
    assert score.protocol == {"network": "few"}
    assert score.samples == fid.Side("ours", "all", 120, (3, 8, 8), samples.fingerprint)
    assert score.data.fingerprint == data.fingerprint
    text = json.loads(json.dumps(score.to_dict()))
    assert text["fid"] == score.fid
    assert text["data"]["n"] == 130
    assert "120 of ours (all) against 130 of real (all)" in str(score)


def test_features_go_in_pytorch_fids_batches() -> None:
    sizes: list[int] = []

    class Recording(Few):
        def __call__(self, pixels: Tensor) -> Tensor:
            sizes.append(len(pixels))
            return super().__call__(pixels)

    out = fid.features(images(120), Recording(), progress=False)
    assert sizes == [50, 50, 20]
    assert torch.equal(out, Few()(images(120).pixels))


def test_grey_images_are_seen_as_rgb() -> None:
    grey = images(10).pixels[:, :1]
    a = fid.features(Images(grey, None, "", ""), Few(), progress=False)
    b = fid.features(Images(grey.repeat(1, 3, 1, 1), None, "", ""), Few(), progress=False)
    assert torch.equal(a, b)


def test_the_datas_features_are_kept(own_cache: Path) -> None:
    net, samples, data = Few(), images(20, 1), images(30, 2)
    scores = []
    for _ in range(3):
        scores.append(fid.compare(samples, data, net, progress=False).fid)
    assert net.seen == 30 + 3 * 20
    assert len(set(scores)) == 1
    fid.compare(samples, images(30, 3), net, progress=False)
    assert net.seen == 30 + 3 * 20 + 50
    other = Few("other")
    fid.compare(samples, data, other, progress=False)
    assert other.seen == 50
    assert len(list(own_cache.glob("features-made-all-30-*.pt"))) == 2


def test_damaged_features_are_made_anew(own_cache: Path) -> None:
    net, samples, data = Few(), images(20, 1), images(30, 2)
    good = fid.compare(samples, data, net, progress=False)
    path = next(own_cache.glob("features*.pt"))
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.warns(UserWarning, match="making the cached data anew"):
        assert fid.compare(samples, data, net, progress=False) == good


@pytest.mark.parametrize("name", ["samples", "data"])
def test_sets_of_one_image(name: str) -> None:
    sets = {"samples": images(5), "data": images(5)} | {name: images(1)}
    with pytest.raises(ValueError, match=f"{name} must have 2 images or more, got 1"):
        fid.compare(**sets, net=Few())


def test_default_samples() -> None:
    assert fid.default_samples("cpu") == 2_000
    assert fid.default_samples("cuda:0") == 10_000


# pytorch-fid's network ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights under the real ones' name, of a size that keeps features near 1."""
    with (
        mock.patch.object(inception, "load_state_dict_from_url", return_value={}),
        mock.patch.object(torchvision_ops.torchvision.models.Inception3, "load_state_dict"),
    ):
        net = inception.fid_inception_v3()
    torch.manual_seed(0)
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    path = tmp_path_factory.mktemp("hub") / "hub" / "checkpoints" / fid.WEIGHTS
    path.parent.mkdir(parents=True)
    torch.save(net.state_dict(), path)
    return path


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Two folders of pictures, of several formats, with what pytorch-fid leaves out."""
    for name, n, seed in (("a", 8, 1), ("b", 11, 2)):
        for i, pixels in enumerate(image_files.pixels(n, 32, 32, 3, seed=seed)):
            pixels = pixels // (1 + i % 3)
            image_files.write_png(tmp_path / name / f"{i}.{['png', 'jpg', 'bmp'][i % 3]}", pixels)
        image_files.write_png(tmp_path / name / "grey.png", pixels[..., 0])
        image_files.write_png(tmp_path / name / "deeper/0.png", pixels[:5])
        (tmp_path / name / "notes.txt").write_text("no picture")
    return tmp_path / "a", tmp_path / "b"


def pytorch_fid_files(folder: Path) -> list[Path]:
    return sorted(p for e in fid_score.IMAGE_EXTENSIONS for p in folder.glob(f"*.{e}"))


def test_features_are_pytorch_fids(weights: Path, tmp_path: Path) -> None:
    for i, pixels in enumerate(image_files.pixels(3, 20, 30, 3)):
        image_files.write_png(tmp_path / f"{i}.png", pixels)
    net = fid.Inception(weights)
    ours = fid.features(fid._folder(tmp_path, progress=False), net, progress=False)
    theirs = fid_score.get_activations(pytorch_fid_files(tmp_path), net.net, num_workers=0)
    assert ours.shape == (3, 2048)
    assert 0.01 < float(ours.std()) < 100  # not all the same
    assert np.array_equal(ours.double().numpy(), theirs)
    assert len(net.protocol["weights_sha256"]) == 64
    assert "pytorch-fid 0.3.0" in net.protocol["network"]


COMMAND = """
import runpy, sys
import torchvision_ops
runpy.run_module("pytorch_fid", run_name="__main__")
"""


def fid_of_the_command(a: Path, b: Path, weights: Path) -> str:
    """What `python -m pytorch_fid a b` prints after "FID:"."""
    environment = os.environ | {
        "TORCH_HOME": str(weights.parents[2]),
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path]),
    }
    run = subprocess.run(
        [sys.executable, "-c", COMMAND, str(a), str(b)],
        capture_output=True, text=True, env=environment,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    return re.findall(r"^FID: +(\S+)$", run.stdout, re.MULTILINE)[0]


def real_weights() -> Path:
    try:
        path = fid._weights_path(None)
    except FileNotFoundError as error:
        pytest.skip(str(error))
    if path.name != fid.WEIGHTS or path.parts[-3:-1] != ("hub", "checkpoints"):
        pytest.skip(f"pytorch-fid's command wants hub/checkpoints/{fid.WEIGHTS}, got {path}")
    return path


@pytest.mark.slow  # the command's own start and two matrix roots of 2048 x 2048
@pytest.mark.parametrize("which", ["made", "real"])
def test_fid_is_the_commands(
    folders: tuple[Path, Path], request: pytest.FixtureRequest, which: str
) -> None:
    path = real_weights() if which == "real" else request.getfixturevalue("weights")
    score = fid.compare_folders(*folders, weights=path, device="cpu", progress=False)
    assert repr(score.fid) == fid_of_the_command(*folders, path)
    assert score.fid > 0.01
    assert (score.samples.n, score.data.n) == (9, 12)


def test_compare_folders(folders: tuple[Path, Path]) -> None:
    with mock.patch.object(fid, "Inception", return_value=Few()) as made:
        score = fid.compare_folders(*folders, weights="w.pth", device="cpu", progress=False)
    made.assert_called_once_with("w.pth", "cpu")
    sets = [torch.stack([torch.from_numpy(_rgb(p)) for p in pytorch_fid_files(f)]) for f in folders]
    assert score.fid == fid.frechet(*(Few()(pixels) for pixels in sets))
    assert (score.samples.name, score.data.name) == ("a", "b")


def _rgb(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB")).transpose(2, 0, 1).copy()


def test_folders_that_do_not_serve(tmp_path: Path) -> None:
    with mock.patch.object(fid, "Inception", return_value=Few()):
        with pytest.raises(FileNotFoundError, match="nowhere"):
            fid.compare_folders(tmp_path / "nowhere", tmp_path)
        with pytest.raises(DataError, match="holds no pictures"):
            fid.compare_folders(tmp_path, tmp_path)
        (tmp_path / "file").write_text("")
        with pytest.raises(NotADirectoryError, match="file"):
            fid.compare_folders(tmp_path / "file", tmp_path)


# Weights that are not there, or not weights ------------------------------------------------------


def test_weights_are_sought_in_three_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.delenv(fid.VARIABLE, raising=False)
    hub = tmp_path / "torch/hub/checkpoints" / fid.WEIGHTS
    named, given = tmp_path / "named.pth", tmp_path / "given.pth"
    message = f"Inception's weights are not at {re.escape(str(hub))}: put {fid.WEIGHTS}"
    with pytest.raises(FileNotFoundError, match=message) as caught:
        fid.Inception()
    assert "\n" not in str(caught.value)
    hub.parent.mkdir(parents=True)
    for path in (hub, named, given):
        path.write_bytes(b"")
    assert fid._weights_path(None) == hub
    monkeypatch.setenv(fid.VARIABLE, str(named))
    assert fid._weights_path(None) == named
    assert fid._weights_path(given) == given
    with pytest.raises(FileNotFoundError, match="not at elsewhere"):
        fid._weights_path("elsewhere")


def truncated(path: Path, weights: Path) -> None:
    path.write_bytes(weights.read_bytes()[:1_000_000])


def of_another_net(path: Path, weights: Path) -> None:
    torch.save(nn.Linear(2, 2).state_dict(), path)


def no_weights(path: Path, weights: Path) -> None:
    torch.save([1, 2], path)


def nothing(path: Path, weights: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("make", [truncated, of_another_net, no_weights, nothing])
def test_other_weights_are_refused(
    tmp_path: Path, weights: Path, make: Callable[[Path, Path], None]
) -> None:
    make(tmp_path / "w.pth", weights)
    with pytest.raises(DataError, match=r"w\.pth (is truncated or no file of|has other) weights"):
        fid.Inception(tmp_path / "w.pth")


def test_weights_run_nothing(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    torch.save({"fc.weight": image_files.Evil(mark)}, tmp_path / "w.pth")
    with pytest.raises(DataError, match=r"w\.pth is truncated or no .*; nothing in it was run"):
        fid.Inception(tmp_path / "w.pth")
    assert not mark.exists()


def test_samples_of_a_chain_can_be_scored() -> None:
    """From a net to its number: chains, pixels, score."""
    f = sf.ConvEnergy(channels=3, width=4, layers=2, image_size=8)
    z0 = sf.NoiseStart(1.0, "uniform").start(40, sf.key(1), torch.empty(0, 3, 8, 8))
    z = sf.sample(f, z0, sf.Stanley(0.1, noise_scale=0.01), 5, key=sf.key(0)).z
    samples = Images(to_pixels(z), None, "samples", "all")
    score = fid.compare(samples, images(50), Few(), progress=False)
    assert score.fid > 0
