"""Observations for a trainer, minibatch by minibatch: line 8 of Algorithm 1."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from stanley_fast import ops, settings
from stanley_fast.reference import STREAM_NOISE, STREAM_STARTS

Data = Tensor | Callable[[int, Tensor], Tensor]

# Blocks of noise an iteration may use of each key, more than any does: so what one iteration draws
# moves no other.
BLOCKS_PER_ITERATION = 2**32


class Feed:
    """Draws minibatches, by the key and the iteration alone.

    Data that says by a `device`, as tensors do, that it lies on the host gets its key there; what
    it gives goes to a GPU from pinned memory. So nothing waits for the device: the host draws the
    next minibatches while that is at work.

    Args:
        data: as in `Trainer`.
        key: int64 (2,), on the trainer's device: the current iteration's, moved on by the trainer.
        noise: standard deviation of noise added to observations, `data_noise`.

    Raises ValueError: a negative one.

    >>> feed = Feed(torch.ones(10, 2), torch.tensor([0, 0]), noise=0.0)
    >>> feed.draw(3, iteration=0)
    tensor([[1., 1.],
            [1., 1.],
            [1., 1.]])
    """

    def __init__(self, data: Data, key: Tensor, noise: float) -> None:
        settings.not_negative("data_noise", noise)
        self.data, self.key, self.noise = data, key, noise
        where = getattr(data, "device", key.device)
        self.by_host = key.is_cuda and torch.device(where).type == "cpu"
        self.start_at(key, 0)

    def start_at(self, key: Tensor, iteration: int) -> None:
        """The key is this at that iteration."""
        self._first = key.cpu().clone()  # iteration 0's
        self._first[1] -= BLOCKS_PER_ITERATION * iteration

    def draw(self, n: int, iteration: int) -> Tensor:
        """n observations (n, ...), with noise if asked for.

        Raises ValueError: data gives another number.
        """
        key = self.key
        if self.by_host:
            key = self._first.clone()
            key[1] += BLOCKS_PER_ITERATION * iteration
        if isinstance(self.data, Tensor):
            random = ops.normal((n,), key, stream=STREAM_STARTS, dtype=torch.float64)
            index = (torch.special.ndtr(random) * len(self.data)).long()
            x = self.data[index.clamp_(max=len(self.data) - 1)]
        else:
            x = self.data(n, key)
            if len(x) != n:
                raise ValueError(f"data({n}, key) must return ({n}, ...), got {list(x.shape)}")
        x = _carried(x.detach(), self.key.device)
        if self.noise:
            noise = ops.normal(x.shape, self.key, stream=STREAM_NOISE, dtype=x.dtype)
            x = x + self.noise * noise
        return x


def _carried(x: Tensor, device: torch.device) -> Tensor:
    """x on the device, where it will be once that comes to it."""
    if x.is_cpu and device.type == "cuda" and not x.is_pinned():
        return x.pin_memory().to(device, non_blocking=True)  # torch keeps the memory until then
    return x.to(device)  # pinned memory is its owner's, who may use it again
