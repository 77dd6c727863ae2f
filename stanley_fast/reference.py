"""The oracle: the paper's equations and the noise in plain torch.

Every other backend is tested against this file. It needs no compiler, runs on any device and is
differentiable by ordinary autograd. It is also the last resort where nothing faster can run.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from stanley_fast import checks

# Philox4x32-10, Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", table 2.
PHILOX_M0, PHILOX_M1 = 0xD2511F53, 0xCD9E8D57
PHILOX_W0, PHILOX_W1 = 0x9E3779B9, 0xBB67AE85
PHILOX_ROUNDS = 10
MASK32 = 0xFFFFFFFF

# Counter word c2: which of a key's independent streams.
STREAM_NOISE, STREAM_ACCEPT, STREAM_STARTS, STREAM_ROUNDING = range(4)


def philox(key: Tensor, block: Tensor, c2: int | Tensor = 0, c3: int = 0) -> Tensor:
    """Philox4x32-10 words of counter (block low, block high, c2, c3): int64 (*block.shape, 4).

    Args:
        key: int64 (2,); only key[0], the seed, is used here.
        block: int64, any shape.
        c2, c3: the upper counter words, 0 ... 2^32 - 1; a tensor c2 has block's shape.

    Source: Salmon et al. 2011. 32-bit words live in int64; products wrap modulo 2^64.

    >>> [f"{w:08x}" for w in philox(torch.tensor([42, 0]), torch.tensor(0)).tolist()]
    ['9ceaf053', '77f5493b', '12bf50ad', '5742b3d7']
    """
    k0, k1 = key[0] & MASK32, (key[0] >> 32) & MASK32
    w0, w1 = block & MASK32, (block >> 32) & MASK32
    w2, w3 = torch.zeros_like(block) + c2, torch.full_like(block, c3)
    for _ in range(PHILOX_ROUNDS):
        p0, p1 = w0 * PHILOX_M0, w2 * PHILOX_M1
        w0, w1, w2, w3 = (
            (p1 >> 32) & MASK32 ^ w1 ^ k0,
            p1 & MASK32,
            (p0 >> 32) & MASK32 ^ w3 ^ k1,
            p0 & MASK32,
        )
        k0, k1 = (k0 + PHILOX_W0) & MASK32, (k1 + PHILOX_W1) & MASK32
    return torch.stack([w0, w1, w2, w3], dim=-1)


def words(n: int, key: Tensor, step: int, stream: int, first: int, total: int) -> Tensor:
    """Philox words of the blocks that hold elements [first, first + n) at `step`: (blocks, 4)."""
    begin, end = first // 4, (first + n + 3) // 4
    block = torch.arange(begin, end, dtype=torch.int64, device=key.device)
    ahead = (int(step) * ((total + 3) // 4) + 2**63) % 2**64 - 2**63  # blocks wrap at 2^64
    return philox(key, block + (key[1] + ahead), stream)


def element_words(n: int, key: Tensor, step: int, stream: int, first: int, total: int) -> Tensor:
    """The word of each of these elements: (n,)."""
    return words(n, key, step, stream, first, total).flatten()[first % 4 : first % 4 + n]


def box_muller(w: Tensor, dtype: torch.dtype) -> Tensor:
    """Words (..., 4) to normals (..., 4): (w0, w1) give the first two, (w2, w3) the others.

    r = sqrt(-2 ln u(w0)), n0 = r cos 2 pi u(w1), n1 = r sin 2 pi u(w1). The angle is reduced to
    [-pi, pi] before it is rounded: u - 1 is exact for u > 1/2.
    """
    u = w.to(dtype) * 2.0**-32 + 2.0**-33  # one rounding: the product is exact
    radius = torch.sqrt(-2.0 * torch.log(u[..., 0::2]))
    angle = torch.where(u[..., 1::2] > 0.5, u[..., 1::2] - 1.0, u[..., 1::2]) * (2.0 * math.pi)
    return torch.stack([radius * angle.cos(), radius * angle.sin()], dim=-1).flatten(-2)


def normal(
    shape: tuple[int, ...] | list[int] | torch.Size,
    key: Tensor,
    step: int = 0,
    *,
    stream: int = 0,
    dtype: torch.dtype = torch.float32,
    first: int = 0,
    total: int | None = None,
) -> Tensor:
    """See `stanley_fast.normal`."""
    n = checks.size(shape)
    total = checks.normal(n, key, step, stream, dtype, first, total)
    noise = box_muller(words(n, key, step, stream, first, total), checks.compute_dtype(dtype))
    return noise.flatten()[first % 4 : first % 4 + n].reshape(shape).to(dtype)


def stepsize(grad: Tensor, *, threshold: float, step_size: float = 1.0) -> Tensor:
    """See `stanley_fast.stepsize`. At |grad| <= threshold it is flat, with derivative 0."""
    checks.stepsize(grad, threshold, step_size)
    dtype = checks.compute_dtype(grad.dtype)
    size = grad.to(dtype).abs()
    flat = size <= threshold
    # The inner where keeps autograd from dividing by zero on the flat branch.
    gamma = step_size * (threshold / torch.where(flat, threshold, size))
    return torch.empty_like(grad, dtype=dtype).copy_(torch.where(flat, step_size, gamma))


def stanley_step(
    z: Tensor,
    grad: Tensor,
    key: Tensor,
    step: int = 0,
    *,
    threshold: float,
    step_size: float = 1.0,
    noise_scale: float = 1.0,
    clamp: tuple[float, float] | None = None,
    update: str = "paper",
    rounding: str = "nearest",
    first: int = 0,
    total: int | None = None,
) -> Tensor:
    """See `stanley_fast.stanley_step`: Eq. 4, then Eq. 5."""
    checks.stepsize(grad, threshold, step_size)
    total = checks.step(z, grad, key, step, noise_scale, clamp, update, rounding, first, total)
    grad = grad.to(checks.compute_dtype(z.dtype))  # once, so that its gradient is rounded once
    gamma = stepsize(grad, threshold=threshold, step_size=step_size)
    return _update(z, grad, gamma, key, step, noise_scale, clamp, update, rounding, first, total)


def langevin_step(
    z: Tensor,
    grad: Tensor,
    gamma: float | Tensor,
    key: Tensor,
    step: int = 0,
    *,
    noise_scale: float = 1.0,
    clamp: tuple[float, float] | None = None,
    update: str = "paper",
    rounding: str = "nearest",
    first: int = 0,
    total: int | None = None,
) -> Tensor:
    """See `stanley_fast.langevin_step`: Eq. 5 with the stepsize given."""
    checks.gamma(gamma, z)
    total = checks.step(z, grad, key, step, noise_scale, clamp, update, rounding, first, total)
    gamma = torch.as_tensor(gamma, dtype=checks.compute_dtype(z.dtype), device=z.device)
    return _update(z, grad, gamma, key, step, noise_scale, clamp, update, rounding, first, total)


def _update(
    z: Tensor,
    grad: Tensor,
    gamma: Tensor,
    key: Tensor,
    step: int,
    noise_scale: float,
    clamp: tuple[float, float] | None,
    update: str,
    rounding: str,
    first: int,
    total: int,
) -> Tensor:
    dtype = checks.compute_dtype(z.dtype)
    state, grad = z.to(dtype), grad.to(dtype)
    xi = normal(z.shape, key, step, dtype=dtype, first=first, total=total)
    if update == "paper":
        moved = state + (gamma / 2 * grad + torch.sqrt(gamma) * noise_scale * xi)  # Eq. 5
    else:
        moved = state + (gamma * grad + gamma * noise_scale * xi)
    if clamp is not None:
        most = torch.finfo(dtype).max  # a bound beyond it bounds nothing
        lo, hi = (b if abs(b) <= most else math.copysign(math.inf, b) for b in clamp)
        moved = moved.clamp(lo, hi)
    if rounding == "stochastic":
        w = element_words(z.numel(), key, step, STREAM_ROUNDING, first, total)
        moved = round_stochastically(moved, w.view(z.shape))
    # The result keeps z's dtype and strides, whatever the arithmetic above made of them.
    return torch.empty_like(z).copy_(moved)


def round_stochastically(x: Tensor, word: Tensor) -> Tensor:
    """float32 x at one of the two bfloat16 around it, on average x; the derivative is x's own.

    bfloat16 is the upper half of the bits. The lower one, over 2^16, is how far x lies in the gap
    between the two, and as often its sum with a word's lower half carries.
    """
    bits = x.detach().view(torch.int32)
    rounded = ((bits + (word & 0xFFFF).int()) & ~0xFFFF).view(torch.float32)
    return torch.where(x.isfinite(), rounded - (x.detach() - x), x)  # minus 0 keeps a zero's sign


# Metropolis-Hastings and Hamiltonian Monte Carlo --------------------------------------------------


def proposal_log_ratio(
    z: Tensor,
    grad: Tensor,
    z_new: Tensor,
    grad_new: Tensor,
    *,
    gamma: Tensor | None = None,
    gamma_new: Tensor | None = None,
    threshold: float | None = None,
    step_size: float | Tensor | None = None,
    noise_scale: float = 1.0,
) -> Tensor:
    """See `stanley_fast.ops.proposal_log_ratio`: log q(z | z') - log q(z' | z)."""
    checks.proposal(
        z, grad, z_new, grad_new, gamma, gamma_new, step_size, threshold, noise_scale
    )  # fmt: skip
    moved = z_new.double() - z.double()
    g, g_new = grad.double(), grad_new.double()
    if gamma is None or gamma_new is None:
        size = torch.as_tensor(step_size, dtype=torch.float64, device=z.device)
        y, y_new = (_stepsize_float64(x, threshold, size) for x in (g, g_new))
    else:
        y, y_new = gamma.double(), gamma_new.double()
    # Twice minus the log-densities of N(y/2 g, y eps^2), each without ln(2 pi eps^2).
    there = (moved - y / 2 * g) ** 2 / (y * noise_scale**2) + y.log()
    back = (moved + y_new / 2 * g_new) ** 2 / (y_new * noise_scale**2) + y_new.log()
    return ((there - back) / 2).unsqueeze(-1).flatten(1).sum(1)


def _stepsize_float64(grad: Tensor, threshold: float | None, step_size: Tensor) -> Tensor:
    """Eq. 4; without a threshold one stepsize for all."""
    if threshold is None or threshold == math.inf:
        return step_size
    return step_size * (threshold / grad.abs().clamp(min=threshold))


@torch.no_grad()
def accept_(
    z: Tensor,
    grad: Tensor | None,
    log_density: Tensor,
    z_new: Tensor,
    grad_new: Tensor | None,
    log_density_new: Tensor,
    log_ratio: Tensor,
    key: Tensor,
    step: int = 0,
    *,
    first: int = 0,
    total: int | None = None,
) -> tuple[Tensor, Tensor]:
    """See `stanley_fast.ops.accept_`."""
    total = checks.accept(
        z, grad, log_density, z_new, grad_new, log_density_new, log_ratio, key, step, first, total
    )
    n = z.shape[0]
    w = element_words(n, key, step, STREAM_ACCEPT, first, total)
    u = (w.double() + 0.5) * 2.0**-32
    log_alpha = log_density_new.double() - log_density.double() + log_ratio
    proper = log_density_new.isfinite() & ~log_alpha.isnan()
    accepted = proper & (u.log() <= log_alpha)
    probability = torch.where(proper, log_alpha.clamp(max=0.0).exp(), 0.0)
    for old, new in ((z, z_new), (grad, grad_new), (log_density, log_density_new)):
        if old is not None and new is not None:
            rows = accepted.view(n, *[1] * (old.dim() - 1))
            old.copy_(torch.where(rows, new, old))
    return accepted, probability


@torch.no_grad()
def leapfrog_(
    z: Tensor,
    momentum: Tensor,
    grad: Tensor,
    *,
    step_size: float | Tensor,
    kick: float = 1.0,
    inverse_mass: Tensor | None = None,
) -> None:
    """See `stanley_fast.ops.leapfrog_`."""
    checks.leapfrog(z, momentum, grad, step_size, kick, inverse_mass)
    size = torch.as_tensor(step_size, dtype=torch.float64, device=z.device)
    momentum += (kick * size).to(z.dtype) * grad
    rate = size.to(z.dtype)
    z += (rate if inverse_mass is None else rate * inverse_mass) * momentum
