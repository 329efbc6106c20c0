"""absorb or expand: by the sizes of DeepSeek-V3, proved where a length is symbolic, left to run time where it cannot be."""

import dataclasses

import pytest
import sympy

from mla_compiler import expr as E
from mla_compiler.costs_latent import LatentShape, absorbed, decide, expanded, latent_costs
from mla_compiler.ir import AttentionSpec

S, T, B = (E.index_symbol(name) for name in ("s0", "s1", "s2"))


def shape(batch=4, queries=1, keys=8192, tokens=None):
    """128 heads of 128 + 64 and 128 channels, rank 512, in 16 bits."""
    batch, queries, keys, *rest = map(sympy.sympify, (batch, queries, keys, 512, 64, 128, 128))
    return LatentShape(batch, sympy.Integer(128), queries, keys, *rest, 2, None if tokens is None else sympy.sympify(tokens))


@pytest.mark.parametrize(("queries", "keys", "absorb"), [
    (1, 8192, True), (4, 8192, True), (1, 3, True), (64, 8192, True), (8192, 8192, False), (2048, 2048, False), (1, 1, False),
])
def test_decode_absorbs_and_prefill_expands(queries, keys, absorb):
    assert decide(shape(queries=queries, keys=keys), {}, {}).absorb is absorb


def test_a_growing_cache_is_decided_for_every_length():
    found = decide(shape(keys=S + 1), {S: sympy.Integer(2)}, {})
    assert found.absorb and found.why == "cheaper for every s0"
    assert decide(shape(batch=B, keys=S + 1), {S: sympy.Integer(2), B: sympy.Integer(2)}, {}).why == "cheaper for every s0, s2"


def test_a_crossover_at_a_few_tokens_is_no_branch():
    found = decide(shape(keys=S), {S: sympy.Integer(1)}, {S: 4096})
    assert found.absorb and found.why == "cheaper for s0 from 4 on"
    assert decide(shape(keys=S), {S: sympy.Integer(1)}, {S: 2}).gain is not None


def test_a_prompt_of_any_length_is_decided_for_every_length():
    found = decide(shape(queries=S + 512, keys=S + 512), {}, {})
    assert not found.absorb and found.why == "dearer for every s0"


@pytest.mark.parametrize(("queries", "absorb"), [(2, True), (310, True), (311, False), (4096, False)])
def test_else_at_run_time_by_the_crossover(queries, absorb):
    """B and H drop out: T (2112 + 3 S) = 1012 S."""
    found = decide(shape(batch=B, queries=T, keys=S + T), {}, {T: queries, S: 8192 - queries, B: 4})
    assert found.absorb is absorb and found.why == "absorbed where T < 1012*S/(2112 + 3*S), T = s1, S = s0 + s1"
    exact = decide(shape(queries=queries, keys=8192), {}, {})
    assert exact.absorb is absorb and exact.gain is None
    assert (found.gain.subs({T: queries, S: 8192 - queries}) > 0) == absorb


def test_a_crossover_without_a_limit():
    """Of a rank so small that every key is cheaper absorbed, but queries cost."""
    small = dataclasses.replace(shape(queries=T, keys=S), rank=sympy.Integer(16), rope=sympy.Integer(8))
    found = decide(small, {}, {T: 900, S: 2})
    assert found.gain is not None and not found.absorb and " > 0, T = s1, S = s0" in found.why


def test_chosen_tokens_are_decided_by_the_sizes_at_hand():
    found = decide(shape(queries=T, keys=S, tokens=2048), {}, {T: 4096, S: 65536})
    assert found.absorb and found.gain is None and "at s0 = 65536, s1 = 4096, the sizes at hand" in found.why


def test_chosen_tokens_move_the_crossover():
    long = {"queries": 1024, "keys": 65536}
    assert not decide(shape(**long), {}, {}).absorb and decide(shape(**long, tokens=2048), {}, {}).absorb
    assert decide(shape(keys=S + 1, tokens=sympy.Min(2048, S + 1)), {S: sympy.Integer(2)}, {}).why == "cheaper for every s0"


def test_costs_by_hand():
    a = dataclasses.replace(shape(batch=1, queries=1, keys=100))
    flops, moved = expanded(a)
    assert flops == 2 * 128 * (100 * 512 * 256 + 100 * 320)
    assert moved == 2 * (100 * 576 + 2 * 128 * 100 * 320 + 128 * 320 + 128 * 512 * 256)
    flops, moved = absorbed(a)
    assert flops == 2 * 128 * (512 * 256 + 100 * 1088)
    assert moved == 2 * (100 * 576 + 128 * (320 + 4 * 512) + 128 * 512 * 256)


def test_only_what_is_visible_is_counted_after():
    spec = AttentionSpec(score=E.s, hi=E.from_text("n0"))
    a = shape(batch=1, keys=S)
    half = latent_costs(a, spec, {S: 100}, {"n0": 50})
    assert half.flops_after == 2 * 128 * (512 * 256 + 50 * 1088)
    assert half.flops_before == 2 * 128 * (100 * 512 * 256 + 100 * 320)
    assert latent_costs(a, spec, {S: 100}, {"n0": 100}).bytes_after - half.bytes_after == 2 * 50 * 576
