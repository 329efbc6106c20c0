"""Index tensors of `balance.py`, in Triton; `hopper.py` has them in Gluon, whose tensors have layouts."""

import triton
import triton.language as tl


@triton.jit
def ordinals(N: tl.constexpr):
    """0, 1, ..., N - 1  [N]."""
    return tl.arange(0, N)


@triton.jit
def in_line(x):
    """x [N], as `ordinals` lies."""
    return x


@triton.jit
def corners(N_B: tl.constexpr, N_T: tl.constexpr):
    """Numbers of sequences [N_B, 1] and of query positions [1, N_T]."""
    return tl.arange(0, N_B)[:, None], tl.arange(0, N_T)[None, :]
