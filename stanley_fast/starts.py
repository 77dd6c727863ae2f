"""Where chains start: noise, data, or where earlier chains ended (persistent chains).

`start` draws from its key alone; `update` hears where the chains ended.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from stanley_fast import keys, ops
from stanley_fast.reference import STREAM_STARTS


@runtime_checkable
class Start(Protocol):
    """What the trainer needs of a start."""

    def start(self, n: int, key: Tensor, data: Tensor) -> Tensor:
        """z0 (n, ...) for n chains, like the samples of `data` (B, ...) in shape, dtype, device."""
        ...

    def update(self, z: Tensor) -> None:
        """Where the chains of the last `start` ended, in the same order."""
        ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class _Stateless:
    """A start that remembers nothing."""

    def update(self, z: Tensor) -> None:
        """Nothing to remember."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state:
            raise ValueError(f"{type(self).__name__} has no state, got {sorted(state)}")


@dataclass(frozen=True)
class NoiseStart(_Stateless):
    """Every chain starts at fresh noise (non-convergent learning, Nijkamp et al. 2020).

    Args:
        scale: > 0: the standard deviation, or half the width of the uniform.
        distribution: "normal", N(0, scale^2), or "uniform" on (-scale, scale).

    >>> NoiseStart(2.0).start(3, keys.key(0), torch.zeros(100, 2)).shape
    torch.Size([3, 2])
    """

    scale: float = 1.0
    distribution: Literal["normal", "uniform"] = "normal"

    def __post_init__(self) -> None:
        if not (self.scale > 0 and math.isfinite(self.scale)):
            raise ValueError(f"scale must be positive and finite, got {self.scale}")
        if self.distribution not in ("normal", "uniform"):
            raise ValueError(
                f"distribution must be 'normal' or 'uniform', got {self.distribution!r}"
            )

    def start(self, n: int, key: Tensor, data: Tensor) -> Tensor:
        shape = (n, *data.shape[1:])
        noise = ops.normal(shape, key, stream=STREAM_STARTS, dtype=data.dtype)
        if self.distribution == "uniform":
            noise = 2 * torch.special.ndtr(noise) - 1
        return self.scale * noise


@dataclass(frozen=True)
class DataStart(_Stateless):
    """Every chain starts at a sample of the positive batch (contrastive divergence, Hinton 2002).

    >>> DataStart().start(2, keys.key(0), torch.ones(2, 1))
    tensor([[1.],
            [1.]])
    """

    def start(self, n: int, key: Tensor, data: Tensor) -> Tensor:
        if len(data) != n:
            raise ValueError(f"n must be the data batch's size {len(data)}, got {n}")
        return data.clone()


class ReplayBuffer:
    """Persistent chains: n of `size` go on from where they were left (Tieleman 2008).

    The n slots are drawn without replacement; a share of them starts afresh, as in Du and Mordatch
    2019; where the chains end is written back to the slots they came from. The buffer fills itself
    from `fresh` at its first start.

    Args:
        size: number of chains kept, at least the batch size.
        fresh: where new chains start.
        fresh_share: chance in [0, 1] that a chain starts afresh.

    >>> buffer = ReplayBuffer(1000, fresh_share=0.0)
    >>> z = buffer.start(100, keys.key(0), torch.zeros(100, 2))
    >>> buffer.update(z + 1)
    """

    def __init__(
        self, size: int, fresh: NoiseStart = NoiseStart(), fresh_share: float = 0.05
    ) -> None:
        if size < 1:
            raise ValueError(f"size must be 1 or more, got {size}")
        if not 0 <= fresh_share <= 1:
            raise ValueError(f"fresh_share must be in [0, 1], got {fresh_share}")
        self.size, self.fresh, self.fresh_share = size, fresh, fresh_share
        self.chains: Tensor | None = None
        """(size, ...), or None before the first start."""
        self._slots: Tensor | None = None

    def start(self, n: int, key: Tensor, data: Tensor) -> Tensor:
        if n > self.size:
            raise ValueError(f"n must be at most the buffer's size {self.size}, got {n}")
        draws = self.size + n
        random = ops.normal((draws,), key, stream=STREAM_STARTS)
        after = keys.advance_(key.clone(), (draws + 3) // 4)
        if self.chains is None:
            self.chains = self.fresh.start(self.size, after, data)
            keys.advance_(after, (self.chains.numel() + 3) // 4)
        self.chains = self.chains.to(data.device)  # a loaded state is on the CPU
        # The places of the n largest of `size` random numbers: n different slots.
        self._slots = random[: self.size].topk(n).indices
        old = self.chains[self._slots]
        is_fresh = torch.special.ndtr(random[self.size :]) < self.fresh_share
        return torch.where(
            is_fresh.view(-1, *[1] * (old.dim() - 1)), self.fresh.start(n, after, data), old
        )

    def update(self, z: Tensor) -> None:
        if self.chains is None or self._slots is None:
            raise ValueError("update must come after start")
        wanted = (len(self._slots), *self.chains.shape[1:])
        if z.shape != wanted:
            raise ValueError(
                f"z must be where the chains of the last start ended, shape {list(wanted)}, got "
                f"{list(z.shape)}"
            )
        self.chains[self._slots] = z.detach()

    def left(self) -> Tensor:
        """Where the last start's chains were when it began, fresh ones' slots included."""
        assert self.chains is not None
        assert self._slots is not None
        return self.chains[self._slots]

    def forget(self) -> None:
        """There was no last start."""
        self._slots = None

    def state_dict(self) -> dict[str, Any]:
        return {"chains": self.chains}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        chains = state["chains"]
        if chains is not None and len(chains) != self.size:
            raise ValueError(f"the state holds {len(chains)} chains, this buffer {self.size}")
        self.chains = None if chains is None else chains.clone()
        self._slots = None
