"""A small image run: digits, a tiny net, a classifier of a moment's training."""

from __future__ import annotations

from pathlib import Path

from training import assert_equal

from stanley_fast import checkpoint
from stanley_fast.image_experiments import ImageConfig

CLASSIFIER_STEPS = 5

# With everything at once that a run may have besides its weights.
TINY = ImageConfig(
    data="digits", limit=200, network="mlp", width=16, layers=1, sampler="stanley", threshold=0.4,
    step_size=0.5, noise_scale=0.1, clamp=True, start="persistent", buffer_size=40, steps=3,
    batch_size=8, iterations=6, evaluate_every=3, checkpoint_every=2, learning_rate=1e-3,
    data_noise=0.1, energy_l2=1e-3, ema=0.9, warm_up=2, decay=0.5, final_rate=0.1, beta1=0.0,
    features="classifier", samples=20, sample_steps=4, rollbacks=1,
)  # fmt: skip


def names(folder: Path) -> set[str]:
    """Everything in it, without TensorBoard's files."""
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and path.parent.name != "tensorboard"
    }


def same_files(one: Path, other: Path) -> None:
    """All that a run computes: weights, average, optimizer, chains, figures, scores, samples."""
    assert names(one) == names(other)
    for name in names(one):
        if name.endswith(".pt"):
            assert_equal(*(checkpoint.load(folder / name) for folder in (one, other)))
        elif name.endswith((".csv", ".json")):
            assert (one / name).read_bytes() == (other / name).read_bytes(), name
