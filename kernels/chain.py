"""Whole chains of a small MLP in one kernel: f, its gradient and the update, for all steps.

A program takes CHAINS chains. Weights are read once and stay in shared memory, in both orders:
threads that read across the order would all meet in one bank. Activations and the state stay in
registers; memory sees z twice. Layers are padded with zeros to PADDED[l] >= WIDTHS[l] inputs, as
tl.dot wants them, and the state with them: its columns beyond WIDTHS[0] have no noise and no
gradient.

All sums on the way to z are tl.dot's, one multiply-add after the other in float32: a chain has the
same bits whatever CHAINS is. (A product summed by tl.sum may become a TF32 product in Triton.)
"""

# mypy: disable-error-code="assignment"
# The tuples below grow layer by layer, while Triton unrolls the loops.

from __future__ import annotations

import triton
import triton.language as tl

from stanley_fast.kernels.noise import box_muller, philox
from stanley_fast.kernels.step import gamma_of, moved, number


@triton.jit
def load_vector(base, n: tl.constexpr, N: tl.constexpr):
    i = tl.arange(0, N)
    return tl.load(base + i, mask=i < n, other=0.0)


@triton.jit
def load_matrix(base, n: tl.constexpr, k: tl.constexpr, N: tl.constexpr, K: tl.constexpr):
    """(n, k), row-major, with zeros up to (N, K)."""
    row, column = tl.arange(0, N)[:, None], tl.arange(0, K)[None, :]
    return tl.load(base + row * k + column, mask=(row < n) & (column < k), other=0.0)


@triton.jit
def load_net(transposed, weights, biases, WIDTHS: tl.constexpr, PADDED: tl.constexpr):
    """By layer weights transposed, weights and biases; the last layer's a vector and a number."""
    wt, w, b = (), (), ()
    for i in tl.static_range(len(WIDTHS) - 1):
        wt += (load_matrix(transposed[i], WIDTHS[i], WIDTHS[i + 1], PADDED[i], PADDED[i + 1]),)
        w += (load_matrix(weights[i], WIDTHS[i + 1], WIDTHS[i], PADDED[i + 1], PADDED[i]),)
        b += (load_vector(biases[i], WIDTHS[i + 1], PADDED[i + 1]),)
    last: tl.constexpr = len(WIDTHS) - 1
    w += (load_vector(weights[last], WIDTHS[last], PADDED[last]),)
    b += (tl.load(biases[last]),)
    return wt, w, b


@triton.jit
def activated(x, slope, SILU: tl.constexpr):
    """SiLU or LeakyReLU of x, and its derivative there."""
    if SILU:
        sigmoid = 1.0 / (1.0 + tl.exp(-x))
        y, by_x = x * sigmoid, sigmoid * (1.0 + x * (1.0 - sigmoid))
    else:
        by_x = tl.where(x > 0, 1.0, slope).to(x.dtype)
        y = x * by_x
    return y, by_x


@triton.jit
def gradient(z, wt, w, b, slope, WIDTHS: tl.constexpr, PADDED: tl.constexpr, SILU: tl.constexpr):
    """df/dz, and f, which costs nothing where it is not used. Keeps by_x from the forward pass."""
    x, kept = z, ()
    for i in tl.static_range(len(WIDTHS) - 1):
        x = tl.dot(x, wt[i], input_precision="ieee", out_dtype=z.dtype) + b[i][None, :]
        x, by_x = activated(x, slope, SILU)
        if WIDTHS[i + 1] < PADDED[i + 1]:  # an infinite input makes NaN of the padding
            x = tl.where((tl.arange(0, PADDED[i + 1]) < WIDTHS[i + 1])[None, :], x, 0.0)
        kept += (by_x,)
    f = tl.sum(x * w[len(WIDTHS) - 1][None, :], axis=1, keep_dims=True) + b[len(WIDTHS) - 1]
    grad = kept[len(WIDTHS) - 2] * w[len(WIDTHS) - 1][None, :]
    for i in tl.static_range(len(WIDTHS) - 2, 0, -1):
        grad = tl.dot(grad, w[i], input_precision="ieee", out_dtype=z.dtype) * kept[i - 1]
    return tl.dot(grad, w[0], input_precision="ieee", out_dtype=z.dtype), f


@triton.jit
def normals_at(seed, block, lane, T: tl.constexpr):
    """The normal in `lane` of each Philox block: 32 lanes rarely share one, so none is shared."""
    w0, w1, w2, w3 = philox(
        block.to(tl.uint32), (block >> 32).to(tl.uint32), tl.cast(0, tl.uint32),
        seed.to(tl.uint32), (seed >> 32).to(tl.uint32),
    )  # fmt: skip
    second = lane >= 2
    cosine, sine = box_muller(tl.where(second, w2, w0), tl.where(second, w3, w1), T)
    return tl.where(lane % 2 == 0, cosine, sine)


@triton.jit
def store_sums(sums, k, steps, grad, f, gamma, step_size, live, alive):
    """This program's sums of |grad|, f, stepsize and where it is largest: (4, steps, programs)."""
    at, row = sums + k * tl.num_programs(0) + tl.program_id(0), steps * tl.num_programs(0)
    tl.store(at, tl.sum(tl.where(live, tl.abs(grad), 0.0)))
    tl.store(at + row, tl.sum(tl.where(alive, f, 0.0)))
    tl.store(at + 2 * row, tl.sum(tl.where(live, gamma, 0.0)))
    tl.store(at + 3 * row, tl.sum((live & (gamma >= step_size)).to(grad.dtype)))


_NUMBERS = ["slope", "threshold", "step_size", "noise_scale", "grad_clamp", "lo", "hi"]


@triton.jit(do_not_specialize=["chains", "steps", "block", "blocks_per_step", *_NUMBERS])
def mlp_chain_kernel(
    out,
    sums,
    z,
    transposed,
    weights,
    biases,
    gamma,
    key,
    chains: tl.int64,
    steps: tl.int64,
    block: tl.int64,
    blocks_per_step: tl.int64,
    slope,
    threshold,
    step_size,
    noise_scale,
    grad_clamp,
    lo,
    hi,
    T: tl.constexpr,
    WIDTHS: tl.constexpr,
    PADDED: tl.constexpr,
    SILU: tl.constexpr,
    SCALAR_GAMMA: tl.constexpr,
    SCRIPT: tl.constexpr,
    SHIFT: tl.constexpr,
    CHAINS: tl.constexpr,
):
    """`steps` times z <- z + gamma / 2 * grad f(z) + sqrt(gamma) * noise_scale * xi in [lo, hi].

    A chain that met a NaN or infinity ends as NaN. `sums` is None where nothing is recorded.

    Source: the paper's Eqs. 4 and 5 (Algorithm 1, lines 3 to 7).
    """
    chain = tl.program_id(0).to(tl.int64) * CHAINS + tl.arange(0, CHAINS)[:, None]
    column = tl.arange(0, PADDED[0])[None, :]
    alive = chain < chains
    live = alive & (column < WIDTHS[0])
    element = chain * WIDTHS[0] + column
    x = tl.load(z + element, mask=live, other=0.0)
    watch = tl.zeros_like(x)
    wt, w, b = load_net(transposed, weights, biases, WIDTHS, PADDED)
    slope, step_size, threshold = number(slope, T), number(step_size, T), number(threshold, T)
    grad_clamp, noise_scale = number(grad_clamp, T), number(noise_scale, T)
    if gamma is None:
        given = x  # not used
    elif SCALAR_GAMMA:
        given = tl.load(gamma) + tl.zeros_like(x)
    else:
        given = tl.load(gamma + element, mask=live, other=1.0)

    seed = tl.load(key)
    lane = (element + SHIFT) & 3
    block += tl.load(key + 1) + ((element + SHIFT) >> 2)
    for k in range(steps):
        grad, f = gradient(x, wt, w, b, slope, WIDTHS, PADDED, SILU)
        rate = gamma_of(grad, threshold, step_size) if gamma is None else given
        if sums is not None:
            store_sums(sums, k, steps, grad, f, rate, step_size, live, alive)
        watch += (x - x) + (grad - grad)
        grad = tl.clamp(grad, -grad_clamp, grad_clamp, propagate_nan=tl.PropagateNan.ALL)
        xi = tl.where(live, normals_at(seed, block, lane, T), 0.0)
        x = moved(x, grad, rate, noise_scale * xi, SCRIPT)
        x = tl.clamp(x, number(lo, T), number(hi, T), propagate_nan=tl.PropagateNan.ALL)
        block += blocks_per_step
    tl.store(out + element, tl.where(watch == 0, x, watch), mask=live)
