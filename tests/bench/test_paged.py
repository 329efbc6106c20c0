"""The step over chosen pages that is measured: its operands, its bars, and that who misses a page is found out."""

import dataclasses

import pytest
import torch

from mla_compiler import lowering
from mla_compiler.bench.operands import Operands
from mla_compiler.bench.operands_paged import PagedOperands
from mla_compiler.bench.sampling import Sample, operands
from mla_compiler.bench.sparse import SPARSE
from mla_compiler.ir import AttentionSpec
from mla_compiler.lowering.sparse.config import unserved_in_pages
from mla_compiler.lowering.sparse.paging import kept

PAGED = [case for case in SPARSE if case.page]


@pytest.fixture
def given() -> PagedOperands:
    lowering.register()
    made = operands(PAGED[1].shrunk(), "cpu", torch.float32)
    assert isinstance(made, PagedOperands)
    return made


def test_the_bars_of_what_leaves_out():
    bars = {case.name: [str(bar) for bar in case.bars] for case in SPARSE if case.bars}
    dense = "x ours, dense"
    assert bars == {
        "sparse prefill 32k, exact, 1 of 1 tiles": [f">= 0.99 {dense}"],
        "sparse prefill 32k, threshold=0.001, 1 of 2 tiles": [f">= 1.3 {dense}"],
        "sparse prefill 32k, lsh=0.25, 1 of 8 tiles": [f">= 2.5 {dense}"],
        "sparse decode B=1 128k in pages, pages=0.125, 1 of 16 pages": [f">= 4 {dense}"],
        "sparse decode B=16 128k in pages, pages=0.125, 1 of 16 pages": [f">= 4 {dense}"],
    }


@pytest.mark.parametrize("case", [*PAGED, *(case.shrunk() for case in PAGED)], ids=str)
def test_fewer_pages_matter_than_are_chosen(case):
    spec, pages = AttentionSpec.parse(case.spec), case.keys // case.page
    assert not unserved_in_pages(spec, case.page)
    chosen = kept(pages, case.queries, case.page, spec.sparsity)
    assert -(-pages // case.every) + 2 <= chosen <= pages / 8


def test_the_pages_in_order_are_the_cache_in_one_piece(given):
    case, (k, v) = given.case, given.in_one_piece()
    whole = Operands(case, given.q, k, v, given.tables)
    for place in given.places(torch.Generator().manual_seed(1)):
        assert torch.equal(given.formula(place, torch.float64), whole.formula(place, torch.float64))
    assert sorted(given.pages.flatten().tolist()) == list(range(len(given.k)))
    assert given.pages.flatten().tolist() != list(range(len(given.k)))
    assert (given.bounds[:, :, 0] >= given.k.amax(2)).all() and (given.bounds[:, :, 1] >= (-given.k).amax(2)).all()


def test_both_forms_are_right_and_a_page_that_is_missed_is_told(given):
    sample = Sample.of(given)
    assert sample.error(given.ours()()) <= 2 and sample.error(given.ours(dense=True)()) <= 2
    mixed = given.bounds[torch.randperm(len(given.bounds), generator=torch.Generator().manual_seed(0))]
    assert sample.error(dataclasses.replace(given, bounds=mixed).ours()()) > 2
