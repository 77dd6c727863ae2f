"""A Langevin loop of your own with the fused step: samples of a Gaussian mixture.

python examples/own_loop.py
"""

import torch

import stanley_fast as sf

f = sf.GaussianMixture(torch.tensor([[-2.0, 0.0], [2.0, 0.0]]), scales=0.5, weights=torch.ones(2))
key = sf.key(0)
z = (4 * sf.normal((1000, 2), key, stream=2)).requires_grad_()

for k in range(1000):
    (grad,) = torch.autograd.grad(f(z).sum(), z)
    with torch.no_grad():
        sf.stanley_step_(z, grad, key, k, threshold=20.0, step_size=0.02)

print(f"share at the right: {(z[:, 0] > 0).float().mean():.2f}, sd: {z[:, 1].std():.2f}")
