"""Fused Langevin sampling for energy-based models, with STANLEY's per-element stepsize."""

from stanley_fast import diagnostics, recipes, reference
from stanley_fast.backends import backends, use_backend
from stanley_fast.chain import Chain, NonFiniteError, sample
from stanley_fast.checkpoint import CheckpointError
from stanley_fast.energies import GaussianMixture, MLPEnergy, Rings, from_energy
from stanley_fast.keys import advance_, key, split
from stanley_fast.networks import ConvEnergy
from stanley_fast.ops import (
    langevin_step,
    langevin_step_,
    normal,
    stanley_step,
    stanley_step_,
    stepsize,
)
from stanley_fast.samplers import Langevin, Stanley
from stanley_fast.starts import DataStart, NoiseStart, ReplayBuffer
from stanley_fast.trainer import DivergedError, Trainer

__all__ = [
    "Chain",
    "CheckpointError",
    "ConvEnergy",
    "DataStart",
    "DivergedError",
    "GaussianMixture",
    "Langevin",
    "MLPEnergy",
    "NoiseStart",
    "NonFiniteError",
    "ReplayBuffer",
    "Rings",
    "Stanley",
    "Trainer",
    "advance_",
    "backends",
    "diagnostics",
    "from_energy",
    "key",
    "langevin_step",
    "langevin_step_",
    "normal",
    "recipes",
    "reference",
    "sample",
    "split",
    "stanley_step",
    "stanley_step_",
    "stepsize",
    "use_backend",
]
