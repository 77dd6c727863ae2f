"""The kernels: a step, its derivatives, the noise alone, the stepsize alone.

Every program works on BLOCK neighbouring elements. SHIFT is the lane of the first element: programs
begin at whole Philox blocks, so the first one begins SHIFT elements before the state.

T is the dtype of the arithmetic; elements are rounded once, when they are stored.
"""

from __future__ import annotations

import triton
import triton.language as tl

from stanley_fast.kernels.noise import draws

ROUNDING_STREAM = tl.constexpr(3)
INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def begin_of(BLOCK: tl.constexpr, SHIFT: tl.constexpr):
    """The program's first element. 64 bits, but one number per program: elements add 32."""
    return tl.program_id(0).to(tl.int64) * BLOCK - SHIFT


@triton.jit
def widened(x, T: tl.constexpr):
    """x in T, exactly. The interpreter would lose bfloat16's subnormal numbers: here by hand."""
    if INTERPRETED and x.dtype == tl.bfloat16:
        y = (x.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(T, bitcast=True)
    else:
        y = x.to(T)
    return y


@triton.jit
def load(base, begin, n, T: tl.constexpr, BLOCK: tl.constexpr):
    """Elements [begin, begin + BLOCK) of `base`, those outside [0, n) as 0.

    Only where no mask is needed can a thread read all its elements at once.
    """
    i = tl.arange(0, BLOCK)
    if (begin >= 0) & (begin + BLOCK <= n):
        x = tl.load(base + begin + i)
    else:
        x = tl.load(base + begin + i, mask=(i >= -begin) & (i < n - begin), other=0)
    return widened(x, T)


@triton.jit
def rounded(x, dtype: tl.constexpr):
    """x in `dtype`, to nearest even. The interpreter would truncate to bfloat16: here by hand."""
    if INTERPRETED and dtype == tl.bfloat16:
        bits = x.to(tl.uint32, bitcast=True)
        bits += 0x7FFF + ((bits >> 16) & 1)
        y = (bits >> 16).to(tl.uint16).to(dtype, bitcast=True)
    else:
        y = x.to(dtype)
    return y


@triton.jit
def rounded_stochastically(x, word):
    """float32 x at one of the two bfloat16 around it, on average x. See csrc/half.h."""
    bits = (x.to(tl.uint32, bitcast=True) + (word & 0xFFFF)) & 0xFFFF0000
    return tl.where(x == x, bits.to(tl.float32, bitcast=True), x)


@triton.jit
def store(base, begin, n, x, BLOCK: tl.constexpr):
    """Writes the elements that lie in [0, n), rounded to the dtype of `base`."""
    i = tl.arange(0, BLOCK)
    x = rounded(x, base.dtype.element_ty)
    if (begin >= 0) & (begin + BLOCK <= n):
        tl.store(base + begin + i, x)
    else:
        tl.store(base + begin + i, x, mask=(i >= -begin) & (i < n - begin))


@triton.jit
def number(x, T: tl.constexpr):
    """A number from the host. float64 ones come as their bits: Triton makes floats float32."""
    is_bits: tl.constexpr = T == tl.float64  # noqa: SIM300, T is a parameter
    return x.to(tl.int64).to(T, bitcast=True) if is_bits else tl.cast(x, T)


@triton.jit
def noise_of(
    key,
    block,
    c2,
    T: tl.constexpr,
    BLOCK: tl.constexpr,
    PER_THREAD: tl.constexpr,
):
    """The normals of the program's elements, or where T is uint32 their words."""
    block += tl.program_id(0).to(tl.int64) * (BLOCK // 4)
    return draws(key, block, c2, T, BLOCK, PER_THREAD)


@triton.jit
def gamma_of(grad, threshold, step_size):
    """gamma = step_size * threshold / max(threshold, |grad|)

    Exactly step_size at |grad| <= threshold; NaN where grad is. Source: the paper's Eq. 4.
    """
    size = tl.abs(grad)
    return tl.where(size <= threshold, step_size, step_size * (threshold / size))


@triton.jit
def gamma_at(
    gamma,
    grad,
    begin,
    n,
    threshold,
    step_size,
    T: tl.constexpr,
    SCALAR_GAMMA: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The stepsize: from Eq. 4 where no gamma is given, one number, or one per element."""
    if gamma is None:
        value = gamma_of(grad, number(threshold, T), number(step_size, T))
    elif SCALAR_GAMMA:
        value = tl.load(gamma)
    else:
        value = load(gamma, begin, n, T, BLOCK)
    return value


@triton.jit
def moved(z, grad, gamma, noise, SCRIPT: tl.constexpr):
    """z + gamma / 2 * grad + sqrt(gamma) * noise, or z + gamma * grad + gamma * noise.

    noise is noise_scale * xi. Source: the paper's Eq. 5; the first author's script.
    """
    if SCRIPT:
        new = z + gamma * grad + gamma * noise
    else:
        new = z + gamma * 0.5 * grad + tl.sqrt(gamma) * noise
    return new


_NUMBERS = ["block", "n", "threshold", "step_size", "noise_scale", "lo", "hi"]


@triton.jit(do_not_specialize=_NUMBERS)
def step_kernel(
    out,
    z,
    grad,
    gamma,
    key,
    block: tl.int64,
    n: tl.int64,
    threshold,
    step_size,
    noise_scale,
    lo,
    hi,
    T: tl.constexpr,
    SCALAR_GAMMA: tl.constexpr,
    SCRIPT: tl.constexpr,
    STOCHASTIC: tl.constexpr,
    SHIFT: tl.constexpr,
    BLOCK: tl.constexpr,
    PER_THREAD: tl.constexpr,
):
    """z' = z + gamma / 2 * grad + sqrt(gamma) * noise_scale * xi, within [lo, hi].

    One read of z and grad, one write of z'; xi is made on the way. `out` may be z. STOCHASTIC says
    how z' is rounded to bfloat16.

    Source: the paper's Eqs. 4 and 5 (Algorithm 1, lines 3 and 6).
    """
    begin = begin_of(BLOCK, SHIFT)
    z = load(z, begin, n, T, BLOCK)
    g = load(grad, begin, n, T, BLOCK)
    gamma = gamma_at(gamma, g, begin, n, threshold, step_size, T, SCALAR_GAMMA, BLOCK)
    noise = number(noise_scale, T) * noise_of(key, block, 0, T, BLOCK, PER_THREAD)
    z = moved(z, g, gamma, noise, SCRIPT)
    z = tl.clamp(z, number(lo, T), number(hi, T), propagate_nan=tl.PropagateNan.ALL)
    if STOCHASTIC:
        words = noise_of(key, block, ROUNDING_STREAM, tl.uint32, BLOCK, PER_THREAD)
        z = rounded_stochastically(z, words)
    store(out, begin, n, z, BLOCK)


@triton.jit(do_not_specialize=_NUMBERS)
def step_backward_kernel(
    grad_z,
    grad_grad,
    grad_gamma,
    grad_out,
    z,
    grad,
    gamma,
    key,
    block: tl.int64,
    n: tl.int64,
    threshold,
    step_size,
    noise_scale,
    lo,
    hi,
    T: tl.constexpr,
    SCALAR_GAMMA: tl.constexpr,
    SCRIPT: tl.constexpr,
    SHIFT: tl.constexpr,
    BLOCK: tl.constexpr,
    PER_THREAD: tl.constexpr,
):
    """The derivatives of `step_kernel`, times grad_out; xi is made again from the key.

    A given gamma: d z' / d grad = gamma / 2, d z' / d gamma = grad / 2 + noise / (2 sqrt(gamma)).
    With Eq. 4, gamma |grad| is constant above the threshold, so that the drift has no derivative
    and d gamma / d grad = -gamma / grad acts on the noise alone; below it gamma is constant.
    Where clamp cuts everything is 0; z is None where it can't have.

    Source: derivatives of the paper's Eqs. 4 and 5.
    """
    begin = begin_of(BLOCK, SHIFT)
    incoming = load(grad_out, begin, n, T, BLOCK)
    g = load(grad, begin, n, T, BLOCK)
    adaptive: tl.constexpr = gamma is None
    gamma = gamma_at(gamma, g, begin, n, threshold, step_size, T, SCALAR_GAMMA, BLOCK)
    noise = number(noise_scale, T) * noise_of(key, block, 0, T, BLOCK, PER_THREAD)
    if SCRIPT:
        by_grad, by_gamma, by_noise = gamma, g + noise, gamma * noise / -g
    else:
        root = tl.sqrt(gamma)
        by_grad, by_gamma = gamma * 0.5, g * 0.5 + noise / (2.0 * root)
        by_noise = root * noise / (-2.0 * g)
    if adaptive:
        by_grad = tl.where(tl.abs(g) <= number(threshold, T), by_grad, by_noise)
    by_grad *= incoming
    by_gamma *= incoming
    if z is not None:
        new = moved(load(z, begin, n, T, BLOCK), g, gamma, noise, SCRIPT)
        cut = (new < number(lo, T)) | (new > number(hi, T))
        store(grad_z, begin, n, tl.where(cut, 0.0, incoming), BLOCK)
        by_grad = tl.where(cut, 0.0, by_grad)
        by_gamma = tl.where(cut, 0.0, by_gamma)
    store(grad_grad, begin, n, by_grad, BLOCK)
    if not adaptive:
        store(grad_gamma, begin, n, by_gamma, BLOCK)


@triton.jit(do_not_specialize=["block", "c2", "n"])
def normal_kernel(
    out,
    key,
    block: tl.int64,
    c2: tl.int64,
    n: tl.int64,
    T: tl.constexpr,
    SHIFT: tl.constexpr,
    BLOCK: tl.constexpr,
    PER_THREAD: tl.constexpr,
):
    """out = xi: n0 = r cos 2 pi u(w1), n1 = r sin 2 pi u(w1), r = sqrt(-2 ln u(w0)).

    The words w are Philox's for stream c2. Source: Salmon et al. 2011; Box and Muller 1958.
    """
    xi = noise_of(key, block, c2, T, BLOCK, PER_THREAD)
    store(out, begin_of(BLOCK, SHIFT), n, xi, BLOCK)


@triton.jit(do_not_specialize=["n", "threshold", "step_size"])
def stepsize_kernel(
    out,
    grad,
    n: tl.int64,
    threshold,
    step_size,
    T: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """gamma = step_size * threshold / max(threshold, |grad|). Source: the paper's Eq. 4."""
    begin = begin_of(BLOCK, 0)
    g = load(grad, begin, n, T, BLOCK)
    store(out, begin, n, gamma_of(g, number(threshold, T), number(step_size, T)), BLOCK)
