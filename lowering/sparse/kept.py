"""kept = min(n, max(ceil(n * part / 65536), always))        how many of the n pages of a sequence a step attends

always = 2 + ceil(T / PAGE): the first page, where a softmax keeps its sink, those of the T queries, and one before them. So the
number depends on lengths alone: work is shared out before it is known which pages are chosen.
"""

import triton
import triton.language as tl

from ..hooks import kept_part
from ..pages import PAGE


@triton.jit
def pages_of(begin, end):
    """The first page of the keys [begin, end) and how many there are: one at least."""
    first = tl.minimum(begin, end) // PAGE
    return first, tl.maximum(tl.cdiv(end, PAGE) - first, 1)


@triton.jit
def recent(T):
    """Pages at the end that are always kept."""
    return 1 + tl.cdiv(T, PAGE)


@triton.jit
def pages_kept(n, T, env):
    """Of n pages."""
    part = (n.to(tl.int64) * kept_part(env) + 65535) >> 16
    return tl.minimum(n, tl.maximum(part.to(tl.int32), 1 + recent(T)))
