"""The records that flow through the house: what attention was found, what it means, why it was left.

No torch.compile, no graph surgery, no kernel in sight: `passes` writes these, `lowering` and `report` read them.
"""

from __future__ import annotations

import dataclasses
import enum
from dataclasses import dataclass
from functools import lru_cache

import sympy

from . import expr as E
from .sparsity import EXACTLY, Sparsity

TILE = 64
"""Rows and columns of one tile of a mask summary (`flashmla::summarize`), in positions."""


class Reason(enum.Enum):
    """Why an attention was left as it was. The value is the sentence a user reads."""

    GRADIENT = "gradients are needed: run under torch.no_grad() or torch.inference_mode()"
    DROPOUT = "dropout is active"
    HEAD_DIM = "head_dim has no kernel"
    DTYPE = "dtype has no kernel"
    DEVICE = "device has no kernel"
    RANK = "q, k and v are not [batch, heads, length, head_dim]"
    EMPTY = "a dimension is zero"
    SHAPES = "q, k and v do not agree in shape"
    NESTED = "nested tensors are not read"
    MASK = "the mask could not be read"
    SCORE = "the score could not be read as a program of one q.k product"
    SOFTMAX = "the softmax is not over the keys"
    OPERANDS = "the operands of q.k or p.v could not be read"
    SHARED = "the attention weights are used elsewhere"
    MUTATED = "an operand is written between its definition and its use"
    LATENT = "keys and values are not projected from one latent"
    BIAS = "the projection of the latent adds a bias"
    WEIGHT = "the projection of the latent is no product with a plain weight matrix"
    ROPE = "no part of the key is the same for all heads"
    FLEX = "flex_attention is already a kernel"
    SPARSITY = "the sparsity that was asked for has no kernel here"
    DISABLED = "disabled by an option"


@dataclass(frozen=True)
class Rejected:
    """A non-match, as a value: at `node`, for `reason`; `found` is what stood there instead."""

    node: str
    reason: Reason
    found: str = ""

    def __str__(self) -> str:
        return self.reason.value + (f"; found {self.found}" if self.found else "")


@dataclass(frozen=True)
class AttentionSpec:
    """What one attention means. The contract between passes and lowering.

        visible(b,h,i,j) = lo(b,h,i) <= j < hi(b,h,i)  and  residue(b,h,i,j)          0 <= j < S always
        a(b,h,i,j)       = score(s, b,h,i,j)   where visible, else -inf               s = q[b,h,i,:] . k[b,h//group,j,:]
        out[b,h,i,:]     = sum_j exp(a_j) v[b,h//group,j,:] / (sum_j exp(a_j) + exp(sink(b,h,i)))

    Shapes: q [B, H, T, D]; k [B, H/group, S, D]; v [B, H/group, S, Dv]; out [B, H, T, Dv]. A row that sees no key gives 0.
    `score` is a natural-log logit (it includes the softmax scale). `tile`, if given, is an integer Load whose value at
    (i // TILE, j // TILE) says of `residue` there: 0 nowhere true, 1 somewhere, 2 everywhere.
    `heads_first`: memory order of out, [B, H, T, Dv] if set, else [B, T, H, Dv] (seen transposed).
    `kv_splits`: parts the key range is divided into and merged exactly; 0 lets the lowering choose.
    `autotune`: the lowering may time its configurations and keep the fastest.
    `sparsity`: what of the sum may be left out, and on what terms; out is then the softmax over what was kept.
    `site`: the name under which an account of that is kept (`ledger`); none if it is empty.
    """

    score: sympy.Basic
    lo: sympy.Basic = sympy.Integer(0)
    hi: sympy.Basic = sympy.oo
    residue: sympy.Basic = sympy.true
    sink: sympy.Basic | None = None
    tile: sympy.Basic | None = None
    group: int = 1
    heads_first: bool = False
    kv_splits: int = 0
    autotune: bool = False
    sparsity: Sparsity = EXACTLY
    site: str = ""

    def __str__(self) -> str:
        """Canonical text: the op's `spec` argument. `AttentionSpec.parse` reads it back."""
        parts = []
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value == field.default:
                continue
            parts.append(f"{field.name}: {_field_text(value)}")
        return "; ".join(parts)

    @staticmethod
    @lru_cache(maxsize=4096)
    def parse(text: str) -> AttentionSpec:
        """Inverse of str(). Raises ValueError naming the field that cannot be read."""
        kinds = {field.name: field for field in dataclasses.fields(AttentionSpec)}
        values: dict[str, object] = {}
        for part in text.split("; "):
            name, _, body = part.partition(": ")
            if name not in kinds:
                raise ValueError(f"AttentionSpec has no field {name!r}; it has {', '.join(kinds)}")
            values[name] = _field_value(name, body, kinds[name].default)
        if "score" not in values:
            raise ValueError(f"AttentionSpec needs a score; found {text!r}")
        return AttentionSpec(**values)  # type: ignore[arg-type]

    def expressions(self) -> tuple[sympy.Basic, ...]:
        """Every expression in the spec, in field order."""
        found = (self.score, self.lo, self.hi, self.residue, self.sink, self.tile)
        return tuple(e for e in found if e is not None)

    @property
    def tables(self) -> tuple[str, ...]:
        """Names of the tables it loads, in the order of the op's `tables` argument (M*, T*, F* by one running number)."""
        names = {load.name for e in self.expressions() for load in E.loads(e)}
        return tuple(sorted(names, key=lambda name: (int(name[1:]), name)))

    @property
    def conjuncts(self) -> tuple[sympy.Basic, ...]:
        """The conditions that the residue joins by `and`: True alone if there is none."""
        return self.residue.args if isinstance(self.residue, sympy.And) else (self.residue,)

    @property
    def predicate(self) -> sympy.Basic:
        """visible(b, h, i, j), as one condition."""
        bounds = [] if self.lo == 0 else [self.lo <= E.j]
        bounds += [] if self.hi == sympy.oo else [E.j < self.hi]
        return E.conjunction([*bounds, self.residue])


def _field_text(value: object) -> str:
    if isinstance(value, int):
        return str(int(value))
    return str(value) if isinstance(value, Sparsity | str) else E.to_text(value)  # type: ignore[arg-type]


def _field_value(name: str, text: str, default: object) -> object:
    """Inverse of _field_text, for the field that has this default."""
    if isinstance(default, int):
        return type(default)(int(text))
    if isinstance(default, str):
        return text
    return Sparsity.parse(text) if isinstance(default, Sparsity) else E.from_text(text, name == "residue")


@dataclass(frozen=True)
class Site:
    """One attention in one compiled graph, and what became of it. Bytes and FLOPs are estimates from shapes alone.

    pages        of keys and values found through a block table: `pages of 64`, or `gathered: ...`, and why
    latent       of multi-head latent attention: `absorbed, ...`, `expanded, ...` or, as lengths come, `either, ...`, and why
    certificate  greatest difference of the two forms on random numbers, relative to the greatest output; -1: not asked
    sparsity     the policy, if another than exact was asked for: `threshold=0.03`, or why it is `exact instead of ...`
    """

    index: int
    name: str
    source: str = ""
    layer: str = ""
    status: str = "left"
    reason: str = ""
    predicate: str = ""
    hull: str = ""
    score: str = ""
    group: int = 1
    shape: str = ""
    dtype: str = ""
    device: str = ""
    kernel: str = ""
    config: str = ""
    spec: str = ""
    flops_before: int = 0
    flops_after: int = 0
    bytes_before: int = 0
    bytes_after: int = 0
    pages: str = ""
    latent: str = ""
    certificate: float = -1.0
    sparsity: str = ""
