"""The kernels of Metropolis-Hastings, a program for each chain, and of the leapfrog.

Log ratios are computed in float64 for every state: their terms cancel.
"""

from __future__ import annotations

import triton
import triton.language as tl

from stanley_fast.kernels.noise import philox
from stanley_fast.kernels.step import begin_of, load, number, store


@triton.jit
def mantissa(x):
    """x's mantissa in [1, 2) and its biased exponent, for a positive normal float64."""
    bits = x.to(tl.int64, bitcast=True)
    one = (bits & 0xFFFFFFFFFFFFF) | 0x3FF0000000000000
    return one.to(tl.float64, bitcast=True), bits >> 52


@triton.jit
def inverse_at(grad, gamma, begin, row, width, scale, threshold, BLOCK: tl.constexpr):
    """The stepsize and 1 / stepsize: given, one for all, or by the paper's Eq. 4."""
    if gamma is not None:
        value = load(gamma + row, begin, width, tl.float64, BLOCK)
        value = tl.where(tl.arange(0, BLOCK) < width - begin, value, 1.0)
        inverse = 1.0 / value
    elif threshold is None:
        value = scale
        inverse = 1.0 / scale
    else:
        least = number(threshold, tl.float64)
        size = tl.maximum(tl.abs(grad), least, propagate_nan=tl.PropagateNan.ALL)
        value = scale / size
        inverse = size * (1.0 / scale)
    return value, inverse


@triton.jit(do_not_specialize=["threshold", "noise_scale"])
def log_ratio_kernel(
    out,
    z,
    grad,
    z_new,
    grad_new,
    gamma,
    gamma_new,
    step_size,
    threshold,
    noise_scale,
    width,
    BLOCK: tl.constexpr,
):
    """log q(z | z') - log q(z' | z) of a chain, q(z' | z) = N(z + gamma/2 grad, gamma eps^2).

    The logarithms of the stepsizes are two products of mantissas and a sum of exponents.

    Source: Hastings 1970; the paper's Eqs. 4 and 5.
    """
    T: tl.constexpr = tl.float64
    chain = tl.program_id(0).to(tl.int64)
    row = chain * width
    scale = 1.0
    if step_size is not None:
        scale = tl.load(step_size)
        if threshold is not None:
            scale *= number(threshold, T)
        scale = tl.where(scale >= 0.0, scale, float("nan"))  # as its logarithm
    squares = tl.zeros((BLOCK,), T)
    there, back = squares + 1.0, squares + 1.0
    exponents = tl.zeros((BLOCK,), tl.int64)
    for begin in range(0, width, BLOCK):
        g = load(grad + row, begin, width, T, BLOCK)
        g_new = load(grad_new + row, begin, width, T, BLOCK)
        moved = load(z_new + row, begin, width, T, BLOCK) - load(z + row, begin, width, T, BLOCK)
        y, inverse = inverse_at(g, gamma, begin, row, width, scale, threshold, BLOCK)
        y_new, inverse_new = inverse_at(
            g_new, gamma_new, begin, row, width, scale, threshold, BLOCK
        )
        there_by, back_by = moved - 0.5 * y * g, moved + 0.5 * y_new * g_new
        difference = there_by * there_by * inverse - back_by * back_by * inverse_new
        if gamma is not None or threshold is not None:
            # A stepsize that is not positive and normal has no logarithm: the sum becomes NaN.
            proper = (inverse >= 2.2250738585072014e-308) & (inverse < float("inf"))
            proper &= (inverse_new >= 2.2250738585072014e-308) & (inverse_new < float("inf"))
            difference = tl.where(proper, difference, float("nan"))
            m, e = mantissa(inverse)
            m_new, e_new = mantissa(inverse_new)
            there, e_there = mantissa(there * m)
            back, e_back = mantissa(back * m_new)
            exponents += e_new - e + e_back - e_there
        squares += difference
    eps = number(noise_scale, T)
    logs = tl.log(back / there) + exponents.to(T) * 0.69314718055994530942
    tl.store(out + chain, tl.sum(0.5 * (squares / (eps * eps) + logs), 0))


@triton.jit
def copy_row(to, begin_of_row, new, width, BLOCK: tl.constexpr):
    dtype: tl.constexpr = to.dtype.element_ty
    for begin in range(0, width, BLOCK):
        x = load(new + begin_of_row, begin, width, dtype, BLOCK)
        store(to + begin_of_row, begin, width, x, BLOCK)


@triton.jit(do_not_specialize=["first", "block"])
def accept_kernel(
    accepted,
    probability,
    z,
    z_new,
    grad,
    grad_new,
    log_density,
    log_density_new,
    log_ratio,
    key,
    block: tl.int64,
    first: tl.int64,
    width,
    BLOCK: tl.constexpr,
):
    """Accepted where log u <= log alpha, u = (w + 1/2) 2^-32; then the chain's row is copied.

    Source: Hastings 1970.
    """
    c = tl.program_id(0).to(tl.int64)
    chain = first + c
    seed = tl.load(key)
    counter = tl.load(key + 1) + block + (chain >> 2)
    w0, w1, w2, w3 = philox(
        counter.to(tl.uint32), (counter >> 32).to(tl.uint32), tl.cast(1, tl.uint32),
        seed.to(tl.uint32), (seed >> 32).to(tl.uint32),
    )  # fmt: skip
    low, high = tl.where(chain & 1 != 0, w1, w0), tl.where(chain & 1 != 0, w3, w2)
    word = tl.where(chain & 2 != 0, high, low)
    u = (word.to(tl.float64) + 0.5) * 2.3283064365386963e-10

    to = tl.load(log_density_new + c)
    wide = to.to(tl.float64)
    log_alpha = wide - tl.load(log_density + c).to(tl.float64) + tl.load(log_ratio + c)
    proper = (tl.abs(wide) < float("inf")) & (log_alpha == log_alpha)
    yes = proper & (tl.log(u) <= log_alpha)
    chance = tl.exp(tl.where(log_alpha < 0.0, log_alpha, 0.0))
    tl.debug_barrier()  # all have read the log-density
    tl.store(accepted + c, yes.to(tl.uint8))
    tl.store(probability + c, tl.where(proper, chance, 0.0))
    if yes:
        tl.store(log_density + c, to)
        copy_row(z, c * width, z_new, width, BLOCK)
        if grad is not None:
            copy_row(grad, c * width, grad_new, width, BLOCK)


@triton.jit(do_not_specialize=["n", "kick"])
def leapfrog_kernel(
    z,
    momentum,
    grad,
    step_size,
    kick,
    inverse_mass,
    width,
    n: tl.int64,
    T: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """momentum += kick * step_size * grad, then z += step_size * inverse_mass * momentum.

    Source: Duane et al. 1987.
    """
    begin = begin_of(BLOCK, 0)
    size = tl.load(step_size)
    by = (number(kick, tl.float64) * size).to(T)
    p = load(momentum, begin, n, T, BLOCK) + by * load(grad, begin, n, T, BLOCK)
    rate = size.to(T)
    if inverse_mass is not None:
        rate *= tl.load(inverse_mass + (begin + tl.arange(0, BLOCK)) % width)
    x = load(z, begin, n, T, BLOCK) + rate * p
    store(momentum, begin, n, p, BLOCK)
    store(z, begin, n, x, BLOCK)
