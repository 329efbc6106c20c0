"""flashmla::attend and flashmla::summarize on a GPU: choose, generate, launch. Nothing is read back to the host.

The same code runs on CPU tensors under TRITON_INTERPRET=1. Triton is imported at the first call.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ..errors import OperandError
from ..ir import TILE, AttentionSpec
from ..ops import output_like
from ..pool.formats import PAIRS
from ..sparsity import EXACTLY
from . import codegen, held, modules, printed, tma, tune
from .checks import check_operands
from .checks_paged import check_paged_operands
from .choice import Choice, padded, padded_value
from .decode import config as decode_config
from .decode import launch as decode
from .decode.config import MOST_BOUNDS, Shape
from .held import Held, Layout, layout_of
from .hopper import launch as hopper
from .launch import launch as start
from .machine import machine_of
from .prefill import config as prefill
from .rotation import attend_rotated
from .select import DTYPES, candidates, choose, choose_paged, choose_paged_plain, chooses
from .sparse import listing, paging
from .sparse.config import of_few_queries
from .sparse.paging import Listed


def attend(
    q: Tensor, k: Tensor, v: Tensor, tables: list[Tensor], sizes: list[int], scalars: list[float], spec: str
) -> Tensor:
    """The op. Shapes: see AttentionSpec. OperandError where operands and spec disagree."""
    check_operands(q, k, v, tables, sizes, scalars, spec, DTYPES)
    return attend_into(q, k, v, tables, sizes, scalars, spec, output_like(q, v, AttentionSpec.parse(spec).heads_first))


def attend_into(
    q: Tensor, k: Tensor, v: Tensor, tables: list[Tensor], sizes: list[int], scalars: list[float], spec: str, out: Tensor
) -> Tensor:
    """`attend`, its operands known to be right, into out [B, H, T, Dv] of any strides."""
    meaning = AttentionSpec.parse(spec)
    if out.numel() == 0 or k.shape[2] == 0:
        return out.zero_()
    given = operands(meaning, tables, sizes, scalars)
    launch(meaning, _choice(meaning, q, k, v, given, out), q, k, v, given, out)
    return out


def attend_paged(
    q: Tensor, k: Tensor, v: Tensor, k_scales: Tensor | None, v_scales: Tensor | None, pages: Tensor, format: str,
    tables: list[Tensor], sizes: list[int], scalars: list[float], spec: str, bounds: Tensor | None = None,
) -> Tensor:
    """The op on keys and values in pages. OperandError where operands and spec disagree."""
    check_paged_operands(q, k, v, k_scales, v_scales, pages, format, tables, sizes, scalars, spec, DTYPES, bounds)
    meaning = AttentionSpec.parse(spec)
    plain = replace(meaning, sparsity=EXACTLY)
    kinds = PAIRS[format]
    keys, values = Held(k, k_scales, pages, kinds[0].name), Held(v, v_scales, pages, kinds[1].name)
    out = output_like(q, v.new_empty((1, 1, 1, values.shape[3]), dtype=q.dtype), meaning.heads_first)
    if out.numel() == 0 or keys.shape[2] == 0:
        return out.zero_()
    shape = *q.shape[:3], keys.shape[2], q.shape[3], values.shape[3]
    given, chosen = operands(plain, tables, sizes, scalars), bounds is not None and chooses(meaning, q.shape[2])
    choice = choose_paged(plain, *shape, q.dtype, machine_of(q.device), format, keys.store.shape[2], chosen)
    if chosen:
        assert bounds is not None
        if not choice.programs:
            raise OperandError(f"attend_paged: pages are chosen for {MOST_BOUNDS} queries at most; found {len(q) * q.shape[2]}")
        keys, values, given = _of_chosen_pages(meaning, q, keys, values, bounds, given)
    launch(plain, choice, q, keys, values, given, out)
    return out


def _of_chosen_pages(
    spec: AttentionSpec, q: Tensor, keys: Held, values: Held, bounds: Tensor, given: list[Any]
) -> tuple[Listed, Listed, list[Any]]:
    """Keys and values of the pages that the spec's policy chooses, and the operands of the kernel that attends them."""
    plain, given = replace(spec, sparsity=EXACTLY), [*given, paging.part_of(spec.sparsity)]
    with torch.cuda.device_of(q):
        found = paging.listed(
            partial(kernel, plain, "bounded"), spec.group, q, bounds, keys.pages, keys.store.shape[2], given, upcast(q.dtype))
    listed = (Listed(x.store, x.scales, x.pages, x.format, found) for x in (keys, values))
    return *listed, given  # type: ignore[return-value]


def _choice(spec: AttentionSpec, q: Tensor, k: Tensor, v: Tensor, given: list[Any], out: Tensor) -> Choice:
    """What select takes; with `autotune` what is fastest for these operands, into an `out` that is written anew."""
    shape = (*q.shape[:3], k.shape[2], q.shape[3], v.shape[3])
    if not spec.autotune or interpreted():
        return choose(spec, *shape, q.dtype, machine_of(q.device))
    options = candidates(spec, *shape, q.dtype, machine_of(q.device))
    facts = (*shape[:3], rounded(shape[3]), *shape[4:])
    return fastest(spec, options, facts, q.dtype, q.device, lambda choice: launch(spec, choice, q, k, v, given, out))


def rounded(keys: int) -> int:
    """To the next power of two: a growing sequence is not timed at every step."""
    return 1 << (keys - 1).bit_length()


def fastest(spec: AttentionSpec, options: Sequence[Choice], facts: Sequence[object], dtype: torch.dtype, device: torch.device,
            run: Callable[[Choice], None]) -> Choice:
    """Of `options` the one whose `run` takes least, known or timed now; the first while a CUDA graph is captured. facts: of the
    operands, what decides."""
    texts = [codegen.source(spec, family) for family in dict.fromkeys(choice.family for choice in options)]
    key = tune.key_of(spec, tuple(facts), dtype, *tune_facts(device), *texts)
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        return tune.known(key) or options[0]
    return tune.best(key, options, lambda choice: milliseconds(lambda: run(choice)))


def milliseconds(call: Callable[[], None]) -> float:
    """Median of a call on the GPU, its second-level cache cleared before each."""
    from triton.testing import do_bench

    return float(do_bench(call, warmup=5, rep=25, return_mode="median"))


@lru_cache(maxsize=64)
def tune_facts(device: torch.device) -> tuple[str, ...]:
    """The GPU, and the versions that make its code."""
    import triton

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return name, torch.__version__, triton.__version__


def launch(
    spec: AttentionSpec, choice: Choice, q: Tensor, k: Tensor | Held, v: Tensor | Held, given: list[Any], out: Tensor
) -> None:
    """Runs `choice` into out [B, H, T, DV], of any strides."""
    if choice.family.startswith("decode") and spec.sparsity.selects:
        spec = of_few_queries(spec)
        given = given[:len(printed.operands(spec))]
    family = {"hopper": _hopper, "prefill": _prefill, "decode_hopper": _decode_hopper}.get(choice.family, _decode)
    with torch.cuda.device_of(q):
        attend_rotated(lambda q, out: family(spec, choice, q, k, v, given, out), q, k, v, out)


def _hopper(spec: AttentionSpec, choice: Choice, q: Tensor, k: Tensor, v: Tensor, given: list[Any], out: Tensor) -> None:
    """By TMA, or by the plain kernel where TMA cannot address a tensor."""
    if not tma.describable(q, k, v, out):
        plain = prefill.configure(q.shape[3], v.shape[3], q.itemsize, prefill.room(spec), machine_of(q.device))
        return _prefill(spec, plain, q, k, v, given, out)
    listed = _listed(spec, choice, q, k, given)
    return hopper.launch(kernel(spec, "hopper"), spec.group, choice, q, k, v, [*given, *listed], out, spec.tile is not None,
                         listed[0] if listed else None)


def _decode_hopper(
    spec: AttentionSpec, choice: Choice, q: Tensor, k: Tensor | Held, v: Tensor | Held, given: list[Any], out: Tensor
) -> None:
    """By TMA, or by the plain kernel where TMA cannot address K or V, or their rows have several scales."""
    memory = *held.boxed(k), *held.boxed(v)
    one_scale = all(x.shape[2] == 1 for each in (k, v) for x in held.boxed(each)[1:])
    if not (one_scale and tma.describable(*memory) and tma.unit_stride(q) and tma.unit_stride(out)):
        return _decode(spec, _plain_decode(spec, q, k, v), q, k, v, given, out)
    return decode.launch_hopper(kernel(spec, "decode_hopper", layout_of(k)), spec.group, choice, q, k, v, given, out)


def _plain_decode(spec: AttentionSpec, q: Tensor, k: Tensor | Held, v: Tensor | Held) -> Choice:
    """The configuration of the kernel that takes any strides."""
    batch, heads, queries, head_dim = q.shape
    keys, value_dim, machine = k.shape[2], v.shape[3], machine_of(q.device)
    if isinstance(k, Held):
        page = k.store.shape[2] if k.layout.chosen else 0
        return choose_paged_plain(spec, batch, heads, queries, keys, head_dim, value_dim, q.dtype, machine, k.format, page)
    shape = Shape(batch, k.shape[1], queries, keys, head_dim, value_dim, q.itemsize)
    return decode_config.configure(spec, shape, False, machine)


def _decode(
    spec: AttentionSpec, choice: Choice, q: Tensor, k: Tensor | Held, v: Tensor | Held, given: list[Any], out: Tensor
) -> None:
    constants = blocks(spec, choice, q.shape[3], v.shape[3], upcast(q.dtype))
    decode.launch(kernel(spec, "decode", layout_of(k, v)), spec.group, choice, q, k, v, given, constants, out)


def _listed(spec: AttentionSpec, choice: Choice, q: Tensor, k: Tensor, given: list[Any]) -> tuple[Any, ...]:
    """What `listing` makes for a spec whose tiles are chosen beforehand."""
    if not spec.sparsity.selects:
        return ()
    plain = replace(spec, sparsity=EXACTLY, site="")
    own = given[:len(printed.operands(plain))]
    return listing.listed(partial(kernel, plain), spec, choice, q, k, own, upcast(q.dtype))


def _prefill(
    spec: AttentionSpec, choice: Choice, q: Tensor, k: Tensor | Held, v: Tensor | Held, given: list[Any], out: Tensor
) -> None:
    if spec.sparsity.selects:
        assert isinstance(k, Tensor)
        given = [*given, *_listed(spec, choice, q, k, given)]
    batch, heads, queries, head_dim = q.shape
    grid = (batch * heads * -(-queries // choice.block_m),)
    keys, values = held.arguments(k), held.arguments(v)
    arguments = (q, q.stride(), *keys, *values, out, out.stride(), heads, queries, k.shape[2], *given)
    constants = blocks(spec, choice, head_dim, v.shape[3], upcast(q.dtype))
    function = kernel(spec, "prefill", layout_of(k, v)).prefill
    start(function, grid, arguments, constants, choice.warps, choice.stages, q.device.index)


def summarize(mask: Tensor) -> tuple[Tensor, Tensor]:
    """mask [B?, H?, T?, S] bool -> hull [B?, H?, T?, 2] int32, classes [B?, H?, T?/TILE, S/TILE] int8."""
    *lead, rows, columns = mask.shape
    hull = mask.new_empty([*lead, rows, 2], dtype=torch.int32)
    classes = mask.new_empty([*lead, -(-rows // TILE), -(-columns // TILE)], dtype=torch.int8)
    if mask.numel() == 0:
        return hull.zero_(), classes.zero_()
    from .summary.kernel import summarize as kernel_

    four = mask[(None,) * (4 - mask.dim())]
    block_rows = min(TILE, 1 << (rows - 1).bit_length())
    with torch.cuda.device_of(mask):
        start(kernel_, (four.shape[0] * four.shape[1] * classes.shape[-2],),
              (four, four.stride(), hull, classes, four.shape[1], rows, columns),
              {"R": block_rows, "W": max(2, 64 // block_rows)}, 4, 1, mask.device.index)
    return hull, classes


# ------------------------------------------------------------------------------------------------------------ arguments


def kernel(spec: AttentionSpec, family: str, layout: Layout | None = None) -> ModuleType:
    """The imported module of the spec's kernel."""
    return modules.load(codegen.source(spec, family, layout), family)


def blocks(spec: AttentionSpec, choice: Choice, head_dim: int, value_dim: int, upcast: bool = False) -> dict[str, Any]:
    """The constexpr arguments that both kernels have."""
    return {
        "D": head_dim, "DV": value_dim, "GROUP": spec.group, "BLOCK_M": choice.block_m, "BLOCK_N": choice.block_n,
        "BLOCK_D": padded(head_dim), "BLOCK_DV": padded_value(head_dim, value_dim), "STAGES": choice.stages,
        "UPCAST": upcast,
    }


def upcast(dtype: torch.dtype) -> bool:
    """Whether products are taken in float32: the interpreter has none in bfloat16."""
    return dtype == torch.bfloat16 and interpreted()


def operands(spec: AttentionSpec, tables: list[Tensor], sizes: list[int], scalars: list[float]) -> list[Any]:
    """Values for `printed.operands(spec)`, but for the list of tiles."""
    values: dict[str, Any] = {f"n{at}": size for at, size in enumerate(sizes)}
    values["least"] = spec.sparsity.log2_limit
    values.update((f"x{at}", scalar) for at, scalar in enumerate(scalars))
    for name in _tables(spec):
        tensor = tables[int(name[1:])]
        values[name] = tensor
        values.update((f"{name}_length{dim}", length) for dim, length in enumerate(tensor.shape))
        values.update((f"{name}_stride{dim}", stride) for dim, stride in enumerate(tensor.stride()))
    return [values[name] for name in printed.operands(spec) if name in values]


@lru_cache(maxsize=1024)
def _tables(spec: AttentionSpec) -> tuple[str, ...]:
    return spec.tables


def interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"
