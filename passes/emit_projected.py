"""Latents(K = [W_uk c ; rope], V = W_uv c)  =>  flashmla::attend_projected(q, c, rope, W_uk, W_uv, ..., gain, ...)

One node that holds both forms, for lengths known only as they come: absorbed while gain, an integer computed from the sizes
of the inputs, is positive. No guard asks its sign, so nothing recompiles. Where expanding is always cheaper gain is 0: K and V
are made for some heads at a time.

Needs: Latents of the site, a complete spec of H key heads. Keeps: shape, stride and dtype of the value that is replaced.
"""

from __future__ import annotations

import sympy
import torch

from . import fold_operands, weights
from .absorb_mla import Latents
from .attention import Attention
from .build import Builder
from .emit import Arguments, like_anchor
from .emit_latent import Emitted, latent_operands
from .fold_operands import Grid


def read_elsewhere(site: Attention, latents: Latents) -> bool:
    """Whether something beside the attention reads K or V as they are written, so that all heads' are made anyway."""
    todo = [linear.product for linear in (*latents.keys, *latents.values)]
    seen = {site.anchor, *todo}
    while todo:
        found = [user for user in todo.pop().users if user not in seen]
        if any(user.op == "output" or user.is_impure() for user in found):
            return True
        seen.update(found)
        todo += found
    return False


def rewrite(site: Attention, latents: Latents, q: Grid, gain: sympy.Basic, given: Arguments, builder: Builder) -> Emitted:
    """Put an attend_projected node in the place of the anchor."""
    sizes = site.sizes
    queries = fold_operands.build(q, builder, sizes.batch, sizes.queries, sizes.head_dim)
    latent, rope = latent_operands(latents, sizes, builder)
    values = sorted(latents.values, key=lambda each: each.start)
    keys_w, values_w = ([weights.build(each.weight, builder) for each in maps] for maps in (latents.keys, values))
    attend = builder.call(
        torch.ops.flashmla.attend_projected.default, queries, latent, rope, keys_w, values_w,
        [key.start for key in latents.keys], latents.rope_start, builder.integer(gain), list(given.tables), list(given.sizes),
        list(given.scalars), str(given.spec),
    )
    out = like_anchor(attend, site, builder)
    site.anchor.replace_all_uses_with(out, propagate_meta=False)
    held = tuple(linear.weight.node for linear in (*latents.keys, *latents.values))
    return Emitted(attend, attend, out, (latents.latent.node, latents.rope.node, q.node), held, latents.rank)
