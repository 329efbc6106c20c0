"""The model of prefill's time against what was measured (BENCHMARKS.md: one H100, versions 1 and 3); what it chooses."""

import itertools

import pytest
import torch

from mla_compiler.ir import AttentionSpec
from mla_compiler.lowering.choice import Choice
from mla_compiler.lowering.machine import MACHINES
from mla_compiler.lowering.prefill.model import Work, dealt, microseconds, ordered
from mla_compiler.lowering.prefill.spans import DOCUMENT, rounded, spans_of
from mla_compiler.lowering.select import MOST_TIMED, candidates

from .attentions import CASES

H100, K = MACHINES["sm_90"], 1024
CAUSAL, FULL = AttentionSpec.parse("score: 0.1*s; hi: i + 1; group: 4"), AttentionSpec.parse("score: 0.1*s; group: 4")
WINDOW = AttentionSpec.parse("score: 0.1*s; lo: max(0, i - 1023); hi: i + 1; group: 4")
DOCUMENTS = AttentionSpec.parse(CASES["documents, bounded"].spec)
NEAR = 0.10
"""How far a prediction may be from what was measured."""
APART = 1.10
"""Candidates this far apart must come in the order that was measured."""


def hopper(block_n: int = 128, block_m: int = 128, turns: int = 1, overlap: bool = False) -> Choice:
    return Choice("hopper", block_m, block_n, 4, 2, ping_pong=turns, persistent=True, overlap=overlap)


def us(tflops: float, length: int) -> float:
    """From TFLOP/s as BENCHMARKS.md counts them: 2 (D + DV) for each visible pair of 32 heads, of causal D = DV = 128."""
    return 2e-6 * 256 * 32 * length * (length + 1) / 2 / tflops


LENGTHS = (2 * K, 8 * K, 32 * K)
PLAIN = {
    Choice("prefill", 128, 128, 8, 3): (296, 436, 478), Choice("prefill", 128, 128, 8, 2): (280, 415, 443),
    Choice("prefill", 128, 64, 8, 3): (291, 426, 456), Choice("prefill", 64, 128, 4, 2): (225, 324, 343),
    Choice("prefill", 64, 64, 4, 3): (294, 357, 397),
}
PACKED_MS = {
    Choice("prefill", 64, 64, 4, 3): 2.35, Choice("prefill", 128, 64, 8, 3): 2.43, Choice("prefill", 128, 32, 8, 2): 2.70,
}
FORMS_US = {
    (0, True): (64.8, 838.7, 13042.0), (1, True): (65.9, 853.6, 13424.5), (2, True): (66.0, 855.8, 13687.4),
    (0, False): (65.1, 842.7, 13241.6), (1, False): (65.0, 849.3, 13477.4), (2, False): (67.1, 858.7, 13545.2),
}
SHAPES_US = (  # spec, length, D, DV, heads
    (hopper(), CAUSAL, 8 * K, 64, 64, 32, 644.6), (hopper(block_m=192), CAUSAL, 8 * K, 64, 64, 32, 567.7),
    (hopper(), CAUSAL, 8 * K, 96, 96, 32, 844.0), (hopper(), CAUSAL, 8 * K, 192, 128, 16, 509.3),
    (hopper(64), CAUSAL, 8 * K, 256, 256, 32, 1566.1), (hopper(), WINDOW, 32 * K, 128, 128, 32, 1091.3),
    (hopper(), WINDOW, 8 * K, 128, 128, 32, 259.0), (hopper(), DOCUMENTS, 32 * K, 128, 128, 32, 1107.8),
)


def predicted(choice: Choice, spec: AttentionSpec, length: int, dim: int = 128, value_dim: int = 128, heads: int = 32) -> float:
    return microseconds(choice, Work(heads, length, length, dim, value_dim), spans_of(spec, length, length), H100)


def tables() -> list[dict[Choice, tuple[float, float]]]:
    """Of each shape: measured and predicted us of the choices."""
    found = []
    for at, length in enumerate(LENGTHS):
        row = {choice: us(rates[at], length) for choice, rates in PLAIN.items()}
        row |= {hopper(turns=turns, overlap=overlap): times[at] for (turns, overlap), times in FORMS_US.items()}
        found.append({choice: (measured, predicted(choice, CAUSAL, length)) for choice, measured in row.items()})
    found.append({choice: (1e3 * ms, predicted(choice, DOCUMENTS, 32 * K)) for choice, ms in PACKED_MS.items()})
    return found


def test_predictions_are_near_what_was_measured():
    off = {}
    for table in tables():
        for choice, (measured, guess) in table.items():
            off[choice, measured] = guess / measured - 1
    for choice, spec, *shape, measured in SHAPES_US:
        off[choice, measured] = predicted(choice, spec, *shape) / measured - 1
    assert {found: round(ratio, 3) for found, ratio in off.items() if abs(ratio) > NEAR} == {}


def test_candidates_come_in_the_order_that_was_measured():
    wrong = []
    for table in tables():
        for (one, (one_us, one_guess)), (two, (two_us, two_guess)) in itertools.permutations(table.items(), 2):
            if one_us * APART < two_us and one_guess >= two_guess:
                wrong.append((one, two))
    assert wrong == []


def test_items_are_dealt_out_in_waves():
    assert dealt([2.0], 132, 132, True) == 2.0
    assert dealt([2.0], 133, 132, True) == 4.0
    assert dealt([3.0, 1.0], 2, 2, True) == 4.0
    assert dealt([1.0, 1.0, 2.0], 1, 2, False) == 3.0 and dealt([1.0, 1.0, 2.0], 1, 2, True) == 2.0
    assert dealt([5.0], 100_000, 100, True) == pytest.approx(5000)


@pytest.mark.parametrize("name, tile, whole, edge", [("causal", (128, 64), 8, 2), ("window", (64, 64), 0, 3)])
def test_tiles_are_counted_as_the_mask_has_them(name, tile, whole, edge):
    spec = AttentionSpec.parse("score: s; lo: max(0, i - 100); hi: i + 1") if name == "window" else CAUSAL
    last, *_ = spans_of(spec, 640, 640).tiles(640, *tile)
    assert last == (whole, edge, 640)
    everything = sum(w + e for w, e, _ in spans_of(FULL, 640, 640).tiles(640, *tile))
    assert everything == -(-640 // tile[0]) * 640 // tile[1]


def test_what_only_a_run_knows_is_guessed():
    chunk = spans_of(AttentionSpec.parse("score: s; hi: i + n0 + 1"), 128, 1024)
    assert (chunk.hi[0], chunk.hi[-1]) == (897, 1024)
    by_sequence = spans_of(AttentionSpec.parse("score: s; hi: T0[b] + i + 1"), 128, 1024)
    assert by_sequence.hi == chunk.hi
    summarised = spans_of(AttentionSpec.parse(CASES["mask, summarised"].spec), 70, 130)
    assert set(summarised.hi) == {130} and set(summarised.lo) == {0} and summarised.classed
    assert spans_of(AttentionSpec.parse(CASES["padding"].spec), 70, 70).everywhere
    packed = list(spans_of(DOCUMENTS, 2 * DOCUMENT, 2 * DOCUMENT).tiles(2 * DOCUMENT, 128, 64))
    assert packed[0][:2] == packed[len(packed) // 2][:2] == (30, 2)


def test_near_lengths_share_a_choice():
    assert [rounded(n) for n in (1, 64, 65, 1000, 1025, 32769)] == [64, 64, 128, 1024, 1152, 36864]


def found(spec: AttentionSpec, heads: int, queries: int, keys: int, dim: int = 128, dtype=torch.bfloat16, machine=H100):
    return candidates(spec, 1, heads, queries, keys, dim, dim, dtype, machine)


@pytest.mark.parametrize("length", [65, 500, 2 * K, 32 * K])
def test_what_leads_is_within_the_margin_of_the_fastest_and_the_rest_is_sorted(length):
    for spec in (CAUSAL, FULL, WINDOW, DOCUMENTS):
        first, *rest = found(spec, 32, length, length)
        work, spans = Work(32, rounded(length), rounded(length), 128, 128), spans_of(spec, rounded(length), rounded(length))
        times = [microseconds(choice, work, spans, H100) for choice in rest]
        assert times == sorted(times) and microseconds(first, work, spans, H100) <= 1.05 * times[0]
        assert len(rest) < MOST_TIMED


def test_tiles_suit_the_shape():
    assert found(CAUSAL, 32, 8 * K, 8 * K)[0] == hopper(turns=0, overlap=True)
    assert found(CAUSAL, 32, 8 * K, 8 * K, 64)[0] == hopper(block_m=192)
    assert found(WINDOW, 32, 32 * K, 32 * K)[0] == found(DOCUMENTS, 32, 32 * K, 32 * K)[0] == hopper()
    assert found(DOCUMENTS, 32, 32 * K, 32 * K, 256, torch.float32)[0].family == "prefill"
    few = Work(4, 512, 512, 128, 128)
    tall, flat = Choice("prefill", 128, 128, 8, 3), Choice("prefill", 64, 64, 4, 3)
    assert ordered(FULL, few, [tall, flat], 2, H100)[0] == tall
    wide, narrow = hopper(), hopper(64)
    assert ordered(FULL, Work(32, 4 * K, 64, 128, 128), [wide, narrow], 2, H100)[0] == narrow
    assert ordered(FULL, Work(32, 4 * K, 128, 128, 128), [narrow, wide], 2, H100)[0] == wide


def test_where_nothing_was_measured_the_hands_order_stays():
    choices = list(PLAIN)[::-1]
    work = Work(32, 8 * K, 8 * K, 128, 128)
    assert ordered(CAUSAL, work, choices, 4, H100) == ordered(CAUSAL, work, choices, 2, MACHINES["sm_80"]) == tuple(choices)
    assert ordered(CAUSAL, work, choices, 2, H100) != tuple(choices)
