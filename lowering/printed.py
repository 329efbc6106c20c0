"""The functions of `hooks.py` for a spec, printed in Triton, and the arguments that its kernel has for them."""

from __future__ import annotations

import math
import textwrap
from dataclasses import dataclass
from functools import lru_cache

import sympy

from .. import expr as E
from ..ir import AttentionSpec
from ..sparsity import EXACTLY
from .errors import LoweringError
from .printer import Printer, bare

LOG2E = math.log2(math.e)
ACCOUNT = ("kept", "kept_heads", "kept_rows", "kept_columns", "kept_group", "kept_queries")
LIST = ("listed", "listed_counts", "listed_capacity")
_ROW, _POINT = "b, h, i", "b, h, i, j"


def chosen(spec: AttentionSpec) -> str:
    """What leaves tiles out: "" nothing, "threshold" the kernel itself, tile by tile, "list" one that ran before it."""
    return "list" if spec.sparsity.selects else "threshold" if spec.sparsity != EXACTLY else ""


def decides(spec: AttentionSpec) -> bool:
    """Whether the kernel itself leaves tiles out, tile by tile."""
    return spec.sparsity.log2_limit > -math.inf


@dataclass(frozen=True)
class Hook:
    """One function of hooks.py, printed: the names it needs, its statements, what it returns."""

    name: str
    arguments: str
    meaning: str
    used: frozenset[str]
    lines: tuple[str, ...]

    def text(self, operands: tuple[str, ...]) -> str:
        unpack = [f"{name} = env[{at}]" for at, name in enumerate(operands) if name in self.used]
        body = "\n".join([f'"""{self.meaning}"""', *unpack, *self.lines])
        arguments = ", ".join(filter(None, (self.arguments, "env")))
        return f"@triton.jit\ndef {self.name}({arguments}):\n" + textwrap.indent(body, "    ")


PART = Hook("kept_part", "", "Of 65536, how many of a sequence's pages are attended.", frozenset(("part",)), ("return part",))
"""Of kernels over chosen pages, whose last operand is that number."""


@lru_cache(maxsize=1024)
def hooks(spec: AttentionSpec) -> tuple[Hook, ...]:
    """The functions of hooks.py for this spec. LoweringError names the expression that Triton cannot say."""
    ranks(spec)
    return (
        _hook("score", "s, " + _POINT, spec.score, LOG2E),
        _hook("hull_lo", _ROW, spec.lo),
        _hook("hull_hi", _ROW, sympy.Integer(0) if spec.hi == sympy.oo else spec.hi),
        _hook("residue", _POINT, spec.residue),
        _hook("tile_class", _POINT, sympy.Integer(1) if spec.tile is None else spec.tile),
        _hook("sink", _ROW, sympy.Integer(0) if spec.sink is None else spec.sink, LOG2E),
        *_sparse_hooks(spec),
    )


def _sparse_hooks(spec: AttentionSpec) -> tuple[Hook, ...]:
    """The last three of hooks.py, where they are asked for."""
    limit = Hook("limit", "", "In units of log2.", frozenset(("least",)), ("return least",))
    lines = ("return listed + program.to(tl.int64) * listed_capacity, tl.load(listed_counts + program)",)
    tiles = Hook("tiles_listed", "program", "A row of the list, and how many it holds.", frozenset(LIST), lines)
    counts = Hook("account", "", "Where what is computed is noted.", frozenset(ACCOUNT), (f"return {', '.join(ACCOUNT)}",))
    found = {"": (), "threshold": (limit,), "list": (limit, tiles)}[chosen(spec)]
    return (*found, counts) if found and spec.site else found


def _hook(name: str, arguments: str, expr: sympy.Basic, scale: float = 1.0) -> Hook:
    """The function that returns scale * expr, as a real if scaled."""
    printer = Printer()
    try:
        result = printer.print(expr) if scale == 1.0 else printer.real(_scaled(expr, scale))
    except LoweringError as error:
        raise LoweringError(f"{name} {E.to_text(expr)}: {error}", name) from error
    meaning = E.to_text(expr) + ("" if scale == 1.0 else ", times log2(e)")
    return Hook(name, arguments, meaning, frozenset(printer.used), (*printer.statements, f"return {bare(result)}"))


def _scaled(expr: sympy.Basic, scale: float) -> sympy.Basic:
    """scale * expr, with the numbers of each term multiplied out."""
    terms = sympy.Add.make_args(expr)
    factored = (term.as_coeff_Mul() for term in terms)
    return sympy.Add(*(sympy.Mul(sympy.Float(number * scale), rest) for number, rest in factored))


@lru_cache(maxsize=1024)
def operands(spec: AttentionSpec) -> tuple[str, ...]:
    """The kernel's arguments for tables and numbers, those it uses: T0, T0_length0, ..., T0_stride0, ..., n0, ..., x0, least.

    `least`: log2 of the threshold or of the error budget. The launch adds what comes last: of a spec that keeps an account,
    where to; of one whose tiles are chosen beforehand, their list.
    """
    names: list[str] = []
    for table, rank in ranks(spec).items():
        names += [table] + [f"{table}_{what}{dim}" for what in ("length", "stride") for dim in range(rank)]
    used = frozenset().union(*(hook.used for hook in hooks(spec)))
    return tuple(name for name in (*names, *numbers(spec, "n"), *numbers(spec, "x"), "least", *ACCOUNT, *LIST)
                 if name in used)


def ranks(spec: AttentionSpec) -> dict[str, int]:
    """Dimensions of each table, in the order of the op's argument. LoweringError if two loads disagree."""
    found: dict[str, int] = {}
    for load in (load for expr in spec.expressions() for load in E.loads(expr)):
        if found.setdefault(load.name, len(load.index)) != len(load.index):
            raise LoweringError(f"table {load.name} is indexed with {len(load.index)} and with {found[load.name]} indices")
    return {name: found[name] for name in spec.tables}


def numbers(spec: AttentionSpec, letter: str) -> tuple[str, ...]:
    """The run-time numbers it uses: n0, n2 (integers, letter n) or x0 (floats, letter x)."""
    names = {symbol.name for expr in spec.expressions() for symbol in expr.free_symbols}
    return tuple(sorted((n for n in names if n[0] == letter and n[1:].isdigit()), key=lambda n: int(n[1:])))
