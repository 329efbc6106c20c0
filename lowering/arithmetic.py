"""The functions of the expression language that Triton does not have.

    floor_div(a, b)  a // b as Python means it            floor_mod(a, b)  a - floor_div(a, b) * b
    tanh(x)          to 3 units in the last place of float32
"""

import triton
import triton.language as tl


@triton.jit
def floor_div(a, b):
    """Rounded down; the machine rounds to zero."""
    q = a // b
    r = a - q * b
    return tl.where((r != 0) & ((r < 0) != (b < 0)), q - 1, q)


@triton.jit
def floor_mod(a, b):
    """With the sign of b; the machine's has the sign of a."""
    r = a % b
    return tl.where((r != 0) & ((r < 0) != (b < 0)), r + b, r)


@triton.jit
def tanh(x):
    """Lambert's continued fraction near 0, where 1 - 2 / (e^2x + 1) would cancel; NaN and inf propagate."""
    x2 = x * x
    near = x * (10395.0 + x2 * (1260.0 + x2 * 21.0)) / (10395.0 + x2 * (4725.0 + x2 * (210.0 + x2)))
    far = 1.0 - 2.0 / (tl.exp(2.0 * x) + 1.0)
    return tl.where(tl.abs(x) < 0.6, near, far)
