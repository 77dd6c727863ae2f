"""The operations of samplers that accept or reject: proposal ratio, acceptance, leapfrog.

As in `ops`, each picks a backend by the tensor's device.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from stanley_fast import checks, reference
from stanley_fast.library import WRITTEN, below_autograd, refuse_metropolis_grad
from stanley_fast.ops import ops_for, refuse_tangents


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
    """log q(z | z') - log q(z' | z) of each chain, for the Langevin proposals of Eq. 5.

        q(z' | z) = N(z'; z + gamma / 2 * grad, gamma * noise_scale^2), elementwise

    gamma is Eq. 4's at either point, so that log q has a term -1/2 sum log gamma; or one stepsize
    for all (MALA); or given. Computed in float64 for every dtype: the terms cancel. A chain's bits
    depend on its own row alone. Not differentiable.

    Args:
        z, z_new: state and proposal, (B, ...), a chain in each row; float32 or float64.
        grad, grad_new: gradients of the log-density there; z's shape, dtype and device.
        gamma, gamma_new: stepsizes at the two points, in z's dtype, that broadcast to z; in place
            of step_size and threshold. Values below 2.3e-308 give NaN.
        threshold: th of Eq. 4; None is one stepsize for all.
        step_size: where |grad| <= threshold; positive; a number, or a float32 or float64 tensor of
            shape (), which is read on the device.
        noise_scale: epsilon of Eq. 5; positive.

    Returns:
        float64 (B,); NaN where an input is.

    Raises:
        RuntimeError: names the argument, what it got and what is wanted; or a tensor requires grad
            and grad mode is on.

    Source: Hastings 1970; the paper's Eqs. 4 and 5.

    >>> z = torch.zeros(2, 3)
    >>> proposal_log_ratio(z, -z, z + 1, -z - 1, threshold=0.5, step_size=0.1)
    tensor([-12.4790, -12.4790], dtype=torch.float64)
    """
    ops = ops_for(z)
    if ops is not None:
        args = z, grad, z_new, grad_new, gamma, gamma_new
        bound = math.inf if threshold is None else threshold
        size = None if step_size is None else _scalar(step_size, z)
        return _call_metropolis(ops.proposal_log_ratio, (*args, size, bound, noise_scale))
    refuse_metropolis_grad((z, grad, z_new, grad_new, gamma, gamma_new, step_size))
    return reference.proposal_log_ratio(
        z, grad, z_new, grad_new, gamma=gamma, gamma_new=gamma_new, threshold=threshold,
        step_size=step_size, noise_scale=noise_scale,
    )  # fmt: skip


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
    """Metropolis-Hastings: accepted proposals are copied over the state, in place.

        log alpha = log_density_new - log_density + log_ratio;  accepted where log u <= log alpha

    u comes from the key's stream 1: chain c has lane c mod 4 of block offset + step * ceil(total /
    4) + c div 4, u = (w + 1/2) 2^-32 in float64. Where log alpha is NaN or log_density_new is not
    finite the proposal is rejected with probability 0. Rejected rows keep their bits.

    Args:
        z, grad, log_density: the state, written: (B, ...), (B, ...), (B,); z and grad float32 or
            float64, log_density either. grad and grad_new may both be None.
        z_new, grad_new, log_density_new: the proposal, in the same shapes and dtypes.
        log_ratio: float64 (B,), from `proposal_log_ratio`; zeros for a symmetric proposal.
        key, step: as in `stanley_step`.
        first, total: z holds chains [first, first + B) of `total` that several processes share.

    Returns:
        accepted, bool (B,), and probability = min(1, alpha), float64 (B,).

    Raises:
        RuntimeError: as `proposal_log_ratio`.

    Source: Metropolis et al. 1953, Hastings 1970.

    >>> import stanley_fast as sf
    >>> z, f = torch.zeros(3, 2), torch.zeros(3)
    >>> accepted, probability = accept_(
    ...     z, None, f, z + 1, None, f + 0.5, torch.zeros(3).double(), sf.key(0)
    ... )
    >>> accepted, z[:, 0]
    (tensor([True, True, True]), tensor([1., 1., 1.]))
    """
    ops = ops_for(z)
    args = z, grad, log_density, z_new, grad_new, log_density_new, log_ratio, key, step
    if ops is not None:
        return _call_metropolis(ops.accept_, (*args, first, total))
    refuse_metropolis_grad(args)
    return reference.accept_(*args, first=first, total=total)


def leapfrog_(
    z: Tensor,
    momentum: Tensor,
    grad: Tensor,
    *,
    step_size: float | Tensor,
    kick: float = 1.0,
    inverse_mass: Tensor | None = None,
) -> None:
    """A kick and a drift of Hamiltonian dynamics, in place and in one pass.

        momentum += kick * step_size * grad;  z += step_size * inverse_mass * momentum

    A trajectory of L leapfrog steps has a first kick of 1/2, then L - 1 of 1, each with its drift;
    the last half kick has no drift and is plain torch.

    Args:
        z, momentum: written; (B, ...), float32 or float64, with no memory in common.
        grad: gradient of the log-density at z; like z in shape, dtype and device.
        step_size: positive; a number, or a float32 or float64 tensor of shape (), which is read on
            the device.
        kick: positive.
        inverse_mass: of a diagonal mass matrix, positive, in z's dtype; broadcasts to a chain's
            shape z.shape[1:]. None is 1.

    Raises:
        RuntimeError: as `proposal_log_ratio`.

    Source: Duane et al. 1987; Neal 2011, "MCMC using Hamiltonian dynamics", Eqs. 2.28 to 2.30.

    >>> z, momentum = torch.ones(3, 2), torch.zeros(3, 2)
    >>> leapfrog_(z, momentum, -z, step_size=0.1, kick=0.5)
    >>> momentum[0], z[0]
    (tensor([-0.0500, -0.0500]), tensor([0.9950, 0.9950]))
    """
    ops = ops_for(z)
    if ops is not None:
        size = _scalar(step_size, z)
        _call_metropolis(ops.leapfrog_, (z, momentum, grad, size, kick, inverse_mass))
        return
    refuse_metropolis_grad((z, momentum, grad, step_size, inverse_mass))
    reference.leapfrog_(
        z, momentum, grad, step_size=step_size, kick=kick, inverse_mass=inverse_mass
    )  # fmt: skip


def _scalar(step_size: float | Tensor, z: Tensor) -> Tensor:
    if isinstance(step_size, Tensor):
        return step_size
    checks.scalar_stepsize(step_size, z)
    return torch.full((), step_size, dtype=torch.float64, device=z.device)


def _call_metropolis(packet: Any, args: tuple[Any, ...]) -> Any:
    op = packet.default
    if torch.compiler.is_compiling() or torch._C._functorch.maybe_current_level() is not None:
        return op(*args)
    refuse_metropolis_grad(args)
    if forward_ad._current_level >= 0:
        refuse_tangents(args)
    return below_autograd(op, args, WRITTEN[packet.__name__])
