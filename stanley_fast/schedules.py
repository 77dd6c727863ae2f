"""Learning rates over a training, as factors for `Trainer(schedule=...)`."""

from __future__ import annotations

import math
from collections.abc import Callable

from stanley_fast import settings


def warm_up_and_decay(
    iterations: int, *, warm_up: int = 0, final: float = 1.0
) -> Callable[[int], float]:
    """A linear rise over `warm_up` iterations, then half a cosine down to `final`.

    Args:
        iterations: of the whole training, where the factor has come to `final`.
        warm_up: how long it rises, 0 to `iterations`.
        final: >= 0; 1 stays where the rise ends.

    Returns:
        iteration (from 0) -> factor of the learning rate.

    Raises ValueError: an argument out of its range.

    Source: Goyal et al. 2017 (warm-up), Loshchilov and Hutter 2017 (cosine).

    >>> factor = warm_up_and_decay(100, warm_up=10, final=0.1)
    >>> [round(factor(t), 3) for t in (0, 9, 55, 100)]
    [0.1, 1.0, 0.55, 0.1]
    """
    settings.count("iterations", iterations, 1)
    settings.count("warm_up", warm_up)
    settings.not_negative("final", final)
    if warm_up > iterations:
        raise ValueError(f"warm_up must be at most the {iterations} iterations, got {warm_up}")

    def factor(iteration: int) -> float:
        if iteration < warm_up:
            return (iteration + 1) / warm_up
        share = min(1.0, (iteration - warm_up) / max(1, iterations - warm_up))
        return final + (1 - final) * (1 + math.cos(math.pi * share)) / 2

    return factor
