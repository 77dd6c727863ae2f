"""The commands on images, from the outside, on digits: training, sampling, judging, inpainting."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from stanley_fast import checkpoint, cli, image_models, run_folder
from stanley_fast.data import load
from stanley_fast.image_experiments import ImageConfig

pytestmark = pytest.mark.usefixtures("one_thread")

TINY = [
    "--network=mlp", "--width=16", "--layers=2", "--steps=2", "--batch-size=8", "--iterations=4",
    "--evaluate-every=2", "--samples=20", "--sample-steps=4", "--buffer-size=30",
]  # fmt: skip


@pytest.fixture(autouse=True)
def in_its_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    assert cli.main(["train", "digits", "--folder", str(folder), *TINY]) == 0
    return folder


def fails(capsys: pytest.CaptureFixture[str], arguments: str, status: int) -> str:
    """Runs a command that must fail with this status; the last line on stderr."""
    capsys.readouterr()
    assert cli.main(arguments.split()) == status
    out, err = capsys.readouterr()
    assert out == ""
    return err.splitlines()[-1]


def table(path: str) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_train_leaves_a_run_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "digits", "--sampler", "langevin", *TINY]) == 0
    out = capsys.readouterr().out
    folder = Path("runs/digits-langevin-cpu")
    assert "Trained 4 iterations of Langevin, step size 0.4, noise 0.1." in out
    for name in ("fid", "kid", "nearest", "confident", "rarest_class"):
        assert name in out
    pictures = ("energies", "fid", "loss", "neighbours", "samples", "training")
    assert [path.stem for path in sorted(folder.glob("*.png"))] == list(pictures)
    assert all(str(folder / f"{name}.png") in out for name in pictures)
    assert (folder / "chains.gif").exists()
    assert [row["iteration"] for row in json.loads((folder / "scores.json").read_text())] == [
        0,
        2,
        4,
    ]


def test_resume_goes_on_and_refuses_others(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["train", "digits", "--folder", "f"]
    assert cli.main([*command, *TINY]) == 0
    assert cli.main([*command, "--resume", "--iterations", "6"]) == 0
    assert image_models.load_learned("f").iteration == 6
    assert run_folder.load_config(Path("f"), ImageConfig).width == 16
    line = fails(capsys, "train digits --folder f --resume --width 8", 2)
    assert line == "stanley-fast: the run to resume has width 16, got 8"
    line = fails(capsys, "train mnist x --folder f --resume", 2)
    assert "the run to resume has data digits, got mnist" in line or "place" in line
    line = fails(capsys, "train digits --folder f", 1)
    assert line.endswith("already holds a run: add --resume, --overwrite or another --folder")
    line = fails(capsys, "train rings --folder f --resume", 1)
    assert "config.json does not hold a run's settings" in line


def test_sample(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["sample", str(trained), "--n", "5", "--folder"]
    assert cli.main([*command, "a", "--keep-every", "2"]) == 0
    out = capsys.readouterr().out
    assert "5 samples after 4 iterations, by STANLEY" in out
    names = ("samples.npy", "samples.png", "chains.gif", "chains.png")
    assert all((Path("a") / name).exists() for name in names)
    pixels = np.load("a/samples.npy")
    assert (pixels.dtype, pixels.shape) == (np.uint8, (5, 1, 8, 8))
    assert cli.main([*command, "b"]) == 0
    assert cli.main([*command, "c", "--seed", "1"]) == 0
    assert np.array_equal(np.load("b/samples.npy"), pixels)
    assert not np.array_equal(np.load("c/samples.npy"), pixels)
    for option in ("--diagnostics", "--sampler hmc", "--start-scale 2"):
        name = option.split()[0].lstrip("-").replace("-", "_")
        line = fails(capsys, f"sample {trained} {option}", 2)
        assert line == f"stanley-fast: {name} is for models of points, {trained} is of images"


def test_fid_of_a_run_and_of_arrays(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["fid", str(trained), "--n", "20", "--json", "score.json"]) == 0
    out = capsys.readouterr().out
    assert "20 of samples (iteration 4) against 20 of digits (train)" in out
    score = json.loads(Path("score.json").read_text())
    assert out.startswith(f"FID {score['fid']:.2f}, KID {score['kid']:.5f}")
    assert score["protocol"]["network"].startswith("classifier of 1500 of digits")
    # Real digits in an array are nearer to the run's data than what four iterations made.
    np.save("real.npy", load("digits", split="test").pixels.numpy())
    assert cli.main(["fid", "real.npy", str(trained), "--json", "real.json"]) == 0
    assert json.loads(Path("real.json").read_text())["fid"] < score["fid"]
    line = fails(capsys, "fid real.npy", 2)
    assert line == "stanley-fast: data must be given, since real.npy is no run"
    assert "there is nothing at nowhere" in fails(capsys, "fid nowhere", 1)


def test_inpaint(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["inpaint", str(trained), "--n", "3", "--steps", "4", "--folder", "i"]
    assert cli.main([*command, "--samplers", "stanley", "ascent"]) == 0
    out = capsys.readouterr().out
    assert [line.split("  ")[0] for line in out.splitlines()[:4]] == [
        "on the hole", "mean colour", "STANLEY", "Gradient ascent",
    ]  # fmt: skip
    assert "SSIM wants images of 11 pixels" in out
    rows = table("i/inpainting.csv")
    assert [row["method"] for row in rows] == 3 * ["mean colour"] + 3 * ["STANLEY"] + 3 * [
        "Gradient ascent"
    ]
    assert all(0 < float(row["PSNR"]) < 60 for row in rows)
    assert Path("i/inpainting.png").exists()
    line = fails(capsys, f"inpaint {trained} --samplers hmc", 2)
    assert "sampler must keep pixels in [-1, 1] like training's, which hmc can't" in line
    # The user's own images, another model beside.
    np.save("mine.npy", load("digits", split="test").pixels[:2].numpy())
    shutil.copytree(trained, "copy")
    command = ["inpaint", str(trained), "mine.npy", "--others", "copy", "--steps", "2"]
    assert cli.main([*command, "--folder", "j", "--mask", "random"]) == 0
    methods = {row["method"] for row in table("j/inpainting.csv")}
    assert methods == {"mean colour", f"{trained.name}, STANLEY", "copy, STANLEY"}
    line = fails(capsys, f"inpaint {trained} --others {trained}", 2)
    assert "others must differ" in line


def test_compare(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["compare", "digits", "--folder", "c", "--samplers", "stanley", "mh"]
    assert cli.main([*command, *TINY]) == 0
    out = capsys.readouterr().out
    titles = [line.split("  ")[0] for line in out.splitlines()[1:5]]
    assert titles == [
        "STANLEY", "Metropolis-Hastings", "held-out images", "Gaussian of the pixels",
    ]  # fmt: skip
    rows = table("c/comparison.csv")
    assert [(row["sampler"], row["evaluations"]) for row in rows if row["iteration"] == "4"] == [
        ("stanley", "64"), ("mh", "64"),
    ]  # fmt: skip
    assert all(Path("c", name).exists() for name in ("fid.png", "samples.png", "stanley", "mh"))
    line = fails(capsys, " ".join([*command, *TINY]), 1)
    assert line.endswith("already holds a comparison: add --resume or choose another --folder")


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        ("train digits --width 0", 2, "width must be 1 or more, got 0"),
        ("train digits --network strided", 2, "layers must be a number for conv and mlp"),
        ("train digits --samples-from buffer --start noise", 2, "samples_from must be noise"),
        ("train digits --preset paper", 2, "there is no preset 'paper' for digits"),
        ("train digits --preset jem --sampler stanley", 2, "the preset 'jem' is of langevin"),
        ("train digits --sampler hmc --clamp True", 2, "clamp is not a setting of hmc"),
        ("train digits --sampler hmc --steps 7", 2, "steps must be a multiple of leapfrog_steps"),
        ("train cifar10 nowhere", 1, "nowhere"),
        ("train folder nowhere", 1, "nowhere"),
        ("compare digits --samplers stanley stanley", 2, "samplers must be one or more, all diff"),
        ("inpaint nowhere", 1, "there is no checkpoint at nowhere"),
        ("fid nowhere --n 1", 2, "n must be 2 or more, got 1"),
    ],
)
def test_mistakes_are_one_line(
    arguments: str, status: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    line = fails(capsys, arguments, status)
    assert line.startswith("stanley-fast: ")
    assert message in line


def test_masks(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = fails(capsys, f"inpaint {trained} --mask nosuch.png", 1)
    assert line == (
        "stanley-fast: mask must be centre, half, random or a picture file, got nosuch.png"
    )
    line = fails(capsys, f"inpaint {trained} --mask random --share 2", 2)
    assert "share must be in (0, 1], got 2" in line


def test_a_checkpoint_that_runs_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (Path("evil"),)

    torch.save({"stanley_fast": checkpoint.FORMAT, "state": Evil()}, "x.pt")
    for command in ("sample x.pt", "fid x.pt", "inpaint x.pt"):
        assert "loading anything else could run code" in fails(capsys, command, 1)
    assert not Path("evil").exists()
