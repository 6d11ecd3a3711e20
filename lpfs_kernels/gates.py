"""g and g′ as Triton device functions, shared by all kernels.

Each follows `reference.gate` and `reference.gate_derivative`, in fp32 or fp64 after the type of x.
A program evaluates them once per field, so they are written for accuracy: ε^(1/τ) apart, whose
logarithm is the device's own, each is within a few units in the last place.
"""

from __future__ import annotations

from .launch import jit, tl


@jit
def gate(x, epsilon, alpha, tau, KIND: tl.constexpr):
    """g(x; ε); `alpha` and `tau` are converted to the type of x."""
    if KIND == "lpfs":
        return divide(x * x, x * x + epsilon)
    elif KIND == "lpfs++":
        ratio = divide(x * x, x * x + epsilon)
        return tl.where(x < 0, -ratio, ratio) + slope_at_zero(epsilon, alpha, tau) * arctan(x)
    elif KIND == "gaussian":
        ratio = divide(x, epsilon)
        return -expm1_of_negative(-0.5 * (ratio * ratio))
    elif KIND == "sinarctan":
        return divide(tl.abs(x), square_root(x * x + epsilon * epsilon))
    else:
        tl.static_assert(KIND == "tanh")
        ratio = divide(x, epsilon)
        fall = expm1_of_negative(-(ratio * ratio))
        return divide(-fall, 2 + fall)


@jit
def gate_derivative(x, epsilon, alpha, tau, KIND: tl.constexpr):
    """g′(x; ε); 0 at the kink of `sinarctan`."""
    if KIND == "lpfs":
        total = x * x + epsilon
        return divide(2 * x * epsilon, total * total)
    elif KIND == "lpfs++":
        total = x * x + epsilon
        slope = slope_at_zero(epsilon, alpha, tau)
        return divide(2 * tl.abs(x) * epsilon, total * total) + divide(slope, 1 + x * x)
    elif KIND == "gaussian":
        ratio = divide(x, epsilon)
        return divide(x, epsilon * epsilon) * tl.exp(-0.5 * (ratio * ratio))
    elif KIND == "sinarctan":
        total = x * x + epsilon * epsilon
        sign = tl.where(x > 0, 1.0, tl.where(x < 0, -1.0, 0.0)).to(x.dtype)
        return divide(sign * (epsilon * epsilon), total * square_root(total))
    else:
        tl.static_assert(KIND == "tanh")
        # 1 − tanh²(z) = 4e/(1 + e)² with e = exp(−2z): nothing cancels when tanh is close to 1.
        ratio = divide(x, epsilon)
        e = tl.exp(-(ratio * ratio))
        return divide(x, epsilon * epsilon) * divide(4 * e, (1 + e) * (1 + e))


@jit
def slope_at_zero(epsilon, alpha, tau):
    """α·ε^(1/τ), the slope of `lpfs++` at 0."""
    exponent = divide(tl.full((), 1.0, epsilon.dtype), tl.full((), tau, epsilon.dtype))
    power = tl.exp2(tl.log2(epsilon) * exponent)
    # The paper's τ: a root is exact where exp2 ∘ log2 is not.
    power = tl.where(exponent == 0.5, square_root(epsilon), power)
    return tl.full((), alpha, epsilon.dtype) * power


@jit
def arctan(x):
    """arctan x within 2 units in the last place of fp32 and fp64.

    With t = |x|, (|x| − 1)/(|x| + 1) or −1/|x|, changing at 1/2 and 2 so that |t| ≤ 1/2 and |x| − 1
    is exact, arctan|x| = {0, π/4, π/2} + t + t³·P(t²). P is the Chebyshev fit of degree 13.
    """
    magnitude = tl.abs(x)
    large = magnitude > 2.0
    middle = (magnitude > 0.5) & (magnitude <= 2.0)
    over = tl.where(large, -1.0, tl.where(middle, magnitude - 1, magnitude)).to(x.dtype)
    under = tl.where(large, magnitude, tl.where(middle, magnitude + 1, 1.0)).to(x.dtype)
    t = divide(over, under)
    s = t * t
    p = s * 0.0076562953621769764974 - 0.021682234961125823571
    p = p * s + 0.033986343440473413313
    p = p * s - 0.04183338615988472087
    p = p * s + 0.047299538343325618839
    p = p * s - 0.052587189042770277741
    p = p * s + 0.058819133285179959272
    p = p * s - 0.066666360878248678006
    p = p * s + 0.076923062405622835246
    p = p * s - 0.090909090460735788208
    p = p * s + 0.11111111110278944061
    p = p * s - 0.1428571428570620386
    p = p * s + 0.19999999999999969009
    p = p * s - 0.33333333333333333314
    # π/4 in two words; π/2 is twice that, exactly.
    if x.dtype == tl.float64:
        high = tl.full((), 0.7853981633974483, tl.float64)
        low = tl.full((), 3.061616997868383e-17, tl.float64)
    else:
        high = tl.full((), 0.7853981852531433, tl.float32)
        low = tl.full((), -2.1855695000931213e-08, tl.float32)
    quarters = tl.where(large, 2.0, tl.where(middle, 1.0, 0.0)).to(x.dtype)
    angle = quarters * high + (t + (t * s * p + quarters * low))
    return tl.where(x < 0, -angle, angle)


@jit
def expm1_of_negative(z):
    """exp(z) − 1 for z ≤ 0: the Taylor series where the difference would cancel."""
    near = tl.where(z > -0.5, z, 0.0)
    p = near * 0.0 + 1.0
    for n in tl.static_range(16, 1, -1):
        p = divide(p * near, tl.full((), n, z.dtype)) + 1.0
    return tl.where(z > -0.5, p * near, tl.exp(z) - 1)


@jit
def divide(a, b):
    """a / b correctly rounded; a plain `/` is approximate for fp32 on NVIDIA GPUs."""
    if a.dtype == tl.float64:
        return a / b
    else:
        return tl.div_rn(a, b)


@jit
def square_root(a):
    """√a correctly rounded."""
    if a.dtype == tl.float64:
        return tl.sqrt(a)
    else:
        return tl.sqrt_rn(a)


@jit
def member_of(members, i):
    """A field of `table_of_members`."""
    if members is None:
        return i
    else:
        return tl.load(members + i).to(tl.int32)


@jit
def rows_of_dead(dead_rows, rows):
    """From how many rows row products of dead fields are wanted."""
    if dead_rows is None:
        return rows
    else:
        return tl.minimum(tl.load(dead_rows), rows).to(rows.dtype)


@jit
def squares_of(products, row_scale, row, rows):
    """Row products squared, each as many times as its row counts."""
    squares = products * products
    if row_scale is None:
        return squares
    else:
        return squares * tl.load(row_scale + row, mask=row < rows, other=0.0)


@jit
def total_of(partials, blocks, BLOCK_PARTIALS: tl.constexpr):
    """The sum of what all blocks have left, in a fixed order."""
    total = tl.zeros([BLOCK_PARTIALS], partials.dtype.element_ty)
    for start in range(0, blocks, BLOCK_PARTIALS):
        i = start + tl.arange(0, BLOCK_PARTIALS)
        total += tl.load(partials + i, mask=i < blocks, other=0.0, cache_modifier=".cg")
    return tl.sum(total, 0)
