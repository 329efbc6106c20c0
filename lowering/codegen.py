"""AttentionSpec  =>  the source of its kernel: the functions of the spec in front of a fixed body.

The body is a few files of a family, word for word; the functions take the place of those in `hooks.py`.
The text depends on the spec and the family alone: shapes, strides and blocks are arguments.
"""

from __future__ import annotations

import ast
import json
import math
import re
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import sympy

from .. import expr as E
from ..ir import AttentionSpec
from ..sparsity import EXACTLY
from .errors import LoweringError
from .held import Layout
from .printer import Printer, bare

FAMILIES = (
    "prefill", "decode", "mla", "tokens", "promise", "estimate", "lsh", "mass", "hopper", "decode_hopper", "mla_exchange",
    "packed_exchange", "tokens_exchange", "bounded",
)
PAGED = ("prefill", "decode", "decode_hopper", "bounded")
LOG2E = math.log2(math.e)
_JIT_END = "])"
_HERE = Path(__file__).parent
_DENSE = ("rows.py", "keys.py", "scan.py")
_BODY = {
    "prefill": (*_DENSE, "prefill/kernel.py"),
    "decode": (*_DENSE, "decode/lanes.py", "decode/balance.py", "decode/merge.py", "packed.py", "decode/kernel.py"),
    "mla": (*_DENSE, "packed.py", "mla/tile.py", "mla/kernel.py"),
    "tokens": (*_DENSE, "packed.py", "mla/tile.py", "tokens/kernel.py"),
    "promise": (*_DENSE, "sparse/promises.py", "sparse/promise.py"),
    "estimate": (*_DENSE, "sparse/promises.py", "sparse/estimate.py"),
    "lsh": (*_DENSE, "sparse/promises.py", "sparse/lsh.py"),
    "mass": (*_DENSE, "packed.py", "sparse/mass.py"),
    "bounded": (*_DENSE, "packed.py", "sparse/kept.py", "sparse/bounded.py"),
}
_EXCHANGE = (
    "hopper/tiles.py", "hopper/softmax.py", "mla/rows.py", "mla/line.py", "mla/steps.py", "mla/finish.py", "mla/memory.py",
    "mla/exchange.py")
_GLUON = {
    "hopper": (
        "hopper/tiles.py", "hopper/rings.py", "hopper/softmax.py", "hopper/messages.py", "hopper/classed.py",
        "hopper/plan.py", "hopper/rescale.py", "hopper/weigh.py", "hopper/products.py", "hopper/results.py",
        "hopper/step.py", "hopper/multiply.py", "hopper/kernel.py"),
    "decode_hopper": (
        "hopper/tiles.py", "hopper/rings.py", "hopper/softmax.py", "decode/weights.py", "decode/balance.py",
        "decode/early.py", "decode/parts.py", "decode/consumer.py", "decode/hopper.py"),
    "mla_exchange": (*_EXCHANGE, "mla/copies.py", "mla/hopper_exchange.py"),
    "packed_exchange": (*_EXCHANGE, "mla/copies.py", "mla/packed_exchange.py"),
    "tokens_exchange": (*_EXCHANGE, "tokens/exchange.py"),
}
_SCANS = {"": (), "threshold": ("sparse/scan.py",), "list": ("sparse/scan.py", "sparse/listed.py")}
"""What takes the place of `scan` in a kernel that leaves tiles out."""
_CHOSEN = ("sparse/kept.py", "sparse/chosen.py")
"""The same in a step over pages of which some are chosen."""
_IN_PAGES = ("decode/pages.py",)
"""The same of the Hopper kernel of decode, over pages."""
_CHOSEN_HOPPER = ("sparse/kept.py", "sparse/chosen_hopper.py")
"""After them, where pages are chosen."""
_UNPACKED = ("decode/unpack.py",)
"""The same where pages are quantised."""
_INWARD = ("sparse/inward.py",)
_DECIDES = ("sparse/told.py", "sparse/decide.py", "sparse/consumer.py", "sparse/loader.py")
"""The same of the Hopper kernel of prefill: which tiles it meets, and what it does by a threshold of its own."""
_ACCOUNT = ("kept", "kept_heads", "kept_rows", "kept_columns", "kept_group", "kept_queries")
_LIST = ("listed", "listed_counts", "listed_capacity")
_ROW, _POINT = "b, h, i", "b, h, i, j"


@lru_cache(maxsize=1024)
def source(spec: AttentionSpec, family: str, layout: Layout | None = None) -> str:
    """Python text of a module with the kernel of a family. LoweringError if an expression has no Triton form.

    `layout`: keys and values lie in such pages; only the families of `PAGED` know them.
    """
    if family in _GLUON:
        return _gluon(spec, family, layout)
    assert layout is None or family in PAGED
    counts = ("sparse/counted.py",) if spec.site and chosen(spec) else ()
    listed = _CHOSEN if layout is not None and layout.chosen and family == "decode" else ()
    names = (*_BODY[family], *_SCANS[chosen(spec)], *counts, *listed)
    files = [_HERE / (name if layout is None else name.replace("keys.py", "pages.py")) for name in names]
    wanted = (*hooks(spec), *([_PART] if layout is not None and layout.chosen else []))
    return _module(spec, family, files, _flags(spec, files, layout), wanted)


def chosen(spec: AttentionSpec) -> str:
    """What leaves tiles out: "" nothing, "threshold" the kernel itself, tile by tile, "list" one that ran before it."""
    return "list" if spec.sparsity.selects else "threshold" if spec.sparsity != EXACTLY else ""


def decides(spec: AttentionSpec) -> bool:
    """Whether the kernel itself leaves tiles out, tile by tile."""
    return spec.sparsity.log2_limit > -math.inf


def _inward(spec: AttentionSpec) -> tuple[str, ...]:
    """What takes the place of functions of the Hopper kernel in one that leaves tiles out."""
    return (*_INWARD, *(_DECIDES if decides(spec) else ())) if chosen(spec) else ()


def _gluon(spec: AttentionSpec, family: str, layout: Layout | None) -> str:
    """The module of a Gluon kernel: its hooks are the same text, in Gluon's names."""
    inward = _inward(spec) if family == "hopper" else ()
    pages = () if layout is None else _in_pages(layout)
    files = [_HERE / name for name in (*_GLUON[family], *inward, *pages)]
    flags = {
        "HAS_LO": spec.lo != 0, "HAS_HI": spec.hi != sympy.oo, "HAS_SINK": spec.sink is not None, "SCALE": _scale(spec),
    }
    wanted = [*hooks(spec), *([_PART] if layout is not None and layout.chosen else [])]
    if family == "hopper":
        flags |= {"HAS_RESIDUE": spec.residue != sympy.true, "HAS_TILE": spec.tile is not None}
        if chosen(spec):
            flags |= {"LISTED": chosen(spec) == "list", "THRESHOLD": decides(spec),
                      "BUDGET": spec.sparsity.policy == "error_budget"}
    else:
        wanted = [hook for hook in wanted if hook.name not in ("residue", "tile_class")]
    if family.endswith("exchange"):
        flags["CHOSEN"] = family.startswith("tokens")
    if layout is not None:
        flags |= {"PAGE": layout.page, "FORMAT": repr(layout.format)}
    constants = [f"{name} = gl.constexpr({value})" for name, value in flags.items()]
    constants += [text for path in files for name, text in _assignments(path).items() if name not in flags]
    return _module(spec, family, files, "\n".join([_imports(*files), "", *constants]), wanted, _in_gluon)


def _in_pages(layout: Layout) -> tuple[str, ...]:
    """The files that make the Hopper kernel of decode one over pages."""
    return (*_IN_PAGES, *(_UNPACKED if layout.format != "plain" else ()), *(_CHOSEN_HOPPER if layout.chosen else ()))


def _module(spec: AttentionSpec, family: str, files: list[Path], head: str, wanted: Sequence[Hook],
            translate: Callable[[str], str] = str) -> str:
    """Docstring, head, what the hooks need, the hooks, the functions of the files, the kernel."""
    used = frozenset().union(*(hook.used for hook in wanted))
    helpers = [text for name, text in _functions(_HERE / "arithmetic.py").items() if name in used]
    names = (*operands(spec), *(["part"] if _PART in wanted else []))
    own = [translate(text) for text in (*helpers, *(hook.text(names) for hook in wanted))]
    body = {name: translate(text) if text.startswith("@triton.jit") else text
            for file in files for name, text in _functions(file).items()}
    kernel = body.pop(family)
    about = _docstring(_HERE / (_BODY | _GLUON)[family][-1])
    return _header(spec, about) + "\n\n\n".join([head, *own, *body.values(), _entry(spec, kernel, names)]) + "\n"


def _in_gluon(text: str) -> str:
    """Triton's names as Gluon's, which has all that a hook says but PropagateNan."""
    return re.sub(r"\btl\.(?!PropagateNan)", "gl.", text).replace("@triton.jit", "@gluon.jit")


def _imports(*paths: Path) -> str:
    """What the templates import from Triton, and Triton's own language for PropagateNan."""
    found = ["import triton.language as tl"]
    for text, module in map(_parsed, paths):
        nodes = [node for node in module.body if isinstance(node, ast.ImportFrom) and not node.level]
        found += [ast.get_source_segment(text, node) or "" for node in nodes]
    return "\n".join(dict.fromkeys(found))


def _scale(spec: AttentionSpec) -> float:
    """c * log2(e) where the score is c * s with c > 0, else 0."""
    factor, rest = spec.score.as_coeff_Mul()
    return float(factor) * LOG2E if rest == E.s and factor > 0 else 0.0


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


_PART = Hook("kept_part", "", "Of 65536, how many of a sequence's pages are attended.", frozenset(("part",)), ("return part",))
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
    tiles = Hook("tiles_listed", "program", "A row of the list, and how many it holds.", frozenset(_LIST), lines)
    counts = Hook("account", "", "Where what is computed is noted.", frozenset(_ACCOUNT), (f"return {', '.join(_ACCOUNT)}",))
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
    return tuple(name for name in (*names, *numbers(spec, "n"), *numbers(spec, "x"), "least", *_ACCOUNT, *_LIST)
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


def _entry(spec: AttentionSpec, text: str, names: tuple[str, ...]) -> str:
    """The kernel, its parameter `operands` spelled out. A length, a stride or a size that grows compiles nothing anew."""
    loose = [name for name in names if "_length" in name or name in (*numbers(spec, "n"), *_LIST[2:], *_ACCOUNT[1:], "part")]
    strides = [name for name in names if "_stride" in name]
    text = text.replace("operands, ", "".join(f"{name}, " for name in names))
    text = text.replace("    env = operands", _fill(f"    env = ({', '.join(names) or '0'},)", 11))
    end = f"], do_not_specialize_on_alignment={json.dumps(strides)})" if strides else _JIT_END
    text = text.replace(_JIT_END, "".join(f', "{name}"' for name in loose) + end, 1)
    head, body = text.split("):\n", 1)
    jit, signature = head.split("\ndef ")
    return "\n".join([_fill(jit, 12), _fill(f"def {signature}):", signature.index("(") + 5), body])


def _fill(text: str, indent: int) -> str:
    """Broken into lines of 118 characters, an annotation kept with its name."""
    joined = re.sub(r"(?<=\S)\s+", " ", text).replace(": ", ":\0").replace("= ", "=\0")
    return textwrap.fill(joined, 118, subsequent_indent=" " * indent, break_long_words=False).replace("\0", " ")


def _flags(spec: AttentionSpec, files: list[Path], layout: Layout | None) -> str:
    flags: dict[str, object] = {
        "HAS_LO": spec.lo != 0, "HAS_HI": spec.hi != sympy.oo, "HAS_RESIDUE": spec.residue != sympy.true,
        "HAS_TILE": spec.tile is not None, "HAS_SINK": spec.sink is not None,
    }
    if chosen(spec):
        flags["BUDGET"] = spec.sparsity.policy == "error_budget"
    if layout is not None:
        flags |= {"FORMAT": repr(layout.format), "PAGE": layout.page, "KEY_GROUP": layout.key_group,
                  "HAS_E4M3": layout.e4m3}
        flags |= {"VALUE_FORMAT": repr(layout.value_format)} if layout.value_format else {}
    constants = [text for file in files for name, text in _assignments(file).items() if name not in flags]
    return "\n".join(["import triton", "import triton.language as tl", ""]
                     + [f"{name} = tl.constexpr({value})" for name, value in flags.items()] + constants)


def _header(spec: AttentionSpec, docstring: str) -> str:
    lines = [
        "", f"visible  {E.to_text(spec.predicate)}", f"score    {E.to_text(spec.score)}",
        f"sink     {'none' if spec.sink is None else E.to_text(spec.sink)}",
    ]
    lines += [f"sparsity {spec.sparsity.policy}"] if chosen(spec) else []
    tables = [f"{name}: {_kind(name)}" for name in spec.tables]
    lines += [f"tables   {', '.join(tables)}"] if tables else []
    return f'"""{docstring.rstrip()}\n' + "\n".join(lines) + '\n"""\n\n'


def _kind(name: str) -> str:
    return {"M": "bool", "T": "integer", "F": "float"}[name[0]]


# ------------------------------------------------------------------------------------------------------------ templates


@lru_cache(maxsize=16)
def _parsed(path: Path) -> tuple[str, ast.Module]:
    text = path.read_text()
    return text, ast.parse(text)


def _docstring(path: Path) -> str:
    return ast.get_docstring(_parsed(path)[1]) or ""


def _functions(path: Path) -> dict[str, str]:
    """The text of each function of a template, decorator included."""
    text, module = _parsed(path)
    lines = text.splitlines()
    return {
        node.name: "\n".join(lines[node.decorator_list[0].lineno - 1 : node.end_lineno])
        for node in module.body if isinstance(node, ast.FunctionDef)
    }


def _assignments(path: Path) -> dict[str, str]:
    text, module = _parsed(path)
    return {
        ast.unparse(node.targets[0]): ast.get_source_segment(text, node) or ""
        for node in module.body if isinstance(node, ast.Assign)
    }
