"""The command line, from the outside: what it prints, what it leaves, how it fails."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
import xarray

from stanley_fast import checkpoint, cli, keys, metrics, runs
from stanley_fast.commands import compare
from stanley_fast.commands.common import command_line
from stanley_fast.energies import Rings

TINY = ["--steps=3", "--batch-size=8", "--iterations=4", "--evaluate-every=2"]
COMMAND = [sys.executable, "-m", "stanley_fast"]


@pytest.fixture(autouse=True)
def in_its_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")  # so that help and errors are not wrapped


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    assert cli.main(["train", "rings", "--folder", str(folder), *TINY]) == 0
    return folder


def fails(capsys: pytest.CaptureFixture[str], arguments: str, status: int) -> str:
    """Runs a command that must fail with this status; its one line on stderr."""
    assert cli.main(arguments.split()) == status
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if line and "it/s" not in line]
    assert out == ""
    assert len(lines) == 1
    return lines[0]


def test_train_says_where_everything_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "gmm", "--sampler", "langevin", *TINY]) == 0
    out = capsys.readouterr().out
    assert "Trained 4 iterations of Langevin, step size 0.14, noise 0.15." in out
    assert "mode_share" in out
    folder = Path("runs/gmm-langevin-tuned")
    assert f"Pictures: {folder / 'figure1.png'} and {folder / 'loss.png'}" in out
    assert (folder / "figure1.png").exists()
    assert "full experiment" not in out


def test_the_demo_says_how_to_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "rings", "--preset", "demo", *TINY]) == 0
    again = command_line("train", "rings")
    assert f"The full experiment: {again}\n" in capsys.readouterr().out


def test_options_change_the_preset() -> None:
    options = "--preset paper --threshold 0.2 --step-size 0.5 --noise-scale 0.3 --seed 7"
    more = "--learning-rate 0.01 --start-scale 3 --folder f"
    assert cli.main(["train", "rings", *options.split(), *more.split(), *TINY]) == 0
    config = runs.load_config(Path("f"))
    assert (config.threshold, config.step_size, config.noise_scale) == (0.2, 0.5, 0.3)
    assert (config.learning_rate, config.start_scale, config.seed) == (0.01, 3.0, 7)
    assert (config.steps, config.batch_size, config.iterations) == (3, 8, 4)


def test_train_does_not_touch_a_run_unasked(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = fails(capsys, f"train rings --folder {trained}", 1)
    assert line.endswith("already holds a run: add --resume, --overwrite or another --folder")


def test_resume_goes_on_with_the_folders_settings(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["train", "rings", "--folder", "f", "--seed", "3"]
    assert cli.main([*command, *TINY]) == 0
    assert cli.main(["train", "rings", "--folder", "f", "--resume", "--iterations", "6"]) == 0
    config = runs.load_config(Path("f"))
    assert (config.iterations, config.steps, config.seed) == (6, 3, 3)
    assert runs.load_learned("f").iteration == 6
    capsys.readouterr()
    line = fails(capsys, "train rings --folder f --resume --threshold 0.3", 2)
    assert line == "stanley-fast: the run to resume has threshold 0.1, got 0.3"
    line = fails(capsys, "train gmm --folder f --resume", 2)
    assert line == "stanley-fast: the run to resume has target rings, got gmm"
    assert runs.load_config(Path("f")) == config


def test_overwrite_begins_anew() -> None:
    command = ["train", "rings", "--folder", "f", *TINY]
    assert cli.main(command) == 0
    assert cli.main([*command, "--seed", "1", "--overwrite"]) == 0
    assert runs.load_config(Path("f")).seed == 1


def test_sample_leaves_samples(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert cli.main(["sample", str(trained), "--n", "500", "--folder", "s"]) == 0
    samples = np.load("s/samples.npy")
    assert samples.shape == (500, 2)
    assert np.isfinite(samples).all()
    assert Path("s/samples.png").stat().st_size > 0
    out = capsys.readouterr().out
    assert "500 samples after 4 iterations, by STANLEY, threshold 0.1, step size 1" in out
    assert "ring_share" in out
    # The same from the checkpoint itself; another seed, steps or sampler gives others.
    for options, same in (
        ("", True),
        ("--seed 1", False),
        ("--steps 4", False),
        ("--sampler langevin", False),
        ("--threshold 1e-9", False),
    ):
        file = str(trained / "checkpoint.pt")
        command = ["sample", file, "--n", "500", "--folder", "t", *options.split()]
        assert cli.main(command) == 0
        assert np.array_equal(np.load("t/samples.npy"), samples) == same, options
    assert "by Langevin, step size 0.14, noise 0.15:" in capsys.readouterr().out


def test_sample_stands_beside_the_run(trained: Path) -> None:
    assert cli.main(["sample", str(trained / "snapshots" / "000002.pt"), "--n", "5"]) == 0
    assert np.load(trained / "snapshots" / "samples" / "samples.npy").shape == (5, 2)


def test_sample_of_a_target_itself(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["sample", "rings", "--n", "2000"]) == 0
    assert "2000 samples of the true rings, by STANLEY" in capsys.readouterr().out
    samples = torch.from_numpy(np.load("runs/rings/samples/samples.npy"))
    share = float(metrics.quality(Rings(), samples, keys.key(0))["ring_share"])
    # 0.9973 of true samples; 4 sd of 2 000 draws' share below, and 0.01 for the step's bias.
    assert share > 0.9973 - 0.01 - 4 * (0.9973 * 0.0027 / 2000) ** 0.5
    assert cli.main(["sample", "gmm", "--n", "5", "--sampler", "langevin", "--steps", "3"]) == 0
    assert "by Langevin, step size 0.01, noise 1:" in capsys.readouterr().out


def test_diagnostics_report_the_draws_after_burn_in(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["sample", "gmm", "--n", "30", "--steps", "50"]
    assert cli.main([*command, "--folder", "plain"]) == 0
    assert "r_hat" not in capsys.readouterr().out
    more = "--folder d --burn-in 20 --keep-every 3 --inference-data d/draws.nc"
    assert cli.main([*command, *more.split()]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "After a burn-in of 20 transitions, 3 from draw to draw:" in lines
    assert [line.split()[0] for line in lines if line.startswith("z[")] == ["z[0]", "z[1]"]
    assert lines[-1] == "Left d/samples.npy, d/samples.png, d/trace.png and d/draws.nc"
    assert Path("d/trace.png").stat().st_size > 0
    samples = np.load("d/samples.npy")
    assert np.array_equal(samples, np.load("plain/samples.npy"))
    draws = xarray.open_datatree("d/draws.nc")["posterior"]["z"].to_numpy()
    assert draws.shape == (30, 10, 2)
    assert np.array_equal(draws[:, -1], samples)  # the 50th transition's


def test_diagnostics_of_a_trained_model(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = f"sample {trained} --n 20 --steps 8 --diagnostics --folder d"
    assert cli.main(command.split()) == 0
    assert "After a burn-in of 4 transitions, 1 from draw to draw:" in capsys.readouterr().out


def test_diagnostics_without_arviz(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "arviz_stats", None)
    line = fails(capsys, "sample rings --diagnostics", 1)
    assert line == (
        "stanley-fast: stanley_fast.diagnostics needs arviz_stats: "
        "pip install 'stanley-fast[diagnostics]'"
    )
    assert list(Path.cwd().iterdir()) == []


def test_the_grid_has_a_fine_grid_for_each_sampler(capsys: pytest.CaptureFixture[str]) -> None:
    kinds = [get_args(kind)[0] for kind in get_args(compare.Kind)]
    whole = next(k for k in kinds if getattr(k, "target", None) == "rings")(grid=True)
    stanley, langevin = whole._cells("stanley"), whole._cells("langevin")
    assert (len(stanley), len(langevin)) == (48, 18)  # as the help says: 66
    assert {c.iterations for c in stanley + langevin} == {800}
    assert len(set(stanley + langevin)) == 66
    part = "--thresholds 0.1 --step-sizes 1 --noise-scales 0.15 --seeds 0 --jobs 1"
    assert cli.main(["compare", "rings", "--grid", *part.split(), *TINY]) == 0
    out = capsys.readouterr().out
    assert [line.split()[0] for line in out.splitlines()[1:3]] == ["stanley", "langevin"]
    assert "Left runs/grid-rings/comparison.csv" in out


def test_compare_prints_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    grid = ["--thresholds", "0.1", "0.2", "--seeds", "0", "--jobs", "1", "--folder", "c"]
    assert cli.main(["compare", "rings", "--samplers", "stanley", *grid, *TINY]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[1:3]] == [["stanley", "0.1"], ["stanley", "0.2"]]
    assert "ring_share" in lines[0]
    assert lines[4].startswith("Left c/comparison.csv")
    assert fails(capsys, "compare rings --folder c", 1).endswith(
        "already holds a comparison: add --resume or choose another --folder"
    )


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        ("train rings --threshold -1", 2, "threshold must be positive and finite, got -1.0"),
        ("train rings --step-size nan", 2, "step_size must be positive and finite, got nan"),
        ("train rings --noise-scale -0.1", 2, "noise_scale must be 0 or more and finite, got -0.1"),
        ("train rings --iterations 0", 2, "iterations must be 1 or more, got 0"),
        (
            "train rings --sampler langevin --threshold 1",
            2,
            "threshold is not a setting of langevin, got 1.0",
        ),
        (
            "train rings --sampler mala --noise-scale 0.3",
            2,
            "noise_scale is not a setting of mala, got 0.3",
        ),
        (
            "train rings --sampler hmc --steps 7",
            2,
            "steps must be a multiple of leapfrog_steps = 5, got 7",
        ),
        (
            "compare rings --samplers mala hmc --noise-scales 0.1",
            2,
            "noise_scales are a setting of stanley, langevin, adjusted-stanley; none is among "
            "samplers",
        ),
        ("train rings --resume --overwrite", 2, "resume and overwrite exclude each other"),
        (
            "train rings --resume --folder none",
            1,
            "none holds no run: there is no none/config.json",
        ),
        ("sample none", 1, "there is no checkpoint at none"),
        ("sample none --n 0", 2, "n must be 1 or more, got 0"),
        ("compare rings --seeds 1 1", 2, "seeds must be one or more, all different, got (1, 1)"),
        ("compare rings --samplers", 2, "samplers must be one or more, all different, got ()"),
        (
            "compare rings --grid --preset demo",
            2,
            "grid begins with the tuned preset, got preset demo",
        ),
        ("sample rings --burn-in -1", 2, "burn_in must be 0 or more, got -1"),
        ("sample rings --keep-every 0", 2, "keep_every must be 1 or more, got 0"),
        (
            "sample rings --steps 10 --burn-in 7",
            2,
            "diagnostics need 4 draws or more, got 10 transitions with burn_in 7 and keep_every 1",
        ),
        ("sample rings --inference-data x", 2, "inference_data must end in .nc, got x"),
        (
            "sample rings --sampler langevin --threshold 1",
            2,
            "threshold is not a setting of langevin, got 1.0",
        ),
        ("compare rings --jobs 0", 2, "jobs must be 1 or more, got 0"),
        ("compare rings --thresholds 0", 2, "threshold must be positive and finite, got 0.0"),
    ],
)
def test_mistakes_are_one_line(
    arguments: str, status: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fails(capsys, arguments, status) == f"stanley-fast: {message}"
    assert list(Path.cwd().iterdir()) == []


@pytest.mark.parametrize("arguments", ["", "trian", "train squares", "train rings --noise-scale x"])
def test_options_that_do_not_parse(arguments: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments.split())
    assert caught.value.code == 2
    assert "stanley-fast" in capsys.readouterr().err


def test_a_file_that_is_no_checkpoint(capsys: pytest.CaptureFixture[str]) -> None:
    Path("x.pt").write_bytes(b"no checkpoint")
    assert fails(capsys, "sample x.pt", 1).startswith("stanley-fast: x.pt is ")


def test_a_diverged_run(capsys: pytest.CaptureFixture[str]) -> None:
    options = " ".join(TINY).replace("--iterations=4", "--iterations=98")
    line = fails(capsys, f"train rings --folder f --learning-rate 1e4 {options}", 1)
    assert line.startswith("stanley-fast: training diverged at iteration")
    assert "The last good state is in f" in line


def test_a_backend_that_cannot_run(capsys: pytest.CaptureFixture[str]) -> None:
    environment = {**os.environ, "STANLEY_FAST_BACKEND": "nonsense"}
    done = subprocess.run(
        [*COMMAND, "sample", "x"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith("stanley-fast: STANLEY_FAST_BACKEND: backend must be one of")


OPTIONS = {
    "train rings": 19, "train digits": 48, "train cifar10": 48, "compare rings": 19,
    "compare digits": 43, "sample": 14, "fid": 5, "inpaint": 10, "bench": 4, "doctor": 1,
}  # fmt: skip


@pytest.mark.parametrize("command", OPTIONS)
def test_every_option_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main([*command.split(), "--help"])
    assert caught.value.code == 0
    out = " ".join(capsys.readouterr().out.replace("│", " ").replace("|", " ").split())
    assert "None" not in out
    options = re.findall(r"(--[a-z][a-z0-9-]*) (.*?)\(default: ", out)
    assert len(options) == OPTIONS[command]
    for name, text in options:
        assert len(re.findall("[A-Za-z]+", text)) >= 3, name


# From another process -----------------------------------------------------------------------------


def popen(command: list[str]) -> subprocess.Popen[str]:
    """A process that hears Ctrl-C even where these tests run in a shell's background."""

    def hear_ctrl_c() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    return subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=hear_ctrl_c,
    )


def start(folder: str, *options: str) -> subprocess.Popen[str]:
    """A training of about a second in a process of its own."""
    command = [*COMMAND, "train", "rings", "--folder", folder, *options]
    return popen(command)


def finish(process: subprocess.Popen[str]) -> int:
    """Its exit status. Reads what it writes meanwhile: a full pipe would hold it up."""
    process.communicate()
    return process.returncode


SECOND = ["--steps=5", "--batch-size=8", "--iterations=3000", "--evaluate-every=1500"]


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    while not path.exists() and process.poll() is None:
        time.sleep(0.01)


def test_ctrl_c_leaves_a_checkpoint_and_says_so() -> None:
    process = start("f", *SECOND[:2], "--iterations=100000", "--evaluate-every=100000")
    wait_for(Path("f/checkpoint.pt"), process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert err.splitlines()[-1] == (
        "stanley-fast: stopped; the checkpoint is f/checkpoint.pt. "
        f"Go on with: {command_line(*['train', 'rings', '--folder', 'f', '--resume'])}"
    )
    assert runs.load_learned("f").iteration < 100_000


def test_ctrl_c_stops_a_comparison_and_says_how_to_go_on() -> None:
    command = [*COMMAND, "compare", "rings", "--grid", "--jobs=2", "--folder=c", *TINY]
    process = popen(command)
    wait_for(Path("c/stanley-threshold0.03-step0.1-noise0.15-seed0/config.json"), process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert err.splitlines()[-1] == (
        "stanley-fast: stopped; the runs so far are in c. Go on: the same command and --resume"
    )


def test_killed_five_times_and_resumed_it_is_the_same_run() -> None:
    assert finish(start("whole", *SECOND)) == 0
    chance = random.Random(0)
    options = SECOND
    for _ in range(5):
        process = start("killed", *options)
        before = Path("killed/checkpoint.pt")
        wait_for(before, process)
        time.sleep(chance.uniform(0, 2))
        process.send_signal(signal.SIGKILL)
        finish(process)
        options = ["--resume"]
    assert finish(start("killed", *options)) == 0
    whole, killed = (checkpoint.load(f"{name}/checkpoint.pt") for name in ("whole", "killed"))
    assert whole["iteration"] == killed["iteration"] == 3000
    for name, weight in whole["f"].items():
        assert torch.equal(weight, killed["f"][name]), name
    assert Path("whole/metrics.csv").read_bytes() == Path("killed/metrics.csv").read_bytes()
