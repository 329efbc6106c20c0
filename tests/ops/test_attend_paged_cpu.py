"""flashmla::attend_paged on the CPU is flashmla::attend of the gathered pages; pages that nobody sees are never read."""

import pytest
import torch

from mla_compiler.errors import OperandError
from mla_compiler.lowering import cpu
from mla_compiler.pool import formats

from .cases import CASES, SHAPES, assert_close, problem
from .pages import in_pages
from .test_op_contract import assert_fake_is_exact

attend_paged = torch.ops.flashmla.attend_paged.default
FORMATS = tuple(formats.PAIRS)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_as_attention_over_what_the_pages_hold(case, shape):
    for dtype, page, kind in ((torch.float32, 16, torch.int32), (torch.bfloat16, 3, torch.int64)):
        paged, plain = in_pages(problem(case, shape, dtype), page, kind=kind)
        assert_close(attend_paged(*paged), plain)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("name", ["causal", "per sequence", "window", "sinks", "alibi"])
def test_formats(name, format):
    for shape in ((2, 4, 2, 70, 70, 64, 64), (2, 6, 3, 1, 90, 64, 32)):
        paged, plain = in_pages(problem(CASES[name], shape), 16, format)
        assert_close(attend_paged(*paged), plain)


@pytest.mark.parametrize("format", FORMATS)
def test_opcheck(format):
    for name in ("causal", "per sequence", "pad"):
        paged, _ = in_pages(problem(CASES[name], (2, 4, 2, 5, 20, 64, 32), heads_first=name == "pad"), 8, format)
        assert_fake_is_exact(attend_paged, *paged)
        torch.library.opcheck(attend_paged, paged)


def test_pages_in_any_memory_order():
    """[slots, heads, dim] with a page of one token, as transformers keeps it, and pages that begin with the head."""
    paged, plain = in_pages(problem(CASES["causal"], SHAPES["prefill"]), 1)
    q, k, v, *rest = paged
    k, v = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (k, v))
    torch.testing.assert_close(attend_paged(q, k, v, *rest), cpu.attend(*plain))


def test_wrong_operands_are_named():
    (q, k, v, ks, vs, pages, format, *rest), _ = in_pages(problem(CASES["causal"], (2, 4, 2, 5, 20, 64, 64)), 4, "int8")
    for message, arguments in {
        "format is one of": (q, k, v, ks, vs, pages, "int5", *rest),
        "pages is int32 or int64": (q, k, v, ks, vs, pages[:1], format, *rest),
        "with q": (q, k[..., :32], v, ks, vs, pages, format, *rest),
        "int8 pages are": (q, k.float(), v, ks, vs, pages, format, *rest),
        "their k_scales": (q, k, v, None, vs, pages, format, *rest),
        "v_scales is": (q, k, v, ks, vs.half(), pages, format, *rest),
        "have no v_scales": (q, k.float(), v.float(), None, vs, pages, "plain", *rest),
        "4 dimensions": (q[0], k, v, ks, vs, pages, format, *rest),
        "pages=share alone": (q, k, v, ks, vs, pages, format, *rest[:-1], f"{rest[-1]}; sparsity: lsh=0.5"),
    }.items():
        with pytest.raises(OperandError, match=message):
            attend_paged(*arguments)
