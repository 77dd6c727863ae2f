"""What a caller asked to keep of a chain's course, and how often it was accepted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from stanley_fast.transition import Info, Sampler


class Diary:
    """Statistics of every transition, the states after some, what each called back.

    Args:
        z0: the chains' start.
        record: of the statistics, `sampler.stats`.
        keep_every, callback: as in `sample`; `steps` transitions are the whole chain.
    """

    def __init__(
        self,
        z0: Tensor,
        sampler: Sampler,
        record: Sequence[str],
        steps: int,
        keep_every: int | None = None,
        callback: Callable[[int, Tensor], object] | None = None,
    ) -> None:
        self.kept: dict[str, list[Tensor]] = {name: [] for name in record}
        self.sampler, self.keep_every, self.callback = sampler, keep_every, callback
        self.empty = z0.new_empty(0)
        self.trace = None if keep_every is None else z0.new_empty((steps // keep_every, *z0.shape))
        self.steps, self.accepted = steps, None
        if "acceptance" in sampler.records:
            self.accepted = torch.zeros(len(z0), dtype=torch.float64, device=z0.device)

    def write(self, k: int, z: Tensor, info: Info) -> None:
        """Transition k, which ended in z."""
        if self.kept:
            with torch.no_grad():
                now = self.sampler.stats(info)
            for name, values in self.kept.items():
                values.append(now[name].detach().reshape(1))
        if self.accepted is not None and info.probability is not None:
            self.accepted += info.probability
        self._keep(k, z)
        if self.callback is not None:
            self.callback(k, z.detach())

    def copy(self, k: int, z: Tensor, stats: Mapping[str, Tensor], accepted: Tensor | None) -> None:
        """Transitions up to k, which ended in z, out of another's pages."""
        for name, values in self.kept.items():
            values.append(stats[name].clone())
        if self.accepted is not None and accepted is not None:
            self.accepted += accepted
        self._keep(k, z)

    def _keep(self, k: int, z: Tensor) -> None:
        if self.trace is not None and self.keep_every and (k + 1) % self.keep_every == 0:
            self.trace[k // self.keep_every].copy_(z.detach())

    def stats(self) -> dict[str, Tensor]:
        """Each (transitions,)."""
        return {n: torch.cat(v) if v else self.empty for n, v in self.kept.items()}

    def acceptance(self) -> Tensor | None:
        return None if self.accepted is None else self.accepted / self.steps
