"""What an iteration of Algorithm 1 computes; whether it counts is for others to say."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stanley_fast import mlp, settings
from stanley_fast.chain import Chain, sample, sample_without_waiting
from stanley_fast.starts import Start
from stanley_fast.transition import Sampler
from stanley_fast.updates import Updates

FIGURES = ("gap", "loss", "f_data", "f_chain", "grad_norm")
"""Of an iteration: "gap" is f_data - f_chain, the mean f(x) less the mean f(z_K)."""


@dataclass(frozen=True)
class Algorithm:
    """Algorithm 1 with its settings; see `Trainer` for these.

    Attributes:
        keys: int64 (3, 2): of the chains, the data, the starts.
        precision: the context in which f is computed.

    Raises ValueError: a setting that makes no sense.
    """

    f: nn.Module
    sampler: Sampler
    start: Start
    updates: Updates
    keys: Tensor
    steps: int
    batch_size: int
    precision: AbstractContextManager[object]
    grad_clip: float
    energy_l2: float
    max_gap: float

    def __post_init__(self) -> None:
        settings.count("steps", self.steps, 1)
        settings.count("batch_size", self.batch_size, 1)
        settings.not_negative("energy_l2", self.energy_l2)
        for name in ("grad_clip", "max_gap"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")

    def starts(self, x: Tensor) -> Tensor:
        """The MCMC initialization: where M chains start, like the observations x."""
        return self.start.start(self.batch_size, self.keys[2], x)

    def chains(self, z0: Tensor, record: Sequence[str], *, graph: bool) -> Chain:
        """Lines 3 to 7: M chains, K transitions each, the stepsize from Eq. 4."""
        with self.precision:
            return sample(
                self.f,
                z0,
                self.sampler,
                self.steps,
                key=self.keys[0],
                record=record,
                graph="auto" if graph else False,
            )

    def chains_without_waiting(
        self, z0: Tensor, record: Sequence[str]
    ) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """The same for a graph that is being captured; see `sample_without_waiting`."""
        with self.precision:
            return sample_without_waiting(
                self.f, z0, self.sampler, self.steps, key=self.keys[0], record=record
            )

    def gradient(self, x: Tensor, z: Tensor) -> Tensor:
        """Line 9: the gradient of -log p into the parameters' `grad`, clipped. FIGURES, float64.

        x are observations, z where the chains ended; one forward pass is of both.
        """
        points = torch.cat([x, z])
        with self.precision:
            fused = mlp.fit(self.f, points, self.updates.parameters)
            values = self.f(points) if fused is None else fused.values()
        values = values.to(points.dtype)
        f_data, f_chain = values[: len(x)].mean(), values[len(x) :].mean()
        loss = f_chain - f_data
        if self.energy_l2:
            loss = loss + self.energy_l2 * values.square().mean()
        norm = self._backward(loss, values, fused, len(x))
        figures = torch.stack([loss, f_data, f_chain, norm.to(loss.dtype)]).detach().double()
        return torch.cat([figures[1:2] - figures[2:3], figures])

    def _backward(self, loss: Tensor, values: Tensor, fused: mlp.Density | None, n: int) -> Tensor:
        """The parameters' gradient, clipped. Its norm before it was. n values are observations'."""
        if fused is None:
            self.updates.optimizer.zero_grad()
            loss.backward()
            grads = [p.grad for p in self.updates.parameters if p.grad is not None]
            norm = nn.utils.get_total_norm(grads)
        else:
            grads = [fused.backward(self._by_values(values, n))]
            norm = grads[0].norm()
        if self.grad_clip < math.inf:
            torch._foreach_mul_(grads, (self.grad_clip / (norm + 1e-6)).clamp(max=1.0))
        return norm

    def _by_values(self, values: Tensor, n: int) -> Tensor:
        """The loss's derivative by the values, where autograd's graph would cost as much as f."""
        by = torch.full_like(values, 1 / (len(values) - n))
        by[:n] = -1 / n
        return by.add_(values, alpha=2 * self.energy_l2 / len(values)) if self.energy_l2 else by
