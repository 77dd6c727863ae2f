"""Inpainting: what is known stays to the bit, what is sampled has the conditional law."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from torch import Tensor, nn

from stanley_fast import keys, ops
from stanley_fast.hmc import HMC
from stanley_fast.inpainting import Hole, inpaint, make_mask, psnr, ssim
from stanley_fast.metropolis import MALA, MetropolisHastings
from stanley_fast.samplers import GradientAscent, Langevin, Stanley

SAMPLERS = [
    Stanley(0.1, 0.1, 0.1),
    Stanley(0.1, 0.1, 0.1, stepsize="frozen"),
    Stanley(0.1, 0.1, 0.1, norm="channel"),
    Stanley(0.1, 0.1, 0.1, norm="sample", update="script", clamp=(-1, 1)),
    Langevin(0.1, 0.1),
    GradientAscent(0.1),
    Stanley(0.1, 0.01, adjusted=True),
    MALA(0.01),
    HMC(0.02, 3),
    MetropolisHastings(0.01),
]


def net(channels: int = 3, size: int = 8) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(channels, 8, 3, padding=1),
        nn.SiLU(),
        nn.Dropout(0.5),  # which eval mode turns off
        nn.Flatten(),
        nn.Linear(8 * size**2, 1),
        nn.Flatten(0),
    )


def pictures(n: int, channels: int = 3, size: int = 8, seed: int = 0) -> Tensor:
    return (
        2 * torch.rand(n, channels, size, size, generator=torch.Generator().manual_seed(seed)) - 1
    )


# The hole's law ----------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", SAMPLERS, ids=str)
@pytest.mark.parametrize("start", ["uniform", "mean"])
def test_known_pixels_are_the_same_bits_after_every_transition(sampler: Any, start: Any) -> None:
    images, mask = pictures(3), make_mask("random", 8, 8, key=keys.key(1))
    images[0, 0, 0, 0], mask[0, 0] = -0.0, False  # a sign that arithmetic would lose
    f, before = net().train(), images.clone()
    out = inpaint(f, images, mask, sampler, 4, key=keys.key(0), chains=2, start=start, keep_every=1)
    assert torch.equal(images, before)
    assert out.images.shape == (2, 3, 3, 8, 8)
    assert out.trace is not None
    assert out.trace.shape == (4, 2, 3, 3, 8, 8)
    assert torch.equal(out.trace[-1], out.images)
    known = images[..., ~mask].expand(4, 2, -1, -1, -1)
    bits = torch.int32
    assert torch.equal(out.trace[..., ~mask].view(bits), known.contiguous().view(bits))
    moved = out.trace.diff(dim=0)[..., mask] != 0
    assert moved.float().mean() > 0.5  # a sampler may reject
    assert f.training
    assert all(p.requires_grad and p.grad is None for p in f.parameters())


def gaussian(n: int) -> tuple[Tensor, Tensor]:
    """A precision matrix with correlations of all pixels, and a mean."""
    generator = torch.Generator().manual_seed(3)
    a = torch.randn(n, n, generator=generator, dtype=torch.float64)
    return torch.eye(n, dtype=torch.float64) + a @ a.T / n, torch.linspace(-1, 1, n).double()


def test_the_hole_has_the_conditional_mean_and_covariance() -> None:
    """N(mean, P^-1): the hole's precision is P_hh, its mean m_h - P_hh^-1 P_hk (x_k - m_k).

    Langevin with stepsize s samples, exactly, N(that mean, (P_hh - s P_hh^2 / 4)^-1).
    """
    shape, chains, s = (2, 3, 3), 10_000, 0.2
    n = math.prod(shape)
    precision, mean = gaussian(n)
    mask = torch.tensor([[0, 1, 0], [0, 1, 1], [0, 0, 0]], dtype=torch.bool)
    hole = mask.flatten().repeat(2)

    def f(x: Tensor) -> Tensor:
        d = x.flatten(1) - mean
        return -0.5 * (d @ precision * d).sum(1)

    image = pictures(1, 2, 3).double()
    out = inpaint(f, image, mask, Langevin(s), 120, key=keys.key(0), chains=chains)
    h = out.images.reshape(chains, n)[:, hole]

    p_hh, p_hk = precision[hole][:, hole], precision[hole][:, ~hole]
    known = (image.flatten() - mean)[~hole]
    want_mean = mean[hole] - torch.linalg.solve(p_hh, p_hk @ known)
    exact = torch.linalg.inv(p_hh)
    biased = torch.linalg.inv(p_hh - s / 4 * p_hh @ p_hh)

    # The slowest mode shrinks by 1 - s * lambda / 2 a step: after 120 steps by less than 1e-5.
    slowest = float(torch.linalg.eigvalsh(p_hh)[0])
    assert (1 - s * slowest / 2) ** 120 < 1e-5
    sd = biased.diagonal().sqrt()
    assert ((h.mean(0) - want_mean).abs() < 5 * sd / math.sqrt(chains)).all()
    found = torch.cov(h.T)
    error = ((biased**2 + torch.outer(sd**2, sd**2)) / chains).sqrt()  # of a covariance (Isserlis)
    assert ((found - biased).abs() < 5 * error).all()
    # The test can tell: the unconditional covariance, and the mean without the known pixels, fail.
    unconditional = torch.linalg.inv(precision)[hole][:, hole]
    assert ((found - unconditional).abs() > 5 * error).any()
    assert ((h.mean(0) - mean[hole]).abs() > 5 * sd / math.sqrt(chains)).any()
    # And the bias is of the order of the stepsize: a few per cent here.
    bias = ((biased.diagonal() - exact.diagonal()) / exact.diagonal()).abs()
    assert 0 < float(bias.max()) < 0.25


def test_noise_and_stepsizes_see_the_hole_alone() -> None:
    """One transition by hand: Eq. 4 by the norm of the hole's gradient, noise by its indices."""
    images, mask, f = pictures(2), make_mask("half", 8, 8), net().eval()
    key, sampler = keys.key(5), Stanley(0.01, 0.5, 0.1, norm="sample")
    out = inpaint(f, images, mask, sampler, 1, key=key)
    x, h0 = images.clone(), Hole(images, mask).start("uniform", key)
    x[..., mask] = h0
    (g,) = torch.autograd.grad(f(x.requires_grad_()).sum(), x)
    g = g[..., mask]
    gamma = ops.stepsize(g.flatten(1).norm(dim=1), threshold=0.01, step_size=0.5)
    assert (gamma < 0.5).all()  # the known pixels' gradient would make it smaller still
    want = ops.langevin_step(h0, g, gamma.view(-1, 1, 1), key, noise_scale=0.1)
    assert torch.allclose(out.chain.z, want, atol=1e-6)
    assert torch.equal(out.images[0][..., mask], out.chain.z)


def test_one_key_one_result_and_another_key_another() -> None:
    images, mask, f = pictures(2), make_mask("centre", 8, 8), net()
    run = [inpaint(f, images, mask, SAMPLERS[0], 3, key=keys.key(k)).images for k in (0, 0, 1)]
    assert torch.equal(run[0], run[1])
    assert not torch.equal(run[0], run[2])
    mean = inpaint(f, images, mask, SAMPLERS[0], 3, key=keys.key(0), start="mean", chains=2).images
    assert (mean[0] != mean[1])[..., mask].float().mean() > 0.99  # chains have noise of their own
    other = images.clone()
    other[..., mask] = 7.0  # what is in the hole is not looked at
    assert torch.equal(inpaint(f, other, mask, SAMPLERS[0], 3, key=keys.key(0)).images, run[0])


def test_a_bound_method_finds_its_module() -> None:
    class Energy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net()

        def log_density(self, x: Tensor) -> Tensor:
            assert not self.net.training
            return self.net(x)

    f = Energy().train()
    inpaint(f.log_density, pictures(1), make_mask("half", 8, 8), SAMPLERS[0], 1)
    assert f.net.training


def test_zero_steps_are_the_start_and_statistics_arrive() -> None:
    images, mask = pictures(2), make_mask("half", 8, 8)
    out = inpaint(net(), images, mask, SAMPLERS[0], 0, start="mean")
    want = images[..., ~mask].mean(-1)[..., None]
    assert torch.allclose(out.images[0][..., mask], want.expand(-1, -1, 32))
    out = inpaint(net(), images, mask, SAMPLERS[0], 3, record=("stepsize",), chains=2)
    assert out.chain.stats["stepsize"].shape == (3,)
    assert out.trace is None


def test_uniform_starts_fill_the_interval() -> None:
    hole = Hole(torch.zeros(50, 3, 16, 16), make_mask("half", 16, 16))
    h = hole.start("uniform", keys.key(0))
    n = h.numel()
    assert float(h.abs().max()) <= 1
    assert abs(float(h.mean())) < 5 / math.sqrt(3 * n)
    assert abs(float(h.square().mean()) - 1 / 3) < 5 * math.sqrt(4 / 45 / n)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_other_dtypes_stay(dtype: torch.dtype) -> None:
    images, mask = pictures(2).to(dtype), make_mask("half", 8, 8)
    out = inpaint(lambda x: -x.square().sum((1, 2, 3)), images, mask, Langevin(0.1), 2)
    assert out.images.dtype == dtype
    assert torch.equal(out.images[0][..., ~mask], images[..., ~mask])


def test_odd_strides_and_no_images() -> None:
    images, mask, f = pictures(4), make_mask("centre", 8, 8), net()
    key = keys.key(0)
    want = inpaint(f, images, mask, SAMPLERS[0], 2, key=key).images
    strided = images.to(memory_format=torch.channels_last)
    assert torch.equal(inpaint(f, strided, mask, SAMPLERS[0], 2, key=key).images, want)
    none = inpaint(lambda x: -x.square().sum((1, 2, 3)), images[:0], mask, SAMPLERS[0], 2, key=key)
    assert none.images.shape == (1, 0, 3, 8, 8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": torch.zeros(3, 8, 8)}, r"images must be \(B, C, H, W\), got \[3, 8, 8\]"),
        ({"images": torch.zeros(1, 3, 8, 8).int()}, "images must be float32.*got torch.int32"),
        ({"mask": torch.ones(8, 9, dtype=torch.bool)}, r"mask must be bool \[8, 8\].*\[8, 9\]"),
        ({"mask": torch.ones(8, 8)}, "mask must be bool.*torch.float32"),
        ({"mask": torch.zeros(8, 8, dtype=torch.bool)}, "mask must be True somewhere"),
        ({"mask": None}, "mask must be a tensor, got None"),
        ({"chains": 0}, "chains must be 1 or more, got 0"),
        ({"start": "zeros"}, "start must be 'uniform' or 'mean', got 'zeros'"),
        (
            {"start": "mean", "mask": torch.ones(8, 8, dtype=torch.bool)},
            "start must be 'uniform' where no pixel is known",
        ),
        ({"steps": -1}, "steps must be 0 or more, got -1"),
    ],
    ids=lambda x: ",".join(x) if isinstance(x, dict) else "",
)
def test_errors(change: dict[str, Any], message: str) -> None:
    arguments = {"images": pictures(1), "mask": make_mask("half", 8, 8), "steps": 1} | change
    with pytest.raises((ValueError, RuntimeError), match=message):
        inpaint(net(), sampler=SAMPLERS[0], **arguments)


# Masks -------------------------------------------------------------------------------------------


def test_masks() -> None:
    centre, half = make_mask("centre", 8, 10), make_mask("half", 8, 10)
    assert centre.sum() == 4 * 6
    assert centre[2:6, 2:8].all()
    assert half.sum() == 40
    assert half[:, 5:].all()
    assert make_mask("centre", 1, 1).all()
    assert torch.equal(make_mask("half", 3, 3)[0], torch.tensor([False, True, True]))


def test_random_masks() -> None:
    first, same, other = (
        make_mask("random", 32, 32, share=0.3, key=keys.key(k)) for k in (0, 0, 1)
    )
    assert first.sum() == other.sum() == round(0.3 * 1024)
    assert torch.equal(first, same)
    # Two sets of 307 of 1 024 share 92 on average, with sd 8 (hypergeometric).
    assert abs(int((first & other).sum()) - 92) < 5 * 8
    assert make_mask("random", 4, 4, share=1.0, key=keys.key(0)).all()
    assert make_mask("random", 4, 4, share=1e-9, key=keys.key(0)).sum() == 1


def test_masks_of_files(tmp_path: Path) -> None:
    values = np.array([[0, 127, 128], [255, 0, 200]], dtype=np.uint8)
    want = torch.tensor([[False, False, True], [True, False, True]])
    for mode in ("L", "RGB"):
        path = tmp_path / f"{mode}.png"
        PIL.Image.fromarray(values).convert(mode).save(path)
        assert torch.equal(make_mask(path, 2, 3), want)
        assert torch.equal(make_mask(str(path), 2, 3), want)
    with pytest.raises(ValueError, match=r"must be 2 x 3 pixels like the images, got 3 x 2"):
        make_mask(path, 3, 2)
    with pytest.raises(FileNotFoundError, match="mask must be centre, half, random or a picture"):
        make_mask("center", 2, 3)
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(OSError, match=r"text\.png"):
        make_mask(tmp_path / "text.png", 2, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"height": 0}, "height and width must be 1 or more, got 0 and 4"),
        ({"share": 0.0}, r"share must be in \(0, 1\], got 0.0"),
        ({"share": math.nan}, r"share must be in \(0, 1\], got nan"),
        ({"key": None}, "key must be given for a random mask"),
    ],
)
def test_mask_errors(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"height": 4, "width": 4, "key": keys.key(0)} | change
    with pytest.raises(ValueError, match=message):
        make_mask("random", **arguments)


# PSNR and SSIM -----------------------------------------------------------------------------------


def test_psnr_known_answers() -> None:
    a, mask = torch.zeros(2, 3, 8, 8), make_mask("half", 8, 8)
    b = a.clone()
    b[..., mask] = 0.2
    assert psnr(b, a, mask).tolist() == pytest.approx([20.0, 20.0], abs=1e-5)
    assert psnr(b, a).tolist() == pytest.approx([20 + 10 * math.log10(2)] * 2, abs=1e-5)
    assert psnr(b, a, mask, data_range=1).tolist() == pytest.approx([20 - 20 * math.log10(2)] * 2)
    assert psnr(b, a, ~mask).tolist() == [math.inf] * 2
    assert psnr(b.expand(5, -1, -1, -1, -1), a).shape == (5, 2)


def test_ssim_is_the_equation_in_each_window() -> None:
    """Wang et al. 2004, Eqs. 13 to 16, one window at a time with explicit weights."""
    a, b = pictures(1, 1, 13, seed=1).double(), pictures(1, 1, 13, seed=2).double()
    x = torch.arange(-5, 6, dtype=torch.float64)
    weights = torch.exp(-(x[:, None] ** 2 + x[None] ** 2) / (2 * 1.5**2))
    weights /= weights.sum()
    values = torch.zeros(13, 13, dtype=torch.float64)
    c1, c2 = 0.02**2, 0.06**2
    for i in range(5, 8):
        for j in range(5, 8):
            p, q = (t[0, 0, i - 5 : i + 6, j - 5 : j + 6] for t in (a, b))
            mp, mq = (weights * p).sum(), (weights * q).sum()
            vp, vq = (weights * (p - mp) ** 2).sum(), (weights * (q - mq) ** 2).sum()
            cov = (weights * (p - mp) * (q - mq)).sum()
            values[i, j] = (2 * mp * mq + c1) * (2 * cov + c2)
            values[i, j] /= (mp**2 + mq**2 + c1) * (vp + vq + c2)
    assert float(ssim(a, b)) == pytest.approx(float(values[5:8, 5:8].mean()), abs=1e-12)
    mask = torch.zeros(13, 13, dtype=torch.bool)
    mask[6, 6:9] = True  # of which one has no whole window
    assert float(ssim(a, b, mask)) == pytest.approx(float(values[6, 6:8].mean()), abs=1e-12)


def test_ssim_properties() -> None:
    a, b = pictures(2, 3, 16), pictures(2, 3, 16, seed=1)
    assert ssim(a, a).tolist() == pytest.approx([1.0, 1.0], abs=1e-12)
    assert torch.allclose(ssim(a, b), ssim(b, a), atol=1e-12)
    assert (ssim(a, 0.9 * a + 0.1 * b) > ssim(a, b)).all()
    # Two constants have no contrast: (2 m n + c1) / (m^2 + n^2 + c1).
    m, n, c1 = 0.5, 0.25, 0.02**2
    want = (2 * m * n + c1) / (m * m + n * n + c1)
    found = ssim(torch.full((1, 1, 11, 11), m), torch.full((1, 1, 11, 11), n))
    assert float(found) == pytest.approx(want, abs=1e-9)
    assert ssim(a.expand(4, -1, -1, -1, -1), b).shape == (4, 2)
    # Scale and range go together.
    assert torch.allclose(ssim(a, b), ssim(127.5 * a, 127.5 * b, data_range=255), atol=1e-6)


def test_psnr_and_ssim_errors() -> None:
    a, mask = torch.zeros(1, 1, 12, 12), torch.zeros(12, 12, dtype=torch.bool)
    for measure in (psnr, ssim):
        with pytest.raises(ValueError, match="found must end in truth's shape"):
            measure(a, a[..., 1:])
        with pytest.raises(ValueError, match="mask must be True somewhere"):
            measure(a, a, mask)
        with pytest.raises(ValueError, match="data_range must be positive, got 0"):
            measure(a, a, data_range=0)
    mask[0, 0] = True
    with pytest.raises(ValueError, match="hole 5 pixels or more from the edge"):
        ssim(a, a, mask)
    with pytest.raises(ValueError, match="at least 11 x 11 pixels for SSIM, got 10 x 12"):
        ssim(a[:, :, 2:], a[:, :, 2:])
