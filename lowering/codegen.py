"""AttentionSpec  =>  the source of its kernel: the functions of the spec in front of a fixed body.

The body is a few files of a family, word for word; the functions take the place of those in `hooks.py`.
The text depends on the spec and the family alone: shapes, strides and blocks are arguments.
"""

from __future__ import annotations

import ast
import json
import re
import textwrap
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import sympy

from .. import expr as E
from ..ir import AttentionSpec
from .held import Layout
from .printed import ACCOUNT, LIST, LOG2E, PART, Hook, chosen, decides, hooks, numbers, operands

FAMILIES = (
    "prefill", "decode", "mla", "tokens", "promise", "estimate", "lsh", "mass", "hopper", "decode_hopper", "mla_exchange",
    "packed_exchange", "tokens_exchange", "mla_narrow", "bounded",
)
PAGED = ("prefill", "decode", "decode_hopper", "bounded")
_JIT_END = "])"
_HERE = Path(__file__).parent
_DENSE = ("rows.py", "keys.py", "scan.py")
_BODY = {
    "prefill": (*_DENSE, "prefill/kernel.py"),
    "decode": (*_DENSE, "decode/lanes.py", "decode/balance.py", "decode/merge.py", "packed.py", "decode/kernel.py"),
    "mla": (*_DENSE, "packed.py", "mla/tile.py", "mla/kernel.py"),
    "tokens": (*_DENSE, "packed.py", "mla/tile.py", "tokens/kernel.py"),
    "promise": (*_DENSE, "sparse/row_tiles.py", "sparse/promises.py", "sparse/promise.py"),
    "estimate": (*_DENSE, "sparse/row_tiles.py", "sparse/promises.py", "sparse/estimate.py"),
    "lsh": (*_DENSE, "sparse/row_tiles.py", "sparse/lsh.py"),
    "mass": (*_DENSE, "packed.py", "sparse/mass.py"),
    "bounded": (*_DENSE, "packed.py", "sparse/kept.py", "sparse/bounded.py"),
}
_LATENTS = (
    "hopper/tiles.py", "hopper/softmax.py", "mla/rows.py", "mla/line.py", "mla/task.py", "mla/steps.py", "mla/finish.py",
    "mla/memory.py")
_EXCHANGE = ("hopper/rescale.py", *_LATENTS, "mla/exchange.py")
_GLUON = {
    "hopper": (
        "hopper/tiles.py", "hopper/rings.py", "hopper/softmax.py", "hopper/messages.py", "hopper/classed.py",
        "hopper/plan.py", "hopper/rescale.py", "hopper/weigh.py", "hopper/products.py", "hopper/results.py",
        "hopper/step.py", "hopper/multiply.py", "hopper/kernel.py"),
    "decode_hopper": (
        "hopper/tiles.py", "hopper/rings.py", "hopper/softmax.py", "decode/weights.py", "decode/balance.py",
        "decode/early.py", "decode/parts.py", "decode/consumer.py", "decode/hopper.py"),
    "mla_exchange": (*_EXCHANGE, "mla/copies.py", "mla/loader.py", "mla/hopper_exchange.py"),
    "packed_exchange": (*_EXCHANGE, "mla/copies.py", "mla/packed_exchange.py"),
    "tokens_exchange": (*_EXCHANGE, "tokens/exchange.py"),
    "mla_narrow": (*_LATENTS, "mla/narrow.py", "mla/copies.py", "mla/loader.py", "mla/hopper_narrow.py"),
}
_SCANS = {"": (), "threshold": ("sparse/scan.py",), "list": ("sparse/scan.py", "sparse/listed.py")}
"""What takes the place of `scan` in a kernel that leaves tiles out."""
_CHOSEN = ("sparse/kept.py", "sparse/chosen.py")
"""The same in a step over pages of which some are chosen."""
_IN_PAGES = ("decode/pages.py",)
"""The same of the Hopper kernel of decode, over pages."""
_CHOSEN_HOPPER = ("sparse/kept.py", "sparse/chosen_hopper.py")
"""After them, where pages are chosen."""
_PACKED = (
    "decode/unpack.py", "decode/codes.py", "decode/few_join.py", "decode/few_tiles.py", "decode/few.py", "decode/packed.py")
"""The same where pages are quantised."""
_INWARD = ("sparse/inward.py",)
_DECIDES = ("sparse/told.py", "sparse/vote.py", "sparse/decide.py", "sparse/consumer.py", "sparse/loader.py")
"""The same of the Hopper kernel of prefill: which tiles it meets, and what it does by a threshold of its own."""


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
    wanted = (*hooks(spec), *([PART] if layout is not None and layout.chosen else []))
    return _module(spec, family, files, _flags(spec, files, layout), wanted)


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
    wanted = [*hooks(spec), *([PART] if layout is not None and layout.chosen else [])]
    if family in ("hopper", "decode_hopper"):
        flags |= {"HAS_RESIDUE": spec.residue != sympy.true, "HAS_TILE": spec.tile is not None}
        if family == "hopper" and chosen(spec):
            flags |= {"LISTED": chosen(spec) == "list", "THRESHOLD": decides(spec),
                      "BUDGET": spec.sparsity.policy == "error_budget"}
    else:
        wanted = [hook for hook in wanted if hook.name not in ("residue", "tile_class")]
    if _LATENTS[-1] in _GLUON[family]:
        flags["CHOSEN"] = family.startswith("tokens")
    if layout is not None:
        flags |= {"PAGE": layout.page, "FORMAT": repr(layout.format)}
    constants = [f"{name} = gl.constexpr({value})" for name, value in flags.items()]
    constants += [text for path in files for name, text in _assignments(path).items() if name not in flags]
    return _module(spec, family, files, "\n".join([_imports(*files), "", *constants]), wanted, _in_gluon)


def _in_pages(layout: Layout) -> tuple[str, ...]:
    """The files that make the Hopper kernel of decode one over pages."""
    return (*_IN_PAGES, *(_PACKED if layout.format != "plain" else ()), *(_CHOSEN_HOPPER if layout.chosen else ()))


def _module(spec: AttentionSpec, family: str, files: list[Path], head: str, wanted: Sequence[Hook],
            translate: Callable[[str], str] = str) -> str:
    """Docstring, head, what the hooks need, the hooks, the functions of the files, the kernel."""
    used = frozenset().union(*(hook.used for hook in wanted))
    helpers = [text for name, text in _functions(_HERE / "arithmetic.py").items() if name in used]
    names = (*operands(spec), *(["part"] if PART in wanted else []))
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


def _entry(spec: AttentionSpec, text: str, names: tuple[str, ...]) -> str:
    """The kernel, its parameter `operands` spelled out. A length, a stride or a size that grows compiles nothing anew."""
    loose = [name for name in names if "_length" in name or name in (*numbers(spec, "n"), *LIST[2:], *ACCOUNT[1:], "part")]
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
