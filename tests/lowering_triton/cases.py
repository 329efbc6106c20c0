"""An attention to try: its spec, its operands, and how far a kernel is from the truth.

`error(case)` launches one kernel into an output full of NaN; `formula_error` is the error of the same formula in the
working dtype. Both are measured from float64. A case is plain data, so that it can travel to the interpreter's process.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mla_compiler.ir import AttentionSpec
from mla_compiler.lowering import gpu, reference
from mla_compiler.lowering.bounds import bounds
from mla_compiler.lowering.choice import Choice
from mla_compiler.lowering.held import Held
from mla_compiler.lowering.machine import machine_of
from mla_compiler.lowering.select import choose, choose_paged
from mla_compiler.pool.formats import PAIRS
from tests.ops.pages import encoded, store

PREFILL = Choice("prefill", 32, 16, 4, 1)
DECODE = Choice("decode", 16, 16, 4, 1)


@dataclass(frozen=True)
class Case:
    """`tables` names functions of this module, in the order of the spec; `layout` how q, k and v lie in memory.

    `page` > 0: keys and values lie in shuffled pages of so many tokens, which `keys` is a multiple of, in `format`.
    """

    spec: str
    tables: tuple[str, ...] = ()
    sizes: tuple[int, ...] = ()
    scalars: tuple[float, ...] = ()
    batch: int = 1
    heads: int = 2
    queries: int = 37
    keys: int = 37
    head_dim: int = 16
    value_dim: int = 16
    dtype: torch.dtype = torch.float16
    layout: str = "contiguous"
    choice: Choice | None = PREFILL
    page: int = 0
    format: str = "plain"

    def but(self, **changes) -> Case:
        return replace(self, **changes)


@dataclass(frozen=True)
class Operands:
    q: Tensor
    k: Tensor
    v: Tensor
    tables: list[Tensor]
    held: tuple[Held, Held] | None = None


def operands(case: Case, device: str = "cpu") -> Operands:
    torch.manual_seed(0)
    group = AttentionSpec.parse(case.spec).group
    kv = (case.batch, case.heads // group, case.keys)
    shapes = [(case.batch, case.heads, case.queries, case.head_dim), (*kv, case.head_dim), (*kv, case.value_dim)]
    q, k, v = (LAYOUTS[case.layout](torch.randn(shape)).to(case.dtype) for shape in shapes)
    held = None
    if case.page:
        pages = torch.randperm(3 + case.batch * case.keys // case.page)[3:].view(case.batch, -1).int()
        pages[0] -= 3 + pages.numel()  # a negative page counts from the last
        (k, held_k), (v, held_v) = (in_pages(x, pages, case, keys, device) for x, keys in ((k, True), (v, False)))
        held = held_k, held_v
    tables = [globals()[name](case) for name in case.tables]
    if device != "cpu":
        q, k, v, *tables = (_moved(x, device) for x in (q, k, v, *tables))
    return Operands(q, k, v, tables, held)


def in_pages(x: Tensor, pages: Tensor, case: Case, keys: bool, device: str) -> tuple[Tensor, Held]:
    """What x [B, H, S, D] is in the case's format, and where it lies; nobody has three of the pages, which are poisoned.

    In float64: a formula in the case's dtype rounds what the kernel holds in other channels, or unrounded.
    """
    values, scales, numbers = encoded(x, case.format, keys, torch.float64)
    count = 3 + pages.numel()
    stores = [None if y is None else store(y, pages.long() % count, case.page, count) for y in (values, scales)]
    poisoned = stores[0] if scales is None else stores[1]
    unused = [page for page in range(count) if page not in pages % count]
    poisoned[unused] = torch.nan
    moved = [None if y is None else y.to(device) for y in stores]
    return numbers, Held(*moved, pages.to(device), PAIRS[case.format][0 if keys else 1].name)


def _moved(x: Tensor, device: str) -> Tensor:
    """On the device, with the strides it has."""
    base = x.as_strided((max(1, x.untyped_storage().nbytes() // x.itemsize),), (1,), 0).to(device)
    return base.as_strided(x.shape, x.stride(), x.storage_offset())


def run(case: Case, device: str = "cpu", given: Operands | None = None) -> Tensor:
    """The kernel's output, in the case's dtype. The interpreter's rounding to bfloat16 is wrong: there torch rounds."""
    given = given or operands(case, device)
    spec = AttentionSpec.parse(case.spec)
    shape = case.batch, case.heads, case.queries, case.keys, case.head_dim, case.value_dim
    machine = machine_of(given.q.device)
    choice = case.choice or (choose_paged(spec, *shape, case.dtype, machine, case.format, case.page) if case.page else
                             choose(spec, *shape, case.dtype, machine))
    exact = torch.float32 if case.dtype == torch.bfloat16 and device == "cpu" else case.dtype
    shape = (case.batch, case.queries, case.heads, case.value_dim)
    out = torch.full(shape, torch.nan, dtype=exact, device=device).transpose(1, 2)
    k, v = given.held or (given.k, given.v)
    gpu.launch(spec, choice, given.q, k, v,
               gpu.operands(spec, given.tables, list(case.sizes), list(case.scalars)), out)
    return out.to(case.dtype)


def errors(case: Case, device: str = "cpu") -> tuple[float, float]:
    """(the kernel's, the formula's in the working dtype): largest differences from float64; NaN if one has a NaN.

    The formula rounds twice at least, its weights and its result: it is given these two half units in the last place of the
    largest output, which a small tensor can beat by luck. In float32 its sums are taken in order, as the kernel takes them,
    and its exponentials are those of the hardware: ex2.approx is within 2^-22 (PTX ISA), and weights that are off by
    delta move the output by delta max|v|.
    """
    given = operands(case, device)
    found = run(case, device, given)
    cpu = [x.cpu() for x in (given.q, given.k, given.v)]
    rest = ([t.cpu() for t in given.tables], case.sizes, case.scalars, case.spec)
    truth = reference.attend(*cpu, *rest)
    exact = case.dtype == torch.float32
    formula = reference.attend(*cpu, *rest, dtype=case.dtype, product=reference.in_order if exact else torch.matmul)
    measured = [(x.cpu().double() - truth).abs().max().item() for x in (found, formula)]
    rounding = truth.abs().max().item() * torch.finfo(case.dtype).eps
    return measured[0], max(measured[1], rounding, cpu[2].abs().max().item() * 2**-22 if exact else 0.0)


# --------------------------------------------------------------------------------------------------------------- memory


def _strided(x: Tensor) -> Tensor:
    """Unit stride nowhere, offset from the start."""
    big = torch.randn([2 * size + 1 for size in x.shape])
    view = big[1::2, 1::2, 1::2, 1::2]
    return view.copy_(x)


LAYOUTS = {
    "contiguous": lambda x: x,
    "tokens first": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    "dim first": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "strided": _strided,
    "expanded": lambda x: x[:, :, :1].expand(x.shape),
    "sliced": lambda x: torch.cat([x, x], -1)[..., : x.shape[-1]],
}


# --------------------------------------------------------------------------------------------------------------- tables


def slopes(case: Case) -> Tensor:
    return -0.1 * torch.arange(1, case.heads + 1)


def sinks(case: Case) -> Tensor:
    return torch.linspace(-2, 3, case.heads)


def bias(case: Case) -> Tensor:
    return torch.randn(1, case.heads, case.queries, case.keys)


def infinite_bias(case: Case) -> Tensor:
    """-inf where a key is not to be seen, in one row everywhere."""
    return torch.where(mask(case), torch.randn(1, 1, case.queries, case.keys), -torch.inf)


def padding(case: Case) -> Tensor:
    """Left padding: a third of the keys of the last sequence, none of the first."""
    start = torch.linspace(0, case.keys // 3, case.batch).long() if case.batch > 1 else torch.tensor([case.keys // 3])
    return torch.arange(case.keys) >= start[:, None]


def lengths(case: Case) -> Tensor:
    """Live keys of each sequence, less one."""
    return torch.linspace(case.keys // 3, case.keys // 2, case.batch).long()


def uneven(case: Case) -> Tensor:
    """Live keys less one: none in the first sequence, all in the second, then a few."""
    few = [-1, case.keys - 1, 2, case.keys // 2, 16]
    return torch.tensor([min(few[at % 5], case.keys - 1) for at in range(case.batch)])


def length(case: Case) -> Tensor:
    return torch.tensor(case.keys // 2)


def documents(case: Case) -> Tensor:
    return (torch.arange(max(case.queries, case.keys)) // 11).expand(case.batch, -1)


def long_documents(case: Case) -> Tensor:
    """One longer than a tile of every kernel, one short, and so on."""
    lengths = torch.tensor([200, 10, 1, 119]).repeat(-(-max(case.queries, case.keys) // 330))
    return torch.arange(len(lengths)).repeat_interleave(lengths)[: max(case.queries, case.keys)].expand(case.batch, -1)


def long_bounds(case: Case) -> Tensor:
    return bounds(long_documents(case))


def segments(case: Case) -> Tensor:
    """In no order: some tiles of a row are live, some between them are not."""
    return torch.tensor([0, 2, 1, 0, 2, 2, 0]).repeat_interleave(64)[: max(case.queries, case.keys)].expand(case.batch, -1)


def segment_bounds(case: Case) -> Tensor:
    return bounds(segments(case))


def short(case: Case) -> Tensor:
    """Shorter than the keys: an index beyond it is in the branch not taken."""
    return torch.randint(0, 2, (case.batch, case.keys // 2))


def mask(case: Case) -> Tensor:
    """Random and sparse in blocks; the second row sees nothing."""
    rows, columns = torch.meshgrid(torch.arange(case.queries), torch.arange(case.keys), indexing="ij")
    seen = (torch.rand(1, 1, case.queries, case.keys) < 0.6) & ((rows // 24 + columns // 24) % 2 == 0)
    seen = seen | (columns // 64 == 1)
    seen[:, :, 1:2] = False
    return seen


def hull(case: Case) -> Tensor:
    return _summary(steady_mask(case))[0]


def classes(case: Case) -> Tensor:
    return _summary(steady_mask(case))[1]


def _summary(mask: Tensor) -> tuple[Tensor, Tensor]:
    from mla_compiler.lowering import cpu

    return cpu.summarize(mask)


def steady_mask(case: Case) -> Tensor:
    """The same in every call: what `hull` and `classes` summarise."""
    torch.manual_seed(1)
    return mask(case)


def step_mask(case: Case) -> Tensor:
    """[B, 1, T, S]: padding to the left, a hole, room to the right; in the first sequence the first row sees nothing."""
    i, j = torch.arange(case.queries)[:, None], torch.arange(case.keys)
    start = torch.linspace(0, case.keys // 3, case.batch).long()[:, None, None, None]
    hole = (j >= case.keys // 2) & (j < case.keys // 2 + 20)
    seen = (j >= start) & (j < case.keys - case.queries - 20 + i) & ~hole
    seen[0, :, 0] = False
    return seen


def blank_mask(case: Case) -> Tensor:
    """`step_mask` without what its classes tell."""
    whole = step_classes(case).repeat_interleave(64, 2)[:, :, : case.queries] == 2
    return step_mask(case) & ~whole.repeat_interleave(64, 3)[..., : case.keys]


def step_hull(case: Case) -> Tensor:
    return _summary(step_mask(case))[0]


def step_classes(case: Case) -> Tensor:
    return _summary(step_mask(case))[1]
