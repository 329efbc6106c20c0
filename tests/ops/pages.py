"""An attention problem with its keys and values in pages: shuffled, poisoned wherever no query sees anything."""

from dataclasses import replace

import sympy
import torch

from mla_compiler.ir import AttentionSpec
from mla_compiler.lowering.cpu_plan import plan_of
from mla_compiler.lowering.torch_index import box
from mla_compiler.pool import formats


def in_pages(arguments, page=4, format="plain", kind=torch.int32):
    """The arguments of flashmla::attend  =>  those of attend_paged, and those of attend of the same numbers."""
    q, k, v, *env, text = arguments
    spec = AttentionSpec.parse(text)
    text = str(replace(spec, hi=sympy.Min(spec.hi, k.shape[2])))  # the last page may reach beyond S
    batch, length = q.shape[0], k.shape[2]
    count = -(-length // page)
    order = torch.randperm(batch * count + 3, generator=torch.Generator().manual_seed(5))
    pages = order[: batch * count].view(batch, count)
    lo, hi = hull(q, env, text, length)
    stores, scales, numbers = [], [], []
    for x, keys in ((k, True), (v, False)):
        values, scale, number = encoded(x, format, keys)
        values, scale = (y if y is None else store(y, pages, page, len(order)) for y in (values, scale))
        stores.append(values)
        scales.append(scale)
        numbers.append(number)
    at = torch.arange(count)[None]
    absent = (at >= -(-hi[:, None] // page)) | (at < lo[:, None] // page)
    pages = torch.where(absent, -1, pages).to(kind)
    poison(stores if format == "plain" else scales, pages, lo, hi, page)
    return (q, *stores, *scales, pages, format, *env, text), (q, *numbers, *env, text)


def hull(q, env, text, length):
    """The first key that each row of the batch may see, and one past the last."""
    plan, index = plan_of(text, torch.float64), box(*q.shape[:2], (0, q.shape[2]), (0, 1))[:3]
    found = []
    for bound, most in ((plan.lo, torch.amin), (plan.hi, torch.amax)):
        x = torch.as_tensor(bound(*index, None, *env), dtype=torch.float64).clamp(0, length)
        x = x if x.dim() else x.view(1, 1, 1, 1)
        found.append(most(x, (1, 2, 3)).long().expand(len(q)) if x.numel() else torch.zeros(len(q), dtype=torch.long))
    return found


def encoded(x, format, keys, dtype=None):
    """Values, scales, and what they say in `dtype`, x's unless given, of x [B, H, S, D]."""
    if format == "plain":
        return x, None, x
    kind = formats.PAIRS[format][0 if keys else 1]
    values, scales = formats.quantize(x, kind.name, kind.group(x.shape[3], keys))
    return values, scales, formats.dequantize(values, scales, kind.name, dtype or x.dtype)


def store(x, pages, page, count):
    """x [B, H, S, D] in pages [count, H, page, D]."""
    padded = torch.nn.functional.pad(x, (0, 0, 0, -x.shape[2] % page))
    made = x.new_zeros((count, x.shape[1], page, x.shape[3]))
    made[pages] = padded.unflatten(2, (-1, page)).transpose(1, 2)
    return made


def poison(stores, pages, lo, hi, page):
    """NaN in every slot that no row of the batch sees."""
    seen = torch.zeros(len(stores[0]), page, dtype=torch.bool)
    for b in range(len(pages)):
        for j in range(int(lo[b]), int(hi[b])):
            seen[pages[b, j // page], j % page] = True
    for x in stores:
        x.transpose(1, 2)[~seen] = torch.nan

