"""The noise in Triton: Philox words to uniforms to standard normals.

The same counters, uniforms and polynomials as csrc/philox.h. No library function with a slow path
for large arguments is called: arguments lie in [0, 1], and a slow path would need local memory.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def philox(c0, c1, c2, k0, k1):
    """Philox4x32-10 words of counter (c0, c1, c2, 0) under key (k0, k1); all uint32.

    Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", table 2.
    """
    c3 = c2 ^ c2
    for _ in tl.static_range(10):
        p0 = c0.to(tl.uint64) * 0xD2511F53  # one instruction for both halves of the product
        p1 = c2.to(tl.uint64) * 0xCD9E8D57
        c0 = (p1 >> 32).to(tl.uint32) ^ c1 ^ k0
        c1 = p1.to(tl.uint32)
        c2 = (p0 >> 32).to(tl.uint32) ^ c3 ^ k1
        c3 = p0.to(tl.uint32)
        k0 += 0x9E3779B9
        k1 += 0xBB67AE85
    return c0, c1, c2, c3


@triton.jit
def uniform(w, T: tl.constexpr):
    """u(w) = w 2^-32 + 2^-33 in (0, 1], the same bits on every backend."""
    return w.to(T) * 2.3283064365386963e-10 + 1.1641532182693481e-10


@triton.jit
def log_unit(x):
    """ln x for x in [2^-33, 1], good to 2 ulp also near 1.

    Source: Cephes' logf without its special cases.
    """
    if x.dtype == tl.float64:
        y = tl.log(x)
    else:
        bits = x.to(tl.int32, bitcast=True)
        exponent = (bits - 0x3F3504F3) >> 23  # the mantissa lies in [sqrt 1/2, sqrt 2)
        f = (bits - (exponent << 23)).to(tl.float32, bitcast=True) - 1.0
        e = exponent.to(tl.float32)
        p = f * 7.0376836292e-2 - 1.1514610310e-1
        p = p * f + 1.1676998740e-1
        p = p * f - 1.2420140846e-1
        p = p * f + 1.4249322787e-1
        p = p * f - 1.6668057665e-1
        p = p * f + 2.0000714765e-1
        p = p * f - 2.4999993993e-1
        p = p * f + 3.3333331174e-1
        square = f * f
        tail = p * f * square + e * -2.12194440e-4 - 0.5 * square
        y = (f + tail) + e * 0.693359375  # ln 2 in two parts; the first is exact times e
    return y


@triton.jit
def flip(x, bits):
    """Flips x's sign where bit 1 of `bits` is set."""
    if x.dtype == tl.float64:
        y = (x.to(tl.uint64, bitcast=True) ^ ((bits & 2).to(tl.uint64) << 62)).to(
            x.dtype, bitcast=True
        )
    else:
        y = (x.to(tl.uint32, bitcast=True) ^ ((bits & 2).to(tl.uint32) << 30)).to(
            x.dtype, bitcast=True
        )
    return y


@triton.jit
def sincos_turn(u):
    """sin and cos of 2 pi u for u in [0, 1].

    u - quadrant / 4 is exact, so nothing is lost in the reduction to [-pi/4, pi/4].
    Source of the polynomials: Cephes' sinf and cosf, sin and cos.
    """
    quadrant = (u * 4.0 + 0.5).to(tl.int32)
    x = (u - quadrant.to(u.dtype) * 0.25) * 6.283185307179586
    square = x * x
    if u.dtype == tl.float64:
        s = square * 1.58962301576546568060e-10 - 2.50507477628578072866e-8
        s = s * square + 2.75573136213857245213e-6
        s = s * square - 1.98412698295895385996e-4
        s = s * square + 8.33333333332211858878e-3
        s = s * square - 1.66666666666666307295e-1
        c = square * -1.13585365213876817300e-11 + 2.08757008419747316778e-9
        c = c * square - 2.75573141792967388112e-7
        c = c * square + 2.48015872888517045348e-5
        c = c * square - 1.38888888888730564116e-3
        c = c * square + 4.16666666666665929218e-2
    else:
        s = square * -1.9515295891e-4 + 8.3321608736e-3
        s = s * square - 1.6666654611e-1
        c = square * 2.443315711809948e-5 - 1.388731625493765e-3
        c = c * square + 4.166664568298827e-2
    s = s * square * x + x
    c = (c * square - 0.5) * square + 1.0
    swap = (quadrant & 1) != 0
    return flip(tl.where(swap, c, s), quadrant), flip(tl.where(swap, s, c), quadrant + 1)


@triton.jit
def box_muller(a, b, T: tl.constexpr):
    """r cos 2 pi u(b) and r sin 2 pi u(b) with r = sqrt(-2 ln u(a)).

    Source: Box and Muller 1958, "A note on the generation of random normal deviates".
    """
    radius = tl.sqrt(-2.0 * log_unit(uniform(a, T)))
    s, c = sincos_turn(uniform(b, T))
    return radius * c, radius * s


@triton.jit
def four(key, block, c2, T: tl.constexpr):
    """The normals of Philox blocks `block` after the key's: element i of a block is output i.

    Where T is uint32, the words themselves.
    """
    seed = tl.load(key)
    counter = tl.load(key + 1) + block
    w0, w1, w2, w3 = philox(
        counter.to(tl.uint32), (counter >> 32).to(tl.uint32), tl.cast(c2, tl.uint32),
        seed.to(tl.uint32), (seed >> 32).to(tl.uint32),
    )  # fmt: skip
    is_words: tl.constexpr = T == tl.uint32  # noqa: SIM300, T is a parameter
    if is_words:
        n0, n1, n2, n3 = w0, w1, w2, w3
    else:
        n0, n1 = box_muller(w0, w1, T)
        n2, n3 = box_muller(w2, w3, T)
    return n0, n1, n2, n3


@triton.jit
def draws(key, block, c2, T: tl.constexpr, BLOCK: tl.constexpr, PER_THREAD: tl.constexpr):
    """The BLOCK normals or words of BLOCK / 4 Philox blocks, the first `block` after the key's.

    A thread makes PER_THREAD neighbours, as many as it reads and writes at once.
    """
    if PER_THREAD == 8:
        even = block + 2 * tl.arange(0, BLOCK // 8)
        a0, a1, a2, a3 = four(key, even, c2, T)
        b0, b1, b2, b3 = four(key, even + 1, c2, T)
        n0, n1 = tl.interleave(a0, b0), tl.interleave(a1, b1)
        n2, n3 = tl.interleave(a2, b2), tl.interleave(a3, b3)
    else:
        n0, n1, n2, n3 = four(key, block + tl.arange(0, BLOCK // 4), c2, T)
    return tl.interleave(tl.interleave(n0, n2), tl.interleave(n1, n3))
