"""The model of decode's time against what was measured (decode_h100.csv, whose first line says where); what it chooses."""

import csv
import itertools
from collections import defaultdict
from pathlib import Path

import pytest
import torch

from mla_compiler.ir import AttentionSpec
from mla_compiler.lowering import codegen
from mla_compiler.lowering.choice import Choice
from mla_compiler.lowering.decode.config import Shape
from mla_compiler.lowering.decode.model import HOPPER, LATENCY, LEAST_KEYS, cut, microseconds, ordered, tile_us
from mla_compiler.lowering.machine import MACHINES
from mla_compiler.lowering.select import candidates

H100, GROUP, KV_HEADS, DIM = MACHINES["sm_90"], 4, 8, 128
SPEC = AttentionSpec.parse("score: 0.1*s; hi: T0[b] + i + 1; group: 4")
FAR = 0.06
"""How far a prediction may be from what was measured."""
APART = 1.10
"""Candidates this far apart must come in the order that was measured."""
BEST = 1.02
"""How near to the fastest that was measured what is chosen must be."""


def shape_of(batch: int, queries: int, keys: int) -> Shape:
    return Shape(batch, KV_HEADS, queries, keys, DIM, DIM, 2)


def choice_of(kernel: str, shape: Shape, block_n: int, stages: int) -> Choice:
    rows = 64 if kernel == "decode_hopper" else max(16, GROUP * shape.queries)
    programs = min(H100.processors, shape.batch * KV_HEADS * -(-shape.keys // block_n))
    return Choice(kernel, rows, block_n, 4, stages, programs=programs)


def tables() -> dict[Shape, dict[Choice, float]]:
    """us of each choice, by shape."""
    lines = (Path(__file__).parent / "decode_h100.csv").read_text().splitlines()
    found: dict[Shape, dict[Choice, float]] = defaultdict(dict)
    for row in csv.DictReader(line for line in lines if not line.startswith("#")):
        shape = shape_of(*(int(row[name]) for name in ("batch", "queries", "keys")))
        found[shape][choice_of(row["kernel"], shape, int(row["block_n"]), int(row["stages"]))] = float(row["us"])
    return found


MEASURED = tables()


@pytest.mark.parametrize("shape", MEASURED, ids=lambda shape: f"B={shape.batch} T={shape.queries} S={shape.keys}")
class TestAgainstTheTable:
    def test_predictions_are_near(self, shape):
        off = {choice: microseconds(choice, GROUP, shape, H100) / us - 1 for choice, us in MEASURED[shape].items()}
        assert {str(choice): round(ratio, 3) for choice, ratio in off.items() if abs(ratio) > FAR} == {}

    def test_what_is_far_apart_comes_in_order(self, shape):
        guess = {choice: microseconds(choice, GROUP, shape, H100) for choice in MEASURED[shape]}
        pairs = itertools.permutations(MEASURED[shape].items(), 2)
        assert [(one, two) for (one, a), (two, b) in pairs if a * APART < b and guess[one] >= guess[two]] == []

    def test_what_is_chosen_is_near_the_fastest(self, shape):
        first = candidates(SPEC, shape.batch, 32, shape.queries, shape.keys, DIM, DIM, torch.bfloat16, H100)[0]
        us = MEASURED[shape][choice_of(first.family, shape, first.block_n, first.stages)]
        assert us <= BEST * min(MEASURED[shape].values())


def test_the_line_is_cut_as_the_kernel_cuts_it():
    assert cut(128, 128, 132, 2) == (128, 1)                     # one program an item, four without work
    assert cut(8, 32, 132, 2) == (2, 16)
    assert cut(8, 4, 32, 4) == (4, 1)                            # no part of fewer than 128 keys
    assert cut(8, 1, 8, 2) == (1, 1)
    assert cut(528, 128, 132, 2) == (512, 1.25)
    assert cut(99, 40, 132, 2) == (30, 40 / 30 + 1)


def test_the_hands_preference_breaks_near_ties_and_what_is_slow_comes_last():
    shape = shape_of(1, 1, 2048)
    two, four, plain = (choice_of(*at) for at in (("decode_hopper", shape, 64, 2), ("decode_hopper", shape, 64, 4),
                                                  ("decode", shape, 64, 6)))
    assert ordered(GROUP, shape, [four, two, plain], H100)[0] == four
    assert ordered(GROUP, shape, [plain, two, four], H100) == [two, four, plain]


def test_the_least_share_is_the_kernels():
    assert f"LEAST_KEYS = tl.constexpr({LEAST_KEYS})" in codegen.source(SPEC, "decode_hopper")


def test_one_stage_waits_for_its_keys():
    shape = shape_of(1, 1, 256)
    assert tile_us(choice_of("decode_hopper", shape, 32, 1), shape, HOPPER) == LATENCY


def test_where_nothing_was_measured_the_hands_order_stays():
    shape = shape_of(1, 1, 2048)
    found = [choice_of("decode", shape, 64, 6), choice_of("decode_hopper", shape, 64, 2)]
    assert ordered(GROUP, shape, found, H100) == found[::-1]
    assert ordered(GROUP, shape, found, MACHINES["sm_80"]) == found
