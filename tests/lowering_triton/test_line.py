"""The line of key tiles and its cut: every tile in exactly one part, and each item knows its parts."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mla_compiler.ir import AttentionSpec
from mla_compiler.lowering import codegen, gpu, modules, printed
from mla_compiler.lowering.decode.config import batch_block

SPEC = AttentionSpec.parse("score: s; hi: T0[b] + 1")
WALK = '''

@triton.jit
def walk(seen, said, B, S, items, FEW, WIDE, {names}, BLOCK_N: tl.constexpr, BLOCK_B: tl.constexpr):
    """seen [items of all, WIDE] += 1 + part; said [items of all, 2]: first part and parts."""
    line = divide(B, 1, S, items, FEW, ({names},), BLOCK_N, BLOCK_B, 1)
    part = tl.program_id(0)
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
'''


def walked(lengths: list[int], items: int, programs: int, block_n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(seen, said) of sequences of `lengths` keys, `items` items each."""
    last = torch.tensor(lengths) - 1
    given = gpu.operands(SPEC, [last], [], [])
    text = codegen.source(SPEC, "decode") + WALK.format(names=", ".join(printed.operands(SPEC)))
    keys, batch = max(lengths), len(lengths)
    wide = max(1, -(-keys // block_n))
    seen, said = (torch.zeros(batch * items, n, dtype=torch.int32) for n in (wide, 2))
    modules.load(text, "walk").walk[(programs,)](
        seen, said, batch, keys, items, programs // (batch * items), wide, *given, BLOCK_N=block_n, BLOCK_B=batch_block(batch))
    return seen, said


def check(interpreted, lengths: list[int], items: int, programs: int, block_n: int) -> torch.Tensor:
    """said, after every tile was found in one part and every item in the parts it names."""
    seen, said = interpreted(walked, lengths, items, programs, block_n)
    tiles = [max(1, -(-length // block_n)) for length in lengths for _ in range(items)]
    assert [int((row > 0).sum()) for row in seen] == tiles
    for row, (first, count), n in zip(seen, said.tolist(), tiles, strict=True):
        assert row[:n].unique_consecutive().tolist() == list(range(first + 1, first + count + 1))
    return said


def test_where_programs_go_evenly_into_items_each_has_its_own(interpreted):
    """2 items of 11 tiles: 3 programs each, 4 tiles a program; 7 programs are 6 and one without work."""
    assert check(interpreted, [176], 2, 6, 16).tolist() == check(interpreted, [176], 2, 7, 16).tolist() == [[0, 2], [3, 2]]


def test_every_tile_is_in_one_part(interpreted):
    @settings(max_examples=40, deadline=None)
    @given(st.lists(st.integers(0, 3000), min_size=1, max_size=6), st.integers(1, 3), st.integers(1, 9),
           st.sampled_from([16, 64]))
    def holds(lengths, items, programs, block_n):
        check(interpreted, [max(1, lengths[0]), *lengths[1:]], items, programs, block_n)

    holds()
