"""absorb or expand?  cost = FLOPs + BALANCE * bytes, polynomials in B, T, S (H heads, rank R, rope P, channels Dn and Dv)

    expand   2 B S R H (Dn + Dv)  +  2 B H T S (Dn + P + Dv)    K and V [B, H, S, .] written and read
    absorb   2 B T R H (Dn + Dv)  +  2 B H T M (2 R + P)        the latents read; q and out [B, H, T, R] written and read

M is S, or the K tokens chosen for each query. The bytes of weights are the same on both sides. The choice for
sizes that are symbolic is proved where it can be: every coefficient of the difference at least + t, t >= 0, has one sign.
Where it cannot, the difference is solved for T: B drops out, and absorbing is cheaper while T (b + c S) < a S.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import sympy

from .costs import Costs, visible_keys
from .ir import AttentionSpec

BALANCE = 200
"""FLOPs a device does in the time of one byte of main memory: 16-bit tensor cores, 295 on an H100, 153 on an A100."""
_STARTS = (4, 8, 16, 32)


@dataclass(frozen=True)
class LatentShape:
    """Sizes of one latent attention; batch, queries, keys and tokens may be symbolic. `tokens`: keys chosen for a query."""

    batch: sympy.Basic
    heads: sympy.Basic
    queries: sympy.Basic
    keys: sympy.Basic
    rank: sympy.Basic
    rope: sympy.Basic
    nope: sympy.Basic
    value: sympy.Basic
    itemsize: int
    tokens: sympy.Basic | None = None

    @property
    def seen(self) -> sympy.Basic:
        """Keys that an absorbed query is multiplied with."""
        return self.keys if self.tokens is None else self.tokens


@dataclass(frozen=True)
class Decision:
    """`absorb`, and the sentence that says why. `gain`, where only a size at run time decides: absorb while it is positive;
    `absorb` then speaks of the sizes at hand."""

    absorb: bool
    why: str
    gain: sympy.Basic | None = None


def expanded(a: LatentShape) -> tuple[sympy.Basic, sympy.Basic]:
    """(FLOPs, bytes) with K and V made for every head."""
    width = a.nope + a.rope + a.value
    flops = 2 * a.batch * a.heads * (a.keys * a.rank * (a.nope + a.value) + a.queries * a.keys * width)
    moved = a.batch * (a.keys * (a.rank + a.rope) + 2 * a.heads * a.keys * width + a.heads * a.queries * width)
    return flops, (moved + weights(a)) * a.itemsize


def absorbed(a: LatentShape) -> tuple[sympy.Basic, sympy.Basic]:
    """(FLOPs, bytes) over the latent itself."""
    flops = 2 * a.batch * a.heads * a.queries * (a.rank * (a.nope + a.value) + a.seen * (2 * a.rank + a.rope))
    read = a.keys if a.tokens is None else sympy.Min(a.keys, a.queries * a.tokens)
    ends = a.heads * a.queries * (a.nope + a.rope + a.value + 4 * a.rank)
    return flops, (a.batch * (read * (a.rank + a.rope) + ends) + weights(a)) * a.itemsize


def weights(a: LatentShape) -> sympy.Basic:
    """Elements of W_uk and W_uv, read once in either form."""
    return a.heads * a.rank * (a.nope + a.value)


def gain(a: LatentShape) -> sympy.Basic:
    """Cost of the expanded form less that of the absorbed one, in FLOPs."""
    (flops, moved), (flops_absorbed, moved_absorbed) = expanded(a), absorbed(a)
    return sympy.expand(flops - flops_absorbed + BALANCE * (moved - moved_absorbed))


def decide(a: LatentShape, least: Mapping[sympy.Basic, sympy.Basic], hints: Mapping[sympy.Basic, int]) -> Decision:
    """By cost: proved for all sizes from `least` on, else left to run time, or of chosen tokens by the sizes at hand."""
    difference = gain(a)
    if difference.is_number:
        return _at_hand(difference, "")
    names = ", ".join(sorted(map(str, difference.free_symbols)))
    sign = _proved(a, difference, least)
    if sign is not None:
        return Decision(sign > 0, f"{'cheaper' if sign > 0 else 'dearer'} for every {names}")
    for start in _STARTS:  # the crossover lies at a few tokens
        beyond = {symbol: sympy.Max(start, least.get(symbol, 1)) for symbol in difference.free_symbols}
        sign = _proved(a, difference, beyond) if all(start <= hints[symbol] for symbol in beyond) else None
        if sign is not None:
            return Decision(sign > 0, f"{'cheaper' if sign > 0 else 'dearer'} for {names} from {start} on")
    known = {symbol: hints[symbol] for symbol in difference.free_symbols}
    if a.tokens is None:
        return _at_run_time(a, known)
    at = ", ".join(f"{symbol} = {value}" for symbol, value in sorted(known.items(), key=lambda item: str(item[0])))
    return _at_hand(difference.xreplace({k: sympy.Integer(v) for k, v in known.items()}), f" at {at}, the sizes at hand")


def _at_run_time(a: LatentShape, known: Mapping[sympy.Basic, int]) -> Decision:
    """The sign of a S - T (b + c S), in lowest terms; told as the number of queries below which absorbing is cheaper."""
    queries, keys = sympy.symbols("T S", positive=True, integer=True)
    general = gain(replace(a, batch=sympy.Integer(1), queries=queries, keys=keys))
    _, lowest = sympy.Poly(general, queries, keys).primitive()
    each_key, each_query, each_pair = (lowest.coeff_monomial(x) for x in (keys, queries, queries * keys))
    here = sympy.Add(each_key * a.keys, each_query * a.queries, each_pair * a.queries * a.keys)
    most = f"T < {each_key}*S/({-each_query} + {-each_pair}*S)" if each_pair < 0 else f"{lowest.as_expr()} > 0"
    absorb = bool(here.xreplace({symbol: sympy.Integer(value) for symbol, value in known.items()}) > 0)
    return Decision(absorb, f"absorbed where {most}, T = {a.queries}, S = {a.keys}", here)


def _proved(a: LatentShape, difference: sympy.Basic, least: Mapping[sympy.Basic, sympy.Basic]) -> int | None:
    """The sign for all sizes from `least` on. Tokens are no more than keys: what is cheaper with every key is cheaper."""
    sign = _sign(difference, least)
    every = sign is None and a.tokens is not None and _sign(gain(replace(a, tokens=None)), least) == 1
    return 1 if every else sign


def _at_hand(difference: sympy.Basic, where: str) -> Decision:
    return Decision(bool(difference > 0), ("cheaper" if difference > 0 else "dearer") + where)


def _sign(difference: sympy.Basic, least: Mapping[sympy.Basic, sympy.Basic]) -> int | None:
    """1 or -1 if every coefficient says so once each size is its least value and a rest that is not negative."""
    symbols = sorted(difference.free_symbols, key=str)
    if difference.has(sympy.Min, sympy.Max) or not difference.is_polynomial(*symbols):
        return None
    shifted = sympy.Poly(difference.xreplace({x: x + least.get(x, sympy.Integer(1)) for x in symbols}), *symbols)
    signs = {coefficient > 0 for coefficient in shifted.coeffs() if coefficient != 0}
    return None if len(signs) != 1 else 1 if signs == {True} else -1


def latent_costs(
    a: LatentShape, spec: AttentionSpec, hints: Mapping[sympy.Basic, int], sizes: Mapping[str, int], absorb: bool = True
) -> Costs:
    """As written (K and V made for every head, every key seen), and over what is visible: latents if `absorb`, else K and V."""
    known = {symbol: sympy.Integer(value) for symbol, value in hints.items()}
    n = LatentShape(*(x.xreplace(known) if isinstance(x, sympy.Basic) else x for x in vars(a).values()))
    visible, reach = visible_keys(spec.lo, spec.hi, int(n.queries), int(n.keys), tuple(sorted(sizes.items())))
    if n.tokens is not None:
        visible, reach = min(visible, int(n.queries * n.tokens)), min(reach, int(n.queries * n.tokens))
    (flops, moved), (flops_absorbed, moved_absorbed) = expanded(n), absorbed(n)
    if not absorb:
        width = n.nope + n.rope + n.value
        unseen = n.batch * n.heads * width
        return Costs(int(flops), int(flops - 2 * unseen * (n.queries * n.keys - visible)), int(moved),
                     int(moved - unseen * (n.keys - reach) * n.itemsize))
    unseen = 2 * n.batch * n.heads * (n.queries * n.seen - visible) * (2 * n.rank + n.rope)
    unread = n.batch * (sympy.Min(n.keys, n.queries * n.seen) - reach) * (n.rank + n.rope) * n.itemsize
    return Costs(int(flops), int(flops_absorbed - unseen), int(moved), int(moved_absorbed - unread))
