"""A site in words and numbers: where it stands in the user's source, what it means, what it costs."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import sympy
import torch
from torch.fx import Node

from . import expr as E
from .costs import Costs, estimate, shape_text
from .costs_latent import latent_costs
from .ir import Site
from .pool.formats import PAIRS

if TYPE_CHECKING:
    from .pipeline import Progress, Run

_NAMES = {
    "flashmla.attend_latent.default": ("q_latent", "q_rope", "latent", "rope"),
    "flashmla.attend_projected.default": ("q", "latent", "rope"),
}
"""Of the operands that are shown; q, k, v of other operators."""
_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+), in (?P<function>\S+)')


def describe(index: int, site: Progress, run: Run) -> Site:
    """The record that the report shows."""
    where = {"source": source_of(site.anchor), "layer": layer_of(site.anchor)}
    place: dict[str, Any] = {"index": index, "name": site.name, **where}
    if site.rejected is not None:
        return Site(**place, reason=str(site.rejected), **_operand_facts(site))
    latent = _latent_facts(site)
    assert site.attend is not None and site.spec is not None and site.found is not None
    spec = dataclasses.replace(site.spec, site="")
    assert site.raised is not None
    costs, kernel, config = _form(site)(site, run)
    return Site(
        **place, status="fused", predicate=_named(site.predicate, run), score=_named(site.raised.score, run),
        hull=_hull(site, run),
        group=spec.group, kernel=kernel, config=config, spec=str(spec),
        flops_before=costs.flops_before, flops_after=costs.flops_after, bytes_before=costs.bytes_before,
        bytes_after=costs.bytes_after, sparsity=site.sparsity, **_operand_facts(site), **latent,
        pages="" if site.pages is None else site.pages.text(),
    )


def _form(site: Progress) -> Callable[[Progress, Run], tuple[Costs, str, str]]:
    if site.latent is None or not (site.latent.over_latents or site.latent.by_heads):
        return _attended
    return _absorbed if site.latent.absorbed else _projected


def _attended(site: Progress, run: Run) -> tuple[Costs, str, str]:
    """Costs, kernel and configuration of flashmla::attend, and of attend_paged."""
    assert site.attend is not None and site.spec is not None and site.found is not None
    spec, dtype = site.spec, _value(site).dtype
    q, k, v = (tuple(map(hint, node.meta["val"].shape)) for node in site.attend.args[:3])
    kv_bytes, held = (q[3] + v[3]) * dtype.itemsize, None
    in_pages = site.attend.target is torch.ops.flashmla.attend_paged.default
    if in_pages:
        pages, (keys, values) = site.attend.args[5].meta["val"], PAIRS[site.attend.args[6]]
        held = site.attend.args[6], k[2]
        k, v = ((q[0], x[1], hint(pages.shape[1]) * x[2], kind.channels(x[3])) for x, kind in ((k, keys), (v, values)))
        kv_bytes = keys.row_bytes(k[3], dtype, keys=True) + values.row_bytes(v[3], dtype, keys=False)
    kernel, config = run.lowering.choose(spec, q, k, v, dtype, _value(site).device, held)
    costs = estimate(
        spec, B=q[0], H=q[1], Hkv=k[1], T=q[2], S=k[2], D=q[3], Dv=v[3], itemsize=dtype.itemsize,
        mask_bytes=_bytes(site.found.mask_node), repeated=spec.group > 1, score_passes=6 if site.found.handwritten else 0,
        sizes={f"n{at}": hint(size) for at, size in enumerate(site.attend.args[8 if in_pages else 4])}, kv_bytes=kv_bytes,
        gathered=in_pages,
    )
    return costs, kernel, config


def _absorbed(site: Progress, run: Run) -> tuple[Costs, str, str]:
    """The same of flashmla::attend_latent: before, K and V are made for every head."""
    assert site.attend is not None and site.spec is not None and site.latent is not None and site.latent.shape is not None
    q_latent, _, _, rope, tokens = site.attend.args[:5]
    q_shape, rope_shape = (tuple(map(hint, node.meta["val"].shape)) for node in (q_latent, rope))
    chosen = None if tokens is None else hint(tokens.meta["val"].shape[2])
    value = _value(site)
    kernel, config = run.lowering.choose_latent(site.spec, q_shape, rope_shape, chosen, value.dtype, value.device)
    sizes = {f"n{at}": hint(size) for at, size in enumerate(site.attend.args[7])}
    return latent_costs(site.latent.shape, site.spec, run.hints(), sizes), kernel, config


def _projected(site: Progress, run: Run) -> tuple[Costs, str, str]:
    """Of flashmla::attend_projected, in the form that the sizes at hand take."""
    assert site.attend is not None and site.spec is not None and site.latent is not None and site.latent.shape is not None
    q, (_, _, rank), rope = (tuple(map(hint, node.meta["val"].shape)) for node in site.attend.args[:3])
    value, spec, absorb = _value(site), site.spec, site.latent.decision.absorb
    if absorb:
        kernel, config = run.lowering.choose_latent(spec, (*q[:3], rank), rope, None, value.dtype, value.device)
    else:
        kernel, config = _by_heads(site, run, q, rope[1])
    sizes = {f"n{at}": hint(size) for at, size in enumerate(site.attend.args[9])}
    costs = latent_costs(site.latent.shape, spec, run.hints(), sizes, absorb)
    at_hand = any(isinstance(size, torch.SymInt) for node in site.attend.args[:2] for size in node.meta["val"].shape)
    return costs, kernel, f"{config}, at the sizes at hand" if at_hand else config


def _by_heads(site: Progress, run: Run, q: tuple[int, ...], keys: int) -> tuple[str, str]:
    """Kernel and configuration of one group of heads, and how many those are if not all."""
    assert site.attend is not None and site.spec is not None
    value, width = _value(site), hint(site.attend.meta["val"].shape[3])
    batch, heads, queries, head_dim = q
    most = run.lowering.heads_at_once(batch, heads, queries, keys, head_dim + width, value.itemsize, value.device)
    group = (batch, most, queries, head_dim), (batch, most, keys, head_dim), (batch, most, keys, width)
    kernel, config = run.lowering.choose(site.spec, *group, value.dtype, value.device)
    return kernel, config if most == heads else f"{config}, {most} of {heads} heads at a time"


def _latent_facts(site: Progress) -> dict[str, Any]:
    return {} if site.latent is None else {"latent": site.latent.text(), "certificate": site.latent.certificate}


def source_of(node: Node) -> str:
    """`file.py:41 forward` of the innermost frame outside torch, or nothing."""
    frames = _FRAME.findall(node.meta.get("stack_trace") or "")
    outside = [frame for frame in frames if "/torch/" not in frame[0]] or frames
    return f"{outside[-1][0].rsplit('/', 1)[-1]}:{outside[-1][1]} {outside[-1][2]}" if outside else ""


def layer_of(node: Node) -> str:
    """`model.layers.3.self_attn`, or nothing for a plain function."""
    stack = node.meta.get("nn_module_stack") or {}
    path = str(list(stack.values())[-1][0]) if stack else ""
    path = re.sub(r"^L\[['\"]\w+['\"]\]\.?", "", path)
    return re.sub(r"\[['\"]?(\w+)['\"]?\]", r".\1", path).replace("._modules", "").replace("slf.", "")


def hint(size: Any) -> int:
    """The size at hand for a symbolic one."""
    if isinstance(size, Node):
        size = size.meta["val"]
    return int(size.node.hint) if isinstance(size, torch.SymInt) else int(size)


def _value(site: Progress) -> torch.Tensor:
    assert site.attend is not None
    return site.attend.args[0].meta["val"]  # type: ignore[union-attr]


def _operand_facts(site: Progress) -> dict[str, Any]:
    node = site.attend or site.anchor
    names = _NAMES.get(str(node.target), ("q", "k", "v"))
    args = [arg.meta["val"] for arg in node.args[:len(names)] if isinstance(arg, Node)]
    facts = {"dtype": str(args[0].dtype).removeprefix("torch."), "device": str(args[0].device)} if args else {}
    return {**facts, "shape": shape_text(names, [tuple(arg.shape) for arg in args])} if len(args) == len(names) else facts


def _hull(site: Progress, run: Run) -> str:
    """`[0, i + 1)`; where a mask was summarised, that bounds it too."""
    assert site.raised is not None and site.spec is not None
    lo, hi = site.raised.lo, site.raised.hi
    text = f"[{_named(lo, run)}, {'S' if hi == sympy.oo else _named(hi, run)})"
    return text if (site.spec.lo.count(E.Load), site.spec.hi.count(E.Load)) == (lo.count(E.Load), hi.count(E.Load)) \
        else f"{text} and the rows of the mask"


def _named(expression: sympy.Basic, run: Run) -> str:
    """The expression with its tables and sizes as the graph, and where it can the user's source, calls them."""
    renamed = {}
    for load in E.loads(expression):
        node = run.evaluator.leaves[load.name]
        renamed[load.args[0]] = E.table(load.kind_letter + run.input_names.get(node.name, node.name))
    text = E.to_text(expression.xreplace(renamed))
    return re.sub(r"\b[MTF](\w+)\[", r"\1[", text)


def _bytes(node: Node | None) -> int:
    if node is None:
        return 0
    value = node.meta["val"]
    total = value.dtype.itemsize
    for size in value.shape:
        total *= hint(size)
    return total
