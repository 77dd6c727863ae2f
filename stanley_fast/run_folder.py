"""What every run's folder holds, whatever it trains: settings, metrics, keys; and resuming it."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Literal

from torch import Tensor

from stanley_fast import keys, plots
from stanley_fast.checkpoint import CheckpointError
from stanley_fast.methods import Config, RunConfig, SettingsError
from stanley_fast.trainer import Trainer

# What a run may be resumed with anew: where its data lies is checked by what the data is.
MAY_DIFFER = ("iterations", "place")

# Everything that a run leaves: what --overwrite removes, and no more.
LEFT = (
    "config.json", "checkpoint.pt", "best.pt", "last_good.pt", "metrics.csv", "scores.json",
    "figure1.png", "loss.png", "samples.png", "training.png", "chains.gif", "neighbours.png",
    "energies.png", "fid.png", "checkpoints/*.pt", "snapshots/*.pt", "samples/samples.*",
    "samples/trace.png", "samples/chains.gif", "samples/chains.png", "inpainting/inpainting.*",
    "tensorboard/events.out.tfevents.*",
)  # fmt: skip


def key_for(seed: int, purpose: Literal["training", "evaluation", "truth"]) -> Tensor:
    """The key of one of a run's independent random streams."""
    purposes = ("training", "evaluation", "truth")
    return keys.split(keys.key(seed), len(purposes))[purposes.index(purpose)]


def check(folder: Path, config: Config, *, resume: bool, overwrite: bool) -> None:
    """Makes sure that `config` may run in `folder`, before anything long or lasting is done.

    Raises:
        FileExistsError: the folder holds a run, neither to be resumed nor overwritten.
        FileNotFoundError, CheckpointError, SettingsError: it holds none to resume, or one with
            other settings; only `iterations` may differ.
    """
    if resume:
        _check_same(config, load_config(folder, type(config)))
    elif not overwrite and (folder / "config.json").exists():
        raise FileExistsError(f"{folder} already holds a run")


def begin(
    folder: Path, config: RunConfig, trainer: Trainer, *, resume: bool, overwrite: bool
) -> None:
    """Writes config.json; to resume, gives the trainer the folder's checkpoint first; to overwrite,
    removes the run that the folder holds.

    Raises:
        SettingsError: more is done already than `config` wants.
        CheckpointError: as `Trainer.resume`, or the trainer's notes differ, but for the config.
    """
    if resume and (folder / "checkpoint.pt").exists():
        notes = trainer.notes
        trainer.resume()
        for name, value in notes.items():
            was = trainer.notes.get(name)
            if name != "config" and was != value:
                raise CheckpointError(f"the run in {folder} has {name} {was}, got {value}")
        trainer.notes = notes  # iterations may have changed
        if config.iterations < trainer.iteration:
            raise SettingsError(
                f"iterations must be at least the {trainer.iteration} that are done, "
                f"got {config.iterations}"
            )
    elif overwrite and not resume:
        _remove_run(folder)
    write(folder / "config.json", json.dumps(asdict(config), indent=2) + "\n")


def load_config(folder: Path, kind: type[Config]) -> Config:
    """The settings of the run in `folder`.

    Raises FileNotFoundError: there is none. CheckpointError: its config.json is not one.
    """
    path = folder / "config.json"
    if not path.exists():
        raise FileNotFoundError(f"{folder} holds no run: there is no {path}")
    try:
        return kind(**json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{path} does not hold a run's settings: {error}") from error


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """The rows of a run's metrics.csv; a row has only the columns it was given."""
    path = folder / "metrics.csv"
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]


def qualities(row: Mapping[str, object]) -> list[str]:
    """The names of the figures of quality among a row's columns: those that have a floor.

    >>> qualities({"gap": 0.1, "ring_share": 0.9, "ring_share_floor": 0.997})
    ['ring_share']
    """
    return [name for name in row if f"{name}_floor" in row]


def draw_loss(folder: Path) -> None:
    """loss.png of the run in `folder`, as far as it has come."""
    rows = [row for row in read_metrics(folder) if "gap" in row]
    if rows:
        iterations = [int(row["iteration"]) for row in rows]
        plots.loss_curve(folder / "loss.png", iterations, [row["gap"] for row in rows])


def columns(lines: Sequence[Sequence[str]]) -> str:
    """Lines of words as a table, for people.

    >>> print(columns([["a", "bc"], ["def", "g"]]))
    a    bc
    def  g
    """
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = [[text.ljust(w) for text, w in zip(line, widths, strict=True)] for line in lines]
    return "\n".join("  ".join(line).rstrip() for line in padded)


def write(path: Path, text: str) -> None:
    """A small text file, the old one or the new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    temporary.replace(path)


def _check_same(config: RunConfig, saved: RunConfig) -> None:
    for field in fields(config):
        asked, was = getattr(config, field.name), getattr(saved, field.name)
        if asked != was and field.name not in MAY_DIFFER:
            raise SettingsError(f"the run to resume has {field.name} {was}, got {asked}")


def _remove_run(folder: Path) -> None:
    """Removes what a run leaves in its folder, and nothing else."""
    for name in LEFT:
        for path in [*folder.glob(name), *folder.glob(f"{name}.tmp")]:  # .tmp is left by a crash
            path.unlink()
