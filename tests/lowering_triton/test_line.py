"""The line of key tiles and its cut: every tile in exactly one part, whoever draws it, and each item knows its parts."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mla_compiler.ir import AttentionSpec
from mla_compiler.lowering import codegen, gpu, modules
from mla_compiler.lowering.choice import Choice
from mla_compiler.lowering.decode.config import batch_block
from mla_compiler.lowering.decode.launch import most_parts

SPEC = AttentionSpec.parse("score: s; hi: T0[b] + 1")
WALK = '''

@triton.jit
def walk(seen, said, drawn, B, S, items, FEW, DRAWN, WIDE, {names}, BLOCK_N: tl.constexpr, BLOCK_B: tl.constexpr):
    """seen [items of all, WIDE] += 1 + part; said [items of all, 2]: first part and parts; drawn: how many parts are."""
    line = divide(B, 1, S, items, FEW, DRAWN, ({names},), BLOCK_N, BLOCK_B, 1)
    part = tl.program_id(0)
    while part < tl.num_programs(0) + to_draw(line):
        item, before, left = keys_of_part(line, part, items, B, FEW)
        while left > 0:
            count = tl.minimum(keys_of(line, item // items)[1] - before, left)
            for t in range(before, before + count):
                tl.store(seen + item * WIDE + t, tl.load(seen + item * WIDE + t) + 1 + part)
            first, parts = parts_of(line, item, items, FEW)
            tl.store(said + item * 2, first)
            tl.store(said + item * 2 + 1, parts)
            left -= count
            item += 1
            before = 0
        part += tl.num_programs(0)
    tl.store(drawn, to_draw(line))
'''


def walked(lengths: list[int], items: int, programs: int, drawn: int, block_n: int) -> tuple[torch.Tensor, torch.Tensor, int]:
    """(seen, said, parts that are drawn) of sequences of `lengths` keys, `items` items each."""
    last = torch.tensor(lengths) - 1
    given = gpu.operands(SPEC, [last], [], [])
    text = codegen.source(SPEC, "decode") + WALK.format(names=", ".join(codegen.operands(SPEC)))
    keys, batch = max(lengths), len(lengths)
    wide = max(1, -(-keys // block_n))
    seen, said = (torch.zeros(batch * items, n, dtype=torch.int32) for n in (wide, 2))
    parts = torch.zeros(1, dtype=torch.int32)
    modules.load(text, "walk").walk[(programs,)](
        seen, said, parts, batch, keys, items, programs // (batch * items), drawn, wide, *given, BLOCK_N=block_n,
        BLOCK_B=batch_block(batch))
    return seen, said, int(parts)


def check(interpreted, lengths, items, programs, drawn, block_n):
    seen, said, parts = interpreted(walked, lengths, items, programs, drawn, block_n)
    tiles = [max(1, -(-length // block_n)) for length in lengths for _ in range(items)]
    assert [int((row > 0).sum()) for row in seen] == tiles
    for row, (first, count), n in zip(seen, said.tolist(), tiles, strict=True):
        assert row[:n].unique_consecutive().tolist() == list(range(first + 1, first + count + 1))
    assert parts + programs <= most_parts(Choice("decode_hopper", 64, block_n, 4, 1, programs=programs, drawn=drawn))
    return parts


@pytest.mark.parametrize("drawn, parts", [(0, 0), (8, 11), (32, 44)])
def test_a_quarter_of_each_share_is_drawn(interpreted, drawn, parts):
    """2 items of 176 tiles for 4 programs: shares of 88, of which 22 or all are drawn, 128 keys at a time."""
    assert check(interpreted, [2816], 2, 4, drawn, 16) == parts


def test_every_tile_is_in_one_part(interpreted):
    @settings(max_examples=40, deadline=None)
    @given(st.lists(st.integers(0, 3000), min_size=1, max_size=6), st.integers(1, 3), st.integers(1, 9),
           st.sampled_from([0, 4, 8, 32]), st.sampled_from([16, 64]))
    def holds(lengths, items, programs, drawn, block_n):
        check(interpreted, [max(1, length) if at == 0 else length for at, length in enumerate(lengths)], items, programs, drawn,
              block_n)

    holds()
