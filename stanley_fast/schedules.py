"""Learning rates over a training, as factors for `Trainer(schedule=...)`."""

from __future__ import annotations

import math
from collections.abc import Callable

from stanley_fast import settings


def warm_up_and_decay(
    iterations: int, *, warm_up: int = 0, decay: float = 1.0, final: float = 1.0
) -> Callable[[int], float]:
    """A linear rise over `warm_up` iterations; 1; at the end half a cosine down to `final`.

    Args:
        iterations: of the whole training, where the factor has come to `final`.
        warm_up: iterations until it is 1.
        decay: the share of the iterations, in [0, 1], over which it falls.
        final: >= 0; 1 stays where the rise ends.

    Returns:
        iteration (from 0) -> factor of the learning rate.

    Raises ValueError: an argument out of its range.

    Source: Goyal et al. 2017 (warm-up), Loshchilov and Hutter 2017 (cosine).

    >>> factor = warm_up_and_decay(100, warm_up=10, decay=0.5, final=0.2)
    >>> [round(factor(t), 3) for t in (0, 9, 50, 75, 100)]
    [0.1, 1.0, 1.0, 0.6, 0.2]
    """
    settings.count("iterations", iterations, 1)
    settings.count("warm_up", warm_up)
    settings.not_negative("final", final)
    if not 0 <= decay <= 1:
        raise ValueError(f"decay must be in [0, 1], got {decay}")

    def factor(iteration: int) -> float:
        rise = min(1.0, (iteration + 1) / warm_up) if warm_up else 1.0
        left = max(0, iterations - iteration) / (decay * iterations) if decay else 1.0
        fallen = (1 + math.cos(math.pi * min(1.0, left))) / 2
        return rise * (1 - (1 - final) * fallen)

    return factor
