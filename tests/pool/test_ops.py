"""flashmla::pool_*: what they do, by loops; their schemas and fakes; no copy of the pages in generated code."""

import math
import re

import pytest
import torch
from torch._inductor.utils import get_code

from mla_compiler.pool import formats, hadamard
from mla_compiler.pool.ops import OWNERS, POOL
from tests.harness import watching

COUNT, HEADS, PAGE, DIM = 8, 3, 4, 64
FORMATS = list(formats.FORMATS)


def rows():
    """Two rows: three and two pages, 9 and 5 tokens."""
    return torch.tensor([[1, 3, 6], [2, 0, -1]], dtype=torch.int32), torch.tensor([9, 5], dtype=torch.int32)


def stored(format, group=DIM):
    """Pages of random numbers, their scales, and what they say."""
    x = torch.randn(COUNT, HEADS, PAGE, DIM)
    if format == "plain":
        return x, None, x
    values, scales = POOL.pool_quantize(x, format, group)
    return values, scales, formats.dequantize(values, scales, format, torch.float32)


def test_append_puts_each_token_behind_those_that_are_there():
    table, lengths = rows()
    lengths = lengths - 3
    pages, x = torch.zeros(COUNT, HEADS, PAGE, DIM), torch.randn(2, HEADS, 3, DIM)
    assert POOL.pool_append(pages, table, lengths, x) is None
    expected = torch.zeros_like(pages)
    for b in range(2):
        for i in range(3):
            t = int(lengths[b]) + i
            expected[table[b, t // PAGE], :, t % PAGE] = x[b, :, i]
    assert torch.equal(pages, expected)


def test_append_without_a_page_is_an_error():
    table, lengths = rows()
    pages = torch.zeros(COUNT, HEADS, PAGE, DIM)
    with pytest.raises(IndexError):  # row 1 has room for three more
        POOL.pool_append(pages, table, lengths.clamp(max=5), torch.ones(2, HEADS, 4, DIM))
    assert not pages[[1, 2, 4, 5, 7]].any()  # all but the ones that have room for these tokens


@pytest.mark.parametrize("format", FORMATS)
def test_view_gathers_and_shows_nothing_else(format):
    table, lengths = rows()
    pages, scales, numbers = stored(format)
    found = POOL.pool_view(pages, scales, table, lengths, format, torch.float32)
    assert found.shape == (2, HEADS, 3 * PAGE, DIM)
    for b in range(2):
        for t in range(3 * PAGE):
            there = t < lengths[b]
            expected = numbers[table[b, t // PAGE], :, t % PAGE] if there else torch.zeros(HEADS, DIM)
            assert torch.equal(found[b, :, t], expected)


def test_view_of_poisoned_pages_is_zero_beyond_the_length():
    table, lengths = rows()
    pages = torch.full((COUNT, HEADS, PAGE, DIM), torch.nan)
    for b in range(2):
        for t in range(int(lengths[b])):
            pages[table[b, t // PAGE], :, t % PAGE] = 1.0
    found = POOL.pool_view(pages, None, table, lengths, "plain", torch.float32)
    assert found.sum() == (9 + 5) * HEADS * DIM


def test_copy():
    pages = torch.randn(COUNT, HEADS, PAGE, DIM)
    before = pages.clone()
    POOL.pool_copy(pages, torch.tensor([1, 2]), torch.tensor([5, 7]))
    assert torch.equal(pages[[5, 7]], before[[1, 2]])
    assert torch.equal(pages[[0, 1, 2, 3, 4, 6]], before[[0, 1, 2, 3, 4, 6]])


@pytest.mark.parametrize("group", [32, 64])
@pytest.mark.parametrize("format", FORMATS[1:])
def test_quantize_is_as_close_as_its_bits_allow(format, group):
    """Half a step of its group's scale; of e4m3 half of the last of its three bits, and below 2^-6 half of 2^-9."""
    x = torch.randn(50, DIM) * torch.logspace(-3, 3, 50)[:, None]
    values, scales = POOL.pool_quantize(x, format, group)
    assert scales.shape == (50, DIM // group) and scales.dtype == formats.scale_dtype(DIM // group)
    if formats.FORMATS[format].rotated:  # lengths and distances stay as they are: the bound is that of the rotated numbers
        x = hadamard.rotate(x)
    steps = scales.float().abs().repeat_interleave(group, 1)
    allowed = steps / 2 if format != "fp8" else torch.maximum(x.abs() / 16, steps * 2.0**-10)
    found = formats.dequantize(values, scales, format, torch.float32)
    found = hadamard.rotate(found) if formats.FORMATS[format].rotated else found
    ends = {"int8": 127.0, "int4": 8.0, "int6": 32.0, "fp8": 448.0}[format]
    clipped = x.abs() > (ends - 1) * steps if format in ("int4", "int6") else torch.zeros_like(x, dtype=torch.bool)
    assert ((found - x).abs() <= allowed * (1 + 1e-3) + clipped * steps / 2).all()
    assert values.dtype == formats.FORMATS[format].storage


@pytest.mark.parametrize("dim", [2, 20, 64, 96, 256])
def test_rotated_is_the_matrix_of_hadamard(dim):
    """By the recursion that defines it; twice is nothing, and products stay."""
    block, matrix = hadamard.rotated_block(dim), torch.ones(1, 1, dtype=torch.float64)
    while len(matrix) < block:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)]) / math.sqrt(2)
    x, y = torch.randn(2, 7, dim, dtype=torch.float64)
    expected = x @ torch.block_diag(*[matrix] * (dim // block))
    torch.testing.assert_close(hadamard.rotate(x), expected)
    torch.testing.assert_close(hadamard.rotate(hadamard.rotate(x)), x)
    torch.testing.assert_close(hadamard.rotate(x) @ hadamard.rotate(y).T, x @ y.T)


def test_rotation_spreads_a_channel_that_is_large():
    """Beside a channel of about 100, 6 bits without it have a step of 3 for all the others, which are about 1."""
    x = torch.randn(1000, DIM)
    x[:, 3] += 100
    values, scales = POOL.pool_quantize(x, "int6", DIM)
    error = (formats.dequantize(values, scales, "int6", torch.float32) - x).square().mean()
    step = x.abs().amax(1, keepdim=True) / 32
    assert error < (x - (x / step).round() * step).square().mean() / 4


@pytest.mark.parametrize("format", FORMATS[1:])
def test_quantize_of_nothing_is_nothing(format):
    values, scales = POOL.pool_quantize(torch.zeros(2, DIM), format, DIM)
    assert not formats.dequantize(values, scales, format, torch.float32).any()


class Owner:
    """Makes room by counting up."""

    def make_room(self, tables, tokens):
        tables.add_(tokens)


def samples():
    table, lengths = rows()
    pages = torch.randn(COUNT, HEADS, PAGE, DIM)
    number = torch.tensor(-1)
    x = torch.randn(2, HEADS, 3, DIM)
    return {
        "append": (POOL.pool_append.default, (pages, table, lengths - 3, x)),
        "view": (POOL.pool_view.default, (pages, None, table, lengths, "plain", torch.float32)),
        "view int4": (POOL.pool_view.default, (*stored("int4", 32)[:2], table, lengths, "int4", torch.bfloat16)),
        "copy": (POOL.pool_copy.default, (pages, torch.tensor([1, 2]), torch.tensor([5, 7]))),
        "quantize int8": (POOL.pool_quantize.default, (x, "int8", DIM)),
        "quantize int4": (POOL.pool_quantize.default, (x, "int4", 32)),
        "quantize int6": (POOL.pool_quantize.default, (x, "int6", DIM)),
        "quantize fp8": (POOL.pool_quantize.default, (x, "fp8", DIM)),
        "advance": (POOL.pool_advance.default, (lengths, 3)),
        "room": (POOL.pool_room.default, (number, table[None].clone(), 3)),
    }


@pytest.mark.parametrize("name", samples())
def test_opcheck(name):
    owner = Owner()
    OWNERS[-1] = owner
    op, args = samples()[name]
    tests = ["test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic"]
    if "fp8" in name:
        tests.remove("test_schema")  # its checks cannot compare float8 numbers, which stand between the operators inside
    torch.library.opcheck(op, args, test_utils=tests)


def largest_buffer(step):
    """Elements of the largest buffer that the generated code makes."""
    with watching():
        code = "\n".join(get_code(torch.compile(step), torch.randn(2, HEADS, 1, DIM)))
    shapes = re.findall(r"empty_strided_\w+\(\(([\d, ]+?),? *\)", code)
    return max(math.prod(map(int, shape.split(", "))) for shape in shapes)


@pytest.mark.parametrize("format", FORMATS)
def test_generated_code_copies_no_pages(format):
    """Two layers append and attend, the second to what both have written in one store."""
    table, lengths = rows()
    pages, scales, _ = stored(format)
    pages, scales = (x if x is None else x.repeat(64, 1, 1, 1) for x in (pages, scales))

    def step(x):
        for _ in range(2):
            if scales is None:
                POOL.pool_append(pages, table, lengths, x.sin())
            else:
                values, scale = POOL.pool_quantize(x.sin(), format, DIM)
                POOL.pool_append(pages, table, lengths, values)
                POOL.pool_append(scales, table, lengths, scale)
            k = POOL.pool_view(pages, scales, table, lengths + 1, format, torch.float32)
            x = x + (x @ k.mT).softmax(-1) @ k
        POOL.pool_advance(lengths, 1)
        return x

    assert largest_buffer(step) < min(x.numel() for x in (pages, scales) if x is not None)


def test_the_check_of_generated_code_sees_a_copy():
    """Of a program that wants the pages as they were, too."""
    table, lengths = rows()
    pages = torch.randn(COUNT * 64, HEADS, PAGE, DIM)

    def step(x):
        old = pages * 1
        POOL.pool_append(pages, table, lengths - 1, x)
        return old

    assert largest_buffer(step) >= pages.numel()
