"""Philox keys: the whole random state of a chain, an int64 tensor (2,) of [seed, block offset]."""

from __future__ import annotations

import torch
from torch import Tensor

from stanley_fast import checks
from stanley_fast.reference import philox


def key(
    seed: int | torch.Generator | None = None, device: torch.device | str | None = None
) -> Tensor:
    """A key [seed, block offset 0] for `sample`, the steps and `normal`.

    Args:
        seed: an int in [-2^63, 2^64); a torch.Generator, asked once; or None, which asks torch's
            default generator once, so that torch.manual_seed decides.
        device: where the key, and so the noise, lives; the CPU unless told.

    Returns:
        int64 (2,).

    Raises:
        TypeError, ValueError: seed is something else, or out of range.

    >>> key(42)
    tensor([42,  0])
    """
    if seed is None or isinstance(seed, torch.Generator):
        where = seed.device if seed is not None else "cpu"
        drawn = torch.randint(-(2**63), 2**63 - 1, (1,), generator=seed, device=where)
        return torch.cat([drawn, torch.zeros_like(drawn)]).to(device or "cpu")
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"seed must be an int, a torch.Generator or None, got {seed!r}")
    if not -(2**63) <= seed < 2**64:
        raise ValueError(f"seed must be in [-2^63, 2^64), got {seed}")
    signed = seed - 2**64 if seed >= 2**63 else seed
    return torch.tensor([signed, 0], dtype=torch.int64, device=device or "cpu")


def split(key: Tensor, n: int) -> Tensor:
    """n new keys, independent of each other and of everything drawn from `key`.

    Their seeds are Philox words of `key` at counters that no draw uses (c3 = 1).

    Args:
        key: int64 (2,).
        n: how many, 0 or more.

    Returns:
        int64 (n, 2); each row is a key.

    >>> data_key, chain_key = split(key(0), 2)
    """
    checks.key(key)
    checks.integer("n", n)
    if n < 0:
        raise ValueError(f"n must be 0 or more, got {n}")
    child = torch.arange(n, dtype=torch.int64, device=key.device)
    w = philox(key, key[1].expand(n), c2=child, c3=1)
    return torch.stack([w[:, 0] | (w[:, 1] << 32), torch.zeros_like(child)], dim=1)


def advance_(key: Tensor, blocks: int | Tensor) -> Tensor:
    """Moves `key` past `blocks` blocks of four normals, in place and on its own device.

    K steps of a chain whose state has N elements use K * ceil(N / 4) blocks.

    Args:
        key: int64 (2,), changed in place.
        blocks: an int, 0 or more, or an integer tensor with one element, which is not looked at.

    Returns:
        key itself.

    >>> advance_(key(42), 3)
    tensor([42,  3])
    """
    checks.key(key)
    if not isinstance(blocks, Tensor):
        checks.integer("blocks", blocks)
        if blocks < 0:
            raise ValueError(f"blocks must be 0 or more, got {blocks}")
    key[1:] += blocks
    return key
