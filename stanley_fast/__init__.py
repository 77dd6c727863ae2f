"""Fused Langevin sampling for energy-based models, with STANLEY's per-element stepsize."""

from stanley_fast import diagnostics, recipes, reference
from stanley_fast.backends import backends, use_backend
from stanley_fast.chain import Chain, NonFiniteError, sample
from stanley_fast.checkpoint import CheckpointError
from stanley_fast.density import Density
from stanley_fast.energies import GaussianMixture, MLPEnergy, Rings, from_energy
from stanley_fast.hmc import HMC
from stanley_fast.keys import advance_, key, split
from stanley_fast.metropolis import MALA, MetropolisHastings
from stanley_fast.networks import ConvEnergy
from stanley_fast.ops import (
    langevin_step,
    langevin_step_,
    normal,
    stanley_step,
    stanley_step_,
    stepsize,
)
from stanley_fast.samplers import GradientAscent, Langevin, Stanley
from stanley_fast.starts import DataStart, NoiseStart, ReplayBuffer
from stanley_fast.trainer import DivergedError, Trainer
from stanley_fast.transition import Info, Sampler, State
from stanley_fast.warmup import warm_up

__all__ = [
    "HMC",
    "MALA",
    "Chain",
    "CheckpointError",
    "ConvEnergy",
    "DataStart",
    "Density",
    "DivergedError",
    "GaussianMixture",
    "GradientAscent",
    "Info",
    "Langevin",
    "MLPEnergy",
    "MetropolisHastings",
    "NoiseStart",
    "NonFiniteError",
    "ReplayBuffer",
    "Rings",
    "Sampler",
    "Stanley",
    "State",
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
    "warm_up",
]
