"""What people write without this library: the paper's equations in eager PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stanley_fast.bench.timing import Run


def naive(z: Tensor, grad: Tensor, threshold: float, noise_scale: float) -> Tensor:
    """Eqs. 4 and 5 with step size 1, as one types them."""
    gamma = threshold / torch.clamp(grad.abs(), min=threshold)
    return z + gamma / 2 * grad + torch.sqrt(gamma) * noise_scale * torch.randn_like(z)


def tuned(z: Tensor, grad: Tensor, threshold: float, noise_scale: float) -> Run:
    """The same in place: two kept buffers, `normal_`, `addcmul_`."""
    gamma, noise = torch.empty_like(z), torch.empty_like(z)

    def step() -> Tensor:
        torch.abs(grad, out=gamma)
        gamma.clamp_(min=threshold).reciprocal_().mul_(threshold)
        noise.normal_(std=noise_scale)
        return z.addcmul_(gamma, grad, value=0.5).addcmul_(gamma.sqrt_(), noise)

    return step


def by_autograd(
    f: nn.Module, z: Tensor, steps: int, threshold: float, noise_scale: float
) -> Tensor:
    """A chain by torch.autograd.grad and `naive`. f may return (B,) or (B, 1)."""
    for _ in range(steps):
        z = z.detach().requires_grad_()
        with torch.enable_grad():
            (grad,) = torch.autograd.grad(f(z).sum(), z)
        with torch.no_grad():
            z = naive(z, grad, threshold, noise_scale)
    return z


def accept(
    state: tuple[Tensor, Tensor, Tensor],
    proposal: tuple[Tensor, Tensor, Tensor],
    threshold: float,
    step_size: float,
    noise_scale: float,
) -> None:
    """Adjusted STANLEY's proposal accepted or rejected; in place where it can be.

    Args:
        state, proposal: z and its gradient (B, d), f (B,).

    In float64 as ours, because in float32 the terms cancel; an element's two logarithms are one.
    """
    (z, grad, f), (z_new, grad_new, f_new) = state, proposal
    g, g_new = grad.double(), grad_new.double()
    size, size_new = (x.abs().clamp_(min=threshold) for x in (g, g_new))
    moved = z_new.double().sub_(z)
    scale = step_size * threshold
    terms = moved.addcdiv(g, size, value=-scale / 2).square_().mul_(size)
    back = moved.addcdiv_(g_new, size_new, value=scale / 2).square_().mul_(size_new)
    terms.sub_(back).mul_(1 / (scale * noise_scale**2)).add_(size_new.div_(size).log_())
    log_alpha = terms.sum(1).mul_(0.5).add_(f_new).sub_(f)
    accepted = torch.rand_like(log_alpha).log_() <= log_alpha
    rows = accepted[:, None]
    torch.where(rows, z_new, z, out=z)
    torch.where(rows, grad_new, grad, out=grad)
    torch.where(accepted, f_new, f, out=f)
    log_alpha.clamp_(max=0.0).exp_()
