"""Attentions of every kind, each with the tables it needs."""

from .cases import Case

CASES = {
    "full": Case("score: 0.25*s"),
    "causal": Case("score: 0.25*s; hi: i + 1; group: 2"),
    "causal, aligned to the end": Case("score: 0.25*s; hi: i + n0 + 1", sizes=(24,), keys=61),
    "causal, more queries than keys": Case("score: 0.25*s; hi: i + 1", keys=20),
    "window": Case("score: 0.25*s; lo: max(0, i - 17); hi: i + 1", queries=67, keys=67),
    "chunks": Case("score: 0.25*s; lo: i // 16 * 16; hi: i + 1"),
    "padding": Case("score: 0.25*s; hi: i + 1; residue: M0[b, j]", ("padding",), batch=2),
    "documents": Case("score: 0.25*s; hi: i + 1; residue: T0[b, i] == T0[b, j]", ("documents",), queries=67, keys=67),
    "documents, bounded": Case(
        "score: 0.25*s; hi: i + 1; residue: T0[b, i] == T0[b, j]; tile: where((T1[b, i//64, 1] < T1[b, j//64, 0]) | "
        "(T1[b, j//64, 1] < T1[b, i//64, 0]), 0, where((T1[b, i//64, 0] == T1[b, j//64, 1]) & "
        "(T1[b, i//64, 1] == T1[b, j//64, 0]), 2, 1))", ("long_documents", "long_bounds"), queries=330, keys=330, batch=2,
    ),
    "segments, bounded": Case(
        "score: 0.25*s; residue: T0[b, i] == T0[b, j]; tile: where((T1[b, i//64, 1] < T1[b, j//64, 0]) | "
        "(T1[b, j//64, 1] < T1[b, i//64, 0]), 0, 1)", ("segments", "segment_bounds"), queries=200, keys=200,
    ),
    "prefix": Case("score: 0.25*s; residue: (j <= i) | (j < T0[b] + 1)", ("lengths",), batch=2),
    "softcap": Case("score: 2.0*tanh(0.25*s)"),
    "alibi": Case("score: 0.25*s + F0[h]*(i - j); hi: i + 1", ("slopes",)),
    "bias": Case("score: 0.25*s + F0[0, h, i, j]", ("bias",)),
    "bias with -inf": Case("score: 0.25*s + F0[0, 0, i, j]", ("infinite_bias",)),
    "sinks": Case("score: 0.25*s; hi: i + 1; sink: F0[h]", ("sinks",)),
    "mask": Case("score: 0.25*s; residue: M0[0, 0, i, j]", ("mask",)),
    "mask, summarised": Case(
        "score: 0.25*s; lo: max(0, T1[0, 0, i, 0]); hi: T1[0, 0, i, 1]; residue: M0[0, 0, i, j]; "
        "tile: T2[0, 0, i // 64, j // 64]; sink: F3[h]", ("steady_mask", "hull", "classes", "sinks"),
        queries=70, keys=130, heads=1,
    ),
    "mask of a step": Case(
        "score: 0.25*s; lo: T1[b, 0, i, 0]; hi: min(T1[b, 0, i, 1], n0); residue: M0[b, 0, i, j]; "
        "tile: T2[b, 0, i // 64, j // 64]; group: 2", ("step_mask", "step_hull", "step_classes"), sizes=(1 << 20,), batch=2,
        queries=5, keys=330,
    ),
    "live length": Case("score: 0.25*s; hi: T0[b] + 1", ("lengths",), batch=2),
    "a length for all": Case("score: x0*s; hi: T0[] + 1".replace("T0[]", "T0[()]"), ("length",), scalars=(0.25,)),
    "Python's division": Case("score: 0.25*s; residue: ((j - i) % 3 == 1) | ((j - i) // 5 == -2)"),
    "a branch out of range": Case("score: 0.25*s; residue: where(j < n0, T0[b, j], 1) != 0", ("short",), sizes=(18,)),
    "every function": Case(
        "score: 0.25*s*exp(-0.1*abs(i - j)) + log(1 + i) - sqrt(j)/3 + min(0.5, 0.1*i, 0.01*j) + max(h, 1)**2"
        " + 2**(-(h + 1)/4)*floor(0.3*i) - ceiling(x0*j)/(i + 1)**2", scalars=(0.05,)),
}
